// The panel of a quantised model: its codes as a grid of buttons, of which the chosen one is changed by number.
import { element } from "./element.js";

const hue = (code) => `hsl(${(code * 137.508) % 360} 55% ${45 + ((code * 31) % 30)}%)`;

export function mountCodes(scene, model, point) {
  const $ = (id) => document.getElementById(`point-${id}`);
  const { num_codes, depth, shape } = scene.codebook;
  const plane = scene.positions / depth;
  const columns = shape.at(-1) ?? 1;
  const across = plane === 1 ? Math.min(depth, 8) : columns;
  let chosen = 0;

  const name = (at) => {
    const [row, column] = [Math.floor((at % plane) / columns) + 1, (at % columns) + 1];
    const place = [...(depth > 1 ? [`depth ${Math.floor(at / plane) + 1}`] : []), ...(plane > 1 ? [`row ${row}, column ${column}`] : [])];
    return place.length ? `Code at ${place.join(", ")}` : "The code";
  };
  const cells = Array.from({ length: scene.positions }, (_, at) => {
    const cell = element("button", { type: "button" });
    cell.addEventListener("click", () => {
      chosen = at;
      show();
      $("code").focus();
    });
    return cell;
  });
  $("codes").style.setProperty("--columns", across);
  $("codes").append(...cells);
  $("codes").addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across }[event.key];
    const next = cells[cells.indexOf(document.activeElement) + (step ?? NaN)];
    if (!next) return;
    event.preventDefault();
    next.focus();
  });
  $("code").max = num_codes - 1;

  function show() {
    const { codes } = point;
    cells.forEach((cell, at) => {
      cell.style.background = codes ? hue(codes[at]) : "";
      cell.textContent = codes && across <= 8 ? codes[at] : "";
      cell.title = codes ? `${name(at)}: ${codes[at]}` : name(at);
      cell.setAttribute("aria-label", cell.title);
      cell.setAttribute("aria-pressed", at === chosen);
      cell.tabIndex = at === chosen ? 0 : -1;
      cell.disabled = !codes;
    });
    for (const id of ["code", "any"]) $(id).disabled = !codes;
    $("place").textContent = name(chosen);
    if (codes && document.activeElement !== $("code")) $("code").value = codes[chosen];
    $("codes-note").textContent = codes
      ? `${new Set(codes).size} different codes of ${num_codes.toLocaleString("en")}.`
      : "This point lies between the codes: draw one, or choose a sample or an image.";
  }

  async function change(code) {
    const codes = point.codes.with(chosen, Math.max(0, Math.min(num_codes - 1, Math.round(code))));
    await point.move(await model.embed(codes), codes);
  }
  $("code").addEventListener("input", () => $("code").value !== "" && change(Number($("code").value)));
  $("any").addEventListener("click", async () => {
    await change(Math.floor(Math.random() * num_codes));
    show();
  });
  point.addEventListener("move", show);
  $("codes-box").hidden = false;
  for (const box of document.querySelectorAll(".latents-head, .sliders, #point-centre")) box.hidden = true;
}
