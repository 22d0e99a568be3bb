// Take it with you, by purpose.

import { html } from "./dom.js";
import { percent, size } from "./charts.js";
import { options, said } from "./parts.js";

const TOOLS = ["open_clip", "transformers", "peft", "onnx", "head"];

export function take({ state, ui }) {
  const hasRun = state.runs.length > 0;
  if (!state.contents) return html``;
  return html`<h2>Take it with you</h2>
    <div class="purposes">
      <div class="card"><h3>Go on here later</h3>
        <p class="hint">The whole project as one file: images, names, the split and all runs. Open it in another browser, on another
          machine, or with <code>clip-randlora train</code>.</p>
        <div class="row"><button data-do="save-project">Save the project</button><button data-do="open-project">Open a project</button></div>
        ${ui.saved && html`<p><a class="button" href="${ui.saved.address}" download>${ui.saved.name}</a> ${size(ui.saved.bytes)}</p>`}
        ${said("project")}</div>
      ${hasRun && html`<div class="card"><h3>In Python</h3>
        <p class="hint">The adapter: one small file that holds what was learned.</p>
        <div class="row"><button data-do="export" data-format="adapter">Get the adapter</button>
          <button data-do="export" data-format="run">Get the whole run</button></div>
        ${exported(ui, ["adapter", "run"])}${said("export adapter")}${said("export run")}</div>
      <div class="card"><h3>In a web page</h3>
        <p class="hint">A folder to put on any web host. People open it on a phone or a computer, and their images stay in their browser:
          camera, before and after. ${obstacle(ui, "web") || cost(ui, "web")}</p>
        <div class="row"><button data-do="export" data-format="web" ${(!named(ui, "web") || obstacle(ui, "web")) && html`disabled`}>Get the web page</button></div>
        ${exported(ui, ["web"])}${said("export web")}</div>
      <div class="card"><h3>In other tools</h3>
        <form data-submit="none" class="formats" role="radiogroup" aria-label="Format">${(ui.formats ?? []).filter((f) => TOOLS.includes(f.name)).map((format) =>
          html`<label class="format ${format.obstacle ? "off" : ""}"><input type="radio" name="format" value="${format.name}" data-change="format"
            ${ui.format === format.name && html`checked`} ${format.obstacle && html`disabled`}> <b>${format.name}</b>
            <span>${obstacle(ui, format.name) || `${format.words.split(": ").slice(1).join(": ")} ${cost(ui, format.name)}`}</span></label>`)}</form>
        ${chosen(ui, state.runs.length > 1)}
        ${exported(ui, TOOLS)}${TOOLS.map((name) => said(`export ${name}`))}</div>`}
    </div>`;
}

const named = (ui, name) => ui.formats?.find((format) => format.name === name);

function obstacle(ui, name) {
  const format = named(ui, name);
  return format?.obstacle ? `Not for this run: ${format.obstacle}.` : "";
}

function cost(ui, name) {
  const format = named(ui, name);
  if (!format) return "";
  return `About ${Math.max(1, Math.round(format.seconds))} s${format.bytes ? `, ${size(format.bytes)}` : ""}.`;
}

function chosen(ui, hasRunBefore) {
  const format = TOOLS.includes(ui.format) && named(ui, ui.format);
  if (!format) return html`<p class="hint">${ui.formats ? "Choose a format." : "Looking which formats fit …"}</p>`;
  return html`${format.takes_strength && html`<label class="strength">How much of what it learned <output>${percent(ui.exportStrength).replace(".0", "")}</output>
      <input type="range" min="0" max="1" step="0.05" data-input="export-strength" id="export-strength" value="${ui.exportStrength}"></label>`}
    ${format.takes_share && hasRunBefore && html`<label class="strength">Share of the run before, in an average of two <output>${percent(ui.exportShare).replace(".0", "")}</output>
      <input type="range" min="0" max="1" step="0.05" data-input="export-share" id="export-share" value="${ui.exportShare}"></label>`}
    ${format.precisions.length > 1 && html`<label>Precision <select data-change="precision" id="export-precision">${options([["fp32", "fp32: exact"], ["fp16", "fp16: half the size"]], ui.precision)}</select></label>`}
    <div class="row"><button data-do="export" data-format="${format.name}">Export ${format.name}</button></div>`;
}

function exported(ui, formats) {
  const file = ui.exported;
  if (!file || !formats.includes(file.format)) return html``;
  return html`<div class="exported" id="exported"><p><a class="button primary" href="${file.address}" download>${file.name}</a> ${size(file.bytes)}</p>
    <pre tabindex="0"><code>${file.snippet}</code></pre><button data-do="copy-snippet">Copy</button></div>`;
}
