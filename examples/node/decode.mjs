// Decode latents with a vaelib bundle: node decode.mjs BUNDLE LATENTS.json
//
// LATENTS.json is a list of latents, nested like the model's latent_shape. Prints {"shape": [B, C, H, W], "values": [...]}:
// the images in [0, 1], row after row. In a browser the lines from `create` on are the same; fetch the file instead.
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import * as ort from "onnxruntime-web";

const [bundle, latents] = process.argv.slice(2);
if (latents === undefined) throw new Error("usage: node decode.mjs BUNDLE LATENTS.json");
const z = JSON.parse(await readFile(latents, "utf8"));

const { file, inputs } = JSON.parse(await readFile(join(bundle, "manifest.json"), "utf8")).graphs.decoder;

const shape = [];
for (let axis = z; Array.isArray(axis); axis = axis[0]) shape.push(axis.length);
const fits = inputs.z.shape.length === shape.length && inputs.z.shape.every((axis, i) => typeof axis === "string" || axis === shape[i]);
if (!fits) throw new Error(`${latents} must have shape ${inputs.z.shape}, where a letter is free, got ${shape}`);

const session = await ort.InferenceSession.create(await readFile(join(bundle, file)));
const { mean } = await session.run({ z: new ort.Tensor(inputs.z.dtype, z.flat(Infinity), shape) }, ["mean"]);
console.log(JSON.stringify({ shape: mean.dims, values: Array.from(mean.data) }));
