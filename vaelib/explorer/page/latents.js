// The panel beside every view: the point's image, its class, and a slider for each latent, the most informative first.
import { element } from "./element.js";
import { draw, number } from "./maths.js";
import { enlarged, saveCanvas, sheet } from "./images.js";
import { perFrame } from "./point.js";
import { className } from "./scene.js";

export function mountLatents(scene, model, point) {
  const $ = (id) => document.getElementById(`point-${id}`);
  const most = Math.max(...scene.latents.map((latent) => latent.kl), 1e-9);
  const rows = scene.latents.map((latent) => {
    const slider = element("input", { type: "range", min: -scene.reach, max: scene.reach, step: 0.05 });
    const value = element("output", { className: "value" });
    const title = `${scene.measure}: ${latent.kl.toFixed(4)}`;
    const meter = element("span", { className: "meter", title }, element("b", {}, latent.active ? latent.kl.toFixed(2) : "dead"));
    slider.setAttribute("aria-label", `Latent ${latent.index}, ${scene.measure} ${latent.kl.toFixed(2)}${latent.active ? "" : ", dead"}`);
    meter.style.setProperty("--share", latent.kl / most);
    const name = element("span", { className: "name", textContent: `z${latent.index}` });
    const row = element("label", { className: latent.active ? "latent" : "latent dead" }, name, slider, value, meter);
    slider.addEventListener("input", () => point.set(latent.index, Number(slider.value)));
    $(latent.active ? "latents" : "dead").append(row);
    return () => {
      const z = point.z[latent.index];
      if (document.activeElement !== slider || Math.abs(slider.value - z) > 0.05) slider.value = z;
      value.textContent = number(z);
    };
  });
  const dead = scene.latents.filter((latent) => !latent.active).length;
  const unseen = scene.size - scene.latents.length;
  $("dead-box").hidden = dead === 0;
  $("dead-note").textContent = dead === 1 ? "1 dead latent: the data do not use it" : `${dead} dead latents: the data do not use them`;
  $("measure").textContent = scene.measure + (unseen > 0 ? `; ${unseen} more are not shown` : "");

  point.addEventListener("move", perFrame(() => rows.forEach((update) => update())));
  point.addEventListener("image", () => sheet(point.image, scene.image_shape, 1, $("image")));
  $("centre").addEventListener("click", () => point.move(new Float32Array(scene.size)));
  $("draw").addEventListener("click", async () => {
    const { z, codes } = await draw(scene, model, crypto.getRandomValues(new Uint32Array(1))[0], 1);
    return point.move(z, codes);
  });
  $("save").addEventListener("click", () => saveCanvas(enlarged($("image")), "vaelib-image.png"));
}

/** The class that a conditional model is given, by name: of every image that the page decodes, encodes or draws. */
export function mountLabel(scene, model, point) {
  if (!scene.condition) return;
  const select = document.getElementById("point-label");
  for (let label = 0; label < scene.condition.num_classes; label++) select.add(new Option(className(scene, label), label));
  select.addEventListener("change", () => {
    model.label = Number(select.value);
    point.dispatchEvent(new Event("label"));
    return point.move(point.z, point.codes);
  });
  select.value = model.label;
  document.getElementById("point-label-box").hidden = false;
}
