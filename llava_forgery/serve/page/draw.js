// The picture with the boxes of its faces and the map of the chosen one.

// From black over violet and orange to yellow: the higher, the brighter, also in grey.
const COLOURS = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];

// Pixels of a drawing's longer side, at least.
const LEAST = 720;

function colour(value) {
  const place = value * (COLOURS.length - 1);
  const low = Math.min(Math.floor(place), COLOURS.length - 2);
  return COLOURS[low].map((part, i) => part + (COLOURS[low + 1][i] - part) * (place - low));
}

// A grey PNG in base64 as a canvas in colours, opaque where it is 1.
export async function heatMap(base64) {
  const image = new Image();
  image.src = `data:image/png;base64,${base64}`;
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  const pen = canvas.getContext("2d");
  pen.drawImage(image, 0, 0);
  const pixels = pen.getImageData(0, 0, canvas.width, canvas.height);
  for (let i = 0; i < pixels.data.length; i += 4) {
    const grey = pixels.data[i];
    pixels.data.set(colour(grey / 255), i);
    pixels.data[i + 3] = grey;
  }
  pen.putImageData(pixels, 0, 0);
  return canvas;
}

// `source`: an image or a video's frame, or null over a video that stays visible below. Of `faces`, those that are
// not to be seen are null.
export function draw(canvas, { source, width, height, faces, chosen, map, opacity }) {
  // Small pictures are shown larger: lines and letters are to stay sharp.
  const scale = Math.max(1, LEAST / Math.max(width, height, 1));
  canvas.width = width * scale;
  canvas.height = height * scale;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  if (source) pen.drawImage(source, 0, 0, width, height);
  const face = faces[chosen];
  if (map && face) {
    const [x0, y0, x1, y1] = face.box;
    pen.globalAlpha = opacity;
    pen.drawImage(map, x0, y0, x1 - x0, y1 - y0);
    pen.globalAlpha = 1;
  }
  const line = Math.max(width, height) / 250;
  const size = Math.max(width, height) / 35;
  pen.font = `600 ${size}px system-ui, sans-serif`;
  faces.forEach((other, i) => {
    if (!other) return;
    const [x0, y0, x1, y1] = other.box;
    // White in black: to be seen on skin, hair and bright walls alike.
    for (const [style, extra] of [["#000", 2 * line], ["#fff", 0]]) {
      pen.strokeStyle = style;
      pen.lineWidth = line + extra;
      pen.setLineDash(i === chosen ? [] : [3 * line, 2 * line]);
      pen.strokeRect(x0, y0, x1 - x0, y1 - y0);
    }
    const text = `${i + 1}: ${other.score.toFixed(2)}`;
    const x = Math.max(0, x0) + line;
    const y = Math.max(0, y0) + line;
    pen.fillStyle = "#000";
    pen.fillRect(x, y, pen.measureText(text).width + size / 2, 1.3 * size);
    pen.fillStyle = "#fff";
    pen.fillText(text, x + size / 4, y + size);
  });
}
