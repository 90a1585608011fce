// One latent at a time, through the point: a film strip for each that carries information.
import { element } from "./element.js";
import { gallery } from "./gallery.js";
import { number } from "./maths.js";
import { latest } from "./point.js";

const FRAMES = 11;

export function mountTraverse(scene, model, point, tabs) {
  const root = document.getElementById("traverse-strips");
  const rows = Math.max(3, Math.min(12, Math.floor(2 ** 22 / scene.pixels / FRAMES)));
  const active = scene.latents.filter((latent) => latent.active);
  const shown = (active.length ? active : scene.latents).slice(0, rows);
  const far = 0.75 * scene.reach;
  const values = Array.from({ length: FRAMES }, (_, k) => -far + (2 * far * k) / (FRAMES - 1));
  document.getElementById("traverse-note").textContent =
    `Each row changes one latent from ${number(-far, 1)} to ${number(far, 1)} and leaves the others where the point is. Choose an image to go there.`;

  const strips = shown.map(({ index, kl }) => {
    const name = element("span", { className: "name", textContent: `z${index}` });
    const nats = element("span", { className: "quiet", textContent: kl.toFixed(2), title: scene.measure });
    const frames = element("div", { ariaLabel: `Latent ${index}` });
    root.append(element("div", { className: "strip" }, name, nats, frames));
    return gallery(frames, { columns: FRAMES, shape: scene.image_shape, pick: (k) => point.set(index, values[k]) });
  });

  const draw = latest(async () => {
    const z = new Float32Array(shown.length * FRAMES * scene.size);
    shown.forEach(({ index }, row) =>
      values.forEach((value, k) => z.set(point.z.with(index, value), (row * FRAMES + k) * scene.size)),
    );
    const images = await model.decode(z);
    const length = FRAMES * scene.pixels;
    strips.forEach((strip, row) => {
      const { index } = shown[row];
      strip.show(images.subarray(row * length, (row + 1) * length), values.map((value) => `z${index} = ${number(value, 1)}`));
      strip.mark(values.findIndex((value) => Math.abs(value - point.z[index]) < far / (FRAMES - 1)));
    });
  });
  tabs.keep("traverse", draw, point, "move");
}
