// The model runs here, by onnxruntime-web; its two files are taken only if they have the hashes that the scene tells.
import { product } from "./scene.js";

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
  const session = (part) => (sessions[part] ??= ort.InferenceSession.create(`${part}.onnx`, { executionProviders: ["wasm"] }));
  const tensor = (values, shape) =>
    new ort.Tensor("float32", Float32Array.from(values), [values.length / product(shape), ...shape]);

  async function decode(z) {
    const { mean } = await (await session("decoder")).run({ z: tensor(z, scene.latent_shape) }, ["mean"]);
    return mean.data;
  }

  async function encode(image) {
    const code = await (await session("encoder")).run({ image: tensor(image, scene.image_shape) });
    return code.z ? code.z.data : Float32Array.from([...code.mu.data, ...code.logvar.data]);
  }

  async function prior(noise) {
    const { z } = await (await session("prior")).run({ noise: tensor(noise, [scene.noise_size]) });
    return z.data;
  }

  async function terms(image) {
    const count = scene.eps.length / scene.size;
    const images = new Float32Array(count * image.length);
    for (let k = 0; k < count; k++) images.set(image, k * image.length);
    const inputs = { image: tensor(images, scene.image_shape), eps: tensor(scene.eps, scene.latent_shape) };
    const { distortion, kl } = await (await session("vae")).run(inputs, ["distortion", "kl"]);
    return Float32Array.from({ length: 2 * count }, (_, i) => (i % 2 ? kl : distortion).data[i >> 1]);
  }

  const calls = { decode, encode, prior, terms };
  const answer = async (call, values) => {
    const found = await calls[call](values);
    if (!found.every(Number.isFinite)) throw new Error(`The model's ${call} gives values that are not finite.`);
    return found;
  };
  let last = Promise.resolve(); // onnxruntime-web runs one thing at a time
  return (call, values) => (last = last.catch(() => {}).then(() => answer(call, values)));
}
