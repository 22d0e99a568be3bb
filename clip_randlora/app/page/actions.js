// What buttons, forms and boxes do: data-do, data-submit, data-change and data-input name one of these.

import * as camera from "./camera.js";
import { count, seconds } from "./charts.js";
import { choose } from "./files.js";
import { call, upload } from "./server.js";
import { chosenMinutes, isOpen, shareOf } from "./search.js";
import { UNSORTED } from "./parts.js";
import { accepted } from "./tray.js";
import { app, attempt, leftRun, redraw, refresh, rightRun, say } from "./store.js";

const { ui } = app;
const UNDO_SECONDS = 10;
export const DEFAULTS = { model: "lite0", method: "randlora", preset: "balanced", more: {} };
let undoTimer = 0, answerNumber = 0;

// --- gathering -----------------------------------------------------------------------------------

/** Upload files and hand them to an endpoint, with progress and a summary at a place. */
async function addFiles(place, entries, endpoint) {
  if (!entries.length) return;
  ui.started = true;
  const most = app.choices.max_upload_mb * 2 ** 20;
  const tooLarge = entries.filter(({ file }) => file.size > most);
  const sent = entries.filter(({ file }) => file.size <= most);
  const lines = tooLarge.map(({ name }) => `${name}: larger than ${app.choices.max_upload_mb} MB`);
  const added = await attempt(place, async () => {
    if (!sent.length) throw new Error(`${lines[0]}.`);
    const files = await upload(sent, (share) => {
      ui.progress[place] = `Uploading ${count(sent.length, "file")}: ${Math.round(100 * share)} %`;
      redraw();
    });
    ui.progress[place] = `Reading ${count(sent.length, "file")} …`;
    redraw();
    return endpoint(files, sent.map(({ name }) => name));
  }, { working: `Uploading ${count(sent.length, "file")} …` });
  if (!added) return;
  if (added.is_project) return askToOpen(entries[0]);
  lines.push(...added.skipped.map((entry) => `${entry.name}: ${entry.reason}`));
  const parts = [];
  if (added.images) parts.push(`Added ${count(added.images, "image")}.`);
  if (added.opened) parts.push("Opened the project.");
  if (added.known) parts.push(`${count(added.known, "image")} ${added.known === 1 ? "was" : "were"} here already.`);
  if (lines.length) parts.push(`Left out ${count(lines.length, "file")}:`);
  const isBad = lines.length > 0 || (!added.images && !added.known && !added.opened);
  if (!parts.length) parts.push("No images in there.");
  say(place, parts.join(" "), { kind: isBad ? "error" : "note", lines: [...lines, ...added.notes] });
  await Promise.all([reopen(), showGuesses()]);
  updateEstimate();
}

export const addAnything = (entries) =>
  addFiles("gather", entries, (files, names) => call("add_files", files, names));

export const addToClass = (name, entries) => {
  const loose = entries.map(({ file, name: path }) => ({ file, name: path.split("/").pop() }));
  return addFiles(`class ${name}`, loose, (files, names) => call("add_images", name, files, names));
};

/** Show all images of a class; null for none. */
async function openClass(name) {
  const images = name === null ? [] : (await attempt(`class ${name}`, () => call("images", name))) ?? [];
  if (ui.openClass !== name) ui.marked.clear();
  Object.assign(ui, { openClass: name, images });
  redraw();
}

const reopen = () => openClass(ui.openClass);

function offerUndo(removed) {
  if (!removed) return;
  ui.undo = removed;
  clearTimeout(undoTimer);
  undoTimer = setTimeout(() => { ui.undo = null; redraw(); }, 1000 * UNDO_SECONDS);
  forgetResults();
  redraw();
}

async function removeImages(numbers, place) {
  offerUndo(await attempt(place, () => call("remove_images", numbers)));
  numbers.forEach((number) => { ui.marked.delete(number); ui.guessesMarked.delete(number); });
  if (numbers.includes(ui.tried?.number)) Object.assign(ui, { tried: null, answers: null });
  await Promise.all([reopen(), showGuesses(), showFindings()]);
  await showRuns();
}

const moveImages = (numbers, name, place) => sortImages({ [name === UNSORTED ? "" : name]: numbers }, place);

