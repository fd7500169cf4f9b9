// Why

import { html } from "./preact.js";

export function Why() {
  return html`<h1>Why</h1><p class="empty">Not there yet.</p>`;
}
