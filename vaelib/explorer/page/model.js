// The one way to get numbers: decode, encode, prior and terms, float32 in and out. Who answers is the scene's choice.

export async function openModel(scene) {
  const { open } = await import(scene.runtime ? "./answers-browser.js" : "./answers-server.js");
  const ask = await open(scene);

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
    /** Latents (n x D) to images (n x C x H x W). */
    decode: (z) => inParts("decode", z, scene.size),
    /** Standard normal noise (n x noise_size) to latents (n x D) from the prior; without a graph they are the noise. */
    fromNoise: (noise) => (scene.graphs.prior.file ? inParts("prior", noise, scene.noise_size) : noise),
    /** One image to its z, and the log variance of a Gaussian posterior around it. */
    async encode(image) {
      const code = await ask("encode", image);
      return { z: code.subarray(0, scene.size), logvar: code.subarray(scene.size) };
    },
    /** Distortion and KL of one image in nats: the mean over the scene's draws, and the standard error of their sum. */
    async terms(image) {
      const draws = await ask("terms", image);
      const count = draws.length / 2;
      const mean = (pick) => Array.from({ length: count }, (_, k) => pick(k)).reduce((a, b) => a + b) / count;
      const distortion = mean((k) => draws[2 * k]);
      const kl = mean((k) => draws[2 * k + 1]);
      const variance = mean((k) => (draws[2 * k] + draws[2 * k + 1] - distortion - kl) ** 2) / (count - 1);
      return { distortion, kl, error: Math.sqrt(variance) };
    },
    hasTerms: scene.draws > 0,
    draws: scene.draws,
  };
}
