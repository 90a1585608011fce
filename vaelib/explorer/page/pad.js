// A pad to draw on, with as many pixels as the model's images have, or a whole multiple.

export function pad(canvas, [channels, height, width], changed) {
  const $ = (id) => document.getElementById(`own-${id}`);
  const factor = Math.max(1, Math.round(320 / Math.max(width, height)));
  canvas.width = factor * width;
  canvas.height = factor * height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.lineCap = context.lineJoin = "round";
  let [x, y] = [canvas.width / 2, canvas.height / 2];
  let drawing = false;
  let paper = "#000";

  function clear() {
    context.fillStyle = paper;
    context.fillRect(0, 0, canvas.width, canvas.height);
  }
  function line(toX, toY) {
    context.strokeStyle = channels === 3 ? $("colour").value : paper === "#000" ? "#fff" : "#000";
    context.lineWidth = (Number($("width").value) * Math.max(canvas.width, canvas.height)) / 32;
    context.beginPath();
    context.moveTo(x, y);
    context.lineTo(toX, toY);
    context.stroke();
    [x, y] = [toX, toY];
    changed(canvas);
  }
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * canvas.width, ((event.clientY - box.top) / box.height) * canvas.height];
  };

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    drawing = true;
    [x, y] = at(event);
    line(x, y);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (drawing) for (const each of event.getCoalescedEvents()) line(...at(each));
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (drawing = false));
  canvas.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!way) return;
    event.preventDefault();
    const step = canvas.width / 32;
    const to = [Math.max(0, Math.min(canvas.width, x + step * way[0])), Math.max(0, Math.min(canvas.height, y + step * way[1]))];
    if (event.shiftKey) line(...to);
    else [x, y] = to;
  });
  $("clear").addEventListener("click", () => {
    clear();
    changed(canvas);
  });
  $("invert").addEventListener("click", () => {
    paper = paper === "#000" ? "#fff" : "#000";
    context.globalCompositeOperation = "difference";
    context.fillStyle = "#fff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.globalCompositeOperation = "source-over";
    changed(canvas);
  });
  $("colour-label").hidden = channels !== 3;
  clear();

  return {
    /** Draw over an image, cropped around its centre. */
    show(image) {
      const scale = Math.max(canvas.width / image.naturalWidth, canvas.height / image.naturalHeight);
      const [w, h] = [image.naturalWidth * scale, image.naturalHeight * scale];
      clear();
      context.imageSmoothingEnabled = scale < factor;
      context.imageSmoothingQuality = "high";
      context.drawImage(image, (canvas.width - w) / 2, (canvas.height - h) / 2, w, h);
      changed(image); // itself: what has the model's size must come to it unchanged
    },
  };
}
