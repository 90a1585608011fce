// A wall of samples, by seed and temperature.
import { gallery } from "./gallery.js";
import { draw } from "./maths.js";
import { saveCanvas, sheet } from "./images.js";
import { latest } from "./point.js";

export function mountSamples(scene, model, point, tabs) {
  const $ = (id) => document.getElementById(`samples-${id}`);
  const most = scene.graphs.next ? 16 : 64; // an autoregressive prior takes its time
  const count = Math.max(16, Math.min(most, 8 * Math.floor(2 ** 22 / scene.pixels / 8)));
  const columns = 8;
  let drawn, images;
  const part = (values, size, n) => values?.slice(n * size, (n + 1) * size);
  const wall = gallery($("wall"), {
    columns,
    shape: scene.image_shape,
    pick: (n) => point.move(part(drawn.z, scene.size, n), part(drawn.codes, scene.positions, n)),
  });
  $("heat").hidden = scene.draws_codes;
  $("note").textContent =
    (scene.draws_codes
      ? `Codes are drawn from the prior, ${scene.prior}`
      : scene.graphs.prior?.file === null
      ? "z is drawn from the prior, the standard normal, and multiplied by the temperature"
      : scene.graphs.prior
        ? `z is drawn from the prior, ${scene.prior}, the noise that it is made of multiplied by the temperature`
        : `This bundle cannot draw from its prior (${scene.prior}); z is drawn around the posterior means of the data, the noise multiplied by the temperature`) +
    "; the images are the means of p(x|z).";

  const show = latest(async () => {
    const temperature = Number($("temperature").value);
    $("value").textContent = temperature.toFixed(2);
    const found = await draw(scene, model, Number($("seed").value), count, scene.draws_codes ? 1 : temperature);
    images = await model.decode(found.z);
    drawn = found;
    wall.show(images, Array.from({ length: count }, (_, n) => `Sample ${n + 1}`));
  });
  for (const id of ["seed", "temperature"]) $(id).addEventListener("input", show);
  $("next").addEventListener("click", () => {
    $("seed").value = Number($("seed").value) + 1;
    show();
  });
  $("save").addEventListener("click", () => saveCanvas(sheet(images, scene.image_shape, columns), `vaelib-samples-${$("seed").value}.png`));
  tabs.keep("samples", show, point, "label");
}
