// The one way to get numbers: decode, encode, prior, codes and terms, float32 in and out. Who answers is the scene's choice.

export async function openModel(scene) {
  const { open } = await import(scene.runtime ? "./answers-browser.js" : "./answers-server.js");
  const answer = await open(scene);
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
      const [z, codes] = [new Float32Array(count * scene.size), new Float32Array(count * scene.positions)];
      for (let n = 0; n < count; n++) {
        const row = found.subarray(n * (scene.size + scene.positions), (n + 1) * (scene.size + scene.positions));
        z.set(row.subarray(0, scene.size), n * scene.size);
        codes.set(row.subarray(scene.size), n * scene.positions);
      }
      return { z, codes };
    },
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
