// The one way to get numbers: decode, encode, prior, codes and terms, float32 in and out. Who answers is the scene's choice:
// this browser, or Python, through the page's own server.

async function askServer(call, values, label) {
  const headers = { "content-type": "application/octet-stream" };
  const address = label === undefined ? call : `${call}?label=${label}`;
  const answer = await fetch(address, { method: "POST", headers, body: values }).catch(() => {
    throw new Error("The explorer's server does not answer. Start it again: vaelib explore BUNDLE");
  });
  if (!answer.ok) throw new Error(await answer.text());
  return new Float32Array(await answer.arrayBuffer());
}

export async function openModel(scene) {
  const answer = scene.runtime ? await (await import("./answers-browser.js")).open(scene) : askServer;
  let label = scene.condition ? 0 : undefined;
  const ask = (call, values) => answer(call, values, label);

  async function inParts(call, values, item) {
    const step = scene.largest_batch * item;
    if (values.length <= step) return ask(call, values);
    const parts = [];
    for (let i = 0; i < values.length; i += step) parts.push(await ask(call, values.subarray(i, i + step)));
    const whole = new Float32Array(parts.reduce((length, part) => length + part.length, 0));
    let offset = 0;
    for (const part of parts) {
      whole.set(part, offset);
      offset += part.length;
    }
    return whole;
  }

  return {
    /** The label that every answer is given; undefined of a model without labels. */
    get label() {
      return label;
    },
    set label(chosen) {
      label = chosen;
    },
    /** Latents (n x D) to images (n x C x H x W). */
    decode: (z) => inParts("decode", z, scene.size),
    /** Standard normal noise (n x noise_size) to draws of the prior: latents (n x D), and their codes where it is of codes. */
    async fromNoise(noise) {
      if (scene.graphs.prior?.file === null && !scene.draws_codes) return { z: noise };
      const found = await inParts("prior", noise, scene.noise_size);
      if (!scene.draws_codes) return { z: found };
      const count = noise.length / scene.noise_size;
      const width = found.length / count;
      const part = (from, size) =>
        Float32Array.from({ length: count * size }, (_, i) => found[Math.floor(i / size) * width + from + (i % size)]);
      return { z: part(0, scene.size), codes: part(scene.size, scene.positions) };
    },
    /** One image (C x height x width) of any size, reconstructed in tiles; where scene.largest_image is not 0. */
    large: (image, height, width) => ask(`large/${height}/${width}`, image),
    /** Codes (N) to their z (D). */
    embed: (codes) => ask("codes", codes),
    /** One image to its z, the log variance of a Gaussian posterior around it, and its codes. */
    async encode(image) {
      const found = await ask("encode", image);
      const rest = found.subarray(scene.size);
      return { z: found.subarray(0, scene.size), logvar: scene.codebook ? [] : rest, codes: scene.codebook ? rest : undefined };
    },
    /** Distortion and KL of one image in nats: the mean over the scene's draws, and the standard error of their sum. */
    async terms(image) {
      const draws = await ask("terms", image);
      const count = draws.length / 2;
      const mean = (pick) => Array.from({ length: count }, (_, k) => pick(k)).reduce((a, b) => a + b) / count;
      const distortion = mean((k) => draws[2 * k]);
      const kl = mean((k) => draws[2 * k + 1]);
      const variance = mean((k) => (draws[2 * k] + draws[2 * k + 1] - distortion - kl) ** 2) / Math.max(1, count - 1);
      return { distortion, kl, error: Math.sqrt(variance) };
    },
    hasTerms: scene.draws > 0,
    draws: scene.draws,
  };
}
