// Log: what this page has noticed since it was opened, newest first.

import { html } from "./preact.js";
import { clock, visible } from "./format.js";
import { Filter } from "./lists.js";
import { go } from "./route.js";

const MOST = 300;
const MARKS = { ok: "✓", warning: "!", error: "✗" };

export function Log({ source: { log }, query }) {
  const { text = "" } = query;
  const wanted = text.toLowerCase();
  const entries = log.filter((entry) => entry.text.toLowerCase().includes(wanted)).slice(-MOST).reverse();
  return html`<h1>Log</h1>
    <p class="hint">What has changed since this page was opened. The workers' own logs have the reasons.</p>
    <${Filter} label="Holds" value=${text} onChange=${(value) => go("log", { text: value }, { replace: true })} />
    <ol class="messages log" tabindex="0" aria-label="Changes, newest first">
      ${entries.map((entry) => html`<li key=${entry.number} class=${entry.look}><time>${clock(entry.at)}</time> <span class="mark" aria-hidden="true">${MARKS[entry.look]}</span> ${visible(entry.text)}</li>`)}
      ${entries.length === 0 && html`<li class="empty">Nothing has changed.</li>`}
    </ol>`;
}
