// The live page: the header with its rail, the screens, and what every screen needs.

import { html, render, useEffect, useRef } from "./preact.js";
import { clock, visible } from "./format.js";
import { State, lookOf } from "./parts.js";
import { SCREENS, go, to, useRoute } from "./route.js";
import { start, useSource } from "./source.js";
import { Overview } from "./overview.js";
import { Workers } from "./workers.js";
import { Channels } from "./channels.js";
import { Connections } from "./connections.js";
import { Why } from "./why.js";
import { Log } from "./log.js";
import { Tail } from "./tail.js";

const VIEWS = { overview: Overview, workers: Workers, channels: Channels, connections: Connections, why: Why, log: Log, tail: Tail };
const TITLES = { overview: "Overview", workers: "Workers", channels: "Channels", connections: "Connections", why: "Why?", log: "Log", tail: "Tail" };
const MOST_PLUGS = 24;

function Page() {
  const source = useSource();
  const { screen, query } = useRoute();
  const main = useRef(null);
  const first = useRef(true);
  useEffect(() => {
    document.title = `${TITLES[screen]} · backplane`;
    if (!first.current) main.current.focus({ preventScroll: true });
    first.current = false;
    document.querySelector(".tabs [aria-current]").scrollIntoView({ block: "nearest", inline: "nearest" });
  }, [screen]);
  const View = VIEWS[screen];
  return html`
    <header>
      <a class="skip" href="#main" onClick=${(event) => { event.preventDefault(); main.current.focus(); }}>Skip to the content</a>
      <div class="bar">
        <p class="brand"><strong>backplane</strong> <span class="quiet broker">${visible(source.view?.broker ?? "")}</span></p>
        <${Search} />
        <${Connected} source=${source} />
      </div>
      <nav aria-label="Screens"><ul class="tabs">
        ${SCREENS.map((name) => html`<li><a href=${to(name)} aria-current=${name === screen ? "page" : undefined}>${TITLES[name]}</a></li>`)}
      </ul></nav>
      <${Rail} view=${source.view} />
    </header>
    <main id="main" ref=${main} tabindex="-1" aria-label=${TITLES[screen]}>
      <${Alerts} source=${source} />
      ${source.view ? html`<${View} source=${source} query=${query} />` : html`<h1>${TITLES[screen]}</h1><p class="empty">Waiting for the first figures …</p>`}
    </main>`;
}

/** The edge of the header: each worker has a plug in it; one that sends no figures has a loose one. */
function Rail({ view }) {
  const workers = view?.workers ?? [];
  const missing = view?.missing ?? [];
  return html`<div class="rail"><ul aria-label="Workers">
    ${workers.slice(0, MOST_PLUGS).map((worker) => {
      const [look, mark] = lookOf(worker.state);
      return html`<li key=${worker.id} class=${look}>
        <a href=${to("workers", { open: worker.id })} title=${`${visible(worker.worker)}: ${worker.state}`}>
          <span aria-hidden="true">${look === "ok" ? "" : `${mark} `}</span>${worker.pid}<span class="unseen">, ${worker.state}</span>
        </a></li>`;
    })}
    ${missing.slice(0, MOST_PLUGS).map((name) => html`<li key=${name} class="bad"><a href=${to("workers")} title=${`${visible(name)}: no figures`}>
      <span aria-hidden="true">◌ </span>${visible(name).replace(/^.*\//, "").replace(/-.*$/, "")}<span class="unseen">, sends no figures</span></a></li>`)}
    ${workers.length > MOST_PLUGS && html`<li class="more"><a href=${to("workers")}>+${workers.length - MOST_PLUGS}</a></li>`}
  </ul></div>`;
}

function Search() {
  const field = useRef(null);
  useEffect(() => {
    const pressed = (event) => {
      const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
      if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      field.current.focus();
    };
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  }, []);
  const search = (event) => {
    event.preventDefault();
    const text = field.current.value.trim();
    if (!text) return;
    // The id of a connection is 16 hexadecimal digits; anything else can be a channel, or the key of a client.
    if (/^[0-9a-f]{16}$/.test(text)) go("connections", { client: text });
    else go("channels", { prefix: text });
  };
  return html`<form class="search" role="search" onSubmit=${search}>
    <label class="unseen" for="search">Channel, or id of a connection</label>
    <input id="search" ref=${field} type="search" placeholder="Channel or connection" autocomplete="off" autocapitalize="off" spellcheck="false" />
    <kbd aria-hidden="true">/</kbd>
  </form>`;
}

function Connected({ source: { connection, view } }) {
  const states = { live: "live", connecting: "connecting", lost: "degraded", refused: "closed" };
  const words = { live: "live", connecting: "connecting", lost: "no connection", refused: "not allowed" };
  const who = view?.you.name;
  return html`<p class="connected"><${State} state=${states[connection]}>${words[connection]}<//>${who ? html` <span class="quiet who">${visible(who)}</span>` : ""}</p>`;
}

/** What the visitor must know at once. The only part of the page that is read out by itself. */
function Alerts({ source: { connection, since, view } }) {
  let text = "";
  if (connection === "lost") text = `No connection to a worker since ${clock(since)}: what is shown is from before. It is tried again every 3 seconds.`;
  if (connection === "refused") text = "You are not allowed to see this page any more. Log in again, then reload it.";
  if (connection === "live" && view.link !== "live") text = "The broker is away: this is what the worker that serves this page can see by itself, without the other workers.";
  return html`<div role="alert" class="alert" hidden=${!text}>${text}</div>`;
}

render(html`<${Page} />`, document.getElementById("page"));
start();