/** Move images to classes, `{class: numbers}`; one Undo brings all of them back. */
async function sortImages(groups, place) {
  offerUndo(await attempt(place, () => call("sort_images", groups)));
  Object.values(groups).flat().forEach((number) => { ui.marked.delete(number); ui.guessesMarked.delete(number); });
  await Promise.all([reopen(), showGuesses(), showFindings()]);
  forgetResults();
  updateEstimate();
  await showRuns();
}

/** Get what the images that are not sorted yet are taken for, if that may have changed. */
export async function showGuesses() {
  const { unsorted } = app.state, asked = JSON.stringify(unsorted);
  if (asked === ui.guessesOf) return;
  ui.guessesOf = asked;
  const guesses = unsorted.count ? (await attempt("tray", () => call("suggestions"))) ?? [] : [];
  if (asked !== ui.guessesOf) return; // asked again meanwhile
  ui.guesses = guesses;
  const there = new Set(ui.guesses.map((image) => image.number));
  ui.guessesMarked.forEach((number) => there.has(number) || ui.guessesMarked.delete(number));
  redraw();
}

/** Get what the last check found and nobody settled, if that may have changed. */
export async function showFindings() {
  const { check } = app.state, asked = JSON.stringify(check);
  if (asked === ui.findingsOf) return;
  ui.findingsOf = asked;
  const findings = check && !check.is_running ? (await attempt("check", () => call("findings"))) ?? [] : [];
  if (asked !== ui.findingsOf) return; // asked again meanwhile
  ui.findings = findings;
  redraw();
}

/** Settle a finding, and keep the focus among the others. */
async function settle(action) {
  const place = [...document.querySelectorAll("#check .cases > li")].findIndex((item) => item.contains(document.activeElement));
  await action();
  await drawn();
  if (place < 0) return;
  const left = document.querySelectorAll("#check .cases > li");
  (left[Math.min(place, left.length - 1)]?.querySelector(".row button") ?? document.getElementById("start-check"))?.focus();
}

// --- training ------------------------------------------------------------------------------------

export async function updateEstimate() {
  const { model, method, preset, more } = ui.settings;
  try {
    ui.estimate = app.state.why_not_train ? null : await call("estimate", model, method, preset, more);
  } catch {
    ui.estimate = null; // what is wrong with the settings is said when the training is started
  }
  redraw();
}

async function start(place, action) {
  ui.right = "";
  ui.left = "before";
  await attempt(place, action, { working: "Starting …" });
  if (app.state.training?.is_running) ui.searchOpen = false;
  ui.settings = { ...ui.settings, ...app.state.choices };
  updateEstimate();
}

/** Train with other settings from now on; the server keeps them for a reloaded page. */
async function useSettings({ model, method, preset, more }) {
  const isDone = await attempt("search", async () => {
    await call("use_settings", model, method, preset, more);
    return true;
  });
  if (isDone) ui.settings = { model, method, preset, more };
  updateEstimate();
  return isDone;
}

/** Put the focus on what has taken the place of the button that had it. */
async function focusOn(id) {
  redraw();
  await drawn();
  document.getElementById(id)?.focus();
}

// --- trying --------------------------------------------------------------------------------------

/** Both answers for what is tried, from a function that asks one run at a strength. */
async function ask(one) {
  const left = leftRun(), right = rightRun();
  const answered = await one(right.id, ui.strength);
  const other = left && (await one(left.id, 1));
  return {
    left: other ? other.tuned : answered.zero_shot,
    right: answered.tuned,
    unknown: { left: other?.unknown, right: answered.unknown }, // for no run alone: it has no threshold
  };
}

export async function answer() {
  const { tried } = ui;
  if (!tried || !rightRun()) return;
  const number = ++answerNumber;
  say("try", "");
  ui.answers = ui.answers?.left ? ui.answers : { working: true };
  redraw();
  try {
    const one = tried.number !== undefined
      ? (run, strength) => call("answer_example", tried.number, strength, run)
      : async (run, strength) => {
        tried.uploaded ??= upload([tried]);
        const [file] = await tried.uploaded;
        return call("answer", file, strength, run, tried.name);
      };
    const answers = await ask(one);
    if (number === answerNumber) ui.answers = answers;
  } catch (error) {
    if (number !== answerNumber) return;
    ui.answers = null;
    if (tried.number === undefined) ui.tried = null;
    say("try", error.message);
  }
  redraw();
}

