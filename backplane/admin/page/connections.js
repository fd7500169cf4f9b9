// Connections

import { html } from "./preact.js";

export function Connections() {
  return html`<h1>Connections</h1><p class="empty">Not there yet.</p>`;
}
