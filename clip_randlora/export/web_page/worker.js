// Runs the classifier beside the page, so that the page never stands still.

import { decode } from "./decode.js";
import { square } from "./pixels.js";

let facts, ort, session;

self.onmessage = async ({ data: { id, task, given } }) => {
  try {
    self.postMessage({ id, result: await (task === "load" ? load() : classify(given)) });
  } catch (error) {
    self.postMessage({ id, error: error.message });
  }
};

/** Load the facts, the runtime and the classifier; what has come so far is reported. */
async function load() {
  facts = await (await get("classifier.json")).json();
  const runtime = new URL(facts.runtime, import.meta.url);
  const [module, bytes] = await Promise.all([
    import(new URL("ort.wasm.bundle.min.mjs", runtime).href).catch(() => {
      throw new Error(`The page could not load its runtime from ${runtime.host}.`);
    }),
    download("classifier.onnx", facts.bytes),
  ]);
  ort = module;
  ort.env.wasm.wasmPaths = { wasm: new URL("ort-wasm-simd-threaded.wasm", runtime).href };
  ort.env.wasm.numThreads = 1; // more need headers that a static host does not send
  session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  await run(new Float32Array(3 * facts.image_size ** 2)); // the first run is a slow one
  return facts;
}

async function get(name) {
  const answer = await fetch(new URL(name, import.meta.url));
  if (!answer.ok) throw new Error(`${name} could not be loaded (${answer.status}).`);
  return answer;
}

async function download(name, size) {
  const reader = (await get(name)).body.getReader(), parts = [];
  let come = 0;
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    parts.push(part.value);
    come += part.value.length;
    self.postMessage({ come: Math.min(1, come / size) });
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

async function classify(given) {
  const started = performance.now();
  const image = given instanceof ImageBitmap ? given : await decode(given);
  const { image_size: side, keeps_shape: keepsShape, filter, mean, std } = facts;
  const bytes = square(image, side, keepsShape, filter);
  image.close?.();
  const pixels = new Float32Array(bytes.length);
  for (let channel = 0, at = 0; channel < 3; channel++) {
    for (let i = channel; i < bytes.length; i += 3) pixels[at++] = (bytes[i] / 255 - mean[channel]) / std[channel];
  }
  const [before, after, [likeness]] = await run(pixels);
  const none = facts.none.includes(after.indexOf(Math.max(...after)));
  const unlike = facts.least_likeness !== null && likeness < facts.least_likeness;
  return { before, after, unknown: none || unlike, milliseconds: performance.now() - started };
}

async function run(pixels) {
  const input = new ort.Tensor("float32", pixels, [1, 3, facts.image_size, facts.image_size]);
  const { before, after, likeness } = await session.run({ pixels: input });
  return [before, after, likeness].map((tensor) => [...tensor.data]);
}