export function tryFile(entry) {
  if (!entry) return;
  closeCamera();
  if (ui.tried?.file) URL.revokeObjectURL(ui.tried.address);
  ui.tried = { ...entry, address: URL.createObjectURL(entry.file) };
  ui.answers = null;
  answer();
}

function tryExample(number) {
  closeCamera();
  const found = [...ui.examples, ...Object.values(ui.results).flatMap((r) => r.images)].find((e) => e.number === number);
  if (!found?.address) return;
  ui.tried = { number, label: found.label, name: `A test image of ${found.label}`, address: `${found.address}?large` };
  ui.answers = null;
  answer();
}

function closeCamera() {
  camera.close();
  ui.camera = ui.cameraTry = null;
}

const video = (which) => document.querySelector(`video[data-camera=${which}]`);
const drawn = () => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));

// --- runs and results ----------------------------------------------------------------------------

function forgetResults() { ui.results = {}; }

/** Get what is shown of the two runs that are compared: examples, results, formats. */
export async function showRuns() {
  const right = rightRun(), left = leftRun();
  if (!right) {
    Object.assign(ui, { examples: [], answers: null, formats: null, exported: null });
    if (ui.tried?.number !== undefined) ui.tried = null;
    return redraw();
  }
  for (const run of [right, left]) {
    if (run?.is_finished && !ui.results[run.id]) {
      try {
        ui.results[run.id] = await call("results", run.id);
      } catch (error) {
        say("results", error.message);
      }
    }
  }
  const images = ui.results[right.id]?.images.filter((row) => row.address) ?? [];
  ui.examples = spread(images, 12);
  redraw();
  answer();
  loadFormats(right);
}

/** A few of many, those that tuning fixed first. */
function spread(images, most) {
  const fixed = images.filter((row) => row.after === row.label && row.before !== row.label);
  const others = images.filter((row) => !fixed.includes(row));
  const some = others.filter((_, i) => i % Math.max(1, Math.ceil(others.length / most)) === 0);
  return [...fixed.slice(0, most / 2), ...some].slice(0, most);
}

/** Ask what a run can be exported in, which takes the server a while, once somebody looks there. */
export async function loadFormats(run) {
  if (!ui.takeSeen || !run?.is_finished || ui.formatsOf === run.id) return;
  ui.formatsOf = run.id;
  ui.formats = null;
  try {
    ui.formats = await call("formats", run.id);
    const fits = ui.formats.filter((format) => !format.obstacle).map((format) => format.name);
    if (!fits.includes(ui.format) || ui.format === "adapter") ui.format = "open_clip";
  } catch {
    ui.formatsOf = null; // asked again with the next run
  }
  redraw();
}

async function exportRun(format) {
  const known = ui.formats?.find((entry) => entry.name === format) ?? {};
  const hasSliders = !["adapter", "web"].includes(format);
  const strength = known.takes_strength && hasSliders ? ui.exportStrength : 1;
  const share = known.takes_share && hasSliders ? ui.exportShare : 0;
  const precisions = known.precisions ?? ["fp32"];
  const precision = precisions.includes(ui.precision) ? ui.precision : precisions[0];
  const working = `Writing ${format}, and checking it by loading it back${known.seconds ? ` (about ${seconds(known.seconds)})` : ""} …`;
  const file = await attempt(`export ${format}`, () =>
    call("export_run", format, rightRun().id, strength, precision, share), { working });
  if (file) ui.exported = { ...file, format };
  redraw();
}

async function saveProject() {
  ui.saved = (await attempt("project", () => call("save_project"), { working: "Saving …" })) ?? ui.saved;
  redraw();
}

function askToOpen(entry) {
  const open = async () => {
    ui.dialog = null;
    const opened = await attempt("gather", async () => {
      const [file] = await upload([entry]);
      return call("open_project", file, entry.name);
    }, { working: `Opening ${entry.name} …` });
    if (!opened) return;
    if (opened.undo) offerUndo(opened);
    say("gather", "Opened the project.", { kind: "note", lines: opened.notes });
    await startOver();
  };
  if (!app.state.contents) return open();
  ui.dialog = {
    text: `Opening ${entry.name} replaces what is here: ${app.state.contents}.`,
    buttons: [["Replace it", open], ["Save mine first", async () => { ui.dialog = null; await saveProject(); location.hash = "take"; }]],
  };
  redraw();
}

