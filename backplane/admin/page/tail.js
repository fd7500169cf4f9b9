// Tail: the messages of a channel as they come, and a form to publish one. Each is a right of its own.

import { html, useEffect, useRef, useState } from "./preact.js";
import { bytes, clock, plural, visible } from "./format.js";
import { Name } from "./parts.js";
import { go } from "./route.js";
import { change, listen } from "./source.js";

const KEPT = 300;

export function Tail({ source: { view }, query }) {
  const { allow } = view.you;
  const field = useRef(null);
  const channel = query.channel ?? "";
  const choose = (event) => {
    event.preventDefault();
    go("tail", { channel: field.current.value });
  };
  return html`<h1>Tail</h1>
    <form class="ask" onSubmit=${choose}>
      <div class="grow"><label for="tail-channel">Channel</label>
        <input id="tail-channel" ref=${field} key=${channel} defaultValue=${channel} required autocomplete="off" autocapitalize="off" spellcheck="false" /></div>
      ${allow.includes("tail") && html`<button class="main">Tail</button>`}
    </form>
    ${!allow.includes("tail") && html`<p class="hint">Messages are not shown here: <code>admin_routes(allow={"tail"})</code> allows it.</p>`}
    ${allow.includes("tail") && channel && html`<${Messages} key=${channel} channel=${channel} />`}
    ${allow.includes("publish")
      ? html`<${Publish} field=${field} />`
      : html`<p class="hint">Nothing can be published here: <code>admin_routes(allow={"publish"})</code> allows it.</p>`}`;
}

function Messages({ channel }) {
  const [status, setStatus] = useState("joining");
  const [shown, setShown] = useState({ items: [], notShown: 0 });
  const [paused, setPaused] = useState(false);
  const held = useRef({ items: [], notShown: 0, paused: false, number: 0 });
  useEffect(() => {
    const keep = ({ messages, not_shown: notShown }) => {
      const kept = held.current;
      const items = messages.map((message) => ({ ...message, number: (kept.number += 1) }));
      kept.items = [...kept.items, ...items].slice(-KEPT);
      kept.notShown += notShown;
      if (!kept.paused) setShown({ items: kept.items, notShown: kept.notShown });
    };
    const handlers = { joined: () => setStatus("joined"), messages: keep, ended: () => setStatus("lost") };
    return listen(`api/tail?${new URLSearchParams({ channel })}`, handlers, setStatus);
  }, []);
  const pause = () => {
    held.current.paused = !held.current.paused;
    setPaused(held.current.paused);
    setShown({ items: held.current.items, notShown: held.current.notShown });
  };
  const pressed = (event) => {
    if (event.key === "p" || event.key === " ") {
      event.preventDefault();
      pause();
    }
  };
  const words = { joining: "Joining …", joined: "Every message from now on", lost: "The connection was lost: what was published meanwhile is not shown", refused: "You are not allowed to see this any more" };
  return html`<section class="tail" aria-label="Messages">
    <div class="row">
      <p class="quiet">${words[status]}${shown.notShown ? html` · <strong>+${plural(shown.notShown, "message")} not shown</strong>` : ""}</p>
      <button type="button" aria-pressed=${String(paused)} onClick=${pause}>${paused ? "Go on" : "Pause"} <kbd>p</kbd></button>
    </div>
    <ol class="messages" tabindex="0" onKeyDown=${pressed} aria-label="Messages of the channel, newest first">
      ${[...shown.items].reverse().map((item) => html`<li key=${item.number}><${Message} item=${item} /></li>`)}
      ${shown.items.length === 0 && html`<li class="empty">Nothing was published to <${Name} text=${channel} /> since.</li>`}
    </ol>
  </section>`;
}

function Message({ item }) {
  if (item.gap !== undefined) return html`<p class="gap"><span aria-hidden="true">⌁ </span>Messages may be missing here: ${visible(item.gap)}</p>`;
  const about = [clock(item.at), item.is_binary ? `${bytes(item.bytes)}, binary` : bytes(item.bytes)];
  if (item.publisher) about.push(`from ${item.publisher}`);
  if (item.position) about.push(item.position);
  if (item.excluded) about.push(`not to ${item.excluded}`);
  return html`<p class="about">${about.map(visible).join(" · ")}</p>
    <pre class=${item.is_binary ? "binary" : ""}>${shownText(item.text)}${item.is_cut ? html`<span class="quiet"> … cut</span>` : ""}</pre>`;
}

/** A payload with its line ends, and all other invisible characters made visible. */
const shownText = (text) => text.split("\n").map(visible).join("\n");

function Publish({ field }) {
  const text = useRef(null);
  const [outcome, setOutcome] = useState(null);
  const publish = async (event) => {
    event.preventDefault();
    const channel = field.current.value;
    try {
      await change("publish", { channel, text: text.current.value });
      setOutcome({ look: "ok", words: `Published to ${visible(channel)} at ${clock(Date.now() / 1000)}` });
    } catch (error) {
      setOutcome({ look: "bad", words: `Not published: ${error.message}` });
    }
  };
  return html`<form class="publish" onSubmit=${publish}>
    <label for="publish-text">Publish a message to this channel, to all of its subscribers</label>
    <textarea id="publish-text" ref=${text} rows="3" required spellcheck="false"></textarea>
    <button>Publish</button>
    <p role="status" class=${outcome?.look ?? ""}>${outcome?.words ?? ""}</p>
  </form>`;
}
