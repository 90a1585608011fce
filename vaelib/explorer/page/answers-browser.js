// The model runs here, by onnxruntime-web; its two files are taken only if they have the hashes that the scene tells.
import { itemShape, product } from "./scene.js";

const MODULE = "ort.wasm.bundle.min.mjs";
const BINARY = "ort-wasm-simd-threaded.wasm";

async function onnxruntime({ place, integrity }) {
  const fetched = (name) =>
    fetch(place + name, { integrity: integrity[name] }).then((answer) => {
      if (!answer.ok) throw new Error(`${name} could not be read: ${answer.status}.`);
      return answer.arrayBuffer();
    });
  const [code, binary] = await Promise.all([fetched(MODULE), fetched(BINARY)]);
  const ort = await import(URL.createObjectURL(new Blob([code], { type: "text/javascript" })));
  ort.env.wasm.wasmBinary = binary;
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
  return ort;
}

export async function open(scene) {
  const ort = await onnxruntime(scene.runtime);
  const sessions = {};
  const session = (file) => (sessions[file] ??= ort.InferenceSession.create(file, { executionProviders: ["wasm"] }));

  /** Some outputs of a graph, each as numbers, from its inputs as numbers. */
  async function run(part, inputs, outputs) {
    const { file, inputs: specs, names } = scene.graphs[part];
    const tensors = Object.entries(inputs).map(([name, values]) => {
      const shape = itemShape(scene, specs[name]);
      return [names[name] ?? name, new ort.Tensor(specs[name].dtype, Float32Array.from(values), [values.length / product(shape), ...shape])];
    });
    const wanted = outputs.map((name) => names[name] ?? name);
    const found = await (await session(file)).run(Object.fromEntries(tensors), wanted);
    return wanted.map((name) => found[name].data);
  }

  async function terms(image) {
    const images = new Float32Array(scene.draws * image.length);
    for (let k = 0; k < scene.draws; k++) images.set(image, k * image.length);
    const [distortion, kl] = await run("vae", { image: images, noise: scene.noise }, ["distortion", "kl"]);
    return Float32Array.from({ length: 2 * scene.draws }, (_, i) => (i % 2 ? kl : distortion)[i >> 1]);
  }

  const calls = {
    decode: async (z) => (await run("decoder", { z }, ["mean"]))[0],
    encode: async (image) => Float32Array.from((await run("encoder", { image }, scene.code)).flatMap((part) => [...part])),
    prior: async (noise) => (await run("prior", { noise }, ["z"]))[0],
    terms,
  };
  const answer = async (call, values) => {
    const found = await calls[call](values);
    if (!found.every(Number.isFinite)) throw new Error(`The model's ${call} gives values that are not finite.`);
    return found;
  };
  let last = Promise.resolve(); // onnxruntime-web runs one thing at a time
  return (call, values) => (last = last.catch(() => {}).then(() => answer(call, values)));
}
