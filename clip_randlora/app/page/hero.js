// The empty page: what this is, one thing to do, and a picture of before and after.

import { html } from "./dom.js";
import { answerBars } from "./charts.js";
import { said } from "./parts.js";

// A test image of the bundled drawings, with the answers of the training that "See it work" does.
const EXAMPLE = {
  before: { house: 0.281, vehicle: 0.247, bird: 0.23 },
  after: { vehicle: 0.691, house: 0.257, fruit: 0.026 },
};

export function hero() {
  return html`<div class="hero"><h1>Show it ten photos of each thing, and it learns to tell them apart.</h1>
    <div class="row"><button class="primary" data-do="see-it-work">See it work on drawings (1 min)</button>
      <button data-do="own-photos">Use my photos</button></div>
    ${said("hero")}
    <figure class="example"><img src="page/example.webp" width="160" height="160" alt="A drawing of an airplane">
      <div><h2>Before</h2>${answerBars(EXAMPLE.before)}</div>
      <div><h2>After</h2>${answerBars(EXAMPLE.after, { other: "house" })}</div></figure>
    <p class="hint">Photos, folders or a zip can also be dropped anywhere here.</p></div>`;
}
