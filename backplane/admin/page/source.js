// Where the figures come from: one event stream, of which the last ten minutes are kept, and calls of the JSON routes.

import { useEffect, useState } from "./preact.js";

const KEPT = 300; // samples, one every 2 seconds
const KEPT_LOG = 1000;
const KEPT_STATES = 200;
const KEPT_SECONDS = 3600; // of a worker that is gone
const PAST_EVERY_MS = 5000;
const SILENT_MS = 20_000; // a worker sends something every 5 seconds
const RETRY_MS = 3000;

/** What every screen reads. `connection`: connecting, live, lost, or refused, after which only a reload helps. */
export const state = { connection: "connecting", since: null, view: null, samples: [], courses: {}, log: [] };

/* What the workers remember of their links from before, by id; asked for when a worker appears, and after a silence. */
const past = { courses: {}, asked: new Set(), at: 0 };

const listeners = new Set();
const changed = () => listeners.forEach((listener) => listener());

export function useSource() {
  const [, redraw] = useState(0);
  useEffect(() => {
    const listener = () => redraw((drawn) => drawn + 1);
    listeners.add(listener);
    return () => listeners.delete(listener);
  }, []);
  return state;
}

/** Ask for JSON. Raises an Error with what the worker answered. */
export async function ask(path, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== "" && value != null);
  return answerOf(await fetch(`api/${path}?${new URLSearchParams(given)}`, { cache: "no-store" }));
}

/** Change something. Raises an Error with what the worker answered. */
export async function change(path, body) {
  const headers = { "Content-Type": "application/json", "X-Backplane": "admin" };
  return answerOf(await fetch(`api/${path}`, { method: "POST", headers, body: JSON.stringify(body) }));
}

async function answerOf(response) {
  let body = null;
  try {
    body = await response.json();
  } catch {
    // a proxy's page
  }
  if (response.ok && body) return body;
  const error = new Error(body?.detail ?? `the worker answered with status ${response.status}`);
  error.status = response.status;
  throw error;
}

/** Open an event stream that comes back by itself; returns the function that ends it. */
export function listen(path, handlers, onState) {
  let stream, timer, watchdog, ended = false;

  function open() {
    stream = new EventSource(path);
    for (const [name, handler] of Object.entries({ alive: () => {}, ...handlers })) {
      stream.addEventListener(name, (event) => {
        alive();
        handler(JSON.parse(event.data));
      });
    }
    stream.onopen = alive;
    stream.onerror = lost;
    alive();
  }

  function alive() {
    clearTimeout(watchdog);
    watchdog = setTimeout(lost, SILENT_MS);
  }

  async function lost() {
    stream.close(); // by itself it would not come back after an HTTP error
    clearTimeout(watchdog);
    clearTimeout(timer);
    if (ended) return;
    onState("lost");
    timer = setTimeout(open, RETRY_MS * (0.5 + Math.random()));
    try {
      const { status } = await fetch("api/session", { cache: "no-store" });
      if ([401, 403].includes(status) && !ended) {
        clearTimeout(timer);
        onState("refused");
      }
    } catch {
      // no worker there: the timer tries again
    }
  }

  open();
  return () => {
    ended = true;
    stream.close();
    clearTimeout(watchdog);
    clearTimeout(timer);
  };
}

export function start() {
  listen("api/stream", { overview: take }, (connection) => {
    if (state.connection === connection) return;
    state.connection = connection;
    state.since = Date.now() / 1000;
    past.asked = new Set(); // what happens meanwhile is asked for
    changed();
  });
}

export function take(view) {
  note(state.view, view);
  state.view = view;
  state.connection = "live";
  state.samples.push(sampleOf(view));
  if (state.samples.length > KEPT) state.samples.shift();
  for (const worker of view.workers) follow(worker, view.at);
  const there = new Set(view.workers.map(({ id }) => id));
  for (const [id, course] of Object.entries(state.courses)) if (!there.has(id) && course.seen < view.at - KEPT_SECONDS) delete state.courses[id];
  recall(there);
  changed();
}

/** Ask how the links were before, where there is a worker that was not asked for it. */
async function recall(there) {
  if (Date.now() - past.at < PAST_EVERY_MS || [...there].every((id) => past.asked.has(id))) return;
  past.at = Date.now();
  try {
    const { rows, missing } = await ask("log", { kind: "states" });
    const found = {};
    for (const { id, at, state: link } of rows.reverse()) if (link) (found[id] ??= []).push({ at, state: link });
    past.courses = found;
    past.asked = missing.length ? new Set(Object.keys(found)) : there;
    changed();
  } catch {
    // asked again with the next figures
  }
}

/** How the link of a worker was: what it remembers and what this page has seen, in order, each change once. */
export function courseOf({ id, clock_offset: offset }) {
  const before = (past.courses[id] ?? []).map(({ at, state: link }) => ({ at: at - (offset ?? 0), state: link }));
  const all = [...before, ...(state.courses[id]?.states ?? [])].sort((one, other) => one.at - other.at);
  return all.filter(({ state: link }, index) => link !== all[index - 1]?.state);
}

/** One sample of all workers: sums, and of the lag the longest. What no worker knows is not there. */
function sampleOf({ at, workers }) {
  const known = (values) => values.filter((value) => Number.isFinite(value));
  const sum = (values) => (known(values).length ? known(values).reduce((total, value) => total + value, 0) : null);
  const sample = { at, lag_p99: known(workers.map(({ lag_p99: lag }) => lag)).reduce((most, lag) => Math.max(most ?? 0, lag), null) };
  for (const name of ["connections", "channels", "gaps", "slow", "waiting_bytes"]) sample[name] = sum(workers.map((worker) => worker[name]));
  for (const name of ["deliveries", "publishes", "failures", "dropped"]) sample[name] = sum(workers.map(({ rates }) => rates?.[name]));
  return sample;
}

/** Note since when the link of a worker is in its state, for the strip of its last hour. */
function follow({ id, state: link, since, started_at: begin }, at) {
  const course = (state.courses[id] ??= { states: [], seen: at });
  const last = course.states[course.states.length - 1];
  course.seen = at;
  if (last?.state !== link) course.states.push({ at: Math.max(since ?? begin ?? at, last?.at ?? 0), state: link });
  if (course.states.length > KEPT_STATES) course.states.shift();
}

let number = 0;

/** Note what differs from the figures before: workers, their links, gaps, problems. */
function note(before, { at, workers, problems }) {
  const add = (look, text) => state.log.push({ number: (number += 1), at, look, text });
  const old = new Map((before?.workers ?? []).map((worker) => [worker.id, worker]));
  for (const worker of workers) {
    const was = old.get(worker.id);
    old.delete(worker.id);
    if (!was) add("ok", `Worker ${worker.worker} is there: its link is ${worker.state}.`);
    else if (was.state !== worker.state) add(worker.state === "live" ? "ok" : "error", `The link of worker ${worker.worker} is ${worker.state}; it was ${was.state}.`);
    if (was && worker.gaps > was.gaps) add("warning", `Worker ${worker.worker} reported gaps: ${worker.gaps - was.gaps}.`);
    if (was && worker.draining && !was.draining) add("warning", `Worker ${worker.worker} drains.`);
  }
  for (const { worker } of old.values()) add("warning", `Worker ${worker} sends no figures any more.`);
  const known = new Set((before?.problems ?? []).map(({ kind, worker }) => `${kind} ${worker}`));
  for (const { kind, worker, severity, text } of problems) if (!known.has(`${kind} ${worker}`)) add(severity, text);
  state.log.splice(0, state.log.length - KEPT_LOG);
}
