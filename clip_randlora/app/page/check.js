// Check your images: labels that may be wrong, near duplicates in two classes, useless files.

import { html } from "./dom.js";
import { count } from "./charts.js";
import { UNSORTED, capital, options, said } from "./parts.js";

const SHOWN = 24;
const KINDS = [
  ["label", "Perhaps in the wrong class, the likeliest first", "perhaps in the wrong class"],
  ["duplicate", "Nearly the same, in two classes or in training and test images", "near duplicate"],
  ["unreadable", "Cannot be read", "unreadable"],
  ["blank", "Of one colour", "blank"],
  ["tiny", "Very small", "very small"],
];

export function check({ state, ui }) {
  const last = state.check;
  if (!last && state.why_not_train) return html``; // which Train says
  return html`<h2>Check your images</h2>
    <div class="card">
      ${last?.is_running ? running(last) : start(state, last)}
      ${said("check")}
      ${last && !last.is_running && !last.error && KINDS.map(([kind, title]) =>
        group(title, ui.findings.filter((finding) => finding.kind === kind), kind, state, ui))}
    </div>`;
}

function start({ why_not_train: why, classes }, last) {
  const images = classes.reduce((sum, entry) => sum + (entry.is_on ? entry.train + entry.test : 0), 0);
  return html`<div data-key="start">
    ${last ? html`<p class="verdict" role="status">${last.error ? `It did not work: ${last.error}.` : summary(last)}</p>
      ${last.is_changed && html`<span class="tag quiet" title="Images came, went or were moved since">images changed since</span>`}`
      : html`<p class="hint">It finds images that are perhaps in the wrong class, near duplicates in two classes, and files that are of no
          use. It changes nothing: you decide.</p>`}
    <div class="row"><button data-do="start-check" id="start-check" ${why && html`disabled`} aria-describedby="check-why">${
      last ? "Check again" : `Check ${count(images, "image")}`}</button>
      <span id="check-why" class="hint">${why}</span></div></div>`;
}

function summary({ images, left }) {
  const parts = KINDS.filter(([kind]) => left[kind]).map(([kind, , words]) => `${left[kind]} ${words}`);
  return `Checked ${count(images, "image")}: ${parts.length ? parts.join(", ") : "nothing left to look at"}.`;
}

function running(last) {
  const share = last.total ? Math.round((100 * last.done) / last.total) : 0;
  const words = !last.can_stop ? "Stopping" : last.state === "waiting" ? `Waiting, ${last.place} before yours` : capital(last.stage || "Preparing");
  return html`<div data-key="running"><p class="headline" role="status">${words}</p>
    <div class="track" role="progressbar" aria-label="check" aria-valuemin="0" aria-valuemax="100" aria-valuenow="${share}"><span
      style="width:${share}%"></span></div>
    <p class="details">${last.total > 0 && `${last.done} of ${last.total}`}</p>
    <div class="row"><button class="stop" data-do="stop-check" id="stop-check" ${!last.can_stop && html`disabled`}>Stop</button></div></div>`;
}

function group(title, findings, kind, state, ui) {
  const shown = findings.slice(0, ui.findingsShown[kind] ?? SHOWN);
  if (!findings.length) return html``;
  return html`<section class="group" data-key="group-${kind}"><h3>${title} (${findings.length})</h3>
    <ul class="cases">${shown.map((finding) => kind === "duplicate" ? several(finding) : one(finding, state))}</ul>
    ${findings.length > shown.length && html`<div class="row"><button data-do="more-findings" data-kind="${kind}">Show ${
      Math.min(SHOWN, findings.length - shown.length)} more</button></div>`}</section>`;
}

function one(finding, state) {
  const [image] = finding.images;
  const names = state.classes.map((entry) => entry.name).filter((name) => name !== image.class_name);
  return html`<li data-key="finding-${finding.key}">${picture(image)}
    <p>In <b>${image.class_name}</b>${image.is_test && html` <span class="tag">test</span>`}${finding.suggested
      ? html`, looks like <b>${finding.suggested}</b>`
      : finding.reason && html`: ${finding.reason}`}<br><small>${image.name}</small></p>
    <div class="row">${finding.suggested && html`<button class="primary" data-do="settle" data-number="${image.number}"
        data-class="${finding.suggested}" aria-label="Move ${image.name} to ${finding.suggested}">Move to ${finding.suggested}</button>`}
      <select data-change="settle" data-number="${image.number}" aria-label="Move ${image.name}">${
        options([["", "Move to …"], ...names.map((name) => [name, name]), [UNSORTED, "Not sorted yet"]], "")}</select>
      ${remove(image)}${fine(finding)}</div></li>`;
}

/** Near duplicates, side by side: each can go. */
function several(finding) {
  return html`<li class="several" data-key="finding-${finding.key}">
    <div class="pair">${finding.images.map((image) => html`<div data-key="f${image.number}">${picture(image)}
      <p>In <b>${image.class_name}</b>${image.is_test && html` <span class="tag">test</span>`}<br><small>${image.name}</small></p>
      ${remove(image)}</div>`)}</div>
    <div class="row">${fine(finding)}</div></li>`;
}

const picture = (image) => html`<button class="tile" data-do="look" data-address="${image.address}" data-name="${image.name}"
  aria-label="Enlarge ${image.name}"><img class="thumb" loading="lazy" width="72" height="72" src="${image.address}" alt=""></button>`;

const remove = (image) => html`<button data-do="settle-by-removing" data-number="${image.number}" aria-label="Remove ${image.name}">Remove</button>`;

const fine = (finding) => html`<button data-do="fine" data-finding="${finding.key}">It is fine</button>`;
