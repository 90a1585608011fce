// Animated PNG: lossless, and every browser shows it. https://www.w3.org/TR/png-3/

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

const bytes = (format, ...values) => {
  const view = new DataView(new ArrayBuffer(values.reduce((sum, _, i) => sum + Number(format[i]), 0)));
  let at = 0;
  values.forEach((value, i) => {
    view[{ 1: "setUint8", 2: "setUint16", 4: "setUint32" }[format[i]]](at, value);
    at += Number(format[i]);
  });
  return new Uint8Array(view.buffer);
};

function chunk(type, ...parts) {
  const body = [new TextEncoder().encode(type), ...parts];
  let crc = 0xffffffff;
  for (const part of body) for (const byte of part) crc = CRC[(crc ^ byte) & 255] ^ (crc >>> 8);
  const length = parts.reduce((sum, part) => sum + part.length, 0);
  return [bytes("4", length), ...body, bytes("4", ~crc >>> 0)];
}

/** The canvas's pixels as zlib wants them: rows of RGB behind a zero, for no filter. */
async function deflated(canvas) {
  const { width, height } = canvas;
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  const rows = new Uint8Array(height * (1 + 3 * width));
  for (let y = 0, at = 0; y < height; y++) {
    at++;
    for (let x = 0; x < width; x++) for (let c = 0; c < 3; c++) rows[at++] = data[4 * (y * width + x) + c];
  }
  const stream = new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Canvases of one size as an endless animation. */
export async function apng(frames, perSecond) {
  const { width, height } = frames[0];
  const parts = [
    Uint8Array.from(SIGNATURE),
    ...chunk("IHDR", bytes("4411111", width, height, 8, 2, 0, 0, 0)),
    ...chunk("acTL", bytes("44", frames.length, 0)),
  ];
  let sequence = 0;
  for (const [i, frame] of frames.entries()) {
    parts.push(...chunk("fcTL", bytes("444442211", sequence++, width, height, 0, 0, 1, perSecond, 0, 0)));
    const content = await deflated(frame);
    parts.push(...(i === 0 ? chunk("IDAT", content) : chunk("fdAT", bytes("4", sequence++), content)));
  }
  return new Blob([...parts, ...chunk("IEND")], { type: "image/png" });
}
