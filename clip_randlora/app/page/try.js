// The third column: an image, before and after.

import { html } from "./dom.js";
import { answerBars, percent } from "./charts.js";
import { said, sides } from "./parts.js";
import { leftRun, rightRun } from "./store.js";

export function tryIt({ state, ui }) {
  const ready = state.runs.length > 0;
  return html`<h2>Try</h2>
    <div class="card" data-try>
      ${!ready && html`<p class="hint">When it has learned, try it here: any image, before and after side by side.</p>`}
      ${ready && html`
      <div class="tried" tabindex="0" aria-label="The image that is tried">${shown(ui)}</div>
      <div class="row">
        <button data-do="choose-try">Choose an image</button>
        <button data-do="camera-try">${ui.cameraTry ? "Stop the camera" : "Camera"}</button>
        <span class="hint">or drop or paste one here</span></div>
      ${ui.examples.length > 0 && html`<p class="hint">Test images, with their class:</p>
        <ul class="tiles examples">${ui.examples.map((image) => html`<li data-key="e${image.number}"><button class="tile"
          data-do="example" data-number="${image.number}" title="${image.label}" aria-label="Test image of ${image.label}">
          <img class="thumb" loading="lazy" width="72" height="72" src="${image.address}" alt=""></button></li>`)}</ul>`}
      ${said("try")}
      ${sides("try")}
      <label class="strength">How much of what it learned <output>${percent(ui.strength).replace(".0", "")}</output>
        <input type="range" min="0" max="1" step="0.05" data-input="strength" id="strength" value="${ui.strength}"
          aria-label="Strength"><span class="hint">0 is before, 1 is after (the strength).</span></label>
      <div class="answers">${answer("left", ui)}${answer("right", ui)}</div>
      ${many(ui)}`}
    </div>`;
}

function shown({ tried, cameraTry }) {
  if (cameraTry) {
    return html`<video data-key="try-video" data-camera="try" data-keep muted playsinline aria-label="What the camera sees"></video>`;
  }
  if (!tried) return html`<p class="hint">No image yet.</p>`;
  return html`<img data-key="tried-${tried.address}" src="${tried.address}" alt="${tried.name}">
    ${tried.label && html`<p class="caption">A test image of <b>${tried.label}</b></p>`}`;
}

function answer(side, ui) {
  const run = side === "left" ? leftRun() : rightRun();
  const title = run ? (side === "right" && !leftRun() ? "After" : run.name) : "Before";
  const small = run ? `tuned${side === "right" && ui.strength < 1 ? `, strength ${ui.strength.toFixed(2)}` : ""}` : "zero-shot";
  const answers = ui.answers, isUnknown = answers?.unknown?.[side];
  return html`<section class="answer" id="${side === "left" ? "zero-shot" : "tuned"}"><h3>${title} <small>${small}</small></h3>
    ${isUnknown && html`<p class="none"><b>None of these</b> <small>It is like no image of your classes. The nearest:</small></p>`}
    ${answers && answers[side] ? answerBars(answers[side], { other: side === "right" ? Object.keys(answers.left)[0] : null })
      : html`<p class="hint">${answers?.working ? "Looking …" : "Choose an image."}</p>`}</section>`;
}

function many({ many: result, onlyDifferent }) {
  const rows = result?.rows.filter((row) => !onlyDifferent || row.before !== row.after) ?? [];
  return html`<details class="many"><summary>Many images at once</summary>
    <div class="row"><button data-do="choose-many">Choose images or a zip</button></div>
    ${said("many")}
    ${result && html`<div class="row"><label class="check"><input type="checkbox" data-change="only-different"
        ${onlyDifferent && html`checked`}> only where they differ</label>
      <a class="button" href="${result.csv}" download>Every probability, as CSV</a></div>
      <div class="table"><table><thead><tr><th scope="col">Image</th><th scope="col">Before</th><th scope="col">After</th></tr></thead>
      <tbody>${rows.slice(0, 500).map((row) => html`<tr><th scope="row">${row.address && html`<img class="thumb small" src="${row.address}" alt="">`}
        <span>${row.name}</span></th><td>${row.before} <small>${percent(row.p_before)}</small></td>
        <td class="${row.before !== row.after || row.unknown ? "differs" : ""}">${row.unknown && "none of these; "}${row.after} <small>${percent(row.p_after)}</small></td></tr>`)}</tbody></table></div>
      ${rows.length > 500 && html`<p class="hint">The first 500 of ${rows.length}; the CSV has all.</p>`}`}</details>`;
}
