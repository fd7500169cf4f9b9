// What the screens are made of: states, tiles, charts, tables, strips.

import { html, useEffect, useRef } from "./preact.js";
import { clock, plural, visible } from "./format.js";

/* How each state of a link looks: never by colour alone. */
const LOOKS = {
  live: ["ok", "●"],
  degraded: ["bad", "▲"],
  connecting: ["wait", "◐"],
  draining: ["wait", "◒"],
  silent: ["bad", "◌"],
  ended: ["quiet", "○"],
  closed: ["quiet", "○"],
};

export const lookOf = (state) => LOOKS[state] ?? ["wait", "?"];

export function State({ state, children }) {
  const [look, mark] = lookOf(state);
  return html`<span class="state ${look}"><span class="mark" aria-hidden="true">${mark}</span>${children ?? state}</span>`;
}

/** A name that others have chosen: as text, with what would be invisible made visible. */
export const Name = ({ text, href }) => {
  const shown = html`<bdi class="name" title=${visible(text)}>${visible(text)}</bdi>`;
  return href ? html`<a href=${href}>${shown}</a>` : shown;
};

export function Tile({ label, value, note, look = "", samples, href }) {
  const inner = html`<span class="label">${label}</span>
    <span class="value">${value}</span>
    <span class="note">${note ?? "\u00a0"}</span>
    ${samples && html`<${Spark} samples=${samples} />`}`;
  return html`<li class="tile ${look}">${href ? html`<a href=${href}>${inner}</a>` : inner}</li>`;
}

/** The course of a figure, without axes: the figure itself stands above it. */
function Spark({ samples }) {
  const values = samples.filter((value) => Number.isFinite(value)).slice(-90);
  if (values.length < 2) return html`<svg class="spark" aria-hidden="true" viewBox="0 0 90 20"></svg>`;
  const most = Math.max(...values, 1e-9);
  const x = (index) => ((90 * index) / (values.length - 1)).toFixed(1);
  const y = (value) => 19 - (17 * value) / most;
  const line = values.map((value, index) => `${x(index)},${y(value).toFixed(1)}`).join(" ");
  return html`<svg class="spark" aria-hidden="true" viewBox="0 0 90 20" preserveAspectRatio="none">
    <polygon points="0,20 ${line} 90,20" /><polyline points=${line} />
  </svg>`;
}

const dark = matchMedia("(prefers-color-scheme: dark)");

/** A chart of the last ten minutes. Its summary is its text. */
export function Chart({ title, unit, times, values, format }) {
  const place = useRef(null);
  const made = useRef(null);
  useEffect(() => {
    const make = () => {
      made.current?.destroy();
      made.current = new uPlot(optionsOf(place.current, format), [[], []], place.current);
      made.current.setData([times, values]);
    };
    const resized = new ResizeObserver(([entry]) => {
      const width = Math.floor(entry.contentRect.width);
      if (width && made.current && width !== made.current.width) made.current.setSize({ width, height: 180 });
    });
    make();
    resized.observe(place.current);
    dark.addEventListener("change", make);
    return () => {
      resized.disconnect();
      dark.removeEventListener("change", make);
      made.current?.destroy();
      made.current = null;
    };
  }, []);
  useEffect(() => made.current?.setData([times, values]), [times, values]);
  const real = values.filter((value) => Number.isFinite(value));
  const summary = real.length
    ? `now ${format(real[real.length - 1])}, least ${format(Math.min(...real))}, most ${format(Math.max(...real))}`
    : "no value yet";
  return html`<figure class="chart">
    <figcaption><strong>${title}</strong> <span class="quiet">${unit}</span><span class="summary">${summary}</span></figcaption>
    <div ref=${place} aria-hidden="true"></div>
  </figure>`;
}

/** From the first sample on, at least a minute and at most ten. */
function lastMinutes(_, first, last) {
  const now = last ?? Date.now() / 1000;
  return [Math.max(Math.min(first ?? now, now - 60), now - 600), now];
}