/** Forget what this page alone knew, after the project became another. */
async function startOver() {
  Object.assign(ui, { openClass: null, left: "before", right: "", tried: null, answers: null, exported: null,
    saved: null, formatsOf: null, cell: null, list: "wrong", many: null });
  forgetResults();
  await refresh();
  await Promise.all([showGuesses(), showFindings(), showRuns()]);
}

const goTo = (id) => document.getElementById(id)?.scrollIntoView({ behavior: "smooth" });

// --- the tables ----------------------------------------------------------------------------------

export const clicks = {
  "unsay": ({ place }) => say(place, ""),
  "see-it-work": () => { ui.tryFirst = true; return start("hero", () => call("see_it_work")); },
  "own-photos": async () => { ui.started = true; redraw(); await drawn(); document.getElementById("new-class").focus(); },
  "choose-any": async () => addAnything(await choose({ accept: "image/*,.zip" })),
  "upload": async ({ class: name }) => addToClass(name, await choose()),
  "rename": async ({ class: name }) => {
    ui.renaming = name;
    redraw();
    await drawn();
    document.querySelector(".rename input")?.select();
  },
  "stop-renaming": () => { ui.renaming = null; },
  "menu": ({ menu }) => { ui.menu = ui.menu === menu ? null : menu; },
  "switch-class": ({ class: name }) => setClass(name, (entry) => ({ isOn: !entry.is_on })),
  "remove-class": async ({ class: name }) => {
    ui.menu = null;
    offerUndo(await attempt("gather", () => call("remove_class", name)));
    say(`class ${name}`, "");
    if (ui.openClass === name) await openClass(null);
    await showRuns();
  },
  "open": ({ class: name }) => openClass(name),
  "close-class": () => openClass(null),
  "mark": ({ number }) => {
    const n = Number(number);
    if (!ui.marked.delete(n)) ui.marked.add(n);
  },
  "mark-all": () => {
    const all = ui.images.map((image) => image.number);
    ui.marked = new Set(ui.marked.size ? [] : all);
  },
  "remove-marked": () => removeImages([...ui.marked], `class ${ui.openClass}`),
  "enlarge": () => enlarge(ui.images, ui.marked),
  "mark-guess": ({ number }) => {
    const n = Number(number);
    if (!ui.guessesMarked.delete(n)) ui.guessesMarked.add(n);
  },
  "mark-guesses": () => {
    const all = ui.guesses.map((image) => image.number);
    ui.guessesMarked = new Set(ui.guessesMarked.size ? [] : all);
  },
  "remove-guesses": () => removeImages([...ui.guessesMarked], "tray"),
  "enlarge-guess": () => enlarge(ui.guesses, ui.guessesMarked),
  "more-guesses": () => { ui.guessesShown += 60; },
  "accept-one": async ({ number }) => {
    const buttons = [...document.querySelectorAll(".guesses .taken[data-do]")];
    const place = buttons.findIndex((button) => button.dataset.number === number);
    const image = ui.guesses.find((other) => other.number === Number(number));
    await sortImages({ [image.class_name]: [image.number] }, "tray");
    await drawn();
    (document.querySelectorAll(".guesses .taken[data-do]")[place] ?? document.getElementById("tray"))?.focus();
  },
  "accept-sure": async () => {
    const groups = {};
    for (const image of accepted(ui)) (groups[image.class_name] ??= []).push(image.number);
    if (Object.keys(groups).length) await sortImages(groups, "tray");
  },
  "sort-one": ({ number, class: name }) => sortImages({ [name]: [Number(number)] }, "tray"),
  "camera": async ({ class: name }) => {
    closeCamera();
    Object.assign(ui, { camera: name, taken: 0 });
    redraw();
    await drawn();
    await camera.open(video("class")).catch((error) => { closeCamera(); say(`class ${name}`, error.message); });
  },
  "close-camera": closeCamera,
  "undo": async () => {
    const { undo } = ui.undo;
    ui.undo = null;
    const what = await attempt("gather", () => call("undo", undo));
    if (what) say("gather", `Put back: ${what}.`, { kind: "note" });
    await startOver();
    updateEstimate();
  },
  "train": () => {
    const { model, method, preset, more } = ui.settings;
    return start("train", () => call("start_training", model, method, preset, more));
  },
  "stop": () => attempt("train", () => call("stop_training")),
  "search": () => { ui.searchOpen = !isOpen(app); },
  "start-search": async () => {
    const { model, method, preset, more } = ui.settings;
    ui.searchOpen = true;
    await attempt("search", () => call("start_search", chosenMinutes(app.choices, ui), model, method, preset, more));
    await focusOn("stop-search");
  },
  "stop-search": () => attempt("search", () => call("stop_search")),
  "start-check": async () => {
    await attempt("check", () => call("start_check"));
    await focusOn("stop-check");
  },
  "stop-check": async () => { await attempt("check", () => call("stop_check")); },
  "more-findings": ({ kind }) => { ui.findingsShown[kind] = (ui.findingsShown[kind] ?? 24) + 24; },
  "look": ({ address, name }) => { ui.dialog = { image: `${address}?large`, text: name, buttons: [] }; },
  "settle": ({ number, class: name }) => settle(() => moveImages([Number(number)], name, "check")),
  "settle-by-removing": ({ number }) => settle(() => removeImages([Number(number)], "check")),
  "fine": ({ finding }) => settle(async () => {
    offerUndo(await attempt("check", () => call("call_fine", [finding])));
    await showFindings();
  }),
  "use-settings": async () => {
    const before = ui.settings;
    if (!(await useSettings(app.state.search.found))) return;
    ui.settingsBefore = before;
    await focusOn("undo-settings");
  },
  "undo-settings": async () => {
    if (!(await useSettings(ui.settingsBefore ?? app.state.search.start))) return;
    ui.settingsBefore = null;
    await focusOn("use-settings");
  },
  "go-try": async () => { goTo("try"); const [first] = ui.examples; if (!ui.tried && first) tryExample(first.number); },
  "go-results": () => goTo("results"),
  "choose-try": async () => tryFile((await choose({ several: false }))[0]),
  "camera-try": async () => {
    if (ui.cameraTry) return closeCamera();
    closeCamera();
    Object.assign(ui, { cameraTry: true, tried: null });
    redraw();
    await drawn();
    try {
      const shown = video("try");
      await camera.open(shown);
      await camera.streamAnswers(shown, () => ui.cameraTry, ask, (answers) => { if (ui.cameraTry) { ui.answers = answers; redraw(); } });
    } catch (error) {
      closeCamera();
      say("try", error.message);
    }
  },
  "example": ({ number }) => { tryExample(Number(number)); goTo("try"); },
  "choose-many": async () => classifyMany(await choose({ accept: "image/*,.zip" })),
  "runs": () => { ui.runsOpen = !ui.runsOpen; },
  "use-run": async ({ run }) => {
    await attempt("runs", () => call("use_run", run));
    Object.assign(ui, { right: "", exported: null });
    await showRuns();
  },
  "rename-run": async ({ run }) => {
    ui.renamingRun = run;
    redraw();
    await drawn();
    document.querySelector(".run form input")?.select();
  },
  "compare-run": async ({ run }) => {
    const isUsed = run === app.state.in_use;
    const other = app.state.runs.filter((entry) => entry.id !== run && entry.is_finished).pop();
    Object.assign(ui, { left: isUsed && other ? other.id : run, right: "", runsOpen: false });
    await showRuns();
    goTo("results");
  },
  "download-run": async ({ run }) => { ui.right = run; ui.runsOpen = false; await showRuns(); goTo("take"); await exportRun("run"); },
  "remove-run": async ({ run }) => {
    offerUndo(await attempt("runs", () => call("remove_run", run)));
    if (ui.left === run) ui.left = "before";
    if (ui.right === run) ui.right = "";
    await showRuns();
  },
  "load-run": async () => {
    const [entry] = await choose({ accept: ".zip,.safetensors", several: false });
    if (!entry) return;
    const classes = await attempt("runs", async () => {
      const [file] = await upload([entry]);
      return call("load_run", file, entry.name);
    }, { working: `Loading ${entry.name} …` });
    if (classes) say("runs", `Loaded ${entry.name}: ${classes.join(", ")}. Go on at Try.`, { kind: "note" });
    ui.started = true;
    await showRuns();
  },
  "matrix": ({ which }) => { ui.matrix = which; ui.cell = null; if (ui.list === "cell") ui.list = "wrong"; },
  "cell": ({ label, answer: given }) => { ui.cell = { label, answer: given }; ui.list = "cell"; },
  "list": ({ list }) => { ui.list = list; },
  "remove-one": ({ number }) => removeImages([Number(number)], "results"),
  "save-project": saveProject,
  "open-project": async () => {
    const [entry] = await choose({ accept: ".zip", several: false });
    if (entry) askToOpen(entry);
  },
  "export": ({ format }) => exportRun(format),
  "copy-snippet": () => navigator.clipboard?.writeText(ui.exported.snippet),
  "delete-everything": () => {
    ui.dialog = {
      text: `Delete ${app.state.contents} for good? This cannot be undone.`,
      buttons: [["Delete everything", async () => {
        ui.dialog = null;
        ui.runsOpen = false;
        closeCamera();
        await attempt("gather", () => call("delete_everything"));
        ui.started = false;
        ui.undo = null;
        await startOver();
        say("hero", "Everything is deleted.", { kind: "note" });
      }]],
    };
  },
  "dialog": ({ button }) => ui.dialog.buttons[button][1](),
  "close-dialog": () => { ui.dialog = null; },
  "jump": ({ to }) => goTo(to),
};

