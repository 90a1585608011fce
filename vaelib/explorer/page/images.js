// Images: float32 (C, H, W) in [0, 1] on one side, canvases and files on the other.

const MAX_BYTES = 32 * 2 ** 20;
const MAX_MEGAPIXELS = 50;

/** A canvas of the images' own size, n of them in rows of `columns`. */
export function sheet(images, [channels, height, width], columns = 1, canvas = document.createElement("canvas")) {
  const plane = height * width;
  const count = images.length / (channels * plane);
  canvas.width = columns * width;
  canvas.height = Math.ceil(count / columns) * height;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  const planes = channels === 3 ? [0, plane, 2 * plane] : [0, 0, 0];
  for (let n = 0; n < count; n++) {
    const start = n * channels * plane;
    for (let i = 0; i < plane; i++) {
      for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = 255 * images[start + planes[c] + i];
      pixels.data[4 * i + 3] = 255;
    }
    context.putImageData(pixels, (n % columns) * width, Math.floor(n / columns) * height);
  }
  return canvas;
}

/** What a canvas or image shows, cropped around its centre to the model's shape, resized if need be. */
export function fromImage(source, [channels, height, width]) {
  const [w, h] = [source.naturalWidth ?? source.width, source.naturalHeight ?? source.height];
  const scale = Math.min(w / width, h / height);
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  const [cw, ch] = [width * scale, height * scale];
  context.drawImage(source, (w - cw) / 2, (h - ch) / 2, cw, ch, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  const plane = height * width;
  const grey = (i) => Math.round(0.299 * data[i] + 0.587 * data[i + 1] + 0.114 * data[i + 2]); // ITU-R 601
  return Float32Array.from({ length: channels * plane }, (_, k) => {
    const i = 4 * (k % plane);
    return (channels === 3 ? data[i + Math.floor(k / plane)] : grey(i)) / 255;
  });
}

/** An image file as an image element that is known to be small enough. */
export async function fromFile(file) {
  if (file.size > MAX_BYTES) throw new Error(`An image file may have 32 MiB, ${file.name} has more.`);
  const image = new Image();
  image.src = URL.createObjectURL(file);
  try {
    await new Promise((done, failed) => {
      image.onload = done;
      image.onerror = () => failed(new Error(`${file.name} is no image that this browser can read.`));
    });
    const megapixels = (image.naturalWidth * image.naturalHeight) / 1e6;
    if (!(megapixels > 0 && megapixels <= MAX_MEGAPIXELS)) {
      throw new Error(`An image may have ${MAX_MEGAPIXELS} megapixels, ${file.name} has ${megapixels.toFixed(0)}.`);
    }
    return image;
  } finally {
    URL.revokeObjectURL(image.src);
  }
}

/** A copy of a canvas, enlarged by whole factors to about 256 pixels. */
export function enlarged(canvas) {
  const factor = Math.max(1, Math.floor(256 / Math.max(canvas.width, canvas.height)));
  const large = document.createElement("canvas");
  large.width = factor * canvas.width;
  large.height = factor * canvas.height;
  const context = large.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = false;
  context.drawImage(canvas, 0, 0, large.width, large.height);
  return large;
}

export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

export const saveCanvas = (canvas, name) => canvas.toBlob((blob) => save(blob, name), "image/png");
