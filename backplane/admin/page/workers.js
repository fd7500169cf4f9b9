// Workers: a row each, and what one is made of.

import { html } from "./preact.js";
import { age, bytes, clock, count, lag, percent, rate, visible } from "./format.js";
import { State, Strip, Table } from "./parts.js";
import { go, to } from "./route.js";

const COLUMNS = [
  { label: "Worker" }, { label: "Link" }, { label: "Last hour" },
  { label: "Clients", right: true }, { label: "Deliveries / s", right: true }, { label: "Lag p99", right: true },
  { label: "Loop lag", right: true, wide: true }, { label: "CPU", right: true, wide: true }, { label: "Memory", right: true, wide: true },
  { label: "Clock", right: true, wide: true }, { label: "Control", right: true, wide: true }, { label: "Version", wide: true }, { label: "Up", right: true },
];


export function Workers({ source: { view, courses }, query }) {
  const rows = view.workers.map((worker) => row(worker, view, courses, [worker.id, worker.worker].includes(query.open)));
  for (const name of view.missing) rows.push(silent(name));
  return html`<h1>Workers</h1>
    ${!view.is_cluster && html`<p class="hint">This is the one worker that serves this page. With <code>Backplane(cluster=True)</code> in each worker all of them are shown.</p>`}
    <${Table} caption="Workers" columns=${COLUMNS} rows=${rows} empty="No worker is known yet." />`;
}

const silent = (name) => html`<tr key=${name} class="past"><th scope="row">${visible(name)}</th>
  <td><${State} state="silent">no figures<//></td><td colspan=${COLUMNS.length - 2}>Its heartbeats arrive, and it sends no figures.</td></tr>`;

function row(worker, view, courses, open) {
  const toggle = (event) => {
    event.preventDefault();
    go("workers", open ? {} : { open: worker.id });
  };
  const offset = worker.clock_offset;
  return [
    html`<tr key=${worker.id} class=${worker.state === "ended" ? "past" : ""}>
      <th scope="row"><a href=${to("workers", { open: worker.id })} onClick=${toggle} aria-expanded=${String(open)}>${visible(worker.worker)}</a>
        ${worker.id === view.asked_worker && html`<span class="id">serves this page</span>`}</th>
      <td><${State} state=${worker.state} /></td>
      <td><${Strip} states=${courses[worker.id]} now=${view.at} /></td>
      <td class="right">${count(worker.connections)}</td>
      <td class="right">${rate(worker.rates?.deliveries)}</td>
      <td class="right">${lag(worker.lag_p99)}</td>
      <td class="right wide">${lag(worker.loop_lag)}</td>
      <td class="right wide">${percent(worker.cpu)}</td>
      <td class="right wide">${bytes(worker.resident_bytes)}</td>
      <td class="right wide">${offset == null ? "–" : `${offset > 0 ? "+" : ""}${lag(offset)}`}</td>
      <td class="right wide">${count(worker.control_received)}</td>
      <td class="wide">${visible(worker.version ?? "–")}</td>
      <td class="right">${worker.started_at ? age(view.at - worker.started_at) : "–"}</td>
    </tr>`,
    open && html`<tr key=${`${worker.id}+`} class="details"><td colspan=${COLUMNS.length}><${Details} worker=${worker} view=${view} /></td></tr>`,
  ];
}

function Details({ worker, view }) {
  const facts = [
    ["Started", worker.started_at ? `${clock(worker.started_at)}, ${age(view.at - worker.started_at)} ago` : "–"],
    ["Loop lag", lag(worker.loop_lag)], ["CPU", percent(worker.cpu)], ["Memory", bytes(worker.resident_bytes)],
    ["Clock", lag(worker.clock_offset)], ["Control messages received", count(worker.control_received)], ["Version", visible(worker.version ?? "–")],
    ...Object.entries(worker.details ?? {}).map(([name, value]) => [visible(name), visible(typeof value === "string" ? value : JSON.stringify(value))]),
  ];
  return html`<dl class="facts">${facts.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
    <p><a href=${to("connections", { worker: worker.id })}>Its connections</a> · <a href=${to("log", { text: worker.worker })}>What was noticed of it</a></p>`;
}
