// Connections: the clients of all workers, what waits for them, and how to close one.

import { html, useState } from "./preact.js";
import { age, bytes, count, plural, visible } from "./format.js";
import { Name, Table } from "./parts.js";
import { Filter, Missing, Pages, useAsk } from "./lists.js";
import { go, to } from "./route.js";
import { change } from "./source.js";

const LIMIT = 100;
const COLUMNS = [
  { label: "Connection" }, { label: "Client" }, { label: "Worker", wide: true }, { label: "Transport", wide: true },
  { key: "opened", label: "Age", right: true, sortable: true }, { key: "channels", label: "Channels", right: true, sortable: true },
  { key: "waiting", label: "Waits", right: true, sortable: true }, { key: "dropped", label: "Dropped", right: true, sortable: true },
  { label: "Last received", right: true, wide: true },
];

export function Connections({ source: { view }, query }) {
  const { open, ...asked } = query;
  const { sort = "waiting", channel, client, worker, after } = asked;
  const { answer, error } = useAsk("connections", { ...asked, sort, limit: LIMIT });
  const filtered = (names) => go("connections", { ...asked, after: undefined, ...names }, { replace: true });
  const rows = (answer?.rows ?? []).map((connection) => row(connection, view, asked, connection.id === open));
  return html`<h1>Connections</h1>
    <div class="ask">
      <${Filter} id="of-client" label="Client: its key, user, or the id of a connection" value=${client ?? ""} onChange=${(text) => filtered({ client: text })} />
      <${Filter} id="of-channel" label="Has joined the channel" value=${channel ?? ""} onChange=${(text) => filtered({ channel: text })} />
    </div>
    ${worker && html`<p class="quiet">Of worker ${visible(nameOf(view, worker))} alone. <a href=${to("connections", { ...asked, worker: undefined })}>Of all workers</a></p>`}
    <${Missing} answer=${answer} error=${error} />
    ${answer && html`<p class="quiet">${plural(answer.total, "connection")}${answer.rows.length < answer.total ? `, of which ${count(answer.rows.length)} are shown` : ""}.</p>`}
    <${Table} caption="Connections" columns=${COLUMNS} rows=${rows} sort=${sort} onSort=${(key) => go("connections", { ...asked, after: undefined, sort: key })}
      empty=${answer ? "No such connection." : "Asking the workers …"} />
    <${Pages} after=${after} last=${answer?.rows.length === LIMIT ? answer.rows[LIMIT - 1].position : undefined} address=${(next) => to("connections", { ...asked, after: next })} />`;
}

const nameOf = (view, id) => view.workers.find((worker) => worker.id === id)?.worker ?? id;

function row(connection, view, asked, open) {
  const { id, user, waiting_bytes: waiting } = connection;
  const toggle = (event) => {
    event.preventDefault();
    go("connections", open ? asked : { ...asked, open: id }, { replace: true });
  };
  return [
    html`<tr key=${id}>
      <th scope="row"><a class="id-link" href=${to("connections", { ...asked, open: id })} onClick=${toggle} aria-expanded=${String(open)}>${visible(id)}</a></th>
      <td>${user == null ? html`<span class="quiet">–</span>` : html`<${Name} text=${user} />`}</td>
      <td class="wide">${visible(connection.worker)}</td>
      <td class="wide">${visible(connection.transport)}</td>
      <td class="right">${age(view.at - connection.opened_at)}</td>
      <td class="right">${count(connection.channel_count)}</td>
      <td class="right ${waiting ? "wait" : ""}">${waiting ? `! ${bytes(waiting)} in ${count(connection.waiting_messages)}` : "–"}</td>
      <td class="right ${connection.dropped ? "wait" : ""}">${connection.dropped ? `! ${count(connection.dropped)}` : "–"}</td>
      <td class="right wide">${connection.received_seconds_ago == null ? "–" : `${age(connection.received_seconds_ago)} ago`}</td>
    </tr>`,
    open && html`<tr key=${`${id}+`} class="details"><td colspan=${COLUMNS.length}><div class="inside"><${Details} connection=${connection} view=${view} /></div></td></tr>`,
  ];
}

function Details({ connection, view }) {
  const { id, channels, channel_count: joined } = connection;
  return html`<h2>Channels</h2>
    <ul class="chips">${channels.map((name) => html`<li key=${name}><${Name} text=${name} href=${to("why", { client: id, channel: name })} /></li>`)}
      ${joined > channels.length && html`<li class="quiet">and ${count(joined - channels.length)} more</li>`}
      ${joined === 0 && html`<li class="quiet">None.</li>`}</ul>
    <p class="quiet">A channel leads to: why does this client not receive it? On worker ${visible(connection.worker)}, by ${visible(connection.transport)}.</p>
    ${view.you.allow.includes("disconnect") && html`<${Disconnect} connection=${connection} />`}`;
}

const CODES = [
  [4000, "4000: reconnect, and load again what it shows"],
  [1012, "1012: reconnect, to another worker"],
  [4001, "4001: get a new permission, then reconnect"],
  [4503, "4503: stay away"],
];

/** Asks once more, and with which code, before it closes the connection. */
function Disconnect({ connection: { id, user } }) {
  const [asking, setAsking] = useState(false);
  const [outcome, setOutcome] = useState(null);
  const disconnect = async (event) => {
    event.preventDefault();
    const form = new FormData(event.target);
    try {
      const { closed, missing } = await change("disconnect", { connections: [id], code: Number(form.get("code")), reason: form.get("reason") });
      const without = missing.length ? `; ${plural(missing.length, "worker")} did not answer` : "";
      setOutcome({ look: closed ? "ok" : "bad", words: closed ? `Closed${without}` : `No worker has this connection any more${without}` });
      setAsking(false);
    } catch (error) {
      setOutcome({ look: "bad", words: `Not closed: ${error.message}` });
    }
  };
  return html`${asking
    ? html`<form class="ask danger" onSubmit=${disconnect}>
        <div><label for="code">Close code</label><select id="code" name="code">${CODES.map(([code, words]) => html`<option value=${code}>${words}</option>`)}</select></div>
        <div class="grow"><label for="reason">Reason, which the client is sent</label><input id="reason" name="reason" maxlength="100" autocomplete="off" /></div>
        <button class="danger">Disconnect ${user == null ? visible(id) : visible(user)} now</button>
        <button type="button" onClick=${() => setAsking(false)}>Cancel</button>
      </form>`
    : html`<p><button type="button" class="danger" onClick=${() => setAsking(true)}>Disconnect …</button></p>`}
    <p role="status" class=${outcome?.look ?? ""}>${outcome?.words ?? ""}</p>`;
}
