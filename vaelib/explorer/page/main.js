// Opens the scene and the model, and gives both, with the one point, to every view.
import { mountBetween } from "./between.js";
import { mountCard } from "./card.js";
import { mountCodes } from "./codes.js";
import { element } from "./element.js";
import { mountLabel, mountLatents } from "./latents.js";
import { mountMap } from "./map.js";
import { openModel } from "./model.js";
import { mountOwn } from "./own.js";
import { Point } from "./point.js";
import { mountSamples } from "./samples.js";
import { loadScene } from "./scene.js";
import { mountTabs } from "./tabs.js";
import { mountTraverse } from "./traverse.js";

const $ = (id) => document.getElementById(id);

$("trouble").lastElementChild.addEventListener("click", () => ($("trouble").hidden = true));
addEventListener("unhandledrejection", (event) => {
  event.preventDefault(); // it is reported on the page
  $("loading").hidden = true;
  $("trouble").hidden = false;
  $("trouble").firstElementChild.textContent = event.reason?.message ?? String(event.reason);
});

$("theme").value = localStorage.getItem("theme") ?? "light dark";
function applyTheme() {
  document.documentElement.style.colorScheme = $("theme").value;
  localStorage.setItem("theme", $("theme").value);
  dispatchEvent(new Event("theme"));
}
$("theme").addEventListener("change", applyTheme);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", applyTheme);
applyTheme();

function facts(scene) {
  return [
    scene.kind,
    ...(scene.codebook ? [`${scene.positions} codes of ${scene.codebook.num_codes.toLocaleString("en")}`] : []),
    `images ${scene.image_shape.join(" × ")}`,
    `latent ${scene.latent_shape.join(" × ")}`,
    ...(scene.draws ? [`p(x|z) ${scene.likelihood}`, `p(z) ${scene.prior}`] : []),
    ...(scene.precision === "fp32" ? [] : [scene.precision]),
  ];
}

async function open() {
  const scene = await loadScene();
  const model = await openModel(scene);
  document.title = `${scene.name} · vaelib explorer`;
  $("name").textContent = scene.name;
  $("facts").append(...facts(scene).map((textContent) => element("li", { textContent })));
  const [, height, width] = scene.image_shape;
  document.documentElement.style.setProperty("--aspect", `${width} / ${height}`);
  document.documentElement.style.setProperty("--rendering", Math.max(width, height) <= 128 ? "pixelated" : "auto");

  if (scene.condition && scene.labels) model.label = scene.labels[0]; // the point is the first of the data
  const point = new Point(model, scene.z.slice(0, scene.size), scene.codes?.slice(0, scene.positions));
  $("loading").hidden = true;
  $("main").hidden = false;
  if (scene.codebook) for (const id of ["tab-traverse", "traverse"]) $(id).remove(); // between codes there is nothing
  const tabs = mountTabs();
  const map = mountMap(scene, model, point);
  const own = mountOwn(scene, model, point, map, tabs);
  mountLabel(scene, model, point);
  mountLatents(scene, model, point);
  if (scene.codebook) mountCodes(scene, model, point);
  if (!scene.codebook) mountTraverse(scene, model, point, tabs);
  mountBetween(scene, model, point, own, tabs);
  mountSamples(scene, model, point, tabs);
  mountCard(scene);
  await Promise.all([map.drawn, point.move(point.z, point.codes)]);

  window.vaelib = { scene, model, point }; // for whoever opens the console
  document.documentElement.dataset.ready = "";
}
open();
