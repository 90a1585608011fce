// The model runs here, by onnxruntime-web; its two files are taken only if they have the hashes that the scene tells.
import { codeAt, normalCdf } from "./maths.js";
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

  /** Some outputs of a graph, each as numbers, from its inputs as numbers, and the label of all where it takes one. */
  async function run(part, inputs, outputs, label) {
    const { file, inputs: specs, names } = scene.graphs[part];
    const [[first, items]] = Object.entries(inputs);
    const count = items.length / product(itemShape(scene, specs[first]));
    const given = "condition" in specs ? { ...inputs, condition: new Array(count).fill(label) } : inputs;
    const tensors = Object.entries(given).map(([name, values]) => {
      const numbers = specs[name].dtype === "int64" ? BigInt64Array.from(values, BigInt) : Float32Array.from(values);
      return [names[name] ?? name, new ort.Tensor(specs[name].dtype, numbers, [count, ...itemShape(scene, specs[name])])];
    });
    const wanted = outputs.map((name) => names[name] ?? name);
    const found = await (await session(file)).run(Object.fromEntries(tensors), wanted);
    return wanted.map((name) => (found[name].type === "int64" ? Float32Array.from(found[name].data, Number) : found[name].data));
  }

  /** Several outputs of each item side by side. */
  function side(parts, count) {
    const widths = parts.map((part) => part.length / count);
    const rows = Array.from({ length: count }, (_, n) => parts.flatMap((part, i) => [...part.subarray(n * widths[i], (n + 1) * widths[i])]));
    return Float32Array.from(rows.flat());
  }

  /** Codes of noise, each by the inverse of its distribution function. */
  async function codesOf(noise, label) {
    const { num_codes } = scene.codebook;
    const codes = new Float32Array(noise.length);
    if (!scene.graphs.next) return codes.map((_, i) => Math.min(Math.floor(num_codes * normalCdf(noise[i])), num_codes - 1));
    const count = noise.length / scene.positions;
    for (let at = 0; at < scene.positions; at++) {
      const [logits] = await run("next", { codes, position: new Array(count).fill(at) }, ["logits"], label);
      for (let n = 0; n < count; n++) {
        const i = n * scene.positions + at;
        codes[i] = codeAt(logits.subarray(n * num_codes, (n + 1) * num_codes), normalCdf(noise[i]));
      }
    }
    return codes;
  }

  async function drawn(noise, label) {
    if (!scene.draws_codes) return (await run("prior", { noise }, ["z"], label))[0];
    const codes = scene.graphs.prior?.file ? (await run("prior", { noise }, ["codes"], label))[0] : await codesOf(noise, label);
    return side([(await run("codes", { codes }, ["z"]))[0], codes], noise.length / scene.noise_size);
  }

  async function terms(image, label) {
    const images = new Float32Array(scene.draws * image.length);
    for (let k = 0; k < scene.draws; k++) images.set(image, k * image.length);
    const given = scene.noise.length ? { image: images, noise: scene.noise } : { image: images };
    const [distortion, kl] = await run("vae", given, ["distortion", "kl"], label);
    return Float32Array.from({ length: 2 * scene.draws }, (_, i) => (i % 2 ? kl : distortion)[i >> 1]);
  }

  const calls = {
    decode: async (z, label) => (await run("decoder", { z }, ["mean"], label))[0],
    encode: async (image, label) => side(await run("encoder", { image }, scene.code, label), 1),
    prior: drawn,
    codes: async (codes) => (await run("codes", { codes }, ["z"]))[0],
    terms,
  };
  const answer = async (call, values, label) => {
    const found = await calls[call](values, label);
    if (!found.every(Number.isFinite)) throw new Error(`The model's ${call} gives values that are not finite.`);
    return found;
  };
  let last = Promise.resolve(); // onnxruntime-web runs one thing at a time
  return (call, values, label) => (last = last.catch(() => {}).then(() => answer(call, values, label)));
}