async function setClass(name, change) {
  const entry = app.state.classes.find((other) => other.name === name);
  const { isOn = entry.is_on, prompts = entry.prompts } = change(entry);
  const isDone = await attempt(`class ${name}`, async () => {
    await call("set_class", name, prompts, isOn);
    return true;
  });
  if (isDone) ui.menu = null; // else what was typed stays, to be mended
}

async function classifyMany(entries) {
  if (!entries.length) return;
  const result = await attempt("many", async () => {
    const files = await upload(entries, (share) => { ui.progress.many = `Uploading: ${Math.round(100 * share)} %`; redraw(); });
    ui.progress.many = `Looking at ${count(entries.length, "file")} …`;
    redraw();
    return call("answer_many", files, entries.map(({ name }) => name), ui.strength, rightRun().id);
  }, { working: "Uploading …" });
  if (!result) return;
  const files = new Map(entries.map(({ file, name }) => [name, file]));
  for (const row of result.rows) if (files.has(row.name)) row.address = URL.createObjectURL(files.get(row.name));
  ui.many = result;
  if (result.skipped.length) say("many", `Left out ${count(result.skipped.length, "file")}:`, { lines: result.skipped.map((e) => `${e.name}: ${e.reason}`) });
  redraw();
}

export const submits = {
  "none": () => {},
  "add-class": async (data, { name }, form) => {
    ui.started = true;
    const added = await attempt("add-class", () => call("add_class", name));
    if (added !== undefined && form.elements.name.value === name) form.reset(); // else the next is being typed
  },
  "rename-class": async ({ class: old }, { name }) => {
    if (name !== old) {
      const done = await attempt(`class ${old}`, () => call("rename_class", old, name));
      if (done === undefined) return;
      if (ui.openClass === old) ui.openClass = done;
      forgetResults();
      await showRuns();
    }
    ui.renaming = null;
    redraw();
  },
  "class-prompts": ({ class: name }, { words }) => setClass(name, () => ({ prompts: words.split("\n") })),
  "rename-run": async ({ run }, { name }) => {
    const isDone = await attempt("runs", async () => {
      await call("rename_run", run, name);
      return true;
    });
    if (isDone) ui.renamingRun = null;
    redraw();
  },
};

