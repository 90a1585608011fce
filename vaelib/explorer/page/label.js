// The class that a conditional model is given, by name: of every picture that the page decodes, encodes or draws.

export function mountLabel(scene, model, point) {
  if (!scene.condition) return;
  const { num_classes, names } = scene.condition;
  const select = document.getElementById("point-label");
  for (let label = 0; label < num_classes; label++) select.add(new Option(names?.[label] ?? label, label));
  select.addEventListener("change", () => {
    model.label = Number(select.value);
    point.dispatchEvent(new Event("label"));
    return point.move(point.z, point.codes);
  });
  select.value = model.label;
  document.getElementById("point-label-box").hidden = false;
}
