// Pieces of mark-up that several parts of the page share.

import { html } from "./dom.js";
import { app } from "./store.js";

/** What was last said at a place, and what is going on there. */
export function said(place) {
  const message = app.ui.messages[place], working = app.ui.progress[place];
  return html`<div class="said" data-key="said-${place}" aria-live="polite">
    ${working && html`<p class="working">${working}</p>`}
    ${message && html`<div class="message ${message.kind}"><p>${message.text}</p>
      ${message.lines.length > 0 && html`<ul>${message.lines.slice(0, 8).map((line) =>
        html`<li>${line}</li>`)}${message.lines.length > 8 &&
        html`<li>and ${message.lines.length - 8} more</li>`}</ul>`}
      <button class="close" data-do="unsay" data-place="${place}" aria-label="Close">×</button>
    </div>`}</div>`;
}

/** A thumbnail of a gathered image. */
export function thumb(image, alt = "") {
  return html`<img class="thumb" data-key="t${image.number}" loading="lazy" width="72" height="72"
    src="${image.address}" alt="${alt || image.name}">`;
}

/** What a list of classes has for no class: no class can be called that. */
export const UNSORTED = "/";

export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

export function methodName(method) {
  return { randlora: "RandLoRA", lora: "LoRA", vera: "VeRA", nola: "NoLA", dora: "DoRA", kradapter: "KRAdapter",
    norm_tuning: "Norm tuning", full: "Full fine-tuning", anchored_head: "Anchored head",
    linear_probe: "Linear probe", zero_shot: "Before, without training" }[method] ?? method;
}

/** Options of a <select>. */
export function options(pairs, chosen) {
  return pairs.map(([value, words]) =>
    html`<option value="${value}" ${value === chosen && html`selected`}>${words}</option>`);
}

/** The selects that choose the two sides of a comparison. */
export function sides(where) {
  const runs = app.state.runs.map((run) => [run.id, run.name]);
  return html`<div class="sides"><label>Left
    <select data-change="left" id="${where}-left">${options([["before", "Before"], ...runs], app.ui.left)}</select>
    </label><label>Right
    <select data-change="right" id="${where}-right">${options(runs, app.ui.right || app.state.in_use)}</select>
    </label></div>`;
}
