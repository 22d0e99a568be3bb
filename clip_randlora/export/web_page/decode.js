// From a file to an upright image. Colour profiles are not applied, as in training.

const MOST_PIXELS = 64e6;
const ORIENTATION = 0x0112; // the tag of EXIF
// how an image of some width and height is drawn upright, by its orientation
const UPRIGHT = {
  2: (w, h) => [-1, 0, 0, 1, w, 0], 3: (w, h) => [-1, 0, 0, -1, w, h], 4: (w, h) => [1, 0, 0, -1, 0, h],
  5: () => [0, 1, 1, 0, 0, 0], 6: (w, h) => [0, 1, -1, 0, h, 0], 7: (w, h) => [0, -1, -1, 0, h, w],
  8: (w) => [0, -1, 1, 0, 0, w],
};
// two pixels that lie side by side and stand upright above one another
const LYING = "data:image/webp;base64,UklGRk4AAABXRUJQVlA4WAoAAAAIAAAAAQAAAAAAVlA4TA4AAAAvAQAAAAcQEf0PRET/A0VYSUYaAAAATU0AKgAAAAgAAQESAAMAAAABAAYAAAAAAAA=";
const turnsWebP = fetch(LYING).then((answer) => answer.blob()).then(bitmap).then(({ width }) => width === 1);

/**
 * Decode an image.
 * @param {Blob} file in any format that the browser knows
 * @returns {Promise<ImageBitmap|OffscreenCanvas>}
 */
export async function decode(file) {
  let image;
  try {
    image = await bitmap(file);
  } catch {
    throw new Error("The browser cannot read this file; save it as JPEG or PNG.");
  }
  if (image.width * image.height > MOST_PIXELS) {
    image.close();
    throw new Error(`The image has more than ${MOST_PIXELS / 1e6} million pixels; make it smaller.`);
  }
  const orientation = await turnsWebP ? 1 : webpOrientation(new DataView(await file.arrayBuffer()));
  return orientation in UPRIGHT ? turned(image, orientation) : image;
}

function bitmap(file) {
  return createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" });
}

function turned(image, orientation) {
  const { width, height } = image;
  const canvas = orientation < 5 ? new OffscreenCanvas(width, height) : new OffscreenCanvas(height, width);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.setTransform(...UPRIGHT[orientation](width, height));
  context.drawImage(image, 0, 0);
  image.close();
  return canvas;
}

/** The EXIF orientation of a WebP file, which not every browser heeds; 1 of any other file. */
function webpOrientation(bytes) {
  const text = (at) => String.fromCharCode(...[0, 1, 2, 3].map((i) => bytes.getUint8(at + i)));
  try {
    if (text(0) !== "RIFF" || text(8) !== "WEBP") return 1;
    let at = 12;
    while (text(at) !== "EXIF") at += 8 + bytes.getUint32(at + 4, true) + (bytes.getUint32(at + 4, true) % 2);
    at += 8;
    if (text(at) === "Exif") at += 6;
    const little = text(at).startsWith("II"), directory = at + bytes.getUint32(at + 4, little);
    for (let entry = 0; entry < bytes.getUint16(directory, little); entry++) {
      const tag = directory + 2 + 12 * entry;
      if (bytes.getUint16(tag, little) === ORIENTATION) return bytes.getUint16(tag + 8, little);
    }
  } catch { /* the file ends before: it says nothing */ }
  return 1;
}
