// What is seen, from the gateway's data. Names come from Redis, where anyone may write: they only become text.
import { lane, stacked } from "./chart.js";
import { clock, counted, duration, number, percent, price } from "./words.js";

const FEW_DEVICES = 16;
const SILENT_S = 3;
const ALWAYS_SHOWN = 16; // letters of a name
const LAST_SHOWN = 8;
const LEAST_INTERVALS = 16; // of a pool's past

export function make(tag, properties = {}, ...children) {
  const { data, label, ...rest } = properties;
  const found = Object.assign(document.createElement(tag), rest);
  if (data) Object.assign(found.dataset, data);
  if (label) found.setAttribute("aria-label", label);
  found.append(...children.filter((child) => child !== null && child !== undefined));
  return found;
}

// A name where there may be no room for it: names differ at their ends, so what is too much goes from before that.
function cut(name) {
  const letters = [...name];
  if (letters.length <= ALWAYS_SHOWN) return make("span", { className: "cut", title: name }, name);
  return make("span", { className: "cut", title: name }, make("span", {}, letters.slice(0, -LAST_SHOWN).join("")),
    make("span", { className: "end" }, letters.slice(-LAST_SHOWN).join("")));
}

function bar(share, kind = "") {
  const inside = make("i", { className: kind });
  inside.style.width = `${100 * Math.min(Math.max(share, 0), 1)}%`;
  return make("span", { className: "bar" }, inside);
}

function facts(pairs) {
  const shown = pairs.filter((pair) => pair);
  return make("dl", { className: "facts" },
    ...shown.map(([name, value, more]) => make("div", {}, make("dt", {}, name),
      make("dd", {}, value, more ? make("small", {}, ` ${more}`) : null))));
}

const names = (list) => list.first.join(", ") + (list.count > list.first.length ? ` and ${list.count - list.first.length} more` : "");
const inCell = (name, className, ...children) => make("td", { className, data: { label: name } }, ...children);

function deviceState(device) {
  if (device.state === null) return make("td", { className: "state bad" }, "no heartbeat");
  if (device.silent_s > SILENT_S) return make("td", { className: "state bad" }, `silent ${duration(device.silent_s)}`);
  return make("td", { className: `state ${device.state}` }, device.state);
}

function deviceRow(device) {
  const name = make("td", { className: "name" }, cut(device.name),
    device.kind ? make("small", { title: device.kind }, device.kind) : null);
  if (device.state === null) return make("tr", {}, name, deviceState(device), ...Array.from({ length: 4 }, () => make("td")));
  const seats = device.seats ? device.running / device.seats : 0;
  const kv = device.kv_used;
  return make("tr", {}, name, deviceState(device),
    inCell("tokens/s", "number", `${number(device.tokens_per_s)} `, make("small", { className: "quiet share" }, percent(device.share)), bar(device.share ?? 0)),
    inCell("seats", "number", `${number(device.running)}/${number(device.seats)}`, bar(seats)),
    inCell("queue", "number", number(device.queue)),
    inCell("KV memory", "number", percent(kv), bar(kv ?? 0, kv > 0.95 ? "full" : "")));
}

function deviceTable(pool, open, toggle) {
  if (!pool.devices.length) return make("p", { className: "quiet" }, "No workers: start ", make("code", {}, "tokenyard worker"));
  const shown = open ? pool.devices : pool.devices.slice(0, FEW_DEVICES);
  const columns = ["device", "state", "tokens/s, share", "seats", "queue", "KV memory"];
  const head = columns.map((name, n) => make("th", { className: n > 1 ? "number" : "", scope: "col" }, name));
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...shown.map(deviceRow)));
  const left = pool.devices.length - FEW_DEVICES;
  const words = open ? "Show fewer" : `Show ${counted(left, "more device")}`;
  const button = left > 0
    ? make("button", { type: "button", className: "more", onclick: toggle, data: { key: `devices ${pool.name}` } }, words) : null;
  const beyond = pool.more_devices
    ? make("p", { className: "note" }, `${counted(pool.more_devices, "more device")} not shown here: `, make("code", {}, "tokenyard status")) : null;
  return make("div", {}, table, button, beyond);
}

function planLines(plan) {
  if (!plan) return [];
  const expected = plan.tokens_per_s && !plan.reason ? `, ${number(plan.tokens_per_s)} tokens/s expected` : "";
  const missing = plan.missing.count ? `; not there: ${names(plan.missing)}` : "";
  const lines = [make("p", { className: "quiet plan" },
    `Plan ${plan.version}: ${counted(plan.workers, "worker")} on ${counted(plan.hosts, "host")}${expected}${missing}${plan.reason ? `: ${plan.reason}` : ""}`)];
  if (plan.without_supervisor.count)
    lines.push(make("p", { className: "warning" }, `No supervisor runs on ${names(plan.without_supervisor)}: start tokenyard supervisor there`));
  return lines;
}

function past(pool) {
  const { tokens_per_s: all, width_s: width } = pool.past;
  const first = all.findIndex((rate) => rate > 0);
  if (first < 0) return null;
  const cut = Math.min(first, Math.max(all.length - LEAST_INTERVALS, 0));
  const rates = all.slice(cut);
  const begin = pool.past.begin + cut * width;
  const { svg, most } = stacked([["tokens", rates]], pool.bound_tokens_per_s, "tokens a second of jobs that ended, lately");
  return make("figure", { className: "chart" }, make("span", { className: "top" }, number(most)), svg,
    make("div", { className: "axis" }, make("span", {}, clock(begin)), make("span", {}, clock(begin + width * rates.length))),
    make("div", { className: "legend" }, make("span", {}, "tokens/s computed for jobs that ended"),
      pool.bound_tokens_per_s ? make("span", { className: "bound" }, "the most that these devices can do of them") : null));
}

