// What the lists of all workers have in common: they are asked for a page at a time, again every few seconds.

import { html, useEffect, useRef, useState } from "./preact.js";
import { plural, visible } from "./format.js";
import { ask } from "./source.js";

const EVERY_MS = 3000;
const TYPING_MS = 250;

/** Ask for a path now and again while the page is seen; `answer` is the last one to this very question. */
export function useAsk(path, query, everyMs = EVERY_MS) {
  const [{ answer, error, of }, set] = useState({});
  const question = JSON.stringify([path, query]);
  useEffect(() => {
    let timer, ended = false;
    const again = async () => {
      try {
        const given = document.hidden ? null : await ask(path, query);
        if (given && !ended) set({ answer: given, error: null, of: question });
      } catch (failure) {
        if (!ended) set((old) => ({ answer: old.of === question ? old.answer : null, error: failure, of: question }));
      }
      if (!ended) timer = setTimeout(again, everyMs);
    };
    again();
    return () => {
      ended = true;
      clearTimeout(timer);
    };
  }, [question]);
  return of === question ? { answer, error } : { answer: null, error: null };
}

/** A field that takes effect shortly after the last key. */
export function Filter({ label, value, onChange, id = "filter" }) {
  const timer = useRef(null);
  const field = useRef(null);
  useEffect(() => {
    if (document.activeElement !== field.current) field.current.value = value;
  }, [value]);
  const typed = () => {
    clearTimeout(timer.current);
    timer.current = setTimeout(() => onChange(field.current.value), TYPING_MS);
  };
  return html`<div class="filter"><label for=${id}>${label}</label>
    <input id=${id} ref=${field} type="search" defaultValue=${value} onInput=${typed} autocomplete="off" autocapitalize="off" spellcheck="false" /></div>`;
}

/** Which workers are not in an answer: a list never hides that it is a part. */
export function Missing({ answer, error }) {
  if (error) return html`<p class="note-bad" role="status">✗ ${visible(error.message)}</p>`;
  if (!answer?.missing.length) return null;
  return html`<p class="note-bad" role="status">✗ ${answer.answered} of ${plural(answer.asked, "worker")} answered.
    What these have is not shown: ${answer.missing.map((name) => `${visible(name)}${answer.errors?.[name] ? ` (${visible(answer.errors[name])})` : ""}`).join(", ")}</p>`;
}

export function Pages({ after, last, address }) {
  return html`<nav class="pages" aria-label="Pages">
    ${after && html`<a href=${address(undefined)}>First page</a>`}
    ${last !== undefined && html`<a href=${address(last)}>Next page</a>`}
  </nav>`;
}
