// Asks the gateway again and again, and shows what it says.
import { batchRow, batchView, make, poolView } from "./view.js";

const EVERY_MS = 2000;
const CATCH_UP_MS = 400;
const PATIENCE_MS = 8000;
const KEY = "tokenyard-key";

const at = (id) => document.getElementById(id);
const [main, login, leave, problem, status] = ["main", "login", "leave", "problem", "status"].map(at);
const open = new Set(); // pools whose devices are all shown
let timer = 0;
let asking = 0; // the latest question: answers to earlier ones are not shown

class NeedsKey extends Error {}

async function ask(path) {
  const key = sessionStorage.getItem(KEY);
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  let answer;
  try {
    answer = await fetch(new URL(path, import.meta.url), { headers, cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
  } catch {
    throw new Error("The gateway does not answer.");
  }
  if (answer.status === 401) throw new NeedsKey(key ? "This is no key of this gateway." : "");
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw Object.assign(new Error(said.error?.message ?? `The gateway answered ${answer.status}.`), { status: answer.status });
  return said;
}

const chosen = () => (location.hash.startsWith("#batch=") ? decoded(location.hash.slice(7)) : "");

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return "";
  }
}

function choose(id) {
  location.hash = chosen() === id ? "" : `batch=${encodeURIComponent(id)}`;
}

async function batchOf(id) {
  try {
    return id ? await ask(`batches/${encodeURIComponent(id)}`) : null;
  } catch (error) {
    if (error.status === 404) return "gone";
    throw error;
  }
}

function memoryWarning(memory) {
  if (memory?.full) return "Redis is out of memory: submitters wait, queued jobs go on. Raise maxmemory, or free some.";
  if (memory?.evicts) return "Redis deletes jobs when its memory is full: set maxmemory-policy to noeviction.";
  return "";
}

function show(cluster, batch) {
  const focused = document.activeElement?.dataset?.key;
  const warning = memoryWarning(cluster.memory);
  const shown = warning ? [make("p", { className: "problem" }, warning)] : [];
  const detail = batch === "gone" ? make("section", {}, make("p", {}, "There is no such batch (any more).")) : batch ? batchView(batch, cluster.operator) : null;
  for (const pool of cluster.pools) {
    const toggle = () => { open.has(pool.name) ? open.delete(pool.name) : open.add(pool.name); show(cluster, batch); };
    shown.push(poolView(pool, open.has(pool.name), toggle, cluster.operator));
  }
  if (!cluster.pools.length) shown.push(make("section", {}, make("p", {}, "No pools yet: start a worker with ", make("code", {}, "tokenyard worker --model MODEL"))));
  const rows = cluster.batches.map((each) => batchRow(each, each.id === chosen(), () => choose(each.id)));
  shown.push(make("section", { className: "batches" }, make("h2", {}, "Batches"), ...(rows.length ? rows : [make("p", { className: "quiet" }, "No batches.")])));
  if (detail) shown.push(detail);
  main.replaceChildren(...shown);
  if (focused) [...main.querySelectorAll("[data-key]")].find((each) => each.dataset.key === focused)?.focus({ preventScroll: true });
}

function tell(words, kind, trouble = "") {
  status.textContent = words;
  status.className = `status ${kind}`;
  problem.textContent = trouble;
  problem.hidden = !trouble;
  document.body.classList.toggle("stale", kind === "lost");
}

async function look() {
  clearTimeout(timer);
  const mine = ++asking;
  let next = EVERY_MS;
  try {
    const id = chosen();
    const cluster = await ask("state");
    const batch = await batchOf(id);
    if (mine !== asking) return;
    login.hidden = true;
    leave.hidden = !sessionStorage.getItem(KEY);
    show(cluster, batch);
    tell("live", "live");
    if (batch?.line && batch.line.read < batch.ended) next = CATCH_UP_MS;
  } catch (error) {
    if (mine !== asking) return;
    if (error instanceof NeedsKey) {
      sessionStorage.removeItem(KEY);
      main.replaceChildren();
      login.hidden = false;
      leave.hidden = true;
      tell("key needed", "", error.message);
      return;
    }
    tell("trying again", "lost", error.message);
  }
  if (!document.hidden) timer = setTimeout(look, next);
}

login.addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, at("key").value.trim());
  at("key").value = "";
  look();
});
leave.addEventListener("click", () => {
  sessionStorage.removeItem(KEY);
  look();
});
addEventListener("hashchange", look);
document.addEventListener("visibilitychange", () => !document.hidden && look());
look();
