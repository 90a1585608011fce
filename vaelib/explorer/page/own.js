// An image of the visitor's own: what the model makes of it, as an image and in nats.
import { element } from "./element.js";
import { number } from "./maths.js";
import { pad as mountPad } from "./pad.js";
import { fromFile, fromImage, sheet } from "./images.js";
import { mountLarge } from "./large.js";
import { latest } from "./point.js";
import { className } from "./scene.js";

const BINS = 48;
const nats = (x) => number(x, 1);

function svg(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

export function mountOwn(scene, model, point, map, tabs) {
  const $ = (id) => document.getElementById(`own-${id}`);
  const large = mountLarge(scene, model);
  const pad = mountPad($("pad"), scene.image_shape, (source) => {
    large(source instanceof HTMLImageElement ? source : null);
    judge(fromImage(source, scene.image_shape));
  });
  const ofData = scene.distortion?.map((distortion, n) => distortion + scene.kl[n]).sort();
  let z, seen;

  const judge = latest(async (image) => {
    const posterior = await model.encode(image);
    const [reconstruction, terms] = await Promise.all([
      model.decode(posterior.z),
      model.hasTerms ? model.terms(image) : undefined,
    ]);
    z = posterior.z;
    seen = image;
    $("empty").hidden = true;
    $("result").hidden = false;
    sheet(image, scene.image_shape, 1, $("input"));
    sheet(reconstruction, scene.image_shape, 1, $("reconstruction"));
    $("terms").hidden = terms === undefined;
    if (terms) showTerms(terms, image);
    showPosterior(posterior);
    map.place(z);
    await point.move(z, posterior.codes);
  });
  point.addEventListener("label", () => seen && judge(seen));

  function showTerms({ distortion, kl, error }, image) {
    const negative = distortion + kl;
    $("elbo").textContent = nats(-negative);
    $("distortion").textContent = nats(distortion);
    $("kl").textContent = nats(kl);
    const share = Math.max(0, Math.min(1, distortion / negative));
    $("split-distortion").style.flexGrow = share;
    $("split-kl").style.flexGrow = 1 - share;
    const relaxed = scene.likelihood === "Bernoulli" && image.some((value) => value > 0 && value < 1);
    $("draws").textContent =
      (scene.noise.length ? `Mean of ${model.draws} draws of z, standard error ${number(error)}.` : "The codes are exact: no noise is drawn.") +
      (scene.condition ? ` Given the class ${className(scene, model.label)}: a bound of log p(x|class), not of log p(x).` : "") +
      (relaxed ? " Grey pixels under a Bernoulli: these nats are a relaxation, not log p(x)." : "");

    const above = ofData.reduce((count, other) => count + (other < negative), 0);
    const percent = (100 * above) / ofData.length;
    const verdict = percent >= 99 ? "most unusual" : percent >= 90 ? "unusual" : percent >= 50 ? "a little unusual" : "ordinary";
    $("rank").textContent =
      `Anomaly rank ${percent.toFixed(1)}%: the model explains ${above.toLocaleString("en")} of ` +
      `${ofData.length.toLocaleString("en")} ${scene.data.given ? `images (${scene.data.name})` : scene.data.name} better than yours; among them it is ${verdict}.`;
    showHistogram(negative);
  }

  function showHistogram(negative) {
    const low = Math.min(ofData[0], negative);
    const high = Math.max(ofData.at(-1), negative);
    const bins = new Array(BINS).fill(0);
    const bin = (x) => Math.min(BINS - 1, Math.floor((BINS * (x - low)) / (high - low)));
    for (const value of ofData) bins[bin(value)]++;
    const tallest = Math.max(...bins);
    $("histogram").setAttribute("viewBox", `0 0 ${BINS} 20`);
    $("histogram").setAttribute("aria-label", `Minus the ELBO of the data, from ${nats(ofData[0])} to ${nats(ofData.at(-1))} nats; yours is ${nats(negative)}`);
    const at = (BINS * (negative - low)) / (high - low);
    $("histogram").replaceChildren(
      ...bins.map((count, i) => {
        const height = (19 * count) / tallest;
        return svg("rect", { x: i + 0.08, y: 20 - height, width: 0.84, height });
      }),
      svg("line", { x1: at, x2: at, y1: 0, y2: 20, "vector-effect": "non-scaling-stroke" }),
    );
  }

  function showPosterior({ z, logvar }) {
    const shown = scene.latents.slice(0, 12);
    const width = 100 / shown.length;
    const height = (x) => 25 - (25 * Math.max(-scene.reach, Math.min(scene.reach, x))) / scene.reach;
    const marks = shown.flatMap(({ index, active }, i) => {
      const sigma = logvar.length ? Math.exp(0.5 * logvar[index]) : 0;
      const x = (i + 0.5) * width;
      const [y1, y2] = [height(z[index] - 2 * sigma), height(z[index] + 2 * sigma)];
      const kind = active ? "active" : "dead";
      return [
        svg("line", { x1: x, x2: x, y1, y2, class: kind }),
        svg("ellipse", { cx: x, cy: height(z[index]), rx: 0.65, ry: 1, class: kind }),
      ];
    });
    $("posterior").setAttribute("viewBox", "0 0 100 50");
    $("posterior").setAttribute("preserveAspectRatio", "none");
    $("posterior").setAttribute("aria-label", shown.slice(0, 6).map(({ index }) => `z${index} ${z[index].toFixed(2)}`).join(", "));
    $("posterior").replaceChildren(svg("line", { x1: 0, x2: 100, y1: 25, y2: 25, class: "axis" }), ...marks);
    $("posterior-names").replaceChildren(...shown.map(({ index }) => element("span", {}, `z${index}`)));
    $("posterior-note").textContent =
      `Mean and two standard deviations, from ${number(-scene.reach, 0)} to ${scene.reach}. The point is at the mean.`;
  }

  const take = async (file) => pad.show(await fromFile(file));
  $("file").addEventListener("change", () => $("file").files[0] && take($("file").files[0]));
  const view = document.getElementById("own");
  addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/"));
    if (file && tabs.isOpen("own")) take(file);
  });
  view.addEventListener("dragover", (event) => {
    event.preventDefault();
    $("drop").classList.add("over");
  });
  for (const end of ["dragleave", "drop"]) view.addEventListener(end, () => $("drop").classList.remove("over"));
  view.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  });
  $("map").addEventListener("click", () => tabs.open("map"));

  return {
    /** The posterior mean of the image. */
    z() {
      if (!z) throw new Error("There is no image of yours yet: draw or open one under “Your image”.");
      return z;
    },
  };
}
