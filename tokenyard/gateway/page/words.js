// Numbers as a person reads them.
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3, notation: "compact" });
const money = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });

export const number = (value) => (value >= 100000 ? short.format(value) : whole.format(value));
export const counted = (value, noun) => `${number(value)} ${noun}${value === 1 ? "" : "s"}`;
export const percent = (share) => (share === null || share === undefined ? "–" : `${Math.round(100 * share)} %`);
export const price = (value) => (value === null || value === undefined ? "unknown" : money.format(value));

export function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 172800) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} days`;
}

export const clock = (at) => new Date(1000 * at).toLocaleTimeString([], { hourCycle: "h23" });
