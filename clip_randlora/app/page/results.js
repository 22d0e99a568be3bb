// How good is it? Accuracies by class, the confusion matrix, and the test images behind them.

import { html } from "./dom.js";
import { count, percent, trainingCurves } from "./charts.js";
import { options, said, sides } from "./parts.js";
import { leftRun, rightRun } from "./store.js";

export function results({ state, ui }) {
  const right = rightRun(), left = leftRun();
  const found = right && ui.results[right.id];
  if (!right?.is_finished || !found) return html``;
  const other = left && ui.results[left.id];
  const rows = compared(found, other);
  const names = [left ? left.name : "Before", left ? right.name : "After"];
  return html`<h2>How good is it?</h2>
    <div class="card">${sides("results")}${said("results")}
      <p class="verdict">${left ? versus(rows, names) : found.verdict}</p>
      <div class="figures">${figure(names[0], share(rows, "before"), rows.length)}${figure(names[1], share(rows, "after"), rows.length)}</div>
      <div class="two">
        <div><h3>Class by class</h3>${perClass(rows, found.classes, names)}</div>
        <div><h3>What it takes for what</h3>
          <div class="segments" role="group" aria-label="Which answers">${["before", "after"].map((which, i) => html`<button data-do="matrix"
            data-which="${which}" aria-pressed="${ui.matrix === which}">${names[i]}</button>`)}</div>
          ${matrix(rows, found.classes, ui)}</div></div>
      ${lists(rows, names, state, ui)}
      <details class="fold"><summary>Training curves</summary><div class="curves">${trainingCurves(found.curves,
        Math.max(0, ...found.curves.map((row) => row.step)))}</div></details>
      <details class="fold"><summary>Does it know how sure it is?</summary><p>Mean difference between how sure it was and how often it was
        right (the expected calibration error): ${percent(found.before.ece)} before, ${percent(found.after.ece)} after. Below 5 % is good.</p></details>
    </div>`;
}

/** One row for each test image of the right run, with the left side's answer as "before". */
function compared(found, other) {
  if (!other) return found.images;
  const known = new Map(other.images.filter((row) => row.number !== null).map((row) => [row.number, row]));
  return found.images.filter((row) => known.has(row.number)).map((row) => {
    const left = known.get(row.number);
    return { ...row, before: left.after, p_before: left.p_after };
  });
}

const share = (rows, side) => rows.filter((row) => row[side] === row.label).length / (rows.length || 1);

function versus(rows, [left, right]) {
  if (!rows.length) return "These two runs were measured on different images.";
  const only = (side, other) => rows.filter((row) => row[side] === row.label && row[other] !== row.label).length;
  const better = only("after", "before"), worse = only("before", "after");
  if (!better && !worse) return `No difference: both are right on the same of ${count(rows.length, "test image")}.`;
  return `Of ${count(rows.length, "test image")}, ${right} alone is right on ${better} and ${left} alone on ${worse}.`;
}

function figure(name, value, images) {
  return html`<div class="figure"><span>${name}</span><b>${percent(value)}</b><span>${Math.round(value * images)} of ${count(images, "test image")}</span></div>`;
}

function perClass(rows, classes, [left, right]) {
  return html`<div class="table"><table class="per-class"><thead><tr><th scope="col">Class</th><th scope="col">Images</th>
    <th scope="col">${left}</th><th scope="col">${right}</th></tr></thead><tbody>${classes.map((name) => {
      const own = rows.filter((row) => row.label === name);
      if (!own.length) return html``;
      return html`<tr><th scope="row">${name}</th><td>${own.length}</td>${["before", "after"].map((side) =>
        html`<td><span class="meter"><span style="width:${100 * share(own, side)}%"></span></span> ${percent(share(own, side)).replace(".0", "")}</td>`)}</tr>`;
    })}</tbody></table></div>`;
}

function matrix(rows, classes, ui) {
  const counts = new Map();
  for (const row of rows) {
    const key = JSON.stringify([row.label, row[ui.matrix]]);
    counts.set(key, (counts.get(key) ?? 0) + 1);
  }
  const shown = classes.slice(0, 60);
  const most = Math.max(1, ...counts.values());
  return html`<div class="table"><table class="matrix"><thead><tr><th scope="col"><small>is ↓ taken for →</small></th>${shown.map((name) =>
    html`<th scope="col" title="${name}"><span>${name}</span></th>`)}</tr></thead><tbody>${shown.map((label) => html`<tr>
    <th scope="row" title="${label}"><span>${label}</span></th>${shown.map((answer) => {
      const n = counts.get(JSON.stringify([label, answer])) ?? 0;
      if (!n) return html`<td></td>`;
      const kind = label === answer ? "right" : "wrong";
      return html`<td><button class="cell ${kind}" style="--share:${(n / most).toFixed(2)}" data-do="cell" data-label="${label}"
        data-answer="${answer}" aria-label="${count(n, "image")} of ${label} taken for ${answer}">${n}</button></td>`;
    })}</tr>`)}</tbody></table></div>
    ${classes.length > shown.length && html`<p class="hint">The first ${shown.length} of ${classes.length} classes.</p>`}`;
}

const LISTS = {
  wrong: ["Still wrong", (row) => row.after !== row.label && row.before !== row.label],
  fixed: ["Fixed", (row) => row.after === row.label && row.before !== row.label],
  broken: ["Broken", (row) => row.after !== row.label && row.before === row.label],
  less: ["Less sure", (row) => row.after === row.label && row.before === row.label && row.p_before - row.p_after > 0.1],
};

function lists(rows, names, state, ui) {
  const ofCell = (row) => ui.cell && row.label === ui.cell.label && row[ui.matrix] === ui.cell.answer;
  const shown = rows.filter(ui.list === "cell" ? ofCell : LISTS[ui.list][1]);
  return html`<div id="images"><h3>Test images</h3><div class="segments" role="group" aria-label="Which images">${Object.entries(LISTS).map(([name, [words, test]]) =>
      html`<button data-do="list" data-list="${name}" aria-pressed="${ui.list === name}">${words} (${rows.filter(test).length})</button>`)}
      ${ui.cell && html`<button data-do="list" data-list="cell" aria-pressed="${ui.list === "cell"}">${ui.cell.label} taken for ${ui.cell.answer}</button>`}</div>
    ${shown.length === 0 && html`<p class="hint">None.</p>`}
    <ul class="cases">${shown.slice(0, 120).map((row) => oneCase(row, names, state))}</ul>
    ${shown.length > 120 && html`<p class="hint">The first 120 of ${shown.length}.</p>`}</div>`;
}

function oneCase(row, names, state) {
  const others = state.classes.map((entry) => entry.name).filter((name) => name !== row.label);
  return html`<li data-key="case-${row.number ?? `${row.label}-${row.p_after}`}">${row.address
      ? html`<button class="tile" data-do="example" data-number="${row.number}" aria-label="Try this image of ${row.label}"><img class="thumb" loading="lazy" width="72" height="72" src="${row.address}" alt=""></button>`
      : html`<span class="gone">not here any more</span>`}
    <p><b>${row.label}</b><br>${names[0]}: ${row.before} <small>${percent(row.p_before)}</small><br>${names[1]}: ${row.after} <small>${percent(row.p_after)}</small></p>
    ${row.address && html`<div class="row"><select data-change="move-one" data-number="${row.number}" aria-label="Move this image of ${row.label}">
      ${options([["", "Move to …"], ...others.map((name) => [name, name])], "")}</select>
      <button data-do="remove-one" data-number="${row.number}">Remove</button></div>`}</li>`;
}
