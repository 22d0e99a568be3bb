// The first column: classes as cards, which take drops, show their images and are edited in place.

import { html } from "./dom.js";
import { count } from "./charts.js";
import { UNSORTED, options, said, thumb } from "./parts.js";
import { tray } from "./tray.js";

export function gather({ state, ui }) {
  const isWaiting = state.unsorted.count > 0, canSort = state.classes.length > 1; // else classes come first
  return html`<h2>Gather</h2>
    ${said("gather")}
    <ul class="cards ${state.classes.length > 40 && "many"}">${isWaiting && canSort && tray({ state, ui })}
      ${state.classes.map((entry) => classCard(entry, state, ui))}
      <li class="card add" data-key="add">
        <form data-submit="add-class"><label class="hidden" for="new-class">Name of a new class</label>
          <input id="new-class" name="name" placeholder="Add a class" autocomplete="off" maxlength="200">
          <button>Add</button></form>
        ${said("add-class")}
        <p class="hint">Or drop images, folders or a zip anywhere on this page.
          <button class="link" data-do="choose-any">Choose files</button></p>
      </li>
      ${isWaiting && !canSort && tray({ state, ui })}</ul>
    ${state.warnings.length > 0 && html`<ul class="warnings">${state.warnings.map((line) =>
      html`<li>${line}</li>`)}</ul>`}`;
}

function classCard(entry, state, ui) {
  const { name } = entry, place = `class ${name}`, isOpen = ui.openClass === name;
  return html`<li class="card ${entry.is_on ? "" : "off"}" data-key="class-${name}" data-class="${name}">
    <div class="head">
      ${ui.renaming === name ? html`<form data-submit="rename-class" data-class="${name}" class="rename">
          <input name="name" value="${name}" aria-label="New name of ${name}" maxlength="200" autocomplete="off">
          <button>Save</button><button type="button" data-do="stop-renaming">Cancel</button></form>`
        : html`<h3><button class="title" data-do="rename" data-class="${name}"
            title="Rename ${name}">${name}</button></h3>`}
      <button class="menu-button" data-do="menu" data-menu="${place}" aria-expanded="${ui.menu === place}"
        aria-label="More for ${name}">⋯</button></div>
    ${ui.menu === place && menu(entry)}
    <p class="count">${count(entry.train + entry.test, "image")}${entry.test > 0 && `, ${entry.test} of them for testing`}${
      !entry.is_on && ", switched off"}</p>
    ${!isOpen && entry.images.length > 0 && html`<button class="thumbs" data-do="open" data-class="${name}"
      aria-label="Show all images of ${name}">${entry.images.map((image) => thumb(image))}</button>`}
    ${isOpen && opened(name, state, ui)}
    <div class="row">
      <button data-do="upload" data-class="${name}">Upload</button>
      <button data-do="camera" data-class="${name}">Camera</button>
      ${isOpen ? html`<button data-do="close-class">Close</button>`
        : entry.images.length > 0 && html`<button data-do="open" data-class="${name}">Show all</button>`}
    </div>
    ${ui.camera === name && camera(name, ui)}
    ${said(place)}
  </li>`;
}

function menu(entry) {
  return html`<div class="menu" role="group" aria-label="${entry.name}">
    <form data-submit="class-prompts" data-class="${entry.name}">
      <label>Words for it, one a line, in "a photo of a ..."
        <textarea name="words" rows="2" placeholder="${entry.name}">${entry.prompts.join("\n")}</textarea></label>
      <button>Use these words</button></form>
    <button data-do="switch-class" data-class="${entry.name}">${entry.is_on ? "Switch off" : "Switch on"}</button>
    <a class="button" href="download/class/${encodeURIComponent(entry.name)}" download>Download the images</a>
    <button data-do="remove-class" data-class="${entry.name}">Remove the class</button></div>`;
}

/** All images of a class, which can be marked, moved, removed and enlarged. */
function opened(name, state, ui) {
  const others = state.classes.map((entry) => entry.name).filter((other) => other !== name);
  const marked = ui.marked.size;
  return html`<div class="opened">
    <div class="row tools" role="toolbar" aria-label="Marked images">
      <span>${marked ? `${marked} marked` : "Click images to mark them."}</span>
      <button data-do="mark-all">${marked ? "Mark none" : "Mark all"}</button>
      ${marked > 0 && html`<label class="hidden" for="move-to">Move the marked images to</label>
        <select id="move-to" data-change="move-marked">${options([["", "Move to …"], ...others.map((o) => [o, o]),
          [UNSORTED, "Not sorted yet"]], "")}</select>
        <button data-do="remove-marked">Remove</button>`}
      ${marked === 1 && html`<button data-do="enlarge">Enlarge</button>`}
    </div>
    <ul class="tiles">${ui.images.map((image) => html`<li data-key="i${image.number}"><button class="tile"
      data-do="mark" data-number="${image.number}" aria-pressed="${ui.marked.has(image.number)}"
      aria-label="${image.name}${image.is_test && ", for testing"}">${thumb(image)}
      ${image.is_test && html`<span class="tag">test</span>`}</button></li>`)}</ul></div>`;
}

/** The camera of a class: it stays open, and takes pictures while the button is held. */
function camera(name, ui) {
  return html`<div class="camera" data-key="camera"><video data-key="video" data-camera="class" data-keep muted playsinline
      aria-label="What the camera sees"></video>
    <div class="row"><button class="primary hold" data-hold="${name}">Hold to take pictures</button>
      <span class="taken">${count(ui.taken ?? 0, "picture")}</span>
      <button data-do="close-camera">Done</button></div></div>`;
}