export function poolView(pool, open, toggle, operator) {
  const waiting = Object.values(pool.waiting).reduce((sum, jobs) => sum + jobs, 0);
  const levels = Object.entries(pool.waiting).filter(([, jobs]) => jobs).map(([level, jobs]) => `${number(jobs)} ${level}`);
  const ready = pool.devices.filter((device) => device.state === "ready" && device.silent_s <= SILENT_S).length;
  return make("section", { className: "pool", label: `pool ${pool.name}` },
    make("h2", {}, `Pool ${pool.name}`),
    make("p", { className: "quiet name", title: names(pool.models) }, pool.models.count ? names(pool.models) : "no model"),
    pool.scheduler === null ? make("p", { className: "warning" }, "No scheduler leads this pool: start tokenyard scheduler") : null,
    facts([
      ["tokens/s now", number(pool.tokens_per_s), pool.share_of_bound === null ? null : `${percent(pool.share_of_bound)} of the bound`],
      ["waiting", number(waiting), levels.length > 1 || levels[0]?.endsWith("returned") ? levels.join(", ") : null],
      ["devices ready", `${number(ready)} of ${number(pool.devices.length + pool.more_devices)}`],
      pool.delayed ? ["to be tried again", number(pool.delayed)] : null,
      pool.dead_letters ? ["failed for good", number(pool.dead_letters)] : null,
      operator ? ["price an hour", price(pool.price_per_hour)] : null,
    ]),
    ...planLines(pool.plan),
    past(pool),
    deviceTable(pool, open, toggle));
}

function progress(batch) {
  const total = Math.max(batch.total, 1);
  const parts = [["", batch.done], ["bad", batch.failed], ["full", batch.cancelled]].map(([kind, jobs]) => {
    const part = make("i", { className: kind });
    part.style.width = `${(100 * Math.min(jobs, total)) / total}%`;
    return part;
  });
  return make("span", { className: "bar split" }, ...parts);
}

function left(batch) {
  if (batch.complete) return "";
  return batch.left_s === null || batch.left_s === undefined ? "time left: –" : `${duration(batch.left_s)} left`;
}

export function batchRow(batch, open, select) {
  const ended = [`${number(batch.done)} of ${number(batch.total)} done`];
  if (batch.failed) ended.push(`${number(batch.failed)} failed`);
  if (batch.cancelled) ended.push(`${number(batch.cancelled)} cancelled`);
  const button = make("button", { type: "button", className: "batch", onclick: select, data: { key: `batch ${batch.id}` } },
    make("span", { className: "head" }, make("span", { className: "name" }, cut(batch.id)),
      make("span", {}, batch.state), make("span", { className: "quiet" }, ended.join(", ")),
      make("span", { className: "quiet" }, left(batch))), progress(batch));
  button.setAttribute("aria-expanded", String(open));
  return button;
}

function laneRow(device) {
  const most = Math.max(...device.running, 0);
  return make("div", { className: "lane" }, make("span", { className: "name" }, cut(device.name)),
    make("span", { className: "number" }, `${counted(device.jobs, "job")}, up to ${number(Math.ceil(most))} at once`),
    lane(device.running, most, `jobs running on ${device.name}`));
}

export function batchView(batch, operator) {
  const line = batch.line;
  const span = line.width_s * line.prompt_tokens_per_s.length;
  const behind = line.read < batch.ended ? `${number(line.read)} of ${number(batch.ended)} results read so far. ` : "";
  const running = batch.complete ? "" : "Jobs that still run are not in it yet.";
  const section = make("section", { className: "time-line", label: `time line of batch ${batch.id}` },
    make("h2", {}, `Time line of ${batch.id}`),
    facts([
      ["tokens/s", number(line.tokens_per_s), `over ${duration(span)}`],
      ["share of the bound", line.share_of_bound === null ? "unknown" : percent(line.share_of_bound),
        line.share_of_bound === null ? "measure the devices: tokenyard profile" : null],
      ["tokens", number(batch.prompt_tokens + batch.output_tokens), `${number(batch.output_tokens)} of them output`],
      operator ? ["cost so far", price(line.cost), line.cost === null ? "not all devices have a price" : null] : null,
    ]));
  if (!line.devices.length) {
    section.append(make("p", { className: "quiet" }, "No job of it has ended on a device yet."));
    return section;
  }
  const layers = [["output", line.output_tokens_per_s], ["prompt", line.prompt_tokens_per_s]];
  const { svg, most } = stacked(layers, line.bound_tokens_per_s, "tokens a second of the batch over time");
  section.append(
    make("h3", {}, "Tokens a second, all devices"),
    make("figure", { className: "chart" }, make("span", { className: "top" }, number(most)), svg,
      make("div", { className: "axis" }, make("span", {}, clock(line.begin)), make("span", {}, `+ ${duration(span)}`)),
      make("div", { className: "legend" }, make("span", { className: "output" }, "output"), make("span", { className: "prompt" }, "prompt"),
        line.bound_tokens_per_s ? make("span", { className: "bound" }, "bound") : null)),
    make("h3", {}, "Jobs running, by device"),
    ...line.devices.map(laneRow),
    line.more_devices ? make("p", { className: "note" }, `${counted(line.more_devices, "device")} with fewer tokens not shown.`) : "",
    make("p", { className: "note" }, behind + running));
  return section;
}
