// What the page knows: the project as the server describes it, and what this page alone has, such
// as which card is open. Drawing is a function of both.

import { call } from "./server.js";

export const app = {
  state: null, // what `state` returned
  choices: null, // what `choices` returned
  ui: {
    unreachable: "",
    started: false, // whether the person chose to begin with their own photos
    renaming: null, // name of the class that is being renamed
    openClass: null, // name of the class whose images are all shown
    images: [], // of the open class
    marked: new Set(), // numbers of marked images
    guesses: [], // images that are not sorted yet, and what they are taken for
    guessesOf: "", // the state that they were asked for
    guessesShown: 60,
    guessesMarked: new Set(), // numbers
    line: 0.9, // how sure a guess must be to be accepted
    takesUnknown: false, // whether images that look like none of the classes are accepted too
    findings: [], // of the last check, those that are not settled
    findingsOf: "", // the state that they were asked for
    findingsShown: {}, // {kind: how many}
    menu: null, // which menu is open
    messages: {}, // {place: {kind, text, lines}}
    progress: {}, // {place: text}
    undo: null, // {undo, what, done}
    runsOpen: false,
    renamingRun: null,
    settings: null, // of the next training
    estimate: null,
    settingsBefore: null, // those that were replaced by what a search found
    searchOpen: null, // whether the person opened or closed the search; null for neither
    searchMinutes: 0, // 0 for the first that is offered
    left: "before", // what answers on the left: "before", or the id of a run
    right: "", // the id of a run, "" for the run in use
    strength: 1,
    tried: null, // {kind, name, address, file, number, label}
    answers: null, // {left, right} or {error}
    many: null, // {rows, csv, skipped}
    onlyDifferent: false,
    examples: [],
    results: {}, // {run: results}
    list: "wrong", // which test images are shown: wrong, fixed, broken or cell
    cell: null, // {label, answer}
    matrix: "after",
    takeSeen: false, // whether the person has seen where to take it away
    formats: null,
    format: "adapter",
    exportStrength: 1,
    exportShare: 0,
    precision: "fp32",
    exported: null, // {name, bytes, address, snippet}
    saved: null,
    dialog: null,
  },
};

let draw = () => {};
let asked = false;

/** Draw the page before the next frame. */
export function redraw() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => { asked = false; draw(); });
}

export function onDraw(function_) { draw = function_; }

/** Get the project from the server, and draw it if it changed. */
export async function refresh() {
  const text = JSON.stringify(app.state);
  try {
    app.state = await call("state");
    app.ui.unreachable = "";
  } catch (error) {
    app.ui.unreachable = error.message;
    redraw();
    return;
  }
  if (JSON.stringify(app.state) !== text) redraw();
}

/** Say something beside what it is about; the next thing said there replaces it. */
export function say(place, text, { kind = "error", lines = [] } = {}) {
  if (text) app.ui.messages[place] = { kind, text, lines };
  else delete app.ui.messages[place];
  redraw();
}

/** Do something, say at a place what went wrong, and get the project anew. */
export async function attempt(place, action, { working = "" } = {}) {
  say(place, "");
  if (working) app.ui.progress[place] = working;
  redraw();
  try {
    return await action();
  } catch (error) {
    if (!error.message) throw error;
    say(place, error.message);
    return undefined;
  } finally {
    delete app.ui.progress[place];
    await refresh();
    redraw();
  }
}

/** The run that answers on the right. */
export function rightRun() {
  const runs = app.state?.runs ?? [];
  return runs.find((run) => run.id === app.ui.right) ??
    runs.find((run) => run.id === app.state.in_use) ?? null;
}

/** The run that answers on the left, null for "before". */
export function leftRun() {
  return (app.state?.runs ?? []).find((run) => run.id === app.ui.left) ?? null;
}
