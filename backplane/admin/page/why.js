// Why? Where the way of a message to a client stops, by what every worker states and by a test message.

import { html, useEffect, useRef, useState } from "./preact.js";
import { visible } from "./format.js";
import { Copy } from "./parts.js";
import { Missing } from "./lists.js";
import { go, to } from "./route.js";
import { ask } from "./source.js";

const MARKS = { ok: ["ok", "✓", "holds"], bad: ["bad", "✗", "stops here"], open: ["quiet", "?", "not known here"] };
const STATIONS = ["Publisher", "Broker", "Link", "Hub", "Outbox", "Socket", "Client"];
const PLACES = STATIONS.map((name) => name.toLowerCase());
const HOLDS = { link: "live, and what is published arrives", hub: "the client has joined the channel", outbox: "nothing waits", socket: "open" };

export function Why({ query }) {
  const { client = "", channel = "" } = query;
  const fields = { client: useRef(null), channel: useRef(null) };
  const look = (event) => {
    event.preventDefault();
    go("why", { client: fields.client.current.value, channel: fields.channel.current.value });
  };
  const field = (name, label, value) => html`<div class="grow"><label for=${`why-${name}`}>${label}</label>
    <input id=${`why-${name}`} key=${value} ref=${fields[name]} defaultValue=${value} required autocomplete="off" autocapitalize="off" spellcheck="false" /></div>`;
  return html`<h1>Why does a client not receive a channel?</h1>
    <form class="ask" onSubmit=${look}>
      ${field("client", "Client: its key, user, or the id of a connection", client)}
      ${field("channel", "Channel", channel)}
      <button class="main">Look</button>
    </form>
    ${client && channel && html`<${Answer} key=${`${client}\n${channel}`} client=${client} channel=${channel} />`}`;
}

function Answer({ client, channel }) {
  const [{ found, error }, set] = useState({});
  const [asked, again] = useState(0);
  useEffect(() => {
    let ended = false;
    set({});
    ask("explain", { client, channel })
      .then((answer) => ended || set({ found: answer }))
      .catch((failure) => ended || set({ error: failure }));
    return () => { ended = true; };
  }, [client, channel, asked]);
  if (!found) return error ? html`<${Missing} error=${error} />` : html`<p class="empty">Asking the workers …</p>`;
  const isWhole = found.verdict === "whole";
  const notes = found.findings.filter((finding) => !finding.is_fault);
  const stations = stationsOf(found);
  const text = [`client ${client}, channel ${channel}`, found.text, found.cure, ...stations.map(({ look, words }, index) => `${MARKS[look][1]} ${STATIONS[index]}: ${words}`), ...notes.map((note) => `· ${note.text}`)].join("\n");
  return html`<section class="verdict ${isWhole ? "ok" : "error"}" aria-label="Verdict">
      <h2><span class="mark" aria-hidden="true">${isWhole ? "✓" : "✗"}</span><span>${visible(found.text)}</span></h2>
      <p>${visible(found.cure)}</p>
    </section>
    <${Missing} answer=${found} />
    <ol class="stations" aria-label="The way of a message">${stations.map(({ look, words }, index) => {
      const [style, sign, meaning] = MARKS[look];
      return html`<li class=${style}><span class="plug" aria-hidden="true">${sign}</span>
        <strong>${STATIONS[index]}</strong><span class="unseen"> ${meaning}: </span><span class="words">${visible(words)}</span></li>`;
    })}</ol>
    ${notes.length > 0 && html`<ul aria-label="Notes">${notes.map((note) => html`<li>${visible(note.text)}${note.cure && html` <span class="quiet">${visible(note.cure)}</span>`}</li>`)}</ul>`}
    <p><${Copy} text=${text} /> <button type="button" onClick=${() => again(asked + 1)}>Ask again</button> <a href=${to("connections", { client })}>Its connections</a> · <a href=${to("tail", { channel })}>Tail of the channel</a></p>
    <details><summary>What the workers answered</summary><pre class="raw">${visible(JSON.stringify(found.workers, null, 1)).replaceAll("\\u{a}", "\n")}</pre></details>`;
}

/** For each station how it is: the faults are where the explanation has them, what is before the first one holds. */
function stationsOf(found) {
  const faults = found.findings.filter((finding) => finding.is_fault);
  // Where a publisher is at fault the test message has shown the rest of the way.
  const ends = faults.filter(({ station }) => station !== "publisher");
  const first = ends.length ? Math.min(...ends.map(({ station }) => PLACES.indexOf(station))) : PLACES.length;
  return PLACES.map((place, index) => {
    const here = faults.filter(({ station }) => station === place);
    if (here.length) return { look: "bad", words: here.map((finding) => finding.text).join("; ") };
    if (index > first || place === "client") return { look: "open", words: place === "client" ? "what it does with a message is not seen from here" : "not looked at: the way ends before" };
    if (place === "publisher" || place === "broker") return found.tested ? { look: "ok", words: "the broker took a test message" } : { look: "open", words: `no test message: ${found.not_tested}` };
    return { look: "ok", words: HOLDS[place] };
  });
}
