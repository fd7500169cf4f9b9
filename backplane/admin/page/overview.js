// Overview: one sentence first, then what it rests on.

import { html } from "./preact.js";
import { bytes, count, lag, plural, rate, visible } from "./format.js";
import { Bars, Chart, Tile } from "./parts.js";
import { to } from "./route.js";

const MOST_BARS = 8;
const MARKS = { ok: "✓", warning: "!", error: "✗" };

/* Where each kind of problem is looked into. */
const PLACES = { channel: "channels", client: "connections", slow: "connections", dropped: "connections", gap: "log" };
const placeOf = ({ kind, worker }) => {
  const screen = PLACES[kind.split("_")[0]] ?? "workers";
  return to(screen, screen === "workers" && worker ? { open: worker } : {});
};

export function Overview({ source: { view, samples } }) {
  const course = (name) => samples.map((sample) => sample[name]);
  const times = course("at");
  const totals = samples[samples.length - 1];
  return html`
    <${Verdict} view=${view} />
    <ul class="tiles" aria-label="Figures of all workers">
      <${Tile} label="Clients" value=${count(totals.connections)} note=${`at ${plural(view.workers.length, "worker")}`} samples=${course("connections")} href=${to("connections")} />
      <${Tile} label="Deliveries / s" value=${rate(totals.deliveries)} note=${`in ${plural(totals.channels, "channel")}`} samples=${course("deliveries")} href=${to("channels")} />
      <${Tile} label="Publishes / s" value=${rate(totals.publishes)} note=${totals.failures ? `✗ ${rate(totals.failures)} / s failed` : "none failed"} look=${totals.failures ? "bad" : ""} samples=${course("publishes")} />
      <${Tile} label="Lag, p99" value=${lag(totals.lag_p99)} note="at the slowest" samples=${course("lag_p99")} href=${to("workers")} />
      <${Tile} label="Gaps" value=${count(totals.gaps)} note="since the start" look=${totals.gaps ? "wait" : ""} samples=${course("gaps")} href=${to("log", { text: "gap" })} />
      <${Tile} label="Dropped / s" value=${rate(totals.dropped)} note="for slow clients" look=${totals.dropped ? "wait" : ""} samples=${course("dropped")} href=${to("connections", { sort: "dropped" })} />
      <${Tile} label="Slow clients" value=${count(totals.slow)} note=${totals.slow ? `${bytes(totals.waiting_bytes)} wait for them` : "nothing waits"} look=${totals.slow ? "wait" : ""} samples=${course("slow")} href=${to("connections", { sort: "waiting" })} />
    </ul>
    <div class="charts">
      <${Chart} title="Deliveries" unit="per second" times=${times} values=${course("deliveries")} format=${rate} />
      <${Chart} title="Lag" unit="p99" times=${times} values=${course("lag_p99")} format=${lag} />
    </div>
    <div class="charts">
      <${Bars} title="Clients by worker" items=${busiest(view.workers)} format=${count} empty="No worker is known yet." />
      <${Bars} title="Channels with the most subscribers" items=${view.channels.slice(0, MOST_BARS).map(({ name, subscribers }) => ({ key: name, name, href: to("connections", { channel: name }), value: subscribers }))}
        format=${count} empty="No channel has a subscriber." />
    </div>`;
}

const busiest = (workers) =>
  [...workers].sort((one, other) => other.connections - one.connections).slice(0, MOST_BARS)
    .map(({ id, worker, connections }) => ({ key: id, name: worker, href: to("connections", { worker: id }), value: connections }));

function Verdict({ view }) {
  const { problems } = view;
  const look = problems.some(({ severity }) => severity === "error") ? "error" : problems.length ? "warning" : "ok";
  return html`<section class="verdict ${look}" aria-label="How it stands">
    <h1><span class="mark" aria-hidden="true">${MARKS[look]}</span><span>${visible(view.verdict)}</span></h1>
    ${problems.length > 0 && html`<ul>
      ${problems.map((problem) => html`<li class=${problem.severity}>
        <span class="mark" aria-hidden="true">${MARKS[problem.severity]}</span>
        <p><a href=${placeOf(problem)}>${visible(problem.text)}</a> <span class="quiet">${visible(problem.cure)}</span></p>
      </li>`)}
    </ul>`}
  </section>`;
}
