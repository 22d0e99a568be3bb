// From a decoded image to the square of pixels that the encoder takes, as Pillow makes it: resized
// with antialiasing, first across and then down, each rounded to bytes.

const SHIFT = 2 ** 22; // Pillow's weights are whole numbers of this unit
const STRIP = 2 ** 21; // pixels that are read at a time
const FILTERS = {
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { support: 2, weight: (x) => cubic(Math.abs(x)) },
};

/** Keys' cubic with a = -0.5. */
function cubic(x) {
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

/**
 * Resize an image and cut its middle, on white where it is transparent.
 * @param {ImageBitmap|OffscreenCanvas} image
 * @param {number} side of the square
 * @param {boolean} keepsShape whether the shorter side is made as long, or both
 * @param {string} filter bilinear or bicubic
 * @returns {Uint8ClampedArray} side x side pixels of red, green, blue
 */
export function square(image, side, keepsShape, filter) {
  const short = Math.min(image.width, image.height);
  const [across, down] = [image.width, image.height].map((length) =>
    axis(length, keepsShape ? Math.floor((side * length) / short) : side, side, FILTERS[filter]));
  const first = Math.min(...down.starts), last = Math.max(...down.ends);
  const narrow = new Uint8ClampedArray((last - first) * side * 3);
  const height = Math.max(1, Math.floor(STRIP / image.width));
  const context = new OffscreenCanvas(image.width, Math.min(height, last - first))
    .getContext("2d", { alpha: false, willReadFrequently: true });
  for (let top = first; top < last; top += height) {
    const rows = Math.min(height, last - top);
    context.fillStyle = "white";
    context.fillRect(0, 0, image.width, rows);
    context.drawImage(image, 0, -top);
    const { data } = context.getImageData(0, 0, image.width, rows);
    for (let row = 0; row < rows; row++) {
      weigh(data.subarray(4 * row * image.width), 4, across, narrow.subarray(3 * (top - first + row) * side), 3);
    }
  }
  const result = new Uint8ClampedArray(side * side * 3);
  for (let column = 0; column < side; column++) {
    weigh(narrow.subarray(3 * column), 3 * side, down, result.subarray(3 * column), 3 * side, first);
  }
  return result;
}

/** The weights of the input's pixels for each pixel of the middle of one side. */
function axis(length, resized, side, { support, weight }) {
  const scale = length / resized, wide = Math.max(1, scale), begin = middle(resized - side);
  const starts = [], ends = [], weights = [];
  for (let i = begin; i < begin + side; i++) {
    const center = (i + 0.5) * scale;
    const start = resized === length ? i : Math.max(0, Math.trunc(center - support * wide + 0.5));
    const end = resized === length ? i + 1 : Math.min(length, Math.trunc(center + support * wide + 0.5));
    const parts = Array.from({ length: end - start }, (_, j) => weight((start + j - center + 0.5) / wide));
    const sum = parts.reduce((total, part) => total + part, 0);
    starts.push(start);
    ends.push(end);
    weights.push(Float64Array.from(parts, (part) => whole((part / sum) * SHIFT)));
  }
  return { starts, ends, weights };
}

/** Half of a number, rounded to even as Python does. */
function middle(difference) {
  const half = Math.floor(difference / 2);
  return difference % 2 && half % 2 ? half + 1 : half;
}

const whole = (x) => Math.trunc(x < 0 ? x - 0.5 : x + 0.5);

/** Weigh one line of pixels, which are some bytes apart; the first of them is number `skipped`. */
function weigh(from, apart, { starts, weights }, to, apartThere, skipped = 0) {
  for (let i = 0; i < starts.length; i++) {
    let red = SHIFT / 2, green = SHIFT / 2, blue = SHIFT / 2;
    const parts = weights[i];
    for (let j = 0, at = apart * (starts[i] - skipped); j < parts.length; j++, at += apart) {
      red += parts[j] * from[at];
      green += parts[j] * from[at + 1];
      blue += parts[j] * from[at + 2];
    }
    to[apartThere * i] = Math.floor(red / SHIFT);
    to[apartThere * i + 1] = Math.floor(green / SHIFT);
    to[apartThere * i + 2] = Math.floor(blue / SHIFT);
  }
}
