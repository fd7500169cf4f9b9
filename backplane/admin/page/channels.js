// Channels: those with the most subscribers over all workers, or those whose name begins so.

import { html } from "./preact.js";
import { bytes, count, plural, rate, visible } from "./format.js";
import { Name, Table } from "./parts.js";
import { Filter, Missing, Pages, useAsk } from "./lists.js";
import { go, to } from "./route.js";

const LIMIT = 100;
const COLUMNS = [
  { key: "name", label: "Channel", sortable: true },
  { key: "subscribers", label: "Subscribers", right: true, sortable: true },
  { label: "On workers", right: true },
  { label: "Messages / s", right: true, wide: true },
  { label: "Bytes / s", right: true, wide: true },
  { label: "Look into", right: true },
];

export function Channels({ source: { view }, query }) {
  const { prefix = "", sort = "subscribers", after } = query;
  const { answer, error } = useAsk("channels", { prefix, sort, after, limit: LIMIT });
  const rates = new Map(view.channels.map((channel) => [channel.name, channel]));
  const rows = (answer?.rows ?? []).map(({ name, subscribers, workers }) => html`<tr key=${name}>
    <th scope="row"><${Name} text=${name} href=${to("connections", { channel: name })} /></th>
    <td class="right">${count(subscribers)}</td>
    <td class="right">${workers} of ${answer.answered}</td>
    <td class="right wide">${rate(rates.get(name)?.messages_per_second)}</td>
    <td class="right wide">${bytes(rates.get(name)?.bytes_per_second)}</td>
    <td class="links"><a href=${to("why", { channel: name })} aria-label=${`Why? of ${visible(name)}`}>Why?</a>${" "}
      <a href=${to("tail", { channel: name })} aria-label=${`Tail of ${visible(name)}`}>Tail</a></td>
  </tr>`);
  return html`<h1>Channels</h1>
    <${Filter} label="Name begins with" value=${prefix} onChange=${(text) => go("channels", { sort, prefix: text }, { replace: true })} />
    <${Missing} answer=${answer} error=${error} />
    ${answer && html`<p class="quiet">${plural(answer.total, "channel")} with a subscriber, counted by worker${answer.rows.length === LIMIT ? `; the ${count(answer.rows.length)} ${sort === "name" ? "of this page" : "with the most subscribers"} are shown` : ""}.</p>`}
    <${Table} caption="Channels" columns=${COLUMNS} rows=${rows} sort=${sort} onSort=${(key) => go("channels", { prefix, sort: key })}
      empty=${answer ? "No worker has a subscriber of such a channel." : "Asking the workers …"} />
    ${sort === "name" && html`<${Pages} after=${after} last=${answer?.rows.length === LIMIT ? answer.rows[LIMIT - 1].name : undefined} address=${(next) => to("channels", { prefix, sort, after: next })} />`}`;
}
