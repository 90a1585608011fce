// What is known before anybody touches the page: scene.json, and scene.bin with its arrays as float32.

import { quantile } from "./maths.js";

export const product = (shape) => shape.reduce((a, b) => a * b, 1);

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
  const scene = { ...facts, size: product(facts.latent_shape), pixels: product(facts.image_shape) };
  let offset = 0;
  for (const [name, shape] of Object.entries(facts.arrays)) {
    scene[name] = new Float32Array(buffer, offset, product(shape));
    offset += 4 * product(shape);
  }
  scene.reach = Math.max(4, Math.ceil(quantile(scene.mu.map(Math.abs).sort(), 0.999)));
  return scene;
}
