// An uploaded image at its own size: the server reconstructs it in tiles, where the model looks only so far.
import { fromImage, sheet } from "./images.js";

export function mountLarge(scene, model) {
  const $ = (id) => document.getElementById(`own-${id}`);
  const [channels, height, width] = scene.image_shape;
  let image;

  $("large").addEventListener("click", async () => {
    const scale = Math.min(1, Math.sqrt(scene.largest_image / (channels * image.naturalHeight * image.naturalWidth)));
    const [rows, columns] = [image.naturalHeight, image.naturalWidth].map((side) => Math.max(1, Math.floor(scale * side)));
    $("large").disabled = true;
    try {
      const started = performance.now();
      const found = await model.large(fromImage(image, [channels, rows, columns]), rows, columns);
      sheet(found, [channels, rows, columns], 1, $("large-image"));
      const seconds = ((performance.now() - started) / 1000).toFixed(1);
      $("large-note").textContent = `reconstruction of ${rows} x ${columns} pixels${scale < 1 ? ", made smaller" : ""}, in tiles, ${seconds} s`;
      $("large-result").hidden = false;
    } finally {
      $("large").disabled = false;
    }
  });

  /** Take another image; null for one that was drawn. */
  return (given) => {
    image = given;
    $("large-result").hidden = true;
    $("large").hidden = !(given && scene.largest_image && (given.naturalHeight > height || given.naturalWidth > width));
  };
}
