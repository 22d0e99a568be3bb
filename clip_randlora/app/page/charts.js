// Drawings of numbers: lines and bars, in the colours of the page.

import { html } from "./dom.js";

const WIDTH = 320, HEIGHT = 120, LEFT = 34, BOTTOM = 18, TOP = 8;

/**
 * A line chart.
 * @param {string} title
 * @param {{name: string, style: string, points: [number, number][]}[]} lines
 * @param {{steps: number, top: number, format: (value: number) => string}} scale
 */
export function lineChart(title, lines, { steps, top, format }) {
  const x = (step) => LEFT + ((WIDTH - LEFT - 6) * step) / Math.max(1, steps);
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - Math.min(value, top) / (top || 1));
  const path = (points) =>
    points.map(([step, value], i) => `${i ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  return html`<figure class="chart">
    <figcaption>${title}${lines.length > 1 &&
      lines.map((line) => html`<span class="legend ${line.style}">${line.name}</span>`)}</figcaption>
    <svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label="${title}">
      ${[0, 0.5, 1].map((share) => html`<line class="grid" x1="${LEFT}" x2="${WIDTH - 6}"
        y1="${y(share * top)}" y2="${y(share * top)}"/><text x="${LEFT - 4}" y="${y(share * top) + 3}"
        text-anchor="end">${format(share * top)}</text>`)}
      <text x="${LEFT}" y="${HEIGHT - 4}">0</text>
      <text x="${WIDTH - 6}" y="${HEIGHT - 4}" text-anchor="end">${steps || ""} steps</text>
      ${lines.map((line) => html`<path class="line ${line.style}" d="${path(line.points)}"/>`)}
    </svg></figure>`;
}

/** Loss and accuracy of a training, from its reports. */
export function trainingCurves(curves, steps) {
  const of = (name) => curves.filter((row) => row[name] !== null && row[name] !== undefined)
    .map((row) => [row.step, row[name]]);
  const loss = of("loss");
  const top = Math.max(0.5, ...loss.map(([, value]) => value));
  return html`${lineChart("Loss", [{ name: "loss", style: "first", points: loss }],
    { steps, top, format: (value) => value.toFixed(1) })}
    ${lineChart("Accuracy", [
      { name: "training images", style: "second", points: of("accuracy") },
      { name: "test images", style: "first", points: of("test_accuracy") },
    ], { steps, top: 1, format: (value) => `${Math.round(100 * value)} %` })}`;
}

/** The most probable classes of an answer as bars. */
export function answerBars(answer, { most = 5, other = null } = {}) {
  return html`<ol class="bars">${Object.entries(answer).slice(0, most).map(([name, p], i) =>
    html`<li class="${i === 0 ? "first" : ""}"><span class="bar-name">${name}${i === 0 && other !== null &&
      other !== name && html` <span class="changed">changed</span>`}</span>
      <span class="bar-value">${percent(p)}</span>
      <span class="bar-track"><span style="width:${(100 * p).toFixed(1)}%"></span></span></li>`)}</ol>`;
}

export const percent = (p) => `${(100 * p).toFixed(1)} %`;

export function seconds(value) {
  if (value === null || value === undefined || !isFinite(value)) return "";
  if (value < 90) return `${Math.max(1, Math.round(value))} s`;
  return `${Math.round(value / 60)} min`;
}

export const size = (bytes) => bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;

export const count = (n, what) => `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;
