// From one image to another: the images on the way, as a strip, an animation, and a file.
import { apng } from "./apng.js";
import { gallery } from "./gallery.js";
import { draw, number, path } from "./maths.js";
import { enlarged, save, sheet } from "./images.js";
import { latest } from "./point.js";

const FRAMES = 32;
const STRIP = 9;
const PER_SECOND = 20;
const few = Array.from({ length: STRIP }, (_, i) => Math.round((i * (FRAMES - 1)) / (STRIP - 1)));

export function mountBetween(scene, model, point, own, tabs) {
  const $ = (id) => document.getElementById(`between-${id}`);
  const ends = [...document.querySelectorAll("#between .end")];
  const random = () => crypto.getRandomValues(new Uint32Array(1))[0];
  const latent = (from, n) => from.slice(n * scene.size, (n + 1) * scene.size);
  const ofData = () => latent(scene.z, random() % scene.data.count);
  const sources = [
    ["an image of the data", ofData],
    ["a sample", async () => (await draw(scene, model, random(), 1)).z],
    ["the point", () => point.z],
    ["your image", () => own.z()],
  ];
  const chosen = [ofData(), ofData()];
  let images, z;

  const strip = gallery($("strip"), { columns: STRIP, shape: scene.image_shape, pick: (i) => seek(few[i]) });
  const frame = (k) => images.subarray(k * scene.pixels, (k + 1) * scene.pixels);

  function seek(k, alsoPoint = true) {
    $("time").value = k;
    sheet(frame(k), scene.image_shape, 1, $("player"));
    if (alsoPoint) point.move(latent(z, k));
  }

  const show = latest(async () => {
    const spherical = document.querySelector("#between [name=path]:checked").value === "spherical";
    const along = path(...chosen, FRAMES, spherical);
    images = await model.decode(along);
    z = along;
    const shown = new Float32Array(STRIP * scene.pixels);
    few.forEach((k, i) => shown.set(frame(k), i * scene.pixels));
    strip.show(shown, few.map((_, i) => `${Math.round((100 * i) / (STRIP - 1))}% of the way`));
    ends.forEach((end, i) => sheet(frame(i * (FRAMES - 1)), scene.image_shape, 1, end.querySelector("canvas")));
    seek(Number($("time").value), false);
    const far = (k) => number(Math.hypot(...latent(z, k)));
    $("note").textContent =
      (spherical ? "The arc between both directions, which stays where a normal prior has its mass." : "The chord: all latents change evenly.") +
      ` Distance from the centre: ${far(0)}, half-way ${far(FRAMES / 2)}, ${far(FRAMES - 1)}.`;
  });

  ends.forEach((end, i) => {
    const select = end.querySelector("select");
    select.add(new Option("Choose…", ""));
    for (const [name] of sources) select.add(new Option(name));
    select.addEventListener("change", async () => {
      const source = sources.find(([name]) => name === select.value)?.[1];
      select.value = "";
      chosen[i] = (await source?.())?.slice() ?? chosen[i];
      show();
    });
  });
  for (const radio of document.querySelectorAll("#between [name=path]")) radio.addEventListener("change", show);
  $("time").addEventListener("input", () => seek(Number($("time").value)));

  let timer;
  $("play").addEventListener("click", () => {
    const playing = timer === undefined;
    $("play").textContent = playing ? "Pause" : "Play";
    $("play").setAttribute("aria-pressed", playing);
    clearInterval(timer);
    let tick = Number($("time").value);
    const round = 2 * (FRAMES - 1);
    timer = playing ? setInterval(() => seek(Math.min(++tick % round, round - (tick % round)), false), 1000 / PER_SECOND) : undefined;
  });
  $("save").addEventListener("click", async () => {
    const there = Array.from({ length: FRAMES }, (_, k) => enlarged(sheet(frame(k), scene.image_shape)));
    save(await apng([...there, ...there.slice(1, -1).reverse()], PER_SECOND), "vaelib-interpolation.png");
  });
  tabs.keep("between", show, point, "label");
}
