// The panel beside every view: the point's image, and a slider for each latent, the most telling first.
import { draw, number } from "./maths.js";
import { enlarged, saveCanvas, sheet } from "./pictures.js";
import { perFrame } from "./point.js";

export function mountLatents(scene, model, point) {
  const $ = (id) => document.getElementById(`point-${id}`);
  const most = Math.max(...scene.latents.map((latent) => latent.kl), 1e-9);
  const rows = scene.latents.map((latent) => {
    const row = document.createElement("label");
    row.className = latent.active ? "latent" : "latent dead";
    const name = Object.assign(document.createElement("span"), { className: "name", textContent: `z${latent.index}` });
    const slider = Object.assign(document.createElement("input"), { type: "range", min: -scene.reach, max: scene.reach, step: 0.05 });
    const value = Object.assign(document.createElement("output"), { className: "value" });
    const meter = Object.assign(document.createElement("span"), { className: "meter" });
    const told = latent.active ? latent.kl.toFixed(2) : "dead";
    slider.setAttribute("aria-label", `Latent ${latent.index}, ${scene.measure} ${latent.kl.toFixed(2)}${latent.active ? "" : ", dead"}`);
    meter.style.setProperty("--share", latent.kl / most);
    meter.append(Object.assign(document.createElement("b"), { textContent: told }));
    meter.title = `${scene.measure}: ${latent.kl.toFixed(4)}`;
    row.append(name, slider, value, meter);
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
  $("dead-told").textContent = dead === 1 ? "1 dead latent: the data do not use it" : `${dead} dead latents: the data do not use them`;
  $("measure").textContent = scene.measure + (unseen > 0 ? `; ${unseen} more are not shown` : "");

  point.addEventListener("move", perFrame(() => rows.forEach((update) => update())));
  point.addEventListener("picture", () => sheet(point.picture, scene.image_shape, 1, $("picture")));
  $("centre").addEventListener("click", () => point.move(new Float32Array(scene.size)));
  $("draw").addEventListener("click", async () => {
    const { z, codes } = await draw(scene, model, crypto.getRandomValues(new Uint32Array(1))[0], 1);
    return point.move(z, codes);
  });
  $("save").addEventListener("click", () => saveCanvas(enlarged($("picture")), "vaelib-picture.png"));
}
