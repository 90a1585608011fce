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

const { model, graphs } = JSON.parse(await readFile(join(bundle, "manifest.json"), "utf8"));
const { file, inputs } = graphs.decoder; // what it takes, with dtype and shape; an axis that is free has a name
const shape = [z.length, ...inputs.z.shape.slice(1).map((axis, i) => (axis > 0 ? axis : model.latent_shape[i]))];

const session = await ort.InferenceSession.create(await readFile(join(bundle, file)));
const { mean } = await session.run({ z: new ort.Tensor(inputs.z.dtype, z.flat(Infinity), shape) }, ["mean"]);
console.log(JSON.stringify({ shape: mean.dims, values: Array.from(mean.data) }));
