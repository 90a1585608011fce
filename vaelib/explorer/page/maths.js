// Draws by seed, paths between latents, and planes through latent space.

/** Standard normal numbers; the same seed gives the same ones in every browser (sfc32, Box and Muller). */
export function normals(seed, count) {
  let [a, b, c, d] = [0x9e3779b9, 0x243f6a88, seed >>> 0, 1];
  const uniform = () => {
    const t = (((a + b) | 0) + d) | 0;
    d = (d + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = ((c << 21) | (c >>> 11)) + t;
    return ((t >>> 0) + 0.5) / 2 ** 32;
  };
  for (let i = 0; i < 12; i++) uniform();
  return Float32Array.from({ length: count }, () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform()));
}

/** count latents from a to b: along the chord, or along the arc between their directions. */
export function path(a, b, count, spherical) {
  const dot = (x, y) => x.reduce((sum, value, i) => sum + value * y[i], 0);
  const angle = Math.acos(Math.max(-1, Math.min(1, dot(a, b) / Math.max(Math.sqrt(dot(a, a) * dot(b, b)), 1e-30))));
  const arc = spherical && Math.sin(angle) > 1e-6;
  const points = new Float32Array(count * a.length);
  for (let k = 0; k < count; k++) {
    const t = k / (count - 1);
    const [p, q] = arc ? [Math.sin((1 - t) * angle), Math.sin(t * angle)].map((s) => s / Math.sin(angle)) : [1 - t, t];
    for (let i = 0; i < a.length; i++) points[k * a.length + i] = p * a[i] + q * b[i];
  }
  return points;
}

/** Phi(x) to 1e-7 of itself: Numerical Recipes, section 6.2, erfc by Chebyshev's polynomials. */
export function normalCdf(x) {
  const z = Math.abs(x) / Math.SQRT2;
  const t = 1 / (1 + 0.5 * z);
  const series = [1.00002368, 0.37409196, 0.09678418, -0.18628806, 0.27886807, -1.13520398, 1.48851587, -0.82215223, 0.17087277];
  const tail = 0.5 * t * Math.exp(-z * z - 1.26551223 + series.reduceRight((sum, c) => t * (c + sum), 0));
  return x < 0 ? tail : 1 - tail;
}

/** The first code whose cumulative probability exceeds u. */
export function codeAt(logits, u) {
  const most = logits.reduce((a, b) => Math.max(a, b));
  const weights = Array.from(logits, (x) => Math.exp(x - most));
  let left = u * weights.reduce((a, b) => a + b);
  const found = weights.findIndex((weight) => (left -= weight) < 0);
  return found < 0 ? weights.findLastIndex((weight) => weight > 0) : found;
}

/** Draws { z, codes } from the prior if it can be drawn from, else around the data's posteriors. */
export async function draw(scene, model, seed, count, temperature = 1) {
  const size = scene.noise_size ?? scene.size; // what is beyond the latents' own noise chooses a component
  const z = normals(seed, count * size).map((x, i) => (i % size < scene.size ? temperature * x : x));
  if (scene.noise_size !== undefined) return model.fromNoise(z);
  for (let n = 0; n < count; n++) {
    const from = ((seed + 1) * 7919 + n * 104729) % scene.data.count;
    for (let i = 0; i < scene.size; i++) {
      const at = from * scene.size + i;
      const sigma = scene.logvar ? Math.exp(0.5 * scene.logvar[at]) : 0;
      z[n * scene.size + i] = scene.z[at] + sigma * z[n * scene.size + i];
    }
  }
  return { z };
}

/** The plane of one of the scene's bases: to the plane's two coordinates, and back. */
export function plane(scene, index) {
  const size = scene.size;
  const origin = scene.origins.subarray(index * size, (index + 1) * size);
  const basis = [0, 1].map((axis) => scene.bases.subarray((2 * index + axis) * size, (2 * index + axis + 1) * size));
  const on = (z, offset = 0) =>
    basis.map((direction) => direction.reduce((sum, x, i) => sum + x * (z[offset + i] - origin[i]), 0));
  const off = ([u, v]) => origin.map((x, i) => x + u * basis[0][i] + v * basis[1][i]);
  const distance = (z) => Math.hypot(...off(on(z)).map((x, i) => x - z[i]));
  return { on, off, distance };
}

/** A number as the page writes it, with a true minus sign and no minus zero. */
export function number(x, digits = 2) {
  const options = { minimumFractionDigits: digits, maximumFractionDigits: digits, signDisplay: "negative" };
  return x.toLocaleString("en", options).replace("-", "−");
}

export const quantile = (sorted, q) => sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))];
