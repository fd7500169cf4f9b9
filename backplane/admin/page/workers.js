// Workers: a row each, and what one is made of.

import { html } from "./preact.js";
import { age, bytes, count, lag, moment, percent, rate, visible } from "./format.js";
import { Missing, useAsk } from "./lists.js";
import { State, Strip, Table } from "./parts.js";
import { go, to } from "./route.js";
import { courseOf } from "./source.js";

const CONFIGURATION_EVERY_MS = 60_000;

const COLUMNS = [
  { label: "Worker" }, { label: "Link" }, { label: "Last hour" },
  { label: "Clients", right: true }, { label: "Deliveries / s", right: true }, { label: "Lag p99", right: true },
  { label: "Loop lag", right: true, wide: true }, { label: "CPU", right: true, wide: true }, { label: "Memory", right: true, wide: true },
  { label: "Clock", right: true, wide: true }, { label: "Control", right: true, wide: true }, { label: "Version", wide: true }, { label: "Up", right: true },
];

export function Workers({ source: { view }, query }) {
  const isOpen = (worker) => [worker.id, worker.worker].includes(query.open);
  const rows = view.workers.map((worker) => row(worker, view, isOpen(worker)));
  for (const name of view.missing) rows.push(silent(name));
  return html`<h1>Workers</h1>
    ${!view.is_cluster && html`<p class="hint">This is the one worker that serves this page. With <code>Backplane(cluster=True)</code> in each worker all of them are shown.</p>`}
    ${query.open && !view.workers.some(isOpen) && html`<p class="note-bad" role="status">✗ Worker ${visible(query.open)} is not there any more, or sends no figures. <a href=${to("log")}>What was noticed</a></p>`}
    <${Table} caption="Workers" columns=${COLUMNS} rows=${rows} empty="No worker is known yet." />`;
}

const silent = (name) => html`<tr key=${name} class="past"><th scope="row">${visible(name)}</th>
  <td><${State} state="silent">no figures<//></td><td colspan=${COLUMNS.length - 2}>Its heartbeats arrive, and it sends no figures.</td></tr>`;

function row(worker, view, open) {
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
      <td><${Strip} states=${courseOf(worker)} now=${view.at} /></td>
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
    open && html`<tr key=${`${worker.id}+`} class="details"><td colspan=${COLUMNS.length}><div class="inside"><${Details} worker=${worker} view=${view} /></div></td></tr>`,
  ];
}

function Details({ worker, view }) {
  const facts = [
    ["Started", worker.started_at ? `${moment(worker.started_at)}, ${age(view.at - worker.started_at)} ago` : "–"],
    ["Loop lag", lag(worker.loop_lag)], ["CPU", percent(worker.cpu)], ["Memory", bytes(worker.resident_bytes)],
    ["Clock", lag(worker.clock_offset)], ["Control messages received", count(worker.control_received)], ["Version", visible(worker.version ?? "–")],
    ["Links tried", count(worker.generation)],
  ];
  return html`<${Facts} facts=${facts} />
    <${Configuration} id=${worker.id} />
    <p><a href=${to("connections", { worker: worker.id })}>Its connections</a> · <a href=${to("log", { text: worker.worker })}>What was noticed of it</a></p>`;
}

const Facts = ({ facts }) => html`<dl class="facts">${facts.map(([name, value, changed]) => html`<div key=${name}><dt>${name}</dt>
  <dd class=${changed ? "changed" : ""}>${value}${changed && html` <span class="quiet">changed</span>`}</dd></div>`)}</dl>`;

const PARTS = [["settings", "Settings"], ["limits", "Limits of a client"], ["broker", "Broker"], ["rules", "Rules of channels"]];

/** What a worker is configured with: asked for once a minute, while its row is open. */
function Configuration({ id }) {
  const { answer, error } = useAsk("configuration", { worker: id }, CONFIGURATION_EVERY_MS);
  const { configuration } = answer ?? {};
  if (!configuration) return html`<${Missing} answer=${answer} error=${error} />${!answer && !error && html`<p class="quiet">Asking it for its settings …</p>`}
    ${answer && !answer.missing.length && html`<p class="quiet">This worker runs a release that does not state its settings.</p>`}`;
  return PARTS.map(([part, title]) => html`<h2 key=${part}>${title}</h2>
    <${Facts} facts=${Object.entries(configuration[part]).map(([name, value]) => [visible(name), setting(value), name in configuration.changed && part in { settings: 1, limits: 1 }])} />`);
}

const setting = (value) => (value === null || value === "" ? "–" : typeof value === "number" ? String(value) : typeof value === "boolean" ? (value ? "yes" : "no") : visible(value));
