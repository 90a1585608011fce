// What is known before anybody touches the page: scene.json, and scene.bin with its arrays as float32.

import { quantile } from "./maths.js";

export const product = (shape) => shape.reduce((a, b) => a * b, 1);

/** The shape of one item of an input, at the size of the training where it is free. */
export function itemShape({ image_shape, latent_shape }, { shape }) {
  const [, H, W] = image_shape;
  const [, h, w] = latent_shape;
  return shape.slice(1).map((axis) => ({ H, W, h, w })[axis] ?? axis);
}

/** A label by name, where the model's condition or the data have one. */
export const className = ({ condition, class_names }, label) => condition?.names?.[label] ?? class_names[label] ?? label;

async function fetched(name) {
  const answer = await fetch(name);
  if (!answer.ok) throw new Error(`${name} could not be read: ${answer.status} ${answer.statusText}.`);
  return answer;
}

export async function loadScene() {
  const [facts, buffer] = await Promise.all([
    fetched("scene.json").then((answer) => answer.json()),
    fetched("scene.bin").then((answer) => answer.arrayBuffer()),
  ]);
  const { encoder, prior, next } = facts.graphs;
  const scene = {
    ...facts,
    size: product(facts.latent_shape),
    pixels: product(facts.image_shape),
    code: ["z", "logvar", "codes"].filter((name) => name in encoder.outputs),
    positions: facts.codebook && facts.codebook.depth * product(facts.codebook.shape),
    noise_size: prior ? product(prior.inputs.noise.shape.slice(1)) : next && next.inputs.codes.shape[1],
    draws_codes: Boolean(next ?? (prior && "codes" in prior.outputs)),
    draws: facts.arrays.noise?.[0] ?? 0,
  };
  let offset = 0;
  for (const [name, shape] of Object.entries(facts.arrays)) {
    scene[name] = new Float32Array(buffer, offset, product(shape));
    offset += 4 * product(shape);
  }
  scene.reach = Math.max(4, Math.ceil(quantile(scene.z.map(Math.abs).sort(), 0.999)));
  return scene;
}
