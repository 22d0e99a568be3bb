// Calls to the app's endpoints, the same that scripts use, and uploads.

const AT_ONCE = 3; // uploads in parallel
const BATCH_FILES = 8;
const BATCH_BYTES = 24 * 2 ** 20;

/** An error whose message is a sentence for the person. */
export class Told extends Error {}

/** Call an endpoint with its arguments in order, and return what it returns. */
export async function call(name, ...data) {
  let response;
  try {
    response = await fetch(address(`gradio_api/run/${name}`), {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ data }),
    });
  } catch {
    throw new Told("The app does not answer. Is it still running?");
  }
  if (response.status === 401) throw new Told("Reload the page and log in again.");
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Told(answer.error || "This failed; the app's log says more.");
  return answer.data[0];
}

export function address(path) {
  return new URL(path, document.baseURI).href;
}

/**
 * Upload files, some at a time.
 * @param {{file: File, name: string}[]} files
 * @param {(share: number, done: number) => void} onProgress told the share of the bytes
 * @returns what endpoints take as files, in the same order
 */
export async function upload(files, onProgress = () => {}) {
  const batches = inBatches(files);
  const total = files.reduce((sum, { file }) => sum + file.size, 0) || 1;
  const sent = batches.map(() => 0);
  const tell = () => onProgress(sent.reduce((a, b) => a + b, 0) / total);
  const answers = new Array(batches.length);
  let next = 0;
  const worker = async () => {
    while (next < batches.length) {
      const own = next++;
      answers[own] = await send(batches[own], (bytes) => { sent[own] = bytes; tell(); });
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
  return answers.flat().map((path) => ({ path, meta: { _type: "gradio.FileData" } }));
}

function inBatches(files) {
  const batches = [];
  let bytes = 0;
  for (const entry of files) {
    const last = batches[batches.length - 1];
    if (last && last.length < BATCH_FILES && bytes + entry.file.size <= BATCH_BYTES) {
      last.push(entry);
      bytes += entry.file.size;
    } else {
      batches.push([entry]);
      bytes = entry.file.size;
    }
  }
  return batches;
}

function send(batch, onBytes) {
  const form = new FormData();
  batch.forEach(({ file, name }, i) => form.append("files", file, `${i}-${safe(name)}`));
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", address("gradio_api/upload"));
    request.upload.onprogress = (event) => onBytes(event.loaded);
    request.onload = () => {
      if (request.status === 200) resolve(JSON.parse(request.responseText));
      else if (request.status === 413) reject(new Told("A file is larger than this app takes."));
      else reject(new Told("The files did not arrive; try again."));
    };
    request.onerror = () => reject(new Told("The files did not arrive; is the app still running?"));
    request.send(form);
  });
}

/** The last part of a name, in characters that every file system takes. */
function safe(name) {
  const last = name.split("/").pop();
  const dot = last.lastIndexOf(".");
  const extension = dot > 0 ? last.slice(dot).replace(/[^.\w]/g, "").slice(0, 10) : "";
  return `image${extension}`;
}
