// The class that a conditional model is given, by name: of every image that the page decodes, encodes or draws.
import { className } from "./scene.js";

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
