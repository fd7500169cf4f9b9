// Log

import { html } from "./preact.js";

export function Log() {
  return html`<h1>Log</h1><p class="empty">Not there yet.</p>`;
}
