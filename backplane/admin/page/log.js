// Log: the last notable events of all workers, newest first, and what this page has noticed since it was opened.

import { html } from "./preact.js";
import { moment, visible } from "./format.js";
import { Filter, Missing, useAsk } from "./lists.js";
import { go } from "./route.js";

const MOST = 300;
const MARKS = { ok: "✓", warning: "!", error: "✗" };
const LOOKS = { WARNING: "warning", ERROR: "error", CRITICAL: "error" };

export function Log({ source: { log, view }, query }) {
  const { text = "" } = query;
  const { answer, error } = useAsk("log", {});
  const wanted = text.toLowerCase();
  const ofWorkers = (answer?.rows ?? []).map((row) => ({ key: `${row.worker} ${row.number}`, at: row.at, look: LOOKS[row.level] ?? "ok", text: `${row.worker} ${row.event}: ${row.text}` }));
  const ofPage = log.map((entry) => ({ key: `page ${entry.number}`, at: entry.at, look: entry.look, text: entry.text }));
  const entries = [...ofWorkers, ...ofPage].filter((entry) => entry.text.toLowerCase().includes(wanted)).sort((one, other) => other.at - one.at).slice(0, MOST);
  return html`<h1>Log</h1>
    <p class="hint">The last gaps, slow and ended clients, refusals, changes of links, faults and actions of every worker, and what has changed since this page was opened.</p>
    ${view?.is_cluster !== false && html`<${Missing} answer=${answer} error=${error} />`}
    <${Filter} label="Holds" value=${text} onChange=${(value) => go("log", { text: value }, { replace: true })} />
    <ol class="messages log" tabindex="0" aria-label="Changes, newest first">
      ${entries.map((entry) => html`<li key=${entry.key} class=${entry.look}><time>${moment(entry.at)}</time> <span class="mark" aria-hidden="true">${MARKS[entry.look]}</span> ${visible(entry.text)}</li>`)}
      ${entries.length === 0 && html`<li class="empty">Nothing has changed.</li>`}
    </ol>`;
}
