// The page: gets the project from the server, draws its parts, and hands events to the actions.

import { DEFAULTS, addAnything, addToClass, changes, clicks, holdButton, inputs, loadFormats, poll, showFindings, showGuesses, showRuns, submits, tryFile, updateEstimate } from "./actions.js";
import { check } from "./check.js";
import { html, patch } from "./dom.js";
import { dropped, pasted } from "./files.js";
import { gather } from "./gather.js";
import { hero } from "./hero.js";
import { results } from "./results.js";
import { runs } from "./runs.js";
import { shareOf } from "./search.js";
import { call } from "./server.js";
import { app, onDraw, redraw, refresh, rightRun } from "./store.js";
import { take } from "./take.js";
import { train } from "./train.js";
import { tryIt } from "./try.js";

export async function start(root) {
  const { ui } = app;
  onDraw(() => draw(root));
  listen(root);
  const asked = call("choices").catch((error) => { ui.unreachable = error.message; });
  await refresh();
  app.choices = await asked;
  if (!app.state || !app.choices) {
    redraw();
    setTimeout(() => location.reload(), 3000);
    return;
  }
  ui.settings = { ...DEFAULTS, ...app.state.choices };
  redraw();
  showRuns();
  showGuesses();
  showFindings();
  updateEstimate();
  poll();
}

function draw(root) {
  const part = (name) => root.querySelector(`[data-part=${name}]`);
  const { state, ui } = app;
  part("banner").hidden = !ui.unreachable;
  part("banner").textContent = ui.unreachable;
  if (!state || !ui.settings) return;
  const isEmpty = !ui.started && !state.contents && !state.classes.length && !state.training?.is_running;
  root.querySelector(".clip").dataset.state = isEmpty ? "empty" : "open";
  patch(part("hero"), isEmpty ? hero() : html``);
  const parts = { runs, gather, train, try: tryIt, results, check, take, bar, undo, dialog };
  for (const [name, view] of Object.entries(parts)) {
    const shown = isEmpty && ["gather", "train", "try", "bar"].includes(name) ? html`` : view(app);
    patch(part(name), shown);
  }
  const box = part("dialog");
  if (ui.dialog && !box.open) box.showModal();
  if (!ui.dialog && box.open) box.close();
}

function bar({ state }) {
  const job = state.training;
  const share = state.search?.is_running ? ` ${shareOf(state.search)} %`
    : job?.is_running && job.steps ? ` ${Math.round((100 * job.step) / job.steps)} %` : "";
  const parts = [["gather", "Gather"], ["train", `Train${share}`], ["try", "Try"]];
  if (state.runs.length) parts.push(["results", "Results"]);
  if (state.check) parts.push(["check", "Check"]);
  if (state.runs.length) parts.push(["take", "Take"]);
  return html`${parts.map(([id, words]) => html`<button data-do="jump" data-to="${id}">${words}</button>`)}`;
}

function undo({ ui }) {
  if (!ui.undo) return html``;
  return html`<p>${ui.undo.done}. <button data-do="undo">Undo</button></p>`;
}

function dialog({ ui }) {
  if (!ui.dialog) return html``;
  return html`${ui.dialog.image && html`<img src="${ui.dialog.image}" alt="">`}<p>${ui.dialog.text}</p>
    <div class="row">${ui.dialog.buttons.map(([words], i) => html`<button data-do="dialog" data-button="${i}">${words}</button>`)}
    <button data-do="close-dialog">${ui.dialog.buttons.length ? "Cancel" : "Close"}</button></div>`;
}

function listen(root) {
  const handled = (attribute, table, run) => async (event) => {
    const element = event.target.closest?.(`[${attribute}]`);
    const action = element && table[element.getAttribute(attribute)];
    if (!action) return;
    await run(action, element, event);
    redraw();
  };
  root.addEventListener("click", handled("data-do", clicks, (action, element) => action(element.dataset)));
  root.addEventListener("change", handled("data-change", changes, (action, element) => action(element)));
  root.addEventListener("input", handled("data-input", inputs, (action, element) => action(element)));
  root.addEventListener("submit", handled("data-submit", submits, (action, form, event) => {
    event.preventDefault();
    return action(form.dataset, Object.fromEntries(new FormData(form)), form);
  }));
  root.querySelector("dialog").addEventListener("cancel", () => { app.ui.dialog = null; });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    Object.assign(app.ui, { menu: null, renaming: null, renamingRun: null, runsOpen: false });
    redraw();
  });
  document.addEventListener("pointerdown", (event) => {
    if (!app.ui.runsOpen || event.target.closest(".top, dialog, .undo")) return;
    app.ui.runsOpen = false;
    redraw();
  });
  new IntersectionObserver(([entry]) => {
    if (!entry.isIntersecting || !app.state) return;
    app.ui.takeSeen = true;
    loadFormats(rightRun());
  }).observe(root.querySelector("#take"));
  listenForHolding(root);
  listenForFiles(root);
}

function listenForHolding(root) {
  let release = null;
  const press = (button) => { release ??= holdButton(button); };
  const letGo = () => { release?.(); release = null; };
  root.addEventListener("pointerdown", (event) => {
    const button = event.target.closest("[data-hold]");
    if (button) press(button);
  });
  root.addEventListener("keydown", (event) => {
    if (event.target.matches?.("[data-hold]") && [" ", "Enter"].includes(event.key) && !event.repeat) press(event.target);
  });
  for (const name of ["pointerup", "pointercancel", "blur"]) window.addEventListener(name, letGo);
  root.addEventListener("keyup", letGo);
}

/** Whatever is dropped or pasted is taken here: the browser never leaves the page for it. */
function listenForFiles(root) {
  const over = (event) => {
    event.preventDefault();
    document.querySelectorAll(".over").forEach((card) => card.classList.remove("over"));
    event.target.closest?.("[data-class].card, [data-try]")?.classList.add("over");
  };
  window.addEventListener("dragover", over);
  window.addEventListener("drop", async (event) => {
    event.preventDefault();
    document.querySelectorAll(".over").forEach((card) => card.classList.remove("over"));
    const card = event.target.closest?.("li.card[data-class]"), trial = event.target.closest?.("[data-try]");
    const entries = await dropped(event.dataTransfer);
    if (!entries.length) return;
    if (trial && app.state.runs.length && entries.length === 1) tryFile(entries[0]);
    else if (card && entries.every(({ name }) => !/\.zip$/i.test(name))) addToClass(card.dataset.class, entries);
    else addAnything(entries);
  });
  document.addEventListener("paste", (event) => {
    const [entry] = pasted(event);
    if (!entry || !app.state) return;
    event.preventDefault();
    if (app.state.runs.length) tryFile(entry);
    else addAnything([entry]);
  });
}
