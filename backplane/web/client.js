// A WebSocket that comes back by itself and resumes each channel. docs/guides/browser-clients.md has its options and its
// events, CustomEvents with a `detail`: open; message {channel, position, data | text | base64}, or what a handler sent;
// joined {channel, resumed}; gap {channel}; close {code, reason, pause}: the next try is in so many ms, never where null.
export class BackplaneSocket extends EventTarget {
  positions = Object.create(null); // the last one of each channel that has a history
  #options; #socket; #timer; #watch; #attempt = 0; #tries = 0; #openedAt = 0; #receivedAt = 0; #checkedAt = Date.now();
  #end = new AbortController();

  constructor(url, options) { // url: an address, or a function that returns one before each try
    super();
    this.#options = { protocols: ["backplane.json.1"], ...options, url: typeof url === "function" ? url : () => url };
    Object.assign(this.positions, options?.positions);
    const on = (name, react) => globalThis.addEventListener?.(name, react, { signal: this.#end.signal });
    on("offline", () => this.#socket && this.#lost(1006, "offline"));
    on("online", () => this.#wake("online"));
    on("pagehide", () => { this.#lost(1001, "page hidden"); clearTimeout(this.#timer); }); // an open one bars the bfcache
    on("pageshow", (event) => event.persisted && this.#wake("page shown"));
    on("visibilitychange", () => { this.#check(); if (document.visibilityState === "visible") this.#wake("page visible"); });
    this.#watch = setInterval(() => this.#check(), 5000);
    this.#connect();
  }
  static comesBack(code) { return code >= 3000 ? code % 1000 < 500 : [1001, 1005, 1006, 1011, 1012, 1013, 1014].includes(code); }
  send(data) { // a text as it is, anything else as JSON; false: it was not sent, and will not be
    const isOpen = this.#openedAt > 0 && this.#socket.readyState === WebSocket.OPEN; // not before hello
    if (isOpen) this.#socket.send(typeof data === "string" ? data : JSON.stringify(data));
    return isOpen;
  }
  close() { if (!this.#end.signal.aborted) this.#lost(1000, "closed by the page"); }

  async #connect() {
    const attempt = ++this.#attempt, isCurrent = () => attempt === this.#attempt, { url, protocols, hello } = this.#options;
    this.#timer = setTimeout(() => this.#lost(1006, "no answer"), 10_000); // a browser would wait for minutes
    try {
      const base = globalThis.document?.baseURI ?? globalThis.location?.href; // as of any WebSocket
      const address = new URL(await Promise.resolve().then(url), base); // by then the page listens
      if (!isCurrent()) return;
      address.protocol = address.protocol.replace("http", "ws");
      const since = Object.keys(this.positions).sort().map((channel) => this.positions[channel]).join(".");
      if (since && !hello) address.searchParams.set("since", since);
      const socket = this.#socket = new WebSocket(address, protocols);
      socket.onmessage = (event) => isCurrent() && this.#receive(event.data);
      socket.onclose = (event) => isCurrent() && this.#lost(event.code, event.reason);
      await new Promise((resolve) => { socket.onopen = resolve; });
      const first = isCurrent() && await hello?.(this.positions);
      if (!isCurrent()) return;
      clearTimeout(this.#timer);
      this.#openedAt = this.#receivedAt = Date.now();
      if (first == null || this.send(first)) this.#emit("open");
    } catch (error) { // of url or hello
      console.error(error);
      if (isCurrent()) this.#lost(1006, String(error));
    }
  }
  #receive(message) {
    try { message = JSON.parse(message); } catch { /* it stays as it came */ }
    if (message?.channel && message.position) this.positions[message.channel] = message.position;
    this.#receivedAt = Date.now();
    this.#emit((message?.channel && !/^(open|close)$/.test(message.event) && message.event) || "message", message);
  }
  #emit(name, detail) { this.dispatchEvent(new CustomEvent(name, { detail })); } // a listener that raises ends nothing
  #lost(code, reason) {
    if (this.#openedAt && Date.now() - this.#openedAt > 5000) this.#tries = 0; // a refused client is open for a moment, too
    this.#attempt++; // what the old socket still has is not shown: it comes again
    this.#socket?.close();
    this.#socket = this.#openedAt = null;
    clearTimeout(this.#timer);
    const isFinal = !BackplaneSocket.comesBack(code);
    const pause = isFinal ? null : Math.random() * Math.min(10_000, 500 * 2 ** this.#tries++); // full jitter
    if (isFinal) { clearInterval(this.#watch); this.#end.abort(); } else this.#timer = setTimeout(() => this.#connect(), pause);
    this.#emit("close", { code, reason, pause });
  }
  #wake(reason) { if (!this.#openedAt) { this.#tries = 0; this.#lost(1006, reason); } }
  #check() { // a page sees no pings; after a sleep the server has closed it, and timers of a hidden page run once a minute
    const now = Date.now(), slept = now - this.#checkedAt > 90_000, { silence } = this.#options;
    this.#checkedAt = now;
    if (this.#openedAt && slept) this.#lost(1006, "asleep");
    else if (this.#openedAt && silence && now - this.#receivedAt > 1000 * silence) // what has come may be unread
      setTimeout(() => this.#openedAt && this.#receivedAt < now && this.#lost(1006, "silent"), 1000);
  }
}
