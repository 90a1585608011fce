// The latent space from above: a plane through it, the data on it, the images behind, and the point to drag.
import { element } from "./element.js";
import { number, plane as planeOf, quantile } from "./maths.js";
import { sheet } from "./images.js";
import { perFrame } from "./point.js";
import { className } from "./scene.js";

const COLOURS = ["#5b8def", "#f2803d", "#2fb57c", "#e5484d", "#a374f0", "#b07d4f", "#ee7fbd", "#8e9aa7", "#c4b02b", "#2ec4d6"];
const NIGHT = "#101114";
const colour = (label) => (label < COLOURS.length ? COLOURS[label] : `hsl(${(label * 137.5) % 360} 65% 52%)`);

export function mountMap(scene, model, point) {
  const $ = (id) => document.getElementById(`map-${id}`);
  const canvas = $("canvas");
  const context = canvas.getContext("2d");
  const lens = $("lens");
  const behind = document.createElement("canvas");
  let plane, extent, places, own, alone;

  function look() {
    plane = planeOf(scene, $("plane").selectedIndex);
    places = Array.from({ length: scene.data.count }, (_, n) => plane.on(scene.z, n * scene.size));
    const [u, v] = [0, 1].map((axis) => places.map((place) => place[axis]).sort((a, b) => a - b));
    const [low, high] = [0.005, 0.995].map((q) => [quantile(u, q), quantile(v, q)]);
    const half = 0.56 * Math.max(high[0] - low[0], high[1] - low[1], 1e-3);
    extent = { u: (low[0] + high[0]) / 2 - half, v: (low[1] + high[1]) / 2 - half, side: 2 * half };
    const { axes, explained, name } = scene.planes[$("plane").selectedIndex];
    const whose = scene.data.given ? `${scene.data.count.toLocaleString("en")} images of ${scene.data.name}` : `${scene.data.count} ${scene.data.name}, for no data were given`;
    const kind = name === "pca" ? "the first two principal components" : `the latents ${axes.join(" and ")}, which carry most`;
    $("note").textContent = `${whose}, by their posterior means; the axes are ${kind}, with ${(100 * explained).toFixed(0)}% of the variance.`;
    canvas.setAttribute("aria-label", `Map, ${axes[0]} to the right, ${axes[1]} upwards`);
    return paintImages();
  }

  const toMap = ([u, v]) => [(u - extent.u) / extent.side, 1 - (v - extent.v) / extent.side];
  const fromMap = (x, y) => [extent.u + x * extent.side, extent.v + (1 - y) * extent.side];

  async function paintImages() {
    const across = Math.max(5, Math.min(20, Math.floor(Math.sqrt(2 ** 22 / scene.pixels))));
    const z = new Float32Array(across * across * scene.size);
    for (let i = 0; i < across * across; i++) {
      const [x, y] = [(i % across) + 0.5, Math.floor(i / across) + 0.5];
      z.set(plane.off(fromMap(x / across, y / across)), i * scene.size);
    }
    const looked = plane;
    const images = await model.decode(z);
    if (looked !== plane) return;
    sheet(images, scene.image_shape, across, behind);
    paint();
  }

  function paint() {
    const side = Math.max(1, Math.round(canvas.clientWidth * devicePixelRatio));
    canvas.width = canvas.height = side;
    context.imageSmoothingQuality = "high";
    if ($("images").checked) {
      context.fillStyle = NIGHT;
      context.fillRect(0, 0, side, side);
      context.globalAlpha = $("data").checked ? 0.5 : 1;
      context.drawImage(behind, 0, 0, side, side);
      context.globalAlpha = 1;
    }
    if ($("data").checked) paintData();
  }

  function paintData() {
    const radius = 2.6 * devicePixelRatio;
    const plain = getComputedStyle(canvas).borderTopColor;
    context.lineWidth = 0.8 * devicePixelRatio;
    context.strokeStyle = $("images").checked ? NIGHT : getComputedStyle(canvas).backgroundColor;
    places.forEach((place, n) => {
      const label = scene.labels?.[n];
      if (alone !== undefined && label !== alone) return;
      context.beginPath();
      context.arc(...toMap(place).map((at) => at * canvas.width), radius, 0, 7);
      context.fillStyle = label === undefined ? plain : colour(label);
      context.fill();
      context.stroke();
    });
  }

  function ring(element, z) {
    const [x, y] = toMap(plane.on(z));
    element.style.left = `${100 * x}%`;
    element.style.top = `${100 * y}%`;
    element.classList.toggle("off", plane.distance(z) > 1e-3);
  }

  function placeLens() {
    const [x, y] = toMap(plane.on(point.z));
    lens.style.left = `${100 * (x > 0.5 ? x - 0.3 : x + 0.06)}%`;
    lens.style.top = `${100 * Math.max(0, Math.min(0.76, y > 0.5 ? y - 0.3 : y + 0.06))}%`;
  }

  function read() {
    const { axes } = scene.planes[$("plane").selectedIndex];
    const place = plane.on(point.z);
    const off = plane.distance(point.z);
    const words = axes.map((axis, i) => `${axis} = ${number(place[i])}`);
    if (off > 1e-3) words.push(`${number(off)} off the map`);
    if (scene.labels) {
      const far = ([u, v]) => (u - place[0]) ** 2 + (v - place[1]) ** 2;
      const nearest = places.reduce((best, other, n) => (far(other) < far(places[best]) ? n : best), 0);
      words.push(`nearest on the map: label ${className(scene, scene.labels[nearest])}`);
    }
    $("readout").textContent = words.join(" · ");
  }

  const times = [];
  function count() {
    const now = performance.now();
    times.push(now);
    while (times[0] < now - 1000) times.shift();
    $("rate").textContent = dragging && times.length > 5 ? `${times.length} images a second` : "";
  }

  let dragging = false;
  function drag(event) {
    const box = canvas.getBoundingClientRect();
    const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    point.move(plane.off(fromMap(Math.max(0, Math.min(1, x)), Math.max(0, Math.min(1, y)))));
  }
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    dragging = true;
    lens.classList.add("shown");
    drag(event);
  });
  canvas.addEventListener("pointermove", (event) => dragging && drag(event));
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, () => {
      dragging = false;
      lens.classList.remove("shown");
      $("rate").textContent = "";
    });
  }
  canvas.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (!way) return;
    event.preventDefault();
    const step = extent.side * (event.shiftKey ? 0.1 : 0.02);
    const place = plane.on(point.z);
    point.move(plane.off(place.map((at, i) => at + step * way[i])));
  });

  function legend() {
    const labels = [...new Set(scene.labels ?? [])].sort((a, b) => a - b);
    $("legend").replaceChildren(
      ...labels.map((label) => {
        const button = element("button", { type: "button", textContent: className(scene, label) });
        button.style.setProperty("--colour", colour(label));
        button.setAttribute("aria-pressed", false);
        button.addEventListener("click", () => {
          alone = alone === label ? undefined : label;
          for (const other of $("legend").querySelectorAll("button")) other.setAttribute("aria-pressed", other === button && alone !== undefined);
          paint();
        });
        return element("li", {}, button);
      }),
    );
  }

  for (const { name, axes } of scene.planes) {
    $("plane").add(new Option(name === "pca" ? "PCA of the data" : `${axes[0]} and ${axes[1]}`));
  }
  $("plane").addEventListener("change", () => {
    look();
    show();
  });
  for (const id of ["images", "data"]) $(id).addEventListener("change", paint);
  new ResizeObserver(() => canvas.clientWidth && extent && paint()).observe(canvas);
  addEventListener("theme", paint);
  function show() {
    ring($("point"), point.z);
    if (own) ring($("own"), own);
    placeLens();
    read();
  }
  point.addEventListener("move", perFrame(show));
  point.addEventListener("label", paintImages);
  point.addEventListener("image", () => {
    sheet(point.image, scene.image_shape, 1, lens);
    count();
  });
  legend();
  return {
    drawn: look(),
    /** Ring the place of a visitor's image. */
    place(z) {
      own = z;
      $("own").hidden = false;
      show();
    },
  };
}
