// Find the best settings: how long to search, what was tried so far, and what came of it.

import { html } from "./dom.js";
import { count, seconds } from "./charts.js";
import { capital, methodName, said } from "./parts.js";

const ROWS = 5;
const STATES = { waiting: "Waiting", preparing: "Preparing", searching: "Searching", failed: "It did not work" };

/** Whether the panel is open: as the person left it, else while there is something new in it. */
export function isOpen({ state, ui }) {
  const last = state.search;
  return ui.searchOpen ?? Boolean(last && (last.is_running || !state.runs.some((run) => run.time > last.began)));
}

/** How much of its time a search has used, in percent. */
export const shareOf = (search) => Math.round(100 * (1 - search.seconds_left / (60 * search.minutes)));

export function search(app) {
  if (!isOpen(app)) return html``;
  const last = app.state.search;
  return html`<section class="search" id="search" data-key="search" aria-label="Find the best settings">
    <h3>Find the best settings</h3>
    ${last?.is_running ? running(last, app.choices) : last ? ended(last, app) : chooser(app)}
    ${said("search")}
    ${last && !last.is_running && html`<details class="again" data-key="again"><summary>Search again</summary>${chooser(app)}</details>`}
  </section>`;
}

function chooser({ state, choices, ui }) {
  const why = state.training?.is_running ? "A training is under way." : state.why_not_search;
  return html`<div data-key="chooser">
    <p class="hint">It trains on parts of your training images and asks about the rest: with other methods, learning rates,
      numbers of blocks, and shares of the update. Your test images are not used, and no run is made.</p>
    <fieldset class="checks"><legend>For at most</legend>${choices.search_minutes.map((minutes) =>
      html`<label class="check"><input type="radio" name="search-minutes" value="${minutes}" data-change="search-minutes"
        ${minutes === chosenMinutes(choices, ui) && html`checked`}> ${seconds(60 * minutes)}</label>`)}</fieldset>
    <p class="hint plan">${plan(choices, ui)}</p>
    <div class="row"><button data-do="start-search" ${why && html`disabled`} aria-describedby="search-why">Start the search</button>
      <span id="search-why" class="hint">${why}</span></div></div>`;
}

export function chosenMinutes(choices, ui) {
  return choices.search_minutes.includes(ui.searchMinutes) ? ui.searchMinutes : choices.search_minutes[0];
}

/** What fits into the time, from how long a training takes. */
function plan(choices, ui) {
  if (!ui.estimate) return "It ends sooner if there is nothing left to try.";
  const time = 60 * chosenMinutes(choices, ui), most = time / choices.search_trainings;
  if (ui.estimate > most) {
    return `Time for about ${choices.search_trainings} trainings, each cut short after ${seconds(most)}; yours takes about ${
      seconds(ui.estimate)}. More time gives a surer answer.`;
  }
  return `Time for about ${Math.floor(time / ui.estimate)} trainings. It ends sooner if there is nothing left to try.`;
}

function running(last, choices) {
  const [best] = last.tried.filter((row) => !row.failed);
  const details = [
    last.state === "waiting" && `${last.place} before yours`,
    `${last.tried.length} tried`,
    last.state === "searching" && (last.seconds_left > 0 ? `at most ${seconds(last.seconds_left)} left` : "ending"),
    `${last.start.preset}, ${last.start.model}`,
  ].filter(Boolean).join(" · ");
  return html`<div data-key="running">
    <p class="headline" role="status">${last.can_stop ? STATES[last.state] : "Stopping"}</p>
    <div class="track" role="progressbar" aria-label="search" aria-valuemin="0" aria-valuemax="100"
      aria-valuenow="${shareOf(last)}"><span style="width:${shareOf(last)}%"></span></div>
    <p class="details">${details}</p>
    <p class="best">${best ? html`Best so far: ${whole(best.accuracy)} % of ${count(best.images, "image")} right with <b>${named(best)}</b>` : "The first training is under way."}</p>
    ${table(last.tried, ROWS)}
    <div class="row"><button class="stop" data-do="stop-search" id="stop-search" ${!last.can_stop && html`disabled`}>Stop</button>
      <span class="hint">Stopping keeps the best so far.${choices.trains_on && " The search goes on if you close this page."}</span></div></div>`;
}

function ended(last, { ui }) {
  if (last.state === "interrupted") return html`<p class="message error">The app was restarted during the search. Search again.</p>`;
  const isUsed = last.found && same(last.found, ui.settings);
  return html`<div data-key="ended">
    ${last.error ? html`<p class="headline" role="status">${STATES.failed}</p><p class="message error">${capital(last.error)}</p>`
      : html`<p class="verdict" role="status">${last.verdict}</p>`}
    ${last.is_changed && html`<span class="tag quiet" title="Images came or went since this search">images changed since</span>`}
    ${last.found && html`<div class="row use">${isUsed
      ? html`<span>Train uses ${named(last.tried[0])}.</span> <button data-do="undo-settings" id="undo-settings">Undo</button>`
      : html`<button class="${last.outcome === "better" && "primary"}" data-do="use-settings" id="use-settings">Use these settings</button>`}</div>`}
    ${last.tried.length > 0 && table(last.tried.slice(0, ROWS), 0)}
    ${last.tried.length > 0 && html`<p class="hint">Each was asked about images that it was not trained on. With many
      more of them, the accuracy would probably lie in the interval.</p>`}
    ${last.tried.length > ROWS && html`<details class="fold" data-key="all-tried"><summary>All ${last.tried.length} that were tried</summary>
      ${table(last.tried, 0)}</details>`}
    ${last.notes.length > 0 && html`<ul class="hint remarks">${last.notes.map((note) => html`<li>${note}</li>`)}</ul>`}</div>`;
}

/** The results in a table, with empty rows up to a number, so that nothing moves when they come. */
function table(tried, rows) {
  const shown = rows ? tried.slice(0, rows) : tried;
  const empty = Array.from({ length: Math.max(0, rows - shown.length) });
  return html`<div class="table"><table class="tried-settings"><thead><tr><th>Settings</th><th>Right<br><small>95 % interval</small></th></tr></thead>
    <tbody>${[...shown, ...empty].map(tableRow)}</tbody></table></div>`;
}

function tableRow(row) {
  if (!row) return html`<tr><th>&nbsp;</th><td></td></tr>`;
  return html`<tr><th scope="row">${named(row)}${row.is_start && html` <span class="tag quiet">yours</span>`}</th>${row.failed
    ? html`<td title="${row.failed}">did not work</td>`
    : html`<td>${whole(row.accuracy)} % of ${row.images}<br><small>${whole(row.low)} to ${whole(row.high)} %</small></td>`}</tr>`;
}

const named = (row) => [methodName(row.method), row.details].filter(Boolean).join(", ");
const whole = (share) => Math.round(100 * share);

/** Whether two choices make the same training. */
function same(one, other) {
  const sorted = (choices) => JSON.stringify([choices.model, choices.method, choices.preset, Object.entries(choices.more).sort()]);
  return sorted(one) === sorted(other);
}
