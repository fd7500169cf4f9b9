// One client of an event stream, by a library from npm: prints what it receives, each as a line of JSON, [type, data].
// node event_source.mjs LIBRARY URL. test_event_sources.py runs it.

import { createRequire } from "node:module";

const require = createRequire(`${process.cwd()}/`); // the packages are in the folder that this is started in
const [library, url] = process.argv.slice(2);
const print = (type, data) => console.log(JSON.stringify([type, data]));

if (library === "@microsoft/fetch-event-source") {
  globalThis.window = globalThis;
  globalThis.document = { addEventListener() {}, removeEventListener() {} };
  const { fetchEventSource } = require(library);
  await fetchEventSource(url, {
    openWhenHidden: true,
    onmessage: ({ event, data }) => { if (data) print(event || "message", data); },
    onclose: () => { throw new Error("it stays away otherwise"); },
    onerror: () => {},
  });
} else {
  const made = require(library);
  const EventSource = made.EventSource ?? made.EventSourcePolyfill ?? made;
  const source = new EventSource(url);
  source.onerror = () => {}; // without one eventsource 2 throws
  source.onmessage = ({ data }) => print("message", data);
  for (const type of ["gap", "expired"]) source.addEventListener(type, ({ data }) => print(type, data));
}
