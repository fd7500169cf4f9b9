// Numbers, sizes and times as text. What is not known is a dash.

const DASH = "–";
const known = (value) => typeof value === "number" && Number.isFinite(value);
const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

export const count = (value) => (known(value) ? whole.format(Math.round(value)) : DASH);

/** Events per second: one decimal below ten, else whole. */
export const rate = (value) => {
  if (!known(value)) return DASH;
  return value !== 0 && Math.abs(value) < 10 ? short.format(value) : whole.format(Math.round(value));
};

export const percent = (value) => (known(value) ? `${short.format(value * 100)} %` : DASH);

export const bytes = (value) => {
  if (!known(value)) return DASH;
  const units = ["B", "kB", "MB", "GB"];
  let unit = 0;
  while (Math.abs(value) >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value < 10 && unit ? short.format(value) : Math.round(value)} ${units[unit]}`;
};

/** A short time: lags, round trips, offsets. */
export const lag = (seconds) => {
  if (!known(seconds)) return DASH;
  const most = Math.abs(seconds);
  if (most === 0) return "0 ms";
  if (most < 0.0095) return `${short.format(seconds * 1000)} ms`;
  return most < 1 ? `${Math.round(seconds * 1000)} ms` : `${short.format(seconds)} s`;
};

/** A long time: ages. */
export const age = (seconds) => {
  if (!known(seconds) || seconds < 0) return DASH;
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d`;
};

export const clock = (at) =>
  known(at) ? new Date(at * 1000).toLocaleTimeString("en-GB") : DASH;

/** A time that can be of another day, in the time zone of the browser. */
export const moment = (at) => {
  const day = (seconds) => new Date(seconds * 1000).toLocaleDateString("en-GB", { day: "numeric", month: "short" });
  return known(at) && day(at) !== day(Date.now() / 1000) ? `${day(at)} ${clock(at)}` : clock(at);
};

export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

/** What control characters and the marks that turn the direction of a text would hide, made visible. */
export const visible = (text) =>
  String(text).replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Co}\p{Cs}]/gu, (c) => `\\u{${c.codePointAt(0).toString(16)}}`);
