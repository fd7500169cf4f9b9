import { Centrifuge } from "centrifuge";
import { useEffect, useRef, useState } from "react";

async function getToken(user) {
  const answer = await fetch(`/tokens?user=${encodeURIComponent(user)}`, { method: "POST" });
  if (!answer.ok) throw new Error(`no token: ${answer.status}`); // the SDK tries again, with back-off
  return (await answer.json()).token;
}

async function load(room) {
  const answer = await fetch(`/rooms/${encodeURIComponent(room)}`);
  if (!answer.ok) throw new Error(`not loaded: ${answer.status}`);
  return answer.json();
}

/** One room: its lines, the state of the connection, and a function that posts. */
export function useRoom(user, room) {
  const [state, setState] = useState("connecting");
  const [lines, setLines] = useState([]);
  const client = useRef(null);

  useEffect(() => {
    const keys = { next: 0 };
    const line = (text) => ({ key: keys.next++, text });
    const url = new URL("/connection/websocket", location.href.replace("http", "ws")).href;
    const centrifuge = client.current = new Centrifuge(url, { getToken: () => getToken(user) });
    const subscription = centrifuge.newSubscription(`room:${room}`);
    let reloading = null; // what is published while the state is loaded comes after it

    async function reload(note) {
      const mine = reloading = [];
      const loaded = await load(room).catch(() => null);
      if (mine !== reloading) return; // a later one replaces it
      if (!loaded) return setTimeout(() => mine === reloading && reload(note), 1000 + 2000 * Math.random());
      reloading = null;
      const known = new Set(loaded.map((message) => message.id));
      const fresh = mine.filter((message) => !known.has(message.id));
      setLines([...loaded, ...fresh].map(show).concat(note ? [line(note)] : []));
    }
    const show = ({ author, text }) => line(`${author}: ${text}`);

    let restored = 0;
    subscription.on("publication", ({ data }) => {
      restored++;
      if (reloading) reloading.push(data);
      else setLines((before) => [...before, show(data)]);
    });
    subscription.on("subscribed", ({ wasRecovering, recovered }) => {
      setState("live");
      restored = 0;
      if (!recovered) return reload(wasRecovering ? "more was missed than is kept: loaded again" : "");
      queueMicrotask(() => setLines((before) => [...before, line(`restored ${restored} messages`)])); // they come first
    });
    subscription.on("subscribing", () => setState("reconnecting"));
    subscription.on("unsubscribed", ({ code, reason }) => code && setState(`refused: ${reason}`));
    centrifuge.on("disconnected", ({ code, reason }) => code && setState(`refused: ${reason}`));
    subscription.subscribe();
    centrifuge.connect();
    return () => {
      reloading = null;
      centrifuge.disconnect();
    };
  }, [user, room]);

  return { state, lines, post: (text) => client.current.rpc("post", { room, text }) };
}