export const changes = {
  "preset": (box) => setting({ preset: box.value }),
  "model": (box) => setting({ model: box.value }),
  "method": (box) => setting({ method: box.value }),
  "search-minutes": (box) => { ui.searchMinutes = Number(box.value); },
  "more": (box) => {
    const more = { ...ui.settings.more };
    const text = box.value.trim().replace(",", ".");
    if (text === "") delete more[box.name];
    else more[box.name] = isNaN(Number(text)) ? text : Number(text);
    setting({ more });
  },
  "more-list": (box) => {
    const boxes = [...box.closest("fieldset").querySelectorAll("input")];
    const more = { ...ui.settings.more, [box.name]: boxes.filter((b) => b.checked).map((b) => b.value) };
    if (boxes.every((b) => b.checked)) delete more[box.name];
    setting({ more });
  },
  "held-out": (box) => attempt("options", () => call("set_held_out", Number(box.value))),
  "templates": (box) => attempt("options", () => call("set_prompts", box.value.split("\n").filter((line) => line.trim()))),
  "left": async (box) => { ui.left = box.value; await showRuns(); },
  "right": async (box) => { ui.right = box.value; ui.exported = null; await showRuns(); },
  "move-marked": (box) => moveChosen(box, [...ui.marked], `class ${ui.openClass}`),
  "settle": (box) => settle(() => moveChosen(box, [Number(box.dataset.number)], "check")),
  "move-guesses": (box) => moveChosen(box, [...ui.guessesMarked], "tray"),
  "sort-one": (box) => moveChosen(box, [Number(box.dataset.number)], "tray"),
  "move-one": (box) => moveChosen(box, [Number(box.dataset.number)], "results"),
  "takes-unknown": (box) => { ui.takesUnknown = box.checked; },
  "only-different": (box) => { ui.onlyDifferent = box.checked; },
  "format": (box) => { ui.format = box.value; },
  "precision": (box) => { ui.precision = box.value; },
};