function optionsOf(place, format) {
  const colour = (name) => getComputedStyle(place).getPropertyValue(name).trim();
  const font = `12px ${getComputedStyle(place).fontFamily}`;
  const axis = { stroke: colour("--quiet"), font, grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
  const times = { ...axis, grid: { show: false }, values: (_, ticks) => ticks.map((at) => (at % 60 ? clock(at) : clock(at).slice(0, -3))), space: 80, size: 28 };
  return {
    width: Math.floor(place.clientWidth) || 300,
    height: 180,
    padding: [10, 8, 0, 0],
    cursor: { show: false },
    legend: { show: false },
    scales: { x: { range: lastMinutes }, y: { range: (_, least, most) => [Math.min(0, least ?? 0), most > 0 ? most * 1.15 : 1] } },
    axes: [times, { ...axis, size: 64, values: (_, ticks) => ticks.map(format) }],
    series: [{}, { stroke: colour("--mask"), fill: colour("--shade"), width: 2, points: { show: false } }],
  };
}

/** A table that scrolls sideways on its own, and can be reached by keyboard for it. */
export function Table({ caption, columns, rows, sort, onSort, empty }) {
  const header = ({ key, label, right, wide, sortable }) => {
    const sorted = sort === key ? "descending" : undefined;
    const inner = sortable
      ? html`<button type="button" class="sort" onClick=${() => onSort(key)}>${label}<span aria-hidden="true">${sorted ? " ▾" : ""}</span></button>`
      : label;
    return html`<th scope="col" class="${right ? "right" : ""} ${wide ? "wide" : ""}" aria-sort=${sorted}>${inner}</th>`;
  };
  return html`<div class="table" role="region" aria-label=${caption} tabindex="0">
    <table>
      <caption class="unseen">${caption}</caption>
      <thead><tr>${columns.map(header)}</tr></thead>
      <tbody>${rows}</tbody>
    </table>
    ${rows.length === 0 && html`<p class="empty">${empty}</p>`}
  </div>`;
}

/** How a link was in the last hour: a line while it was live, blocks that are higher where it was not. */
export function Strip({ states, now, seconds = 3600 }) {
  const begin = now - seconds;
  const pieces = (states ?? []).map(({ at, state }, index) => {
    const from = Math.max(at, begin);
    const until = states[index + 1]?.at ?? now;
    return { state, from, until };
  }).filter(({ until }) => until > begin);
  const losses = pieces.filter(({ state }) => state !== "live");
  const last = losses[losses.length - 1];
  const text = losses.length
    ? `Not live ${plural(losses.length, "time")} in the last hour, the last time at ${clock(last.from)} for ${Math.ceil(last.until - last.from)} s`
    : "Live in the last hour, as far as it is known";
  const x = (at) => (100 * (at - begin)) / seconds;
  return html`<svg class="strip" role="img" aria-label=${text} viewBox="0 0 100 10" preserveAspectRatio="none">
    <title>${text}</title>
    <rect class="ground" x="0" y="4.5" width="100" height="1" />
    ${pieces.map(({ state, from, until }) => {
      const live = state === "live";
      return html`<rect class=${live ? "ok" : "bad"} x=${x(from)} y=${live ? 3.5 : 0} width=${Math.max(x(until) - x(from), live ? 0 : 0.8)} height=${live ? 3 : 10} />`;
    })}
  </svg>`;
}

/** A list of names with bars, each as long as its value is beside the largest. */
export function Bars({ title, items, format, empty, more }) {
  const most = Math.max(...items.map(({ value }) => value), 1);
  return html`<section class="bars" aria-label=${title}>
    <h2>${title}</h2>
    ${items.length === 0 && html`<p class="quiet">${empty}</p>`}
    <ul>${items.map(({ key, name, href, value }) => html`<li key=${key}>
      <${Name} text=${name} href=${href} /><span class="value">${format(value)}</span>
      <svg aria-hidden="true" viewBox="0 0 100 4" preserveAspectRatio="none"><rect width=${(100 * value) / most} height="4" /></svg>
    </li>`)}</ul>
    ${more}
  </section>`;
}

/** Text into the clipboard, where the browser allows it, else selected by hand. */
export function Copy({ text, label = "Copy as text" }) {
  const button = useRef(null);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.current.textContent = "Copied";
    } catch {
      button.current.textContent = "Not copied: select the text below";
    }
    setTimeout(() => button.current && (button.current.textContent = label), 2500);
  };
  return html`<button type="button" ref=${button} onClick=${copy}>${label}</button>`;
}
