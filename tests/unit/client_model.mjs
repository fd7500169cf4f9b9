// BackplaneSocket in a page, a network and a clock that are models: random events, and what must hold after each.
// node client_model.mjs PATH_OF_CLIENT SEED RUNS: raises where it does not hold, else prints how often it was connected.

import assert from "node:assert/strict";

const [path, seed, runs] = process.argv.slice(2);
let state = Number(seed), now = 1e12, timerId = 0, connected = 0;
let timers = new Map(), listeners = new Map(), sockets = [];
const random = () => (state = (state * 1103515245 + 12345) % 2 ** 31) / 2 ** 31;
const settle = () => new Promise((resolve) => setImmediate(resolve));

Date.now = () => now;
globalThis.setTimeout = (call, ms, every) => { timers.set(++timerId, { at: now + ms, call, every }); return timerId; };
globalThis.setInterval = (call, ms) => setTimeout(call, ms, ms);
globalThis.clearTimeout = globalThis.clearInterval = (id) => timers.delete(id);
globalThis.location = { href: "http://page.example/" };
globalThis.document = { visibilityState: "visible" };
globalThis.addEventListener = (name, react, { signal }) => {
  listeners.set(react, name);
  signal.addEventListener("abort", () => listeners.delete(react));
};
const fire = (name) => { for (const [react, of] of [...listeners]) if (of === name) react({ persisted: true }); };
globalThis.WebSocket = class {
  static OPEN = 1;
  readyState = 0;
  sent = [];
  constructor(url) { this.since = url.searchParams.get("since"); sockets.push(this); }
  send(data) { assert.equal(this.readyState, 1); this.sent.push(data); }
  close() { if (this.readyState < 2) this.readyState = 2; }
  end(code) { this.readyState = 3; this.onclose?.({ code, reason: "" }); }
};
const live = () => sockets.find((socket) => socket.readyState < 2);
const { BackplaneSocket } = await import(path);

async function advance(ms) {
  for (const end = now + ms; ;) {
    const [id, timer] = [...timers].reduce((a, b) => (b[1].at < a[1].at ? b : a), [0, { at: Infinity }]);
    if (timer.at > end) return void (now = end);
    now = Math.max(now, timer.at);
    if (timer.every) timer.at = now + timer.every; else timers.delete(id);
    timer.call();
    await settle();
  }
}

for (let run = 0; run < runs; run++) {
  [timers, listeners, sockets] = [new Map(), new Map(), []];
  const received = [], closes = [], waits = []; // `waits`: the page's functions that have not answered yet
  const later = (value) => new Promise((resolve) => waits.push(() => resolve(value)));
  const hello = run % 2 ? (positions) => later({ hello: positions.c ?? "" }) : undefined;
  let published = 0;
  const page = new BackplaneSocket(() => later("/room"), { hello, silence: 30 });
  page.addEventListener("open", () => connected++);
  page.addEventListener("message", ({ detail }) => received.push(detail.n));
  page.addEventListener("close", ({ detail }) => closes.push(detail.pause));

  const deliver = (socket, n) => socket.onmessage({ data: JSON.stringify({ channel: "c", position: `${n + 1}`, n }) });
  const steps = {
    accept() { const socket = live(); if (socket?.readyState === 0) { socket.readyState = 1; socket.onopen?.(); } },
    answer() { waits.shift()?.(); },
    publish() { published++; },
    deliver() {
      const socket = live();
      if (socket?.readyState !== 1 || (hello && !socket.sent.length)) return;
      socket.next ??= Number((hello ? JSON.parse(socket.sent[0]).hello : socket.since) || published);
      if (!page.positions.c) socket.onmessage({ data: `{"channel":"c","event":"joined","position":"${socket.next}"}` });
      while (socket.next < published && random() < 0.8) deliver(socket, socket.next++);
    },
    send() {
      const before = live()?.sent.length ?? 0;
      assert.equal(page.send({ of: "page" }), (live()?.sent.length ?? 0) > before);
    },
    lose() { live()?.end([1001, 1006, 1012, 1013, 4000][Math.floor(random() * 5)]); },
    late() { for (const old of sockets) if (old.readyState === 2) { if (old.onopen) deliver(old, 99); old.end(1006); } },
    offline: () => fire("offline"),
    online: () => fire("online"),
    hide() { document.visibilityState = "hidden"; fire("visibilitychange"); },
    show() { document.visibilityState = "visible"; fire("visibilitychange"); },
    async restore() {
      fire("pagehide");
      await advance(20_000);
      for (const answer of waits.splice(0)) answer();
      await settle();
      assert.equal(live(), undefined);
      fire("pageshow");
    },
    sleep() { now += 120_000; },
    wait: () => advance(random() * 8000),
    end() { if (random() < 0.1) page.close(); },
  };
  const often = Array(8).fill(["accept", "answer", "publish", "deliver"]).flat(), names = [...Object.keys(steps), ...often];
  for (let step = 0; step < 80; step++) {
    await steps[names[Math.floor(random() * names.length)]]();
    await settle();
    const open = sockets.filter((socket) => socket.readyState < 2), isOver = closes.includes(null);
    assert.ok(open.length <= (isOver ? 0 : 1));
    assert.ok(closes.slice(0, -1).every((pause) => pause !== null && pause <= 10_000));
    if (hello) for (const { sent } of sockets) assert.ok(!sent.length || sent[0].includes("hello"));
    assert.deepEqual(received, received.map((_, index) => received[0] + index)); // each once, in order
  }
  page.close();
  for (const answer of waits) answer();
  await settle();
  assert.deepEqual([timers.size, listeners.size, live()], [0, 0, undefined]);
}
console.log(connected);
