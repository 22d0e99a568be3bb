// The second column: one button, how long it will take, the curves, and a verdict in words.

import { html } from "./dom.js";
import { seconds, trainingCurves } from "./charts.js";
import { capital, methodName, options, said } from "./parts.js";
import { isOpen, search, shareOf } from "./search.js";

const STATES = {
  waiting: "Waiting", preparing: "Preparing", training: "Training", measuring: "Measuring on the test images",
  done: "Done", stopped: "Stopped", failed: "It did not work",
};

export function train(app) {
  const { state, choices, ui } = app;
  const job = state.training, running = job?.is_running, chosen = ui.settings;
  return html`<h2>Train</h2>
    <div class="card">
      <div class="presets" role="radiogroup" aria-label="How long to train">${choices.presets.map((preset) =>
        html`<label class="preset ${chosen.preset === preset.name ? "chosen" : ""}"><input type="radio" name="preset"
          value="${preset.name}" data-change="preset" ${chosen.preset === preset.name && html`checked`}
          ${running && html`disabled`}> <b>${capital(preset.name)}</b> <span>${preset.words}</span></label>`)}</div>
      <div class="row start">${running ? html`<button class="stop" data-do="stop" ${!job.can_stop && html`disabled`}>Stop</button>`
        : html`<button class="primary" data-do="train" ${(state.why_not_train || state.search?.is_running) && html`disabled`}
          aria-describedby="train-why">Train</button>`}
        <button data-do="search" aria-expanded="${isOpen(app)}" aria-controls="search">Find the best settings</button>
        <span id="train-why" class="hint">${why(state, ui, running)}</span></div>
      ${said("train")}
      ${search(app)}
      ${progress(state, job)}
      ${more(choices, chosen, state, running)}
    </div>`;
}

function why(state, ui, running) {
  if (running) return "";
  if (state.search?.is_running) return `A search for settings is under way: ${shareOf(state.search)} %.`;
  if (state.why_not_train) return state.why_not_train;
  if (ui.estimate) return `Takes about ${seconds(ui.estimate)}.`;
  return "";
}

function progress(state, job) {
  if (!job) return html`<div class="progress empty"></div>`;
  if (job.state === "interrupted") {
    return html`<div class="progress"><p class="message error">The app was restarted while it trained. Train again.</p></div>`;
  }
  const share = job.steps ? Math.round((100 * job.step) / job.steps) : 0;
  const run = state.runs.find((entry) => entry.id === job.run);
  const details = [
    job.state === "waiting" && `${job.place} before yours`,
    job.steps > 0 && `step ${job.step} of ${job.steps}`,
    job.state === "training" && job.seconds_left !== null && `${seconds(job.seconds_left)} left`,
    `${methodName(job.method)}, ${job.preset}, ${job.model}`,
  ].filter(Boolean).join(" · ");
  return html`<div class="progress" id="progress">
    <p class="headline" role="status">${STATES[job.state]}</p>
    <div class="track" role="progressbar" aria-label="training" aria-valuemin="0" aria-valuemax="100"
      aria-valuenow="${share}"><span style="width:${share}%"></span></div>
    <p class="details">${details}</p>
    ${job.error && html`<p class="message error">${capital(job.error)}</p>`}
    ${job.state === "done" && run?.verdict && html`<p class="verdict">${run.verdict}</p>
      <div class="row"><button class="primary" data-do="go-try">Try it</button>
      <button data-do="go-results">How good is it?</button></div>`}
    <div class="curves">${trainingCurves(job.curves, job.steps)}</div>
    ${job.notes.length > 0 && html`<details class="notes"><summary>Notes</summary><ul>${job.notes.map((note) =>
      html`<li>${note}</li>`)}</ul></details>`}
  </div>`;
}

const NUMBERS = [
  ["shots", "Images of each class", "All of them if empty."],
  ["steps", "Steps", "In place of the preset's."],
  ["learning_rate", "Learning rate", "The largest one; by method and model if empty."],
  ["seed", "Seed", "Same seed, same result, on one machine."],
  ["rank", "Rank", "Of each update. RandLoRA trains fewer parameters with a higher rank."],
  ["alpha", "Alpha", "The update is scaled by alpha / rank; VeRA's and KRAdapter's by alpha."],
  ["blocks", "Blocks", "Change only the last so many of each encoder."],
  ["strength", "Strength", "The share of the update that is kept, 0 to 1. For the anchored head: how firmly it is anchored."],
];
const TOWERS = [["vision", "images"], ["text", "text"]];
const TARGETS = [["q", "query"], ["k", "key"], ["v", "value"], ["out", "attention's output"], ["mlp", "MLP"], ["conv", "1x1 convolutions"]];

function more(choices, chosen, state, running) {
  const disabled = running && html`disabled`;
  const method = choices.methods.find((entry) => entry.name === chosen.method);
  const model = choices.models.find((entry) => entry.name === chosen.model);
  return html`<details class="more"><summary>More options</summary>
    <form data-submit="none"><fieldset ${disabled}>
    <label>Model <select data-change="model" id="model">${options(choices.models.map((m) => [m.name, m.name]), chosen.model)}</select>
      <span class="hint">${model?.words}</span></label>
    <label>Method <select data-change="method" id="method">${options(choices.methods.map((m) => [m.name, m.title]), chosen.method)}</select>
      <span class="hint">${method?.words}</span></label>
    <label>Test images, share of each class <input type="number" min="0.05" max="0.9" step="0.05" data-change="held-out"
      id="held-out" value="${state.held_out}"><span class="hint">Never trained on: they say how good it is.</span></label>
    <label>Prompts, one a line, with {} for the name <textarea rows="2" data-change="templates" id="templates">${state.templates.join("\n")}</textarea>
      <span class="hint">What the text encoder reads for each class.</span></label>
    ${said("options")}
    <div class="numbers">${NUMBERS.map(([name, words, help]) => html`<label>${words}
      <input inputmode="decimal" data-change="more" name="${name}" id="more-${name}" value="${chosen.more[name] ?? ""}" placeholder="default">
      <span class="hint">${help}</span></label>`)}
      <label>Random bases <select data-change="more" name="bases" id="more-bases">${options([["", "default"], ["uniform", "uniform"], ["sparse", "sparse"],
        ["very_sparse", "very sparse"]], chosen.more.bases ?? "")}</select><span class="hint">RandLoRA's: dense, or with few entries.</span></label>
      <label>Precision <select data-change="more" name="precision" id="more-precision">${options([["", "default"], ["fp32", "fp32"], ["bf16", "bf16"],
        ["fp16", "fp16"]], chosen.more.precision ?? "")}</select><span class="hint">bf16 where the hardware is fast in it.</span></label></div>
    ${checks("towers", "Encoders that change", TOWERS, chosen)}
    ${checks("targets", "Weights that change", TARGETS, chosen)}
    </fieldset></form></details>`;
}

function checks(name, words, pairs, chosen) {
  const on = chosen.more[name] ?? pairs.map(([value]) => value);
  return html`<fieldset class="checks"><legend>${words}</legend>${pairs.map(([value, label]) => html`<label class="check">
    <input type="checkbox" data-change="more-list" name="${name}" value="${value}" ${on.includes(value) && html`checked`}> ${label}</label>`)}</fieldset>`;
}
