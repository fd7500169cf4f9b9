// Why? Where the way of a message to a client stops, as far as the workers' lists show it.

import { html, useRef } from "./preact.js";
import { age, bytes, plural, visible } from "./format.js";
import { Copy } from "./parts.js";
import { Missing, useAsk } from "./lists.js";
import { go, to } from "./route.js";

const MARKS = { ok: ["ok", "✓", "holds"], bad: ["bad", "✗", "stops here"], open: ["quiet", "?", "not known here"] };
const STATIONS = ["Publisher", "Broker", "Link", "Hub", "Outbox", "Socket", "Client"];

export function Why({ source: { view }, query }) {
  const { client = "", channel = "" } = query;
  const fields = { client: useRef(null), channel: useRef(null) };
  const look = (event) => {
    event.preventDefault();
    go("why", { client: fields.client.current.value, channel: fields.channel.current.value });
  };
  const field = (name, label, value) => html`<div class="grow"><label for=${`why-${name}`}>${label}</label>
    <input id=${`why-${name}`} key=${value} ref=${fields[name]} defaultValue=${value} value=${value} required autocomplete="off" autocapitalize="off" spellcheck="false" /></div>`;
  return html`<h1>Why does a client not receive a channel?</h1>
    <form class="ask" onSubmit=${look}>
      ${field("client", "Client: its key, user, or the id of a connection", client)}
      ${field("channel", "Channel", channel)}
      <button class="main">Look</button>
    </form>
    ${client && channel && html`<${Answer} key=${`${client}\n${channel}`} view=${view} client=${client} channel=${channel} />`}`;
}

function Answer({ view, client, channel }) {
  const here = useAsk("connections", { client, limit: 10 });
  const joined = useAsk("connections", { client, channel, limit: 10 });
  const named = useAsk("channels", { prefix: channel, sort: "name", limit: 10 });
  const error = here.error ?? joined.error ?? named.error;
  if (!here.answer || !joined.answer || !named.answer) return html`<${Missing} error=${error} /><p class="empty">Asking the workers …</p>`;
  const found = judge(view, channel, here.answer, joined.answer, named.answer);
  const text = [`client ${client}, channel ${channel}`, found.verdict, found.cure, ...found.stations.map(({ look: mark, words }, index) => `${MARKS[mark][1]} ${STATIONS[index]}: ${words}`)].join("\n");
  return html`<section class="verdict ${found.look}" aria-label="Verdict">
      <h2><span class="mark" aria-hidden="true">${found.look === "error" ? "✗" : found.look === "warning" ? "!" : "✓"}</span><span>${visible(found.verdict)}</span></h2>
      <p>${visible(found.cure)}</p>
    </section>
    <${Missing} answer=${here.answer} error=${error} />
    <ol class="stations" aria-label="The way of a message">${found.stations.map(({ look: mark, words }, index) => {
      const [style, sign, meaning] = MARKS[mark];
      return html`<li class=${style}><span class="plug" aria-hidden="true">${sign}</span>
        <strong>${STATIONS[index]}</strong><span class="unseen"> ${meaning}: </span><span class="words">${visible(words)}</span></li>`;
    })}</ol>
    <p><${Copy} text=${text} /> <a href=${to("connections", { client })}>Its connections</a> · <a href=${to("tail", { channel })}>Tail of the channel</a></p>
    <details><summary>What the workers answered</summary><pre class="raw">${visible(JSON.stringify({ client: here.answer, joined: joined.answer, channels: named.answer }, null, 1)).replaceAll("\\u{a}", "\n")}</pre></details>`;
}

/** The stations, the verdict and the cure, from the lists of all workers. */
function judge(view, channel, here, joined, named) {
  const station = (look, words) => ({ look, words });
  const [one] = joined.rows.length ? joined.rows : here.rows;
  const worker = view.workers.find(({ worker: name }) => name === one?.worker);
  const subscribers = named.rows.find(({ name }) => name === channel)?.subscribers ?? 0;
  const near = named.rows.filter(({ name }) => name !== channel).map(({ name }) => name).slice(0, 3);
  const isJoined = joined.rows.length > 0;
  const isLive = worker?.state === "live";
  const stations = [
    station("open", "tail the channel, and publish to it, to see whether something comes"),
    station(view.link === "live" ? "ok" : "bad", `the link of the worker that serves this page is ${view.link}`),
    station(!one ? "open" : isLive ? "ok" : "bad", one ? `the link of ${one.worker} is ${worker?.state ?? "not known"}` : "no worker has this client"),
    station(!one ? "open" : isJoined ? "ok" : "bad", `${plural(subscribers, "subscriber")} on all workers; this client ${isJoined ? "has joined" : "has not joined"}`),
    station(!one ? "open" : one.dropped || one.waiting_bytes ? "bad" : "ok", one ? `${bytes(one.waiting_bytes)} wait, ${plural(one.dropped, "message")} dropped` : "no outbox"),
    station(one ? "ok" : "bad", one ? `${one.transport}, open for ${age(view.at - one.opened_at)}` : "no open connection"),
    station(one?.received_seconds_ago == null ? "open" : "ok", one?.received_seconds_ago == null ? "a client that only listens states nothing" : `something came from it ${age(one.received_seconds_ago)} ago`),
  ];
  const found = (look, verdict, cure) => ({ look, verdict, cure, stations });
  if (here.missing.length && !one) return found("warning", "No worker that answered has this client, and not all of them answered.", "Look at the workers that did not.");
  if (!one) return found("error", "No worker has this client: it is not connected, or to another deployment.", "Search for another spelling of its key on the screen Connections.");
  if (!isLive) return found("error", `The link of its worker ${one.worker} is ${worker?.state ?? "not known"}.`, "Until it is live its clients receive nothing: look at the log of the worker, and at the broker.");
  if (!isJoined) return found("error", `It is connected, and has not joined ${channel}.`, near.length ? `Is it one of these: ${near.join(", ")}?` : "Look at which channels its handler joins, and at what authorize refuses.");
  if (one.dropped) return found("warning", `It has joined, and ${plural(one.dropped, "message")} for it ${one.dropped === 1 ? "was" : "were"} dropped: it reads too slowly.`, "Send it less, or give it a larger Backlog.");
  if (one.waiting_bytes) return found("warning", `It has joined, and ${bytes(one.waiting_bytes)} wait for it: it does not read.`, "Look at the network and the proxy between this worker and the client.");
  return found("ok", "It has joined, its worker is live, and nothing waits for it: these lists show no fault.", "Tail the channel: where messages come there, look at the proxy and at the code of the client.");
}
