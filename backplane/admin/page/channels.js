// Channels

import { html } from "./preact.js";

export function Channels() {
  return html`<h1>Channels</h1><p class="empty">Not there yet.</p>`;
}
