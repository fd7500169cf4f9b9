// The address holds the state of the page: #/screen?key=value. The slash sets it apart from the id of an element.

import { useEffect, useState } from "./preact.js";

export const SCREENS = ["overview", "workers", "channels", "connections", "why", "log", "tail"];

function parse() {
  const [screen, query] = location.hash.replace(/^#\/?/, "").split(/\?(.*)/s);
  return { screen: SCREENS.includes(screen) ? screen : "overview", query: Object.fromEntries(new URLSearchParams(query ?? "")) };
}

/** The address of a screen; whatever is in a value stays a value. */
export function to(screen, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== "" && value != null);
  return `#/${screen}${given.length ? `?${new URLSearchParams(given)}` : ""}`;
}

/** Go to a screen. While someone types, the entry of the history is replaced. */
export function go(screen, query = {}, { replace = false } = {}) {
  if (replace) {
    history.replaceState(null, "", to(screen, query));
    dispatchEvent(new HashChangeEvent("hashchange"));
  } else {
    location.hash = to(screen, query);
  }
}

export function useRoute() {
  const [route, setRoute] = useState(parse);
  useEffect(() => {
    const moved = () => setRoute(parse());
    addEventListener("hashchange", moved);
    return () => removeEventListener("hashchange", moved);
  }, []);
  return route;
}
