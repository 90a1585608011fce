// Decode latents or codes with a vaelib bundle: node decode.mjs BUNDLE NUMBERS.json [LABEL]
//
// NUMBERS.json is a list of latents, nested like the model's latent_shape, or of a quantised model a list of lists of codes.
// LABEL is the class of a conditional model, by number or by name. Prints {"shape": [B, C, H, W], "values": [...]}:
// the images in [0, 1], row after row. In a browser the lines from `create` on are the same; fetch the files instead.
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import * as ort from "onnxruntime-web";

const [bundle, numbers, label] = process.argv.slice(2);
if (numbers === undefined) throw new Error("usage: node decode.mjs BUNDLE NUMBERS.json [LABEL]");
const given = JSON.parse(await readFile(numbers, "utf8"));
const { model, graphs } = JSON.parse(await readFile(join(bundle, "manifest.json"), "utf8"));

const shape = [];
for (let axis = given; Array.isArray(axis); axis = axis[0]) shape.push(axis.length);
const fits = (spec) => spec?.shape.length === shape.length && spec.shape.every((axis, i) => typeof axis === "string" || axis === shape[i]);
const { z: latents } = graphs.decoder.inputs;
const codes = graphs.codes?.inputs.codes;
if (!fits(latents) && !fits(codes)) {
  const wanted = [latents, codes].filter(Boolean).map((spec) => `(${spec.shape})`).join(" or ");
  throw new Error(`${numbers} must have shape ${wanted}, where a letter is free, got (${shape})`);
}

const run = async ({ file }, inputs) => (await ort.InferenceSession.create(await readFile(join(bundle, file)))).run(inputs);
const wholes = (values) => BigInt64Array.from(values, BigInt);
const inputs = fits(latents)
  ? { z: new ort.Tensor("float32", given.flat(Infinity), shape) }
  : await run(graphs.codes, { codes: new ort.Tensor("int64", wholes(given.flat()), shape) });
if ("condition" in graphs.decoder.inputs) {
  const { kind, num_classes, names } = model.condition;
  if (kind !== "labels") throw new Error(`This example gives labels, the model's condition is a ${kind}`);
  const number = names?.includes(label) ? names.indexOf(label) : Number(label || NaN);
  if (!Number.isInteger(number) || number < 0 || number >= num_classes) {
    throw new Error(`LABEL must be in 0 .. ${num_classes - 1}${names ? ` or among ${names.join(", ")}` : ""}, got ${label}`);
  }
  inputs.condition = new ort.Tensor("int64", wholes(new Array(shape[0]).fill(number)), [shape[0]]);
} else if (label !== undefined) throw new Error(`The model takes no condition, got the label ${label}`);
const { mean } = await run(graphs.decoder, inputs);
console.log(JSON.stringify({ shape: mean.dims, values: Array.from(mean.data) }));
