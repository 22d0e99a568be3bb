// The page: images come from a file, a drop, the clipboard or the camera; the answers are shown as bars.

import * as camera from "./camera.js";
import { Classifier } from "./classifier.js";

const MOST_BARS = 5;
const MOST_TILES = 60; // images that are kept to be shown again

const part = (id) => document.getElementById(id);
const percent = (p) => `${(100 * p).toFixed(1)} %`;
let classifying = Promise.resolve();

/** An element with attributes and children; text is never taken for mark-up. */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function say(message) {
  part("message").textContent = message;
  part("message").hidden = !message;
}

// --- answers ---------------------------------------------------------------------------------------

function show({ before, after, unknown, milliseconds }) {
  const [[firstBefore]] = before;
  part("before").replaceChildren(...bars(before));
  part("after").replaceChildren(...bars(after, firstBefore));
  part("none").hidden = !unknown;
  part("time").textContent = `Answered in ${Math.round(milliseconds)} ms, by this device.`;
}

function bars(answer, other = null) {
  return [...answer].slice(0, MOST_BARS).map(([name, p], index) => {
    const words = element("span", { class: "bar-name" }, name);
    if (index === 0 && other !== null && other !== name) words.append(" ", element("span", { class: "changed" }, "changed"));
    return element("li", { class: index ? "" : "first" }, words, element("span", { class: "bar-value" }, percent(p)),
      element("span", { class: "bar-track" }, element("span", { style: `width:${(100 * p).toFixed(1)}%` })));
  });
}

// --- images ----------------------------------------------------------------------------------------

/** Show and classify files, one after the other; each becomes a tile. */
function take(files) {
  if (!files.length) return;
  stopCamera();
  say("");
  classifying = classifying.then(async () => {
    const failed = [];
    for (const file of files) await takeOne(file).catch((error) => failed.push(`${file.name}: ${error.message}`));
    say(failed.length > 1 ? `${failed[0]} ${failed.length - 1} more could not be used either.` : failed.join(""));
  });
}

async function takeOne(file) {
  const answer = await (await ready).classify(file);
  const [[first]] = answer.after;
  const address = URL.createObjectURL(file);
  const tile = element("button", { class: "tile", title: file.name }, element("img", { src: address, alt: file.name }),
    element("span", {}, answer.unknown ? "None of these" : first));
  tile.addEventListener("click", () => { stopCamera(); showTile(tile, address, file.name, answer); });
  part("tiles").prepend(element("li", {}, tile));
  for (const old of [...part("tiles").children].slice(MOST_TILES)) {
    URL.revokeObjectURL(old.querySelector("img").src);
    old.remove();
  }
  showTile(tile, address, file.name, answer);
}

function showTile(tile, address, name, answer) {
  for (const other of part("tiles").querySelectorAll(".tile")) other.setAttribute("aria-pressed", other === tile);
  Object.assign(part("shown"), { src: address, alt: name, hidden: false });
  part("empty").hidden = true;
  show(answer);
}

// --- camera ----------------------------------------------------------------------------------------

async function startCamera(open) {
  say("");
  try {
    await open(part("video"));
  } catch (error) {
    stopCamera();
    say(error.message);
    return;
  }
  for (const id of ["shown", "empty"]) part(id).hidden = true;
  part("video").hidden = false;
  part("camera").textContent = "Stop the camera";
  part("turn").hidden = !await camera.isOneOfSeveral();
  const loaded = await ready;
  await camera.watch(part("video"), async (frame) => {
    const answer = await loaded.classify(frame);
    if (camera.isOpen()) show(answer);
  });
}

function stopCamera() {
  if (camera.isOpen()) camera.close(part("video"));
  part("video").hidden = part("turn").hidden = true;
  part("camera").textContent = "Camera";
  part("shown").hidden = !part("shown").src;
  part("empty").hidden = !part("shown").hidden;
}

// --- the page --------------------------------------------------------------------------------------

function describe({ classes, images, top1, base_model: base, strength, precision, bytes }) {
  if (strength !== 1) part("strength").textContent = `tuned, strength ${strength}`;
  part("classes").querySelector("summary").textContent = `It knows ${classes.length} classes`;
  part("classes").querySelector("ul").replaceChildren(...classes.map((name) => element("li", {}, name)));
  Object.assign(part("classes"), { open: classes.length <= 20, hidden: false });
  const right = top1 ? ` Of ${images.test} test images it named ${percent(top1[0])} before and ${percent(top1[1])} after.` : "";
  part("about").textContent = `${base}, tuned with clip-randlora on ${images.train} images.${right} ` +
    `The classifier has ${(bytes / 1e6).toFixed(1)} MB (${precision}).`;
}

const ready = (async () => {
  part("progress").textContent = "Loading the classifier …";
  const loaded = await Classifier.load((share) => { part("bar").style.width = `${100 * share}%`; });
  part("loading").hidden = true;
  describe(loaded.facts);
  return loaded;
})();
ready.catch((error) => { part("progress").textContent = error.message; });

part("choose").addEventListener("click", () => part("files").click());
part("files").addEventListener("change", ({ target }) => { take([...target.files]); target.value = ""; });
part("camera").addEventListener("click", () => camera.isOpen() ? stopCamera() : startCamera(camera.open));
part("turn").addEventListener("click", () => startCamera(camera.turn));
addEventListener("paste", ({ clipboardData }) => take([...clipboardData.files].filter((file) => file.type.startsWith("image/"))));
addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("over"); });
addEventListener("dragleave", ({ relatedTarget }) => { if (!relatedTarget) document.body.classList.remove("over"); });
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  take([...event.dataTransfer.files]);
});
