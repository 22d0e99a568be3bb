// The tray of images that are not sorted yet: each with the class that it is taken for, surest first.

import { html } from "./dom.js";
import { count, percent } from "./charts.js";
import { options, said, thumb } from "./parts.js";

const SHOWN = 60; // more are drawn when the person asks
const BUTTONS = 6; // classes that get a button each; more are chosen from a list

export function tray({ state, ui }) {
  const { unsorted } = state;
  const names = state.classes.filter((entry) => entry.is_on).map((entry) => entry.name);
  const sure = accepted(ui), unknown = ui.guesses.filter((image) => image.is_unknown).length;
  const isGuessed = ui.guesses.some((image) => image.class_name);
  const shown = ui.guesses.slice(0, ui.guessesShown);
  return html`<li class="card tray" data-key="tray">
    <div class="head"><h3 id="tray" tabindex="-1">Not sorted yet</h3></div>
    <p class="count">${count(unsorted.count, "image")} without a class</p>
    ${said("tray")}
    <p class="hint whose">${unsorted.error ? `Not guessed: ${unsorted.error}` : unsorted.words}${unsorted.is_busy && unsorted.guessed < unsorted.count
      && ` Looked at ${unsorted.guessed} of ${unsorted.count}.`}</p>
    ${isGuessed && html`<div class="accept" data-key="accept">
      <label>Surer than <output>${Math.round(100 * ui.line)} %</output>
        <input type="range" min="0" max="1" step="0.01" data-input="line" id="line" value="${ui.line}" aria-label="How sure"></label>
      ${unknown > 0 && html`<label class="check"><input type="checkbox" data-change="takes-unknown" ${ui.takesUnknown && html`checked`}>
        Also ${unknown === 1 ? "the one that looks" : `the ${unknown} that look`} like none of these classes</label>`}
      <button class="primary" data-do="accept-sure" id="accept-sure" aria-disabled="${String(sure.length === 0)}">Accept ${sure.length} of ${unsorted.count}</button></div>`}
    ${next(ui, names)}
    ${ui.guesses.length > 0 && html`${tools(ui, state, isGuessed)}
      <ul class="tiles guesses">${shown.map((image) => guess(image, ui))}</ul>
      ${ui.guesses.length > shown.length && html`<div class="row"><button data-do="more-guesses">Show ${
        Math.min(SHOWN, ui.guesses.length - shown.length)} more</button></div>`}`}
  </li>`;
}

/** Whether an image is taken for a class as surely as the person asks. */
const isAccepted = ({ class_name: taken, is_unknown: isUnknown, confidence }, ui) =>
  Boolean(taken) && confidence >= ui.line && (!isUnknown || ui.takesUnknown);

/** The images that go into their class with one click. */
export const accepted = (ui) => ui.guesses.filter((image) => isAccepted(image, ui));

function guess(image, ui) {
  const { number, name, class_name: taken } = image;
  return html`<li data-key="u${number}" class="${isAccepted(image, ui) ? "sure" : ""}"><button class="tile" data-do="mark-guess"
      data-number="${number}" aria-pressed="${String(ui.guessesMarked.has(number))}" aria-label="${name}">${thumb(image)}</button>
    ${image.is_unknown && html`<small class="taken">none of these</small>`}
    ${taken ? html`<button class="taken" data-do="accept-one" data-number="${number}" title="Accept ${taken}"
        aria-label="Accept ${taken} for ${name}"><span>${taken}${image.is_unknown && "?"}</span> <small>${percent(image.confidence).replace(/\.\d/, "")}</small></button>`
      : image.reason && html`<small class="taken" title="${image.reason}">cannot be read</small>`}</li>`;
}

function tools(ui, state, isGuessed) {
  const marked = ui.guessesMarked.size;
  const names = state.classes.map((entry) => entry.name);
  return html`<div class="row tools" role="toolbar" aria-label="Marked images not sorted yet" data-key="tray-tools">
    <span>${marked ? `${marked} marked` : `Click an image to mark it${isGuessed ? ", its class to accept it" : ""}.`}</span>
    <button data-do="mark-guesses">${marked ? "Mark none" : "Mark all"}</button>
    ${marked > 0 && html`${names.length > 0 && html`<label class="hidden" for="sort-to">Move the marked images to</label>
      <select id="sort-to" data-change="move-guesses">${options([["", "Move to …"], ...names.map((name) => [name, name])], "")}</select>`}
      <button data-do="remove-guesses">Remove</button>`}
    ${marked === 1 && html`<button data-do="enlarge-guess">Enlarge</button>`}</div>`;
}

/** The few images from which it would learn most, each with the classes it can be of. */
function next(ui, names) {
  const images = ui.guesses.filter((image) => image.is_next);
  if (!images.length || !names.length) return html``;
  return html`<section class="next" data-key="next" aria-labelledby="next-title"><h4 id="next-title">Label these next</h4>
    <p class="hint">It would learn most from these. Train again when you have labelled some.</p>
    <ul>${images.map((image) => html`<li data-key="n${image.number}">${thumb(image)}
      <div class="row" role="group" aria-label="Class of ${image.name}">${names.length <= BUTTONS
        ? names.map((name) => html`<button data-do="sort-one" data-number="${image.number}" data-class="${name}">${name}</button>`)
        : html`<select data-change="sort-one" data-number="${image.number}" aria-label="Class of ${image.name}">${
          options([["", "It is …"], ...names.map((name) => [name, name])], "")}</select>`}</div></li>`)}</ul></section>`;
}