export const inputs = {
  "line": (box) => { ui.line = Number(box.value); },
  "strength": (box) => { ui.strength = Number(box.value); answerSoon(); },
  "export-strength": (box) => { ui.exportStrength = Number(box.value); },
  "export-share": (box) => { ui.exportShare = Number(box.value); },
};

/** Show the one marked image, large. */
function enlarge(images, marked) {
  const image = images.find(({ number }) => marked.has(number));
  ui.dialog = { image: `${image.address}?large`, text: image.name, buttons: [] };
}

/** Move images to the class that was chosen in a box, which then offers all classes again. */
function moveChosen(box, numbers, place) {
  const name = box.value;
  box.value = "";
  return name && moveImages(numbers, name, place);
}

function setting(change) {
  Object.assign(ui.settings, change);
  updateEstimate();
}

let soon = 0;
function answerSoon() {
  clearTimeout(soon);
  soon = setTimeout(answer, 20);
}

/** Take pictures for a class while a button is held. */
export function holdButton(button) {
  const name = button.dataset.hold, taken = [];
  const stop = camera.hold(video("class"), (blob) => {
    taken.push({ file: blob, name: `camera-${Date.now()}-${taken.length}.jpg` });
    ui.taken += 1;
    redraw();
  });
  return () => { stop(); setTimeout(() => addToClass(name, taken), 250); }; // the last picture is being made
}

// --- watching a training -------------------------------------------------------------------------

let polling = false, lastTraining = "";

/** Look at the project again and again: often during a training, now and then otherwise. */
export async function poll() {
  if (polling) return;
  polling = true;
  while (true) {
    const before = runsShown(app.state), choices = JSON.stringify(app.state?.choices);
    if (!document.hidden || runningJob(app.state)) await refresh();
    const { state } = app, job = state?.training;
    if (state && choices !== JSON.stringify(state.choices)) { // chosen in another tab
      ui.settings = { ...DEFAULTS, ...state.choices };
      updateEstimate();
      redraw();
    }
    if (state) await Promise.all([showGuesses(), showFindings()]);
    if (state && before !== runsShown(state)) {
      await showRuns();
      updateEstimate();
    }
    const now = job ? `${job.run} ${job.state}` : "";
    if (job && now !== lastTraining && job.state === "done" && ui.tryFirst) {
      ui.tryFirst = false;
      await showRuns();
      if (ui.examples[0]) tryExample(ui.examples[0].number);
    }
    lastTraining = now;
    if (ui.estimate === null && !state?.why_not_train) updateEstimate(); // the machine is timed at first
    document.title = title(state);
    const running = runningJob(state) ?? (state?.unsorted.is_busy && { can_stop: true });
    await new Promise((resolve) => setTimeout(resolve, !running ? 3000 : running.can_stop ? 600 : 250));
  }
}

const runsShown = (state) => JSON.stringify([state?.in_use, state?.runs.map((run) => run.is_finished)]);

const runningJob = (state) => [state?.training, state?.search, state?.check].find((job) => job?.is_running);

function title(state) {
  const job = runningJob(state);
  if (!job) return "clip-randlora";
  if (job === state.check) return `${job.total ? `${Math.round((100 * job.done) / job.total)} % - ` : ""}${job.state}`;
  if (job === state.search) return `${shareOf(job)} % - ${job.state}`;
  return job.steps ? `${Math.round((100 * job.step) / job.steps)} % - ${job.state}` : `${job.state} - clip-randlora`;
}
