// The strip that is always there: the run in use, and the list of all runs behind it.

import { html } from "./dom.js";
import { count, percent, seconds } from "./charts.js";
import { methodName, said } from "./parts.js";

export function runs({ state, ui }) {
  if (!state) return html``;
  const used = state.runs.find((run) => run.id === state.in_use);
  const summary = used ? [used.name, used.is_finished && methodName(used.method),
    used.is_finished && percent(used.after), used.is_finished && count(used.train_images, "image")].filter(Boolean).join(" · ")
    : "No run yet";
  return html`<div class="strip"><button data-do="runs" aria-expanded="${ui.runsOpen}" id="runs-button">${summary} <span aria-hidden="true">▾</span></button></div>
    ${ui.runsOpen && html`<div class="runs card" role="region" aria-label="Runs">
      <div class="head"><h2>Runs</h2><button data-do="runs" aria-label="Close the runs">×</button></div>
      ${said("runs")}
      ${state.runs.length === 0 && html`<p class="hint">Every training is kept here, with its figures, and can be used again.</p>`}
      <ul>${[...state.runs].reverse().map((run) => entry(run, state, ui))}</ul>
      <div class="row"><button data-do="load-run">Load a run or an adapter</button>
        <button data-do="open-project">Open a project</button>
        ${state.contents && html`<button data-do="delete-everything">Delete everything</button>`}</div></div>`}`;
}

function entry(run, state, ui) {
  const isUsed = run.id === state.in_use;
  return html`<li class="run ${isUsed ? "used" : ""}" data-key="run-${run.id}">
    <div class="what">${ui.renamingRun === run.id ? html`<form data-submit="rename-run" data-run="${run.id}">
        <input name="name" value="${run.name}" aria-label="New name of ${run.name}" maxlength="80" autocomplete="off"><button>Save</button></form>`
      : html`<b>${run.name}</b>`} ${isUsed && html`<span class="tag">in use</span>`}
      ${run.is_changed && html`<span class="tag quiet" title="Images came or went since this run was trained">images changed since</span>`}
      <p class="details">${run.is_finished ? [methodName(run.method), run.preset, run.model, count(run.train_images, "training image"),
        seconds(run.seconds), when(run.time)].filter(Boolean).join(" · ") : `${run.remark} · ${when(run.time)}`}</p>
      ${run.is_finished && html`<p>${percent(run.before)} before, <b>${percent(run.after)}</b> after, on ${count(run.test_images, "test image")}</p>`}</div>
    <div class="row">${!isUsed && html`<button data-do="use-run" data-run="${run.id}">Use</button>`}
      <button data-do="rename-run" data-run="${run.id}">Rename</button>
      ${state.runs.length > 1 && run.is_finished && html`<button data-do="compare-run" data-run="${run.id}">Compare</button>`}
      ${run.is_finished && html`<button data-do="download-run" data-run="${run.id}">Download</button>`}
      <button data-do="remove-run" data-run="${run.id}">Remove</button></div></li>`;
}

const when = (time) => time ? new Date(1000 * time).toLocaleString([], { dateStyle: "medium", timeStyle: "short" }) : "";
