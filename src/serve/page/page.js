// The page is fed by /events. Names of the program are hostile: they become text, never markup.

const SHOWN = 60; // seconds of a lane
const KEPT = 500; // reports kept for lanes and sparklines
const SPARK = { bars: 30, seconds: 300 };
const TOLD = { stalls: 3, seconds: 2 }; // the most stalls in a status, and the time between two
const CAUSES = [
  ["cpu", "computing"],
  ["blocked/sleep", "sleep"],
  ["blocked/lock", "lock"],
  ["blocked/file", "file"],
  ["blocked/network", "network"],
  ["blocked/process", "process"],
  ["blocked/other", "other or unknown"],
  ["host", "the host"],
];
const SPLIT = [
  ["cpu_seconds", "computing", "cpu"],
  ["asleep_seconds", "asleep", "blocked/sleep"],
  ["run_queue_seconds", "waiting for a CPU", "host"],
  ["throttled_seconds", "held back by a quota", "host"],
  ["stopped_seconds", "stopped", "host"],
  ["unknown_seconds", "unknown", "unknown"],
];

const byId = (id) => document.getElementById(id);

let hello; // the last event of each kind
let lanes;
let totals;
let ahead; // the server's clock, minus that of the browser; neither follows the wall clock
let run; // the process, and the watch in it
let opened; // the stall whose report is open, and its run
const stalls = new Map(); // reports by number
const cells = new Map(); // by lane: the letter of each cell by its number

// ---- helpers

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function withCause(element, cause) {
  if (element.dataset.cause !== cause) element.dataset.cause = cause;
  return element;
}

/** Writes a text only if it is new, so that nothing is announced twice. */
function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Makes the children fit the items, and keeps those that stay: with them the focus stays. */
function keyed(parent, items, keyOf, create, update) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  items.forEach((item, index) => {
    const key = String(keyOf(item));
    const child = known.get(key) ?? create(item);
    known.delete(key);
    child.dataset.key = key;
    update(child, item);
    if (parent.children[index] !== child) parent.insertBefore(child, parent.children[index]);
  });
  known.forEach((child) => child.remove());
}

function human(seconds) {
  if (seconds < 0.9995) return `${(seconds * 1000).toPrecision(3).replace(/e\+3$/, "000")} ms`;
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  if (minutes < 48 * 60) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return `${Math.floor(minutes / 60 / 24)} days`;
}

const clock = () => performance.now() / 1000 + ahead;
const siteKey = (of, span) => JSON.stringify([of.runtime, span, of.shared_site, of.cause]);
const laneKey = (of) => JSON.stringify([of.runtime, of.worker]);
const workerName = (of) =>
  hello?.runtimes.length > 1 ? `${of.runtime} ${of.worker}` : `worker ${of.worker}`;

// ---- the connection

let source;

function connect() {
  clearTimeout(connect.again);
  source?.close();
  source = new EventSource("events");
  const on = (name, take) =>
    source.addEventListener(name, (event) => take(JSON.parse(event.data)));
  on("hello", greet);
  on("stall", keep);
  on("totals", (data) => {
    totals = data;
    showTables();
    loadFlame();
  });
  on("lanes", takeLanes);
  on("end", () => lost("stopped"));
  source.onerror = () => lost("lost");
}

async function lost(state) {
  source.close();
  clearTimeout(connect.again);
  connect.again = setTimeout(connect, 1000);
  if (byId("connection").dataset.state !== "stopped") setState(state);
  lanes = undefined;
  show();
  const answer = await fetch("events", { method: "HEAD" }).catch(() => undefined);
  if (answer?.status === 503) setState("full");
  if (answer?.status === 401) setState("locked");
}

function setState(state) {
  const words = {
    live: "Live",
    lost: "Connection lost, trying again",
    stopped: "The detector has stopped",
    full: "Too many pages are open, trying again",
    locked: "A token is needed: open /?token=… once",
  };
  byId("connection").dataset.state = state;
  write(byId("connection"), words[state]);
}

function greet(data) {
  const its = `${data.pid} ${data.started_at}`;
  if (hello && run !== its) {
    stalls.clear();
    cells.clear();
    told.clear();
    flame.folded = undefined;
    ahead = undefined;
    if (opened) write(byId("report-title"), `Before the restart: ${opened.stall.headline}`);
  }
  run = its;
  hello = data;
  document.title = `${data.program} · tokio-stall`;
  write(byId("program"), data.program);
  showCoverage();
}

function keep(stall) {
  stalls.set(stall.id, stall);
  for (const id of stalls.keys()) {
    if (stalls.size <= KEPT) break;
    stalls.delete(id);
  }
  // Another run has other stalls by the same numbers.
  if (opened?.stall.id === stall.id && opened.run === run) fillReport(stall);
}

function takeLanes(data) {
  lanes = data;
  ahead = data.clock - performance.now() / 1000;
  setState(data.watching ? "live" : "stopped");
  const more = data.workers_left_out;
  const words = more === 1 ? "1 more worker has" : `${more} more workers have`;
  write(byId("lanes-left-out"), more > 0 ? `${words} no lane here.` : "");
  const oldest = Math.floor((data.clock - SHOWN) / data.step_seconds);
  const keys = new Set(data.workers.map(laneKey));
  for (const key of cells.keys()) {
    if (!keys.has(key)) cells.delete(key);
  }
  for (const lane of data.workers) {
    const key = laneKey(lane);
    const known = cells.get(key) ?? new Map();
    cells.set(key, known);
    [...lane.cells].forEach((letter, index) => known.set(data.first + index, letter));
    for (const number of known.keys()) {
      if (number < oldest) known.delete(number);
    }
  }
  show();
}

// ---- now, and lanes

/** All stalls of the last minute, those going on with their age by now. */
function shownStalls() {
  const live = new Map((lanes?.stalled ?? []).map((stall) => [stall.id, stall]));
  const sinceNews = lanes ? clock() - lanes.clock : 0;
  const shown = [];
  for (const stall of stalls.values()) {
    const going = live.get(stall.id);
    live.delete(stall.id);
    const seconds = going ? going.seconds + sinceNews : stall.duration_seconds;
    const started_clock = going ? clock() - seconds : stall.started_clock;
    if (going || started_clock + seconds > clock() - SHOWN) {
      shown.push({ ...stall, seconds, started_clock, live: Boolean(going) });
    }
  }
  for (const stall of live.values()) {
    const seconds = stall.seconds + sinceNews;
    const started_clock = clock() - seconds;
    shown.push({ ...stall, seconds, started_clock, live: true, cause: "unknown" });
  }
  return shown;
}

function whereOf(stall) {
  return stall.place ?? stall.dependency ?? stall.span ?? "being looked at";
}

function show() {
  const shown = shownStalls();
  const going = shown.filter((stall) => stall.live).sort((a, b) => b.seconds - a.seconds);
  showNow(going);
  tell(going);
  showLanes(shown);
  if (!hello || ahead === undefined) return;
  const up = human(Math.max(1, clock() - hello.started_clock));
  write(byId("process"), `pid ${hello.pid} · up ${up} · tokio-stall ${hello.version}`);
}

function showNow(going) {
  const create = () => {
    const button = make("button", { type: "button" });
    button.append(make("span", { className: "age" }), make("span", { className: "line" }));
    return make("li", {}, button);
  };
  keyed(byId("now"), going, (stall) => stall.id, create, (item, stall) => {
    const button = withCause(item.firstChild, stall.cause);
    button.onclick = () => openReport(stall.id);
    write(button.firstChild, human(stall.seconds));
    const span = stall.span ? `, in ${stall.span}` : "";
    write(button.lastChild, `${workerName(stall)}: ${stall.cause}, ${whereOf(stall)}${span}`);
  });
  write(byId("quiet"), going.length === 0 && hello ? quiet() : "");
}

const told = new Map(); // the stalls going on whose begin was told, by number

/** Says which stalls began and ended: seldom, for those who listen. */
function tell(going) {
  if (!lanes || performance.now() < tell.next) return;
  const live = new Map(going.map((stall) => [stall.id, stall]));
  const began = going.filter((stall) => !told.has(stall.id));
  const ended = [...told.values()].filter((stall) => !live.has(stall.id));
  if (began.length + ended.length === 0) return;
  for (const stall of ended) told.delete(stall.id);
  for (const stall of began) told.set(stall.id, stall);
  const words = [...some(began, wordsOfBegin), ...some(ended, wordsOfEnd)];
  write(byId("told"), words.join(" "));
  tell.next = performance.now() + TOLD.seconds * 1000;
}

function some(of, words) {
  const more = of.length - TOLD.stalls;
  return [...of.slice(0, TOLD.stalls).map(words), ...(more > 0 ? [`And ${more} more.`] : [])];
}

function wordsOfBegin(stall) {
  const known = stalls.has(stall.id) ? `: ${stall.cause}, ${whereOf(stall)}` : "";
  return `Stall ${stall.id} began on ${workerName(stall)}${known}.`;
}

function wordsOfEnd({ id, ...stall }) {
  const report = stalls.get(id);
  const known = report?.phase === "ended";
  const after = known ? ` after ${human(report.duration_seconds)}` : "";
  const why = known ? `: ${report.cause}, ${whereOf(report)}` : "";
  return `Stall ${id} on ${workerName(stall)} is over${after}${why}.`;
}

/** The sentences for a time without stalls. */
function quiet() {
  if (!lanes) return "No news of what goes on now.";
  if (!lanes.watching) return "Nothing is seen any more: the detector has stopped.";
  const ends = [...stalls.values()].map((stall) => stall.started_clock + stall.duration_seconds);
  const since = Math.max(hello.started_clock, ...ends);
  const workers = hello.runtimes.reduce((sum, runtime) => sum + runtime.workers, 0);
  const gaps = new Set(hello.runtimes.flatMap((runtime) => runtime.gaps.map((gap) => gap.sees)));
  const polls = gaps.has("turns") && gaps.has("polls") ? "marked polls" : "every poll";
  const seen = [polls, ...["spans", "stacks", "causes"].filter((part) => !gaps.has(part))];
  const least = human(Math.min(...hello.runtimes.map((runtime) => runtime.threshold_seconds)));
  const all = workers === 1 ? "1 worker" : `${workers} workers`;
  return (
    `Nothing has blocked for ${human(Math.max(1, clock() - since))}. ` +
    `Watching ${all}: ${seen.join(", ")}. A poll of ${least} or longer appears here.`
  );
}

function showLanes(shown) {
  const create = (lane) => {
    const track = make("div", { className: "track" }, make("canvas"), make("div"));
    return make("div", { className: "lane" }, make("span", { title: lane.runtime }), track);
  };
  const workers = hello ? [...cells.keys()].map((key) => JSON.parse(key)) : [];
  const items = workers.map(([runtime, worker]) => ({ runtime, worker }));
  const end = clock();
  const style = getComputedStyle(document.documentElement);
  keyed(byId("lanes"), items, laneKey, create, (row, lane) => {
    write(row.firstChild, workerName(lane));
    const [canvas, blocks] = row.lastChild.children;
    drawCells(canvas, cells.get(laneKey(lane)), end, style);
    const own = shown.filter((stall) => laneKey(stall) === laneKey(lane));
    own.sort((a, b) => a.started_clock - b.started_clock);
    showBlocks(blocks, own, end);
  });
}

function drawCells(canvas, known, end, style) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const scale = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * scale)) canvas.width = Math.round(width * scale);
  if (canvas.height !== Math.round(height * scale)) canvas.height = Math.round(height * scale);
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  const color = (name) => style.getPropertyValue(name);
  const [parked, busy, held] = [color("--parked"), color("--busy"), color("--held")];
  pen.clearRect(0, 0, width, height);
  if (!lanes) return;
  const step = (lanes.step_seconds / SHOWN) * width;
  for (const [number, letter] of known) {
    if (letter === ".") continue;
    const age = end - number * lanes.step_seconds;
    const x = width - (age / SHOWN) * width;
    pen.fillStyle = letter === "H" ? held : parked;
    pen.fillRect(x, 0, step + 0.6, height);
    if (letter !== "H" && letter !== "0") {
      const share = (Number(letter) / 9) * height;
      pen.fillStyle = busy;
      pen.fillRect(x, height - share, step + 0.6, share);
    }
  }
}

function showBlocks(parent, own, end) {
  const create = () => make("button", { type: "button", className: "block" });
  keyed(parent, own, (stall) => stall.id, create, (block, stall) => {
    withCause(block, stall.cause);
    block.toggleAttribute("data-live", stall.live);
    const from = Math.max(0, 1 - (end - stall.started_clock) / SHOWN);
    const to = stall.live ? 1 : Math.min(1, from + stall.seconds / SHOWN);
    block.style.left = `${from * 100}%`;
    block.style.width = `${(to - from) * 100}%`;
    block.classList.toggle("narrow", (to - from) * parent.parentElement.clientWidth < 60);
    block.onclick = () => openReport(stall.id);
    write(block, stall.cause.replace("blocked/", ""));
    const state = stall.live ? "going on" : human(stall.seconds);
    const words = `${stall.cause}, ${state}, ${whereOf(stall)}`;
    block.title = words;
    block.setAttribute("aria-label", `Stall ${stall.id}: ${words}`);
  });
}

function showLegend() {
  const entries = CAUSES.map(([cause, words]) =>
    withCause(make("li", { className: "swatch", textContent: words }), cause),
  );
  byId("legend").append(...entries);
  const cell = (name, words) => {
    const item = make("li", { className: "swatch", textContent: words });
    item.style.setProperty("--cause", `var(${name})`);
    return item;
  };
  byId("legend").append(
    cell("--parked", "parked"),
    cell("--busy", "busy (height: share)"),
    cell("--held", "held, not explained yet"),
  );
}

// ---- tables

const cell = (text, className = "") => make("td", { textContent: text, className });

function showTables() {
  const { sites, routes } = totals;
  const counted = `${totals.stalls} certain, ${totals.likely_stalls} likely`;
  const rest = totals.sites_left_out ? `; ${totals.sites_left_out} more sites` : "";
  write(byId("sums"), `${counted}; ${human(totals.lost_seconds)} lost${rest}`);
  const create = () => make("tr");
  keyed(byId("sites"), sites, (site) => siteKey(site, site.span), create, fillSite);
  byId("sites").closest(".scroll").hidden = sites.length === 0;
  const none = "No stall is over yet. The lines that hold workers are listed here, the worst first.";
  write(byId("no-sites"), sites.length === 0 ? none : "");
  const routeKey = (route) => JSON.stringify([route.runtime, route.route]);
  keyed(byId("routes"), routes, routeKey, create, (row, route) => {
    const numbers = [route.held_up, route.requests, human(route.lost_seconds)];
    const rest = numbers.map((number) => cell(String(number), "number"));
    row.replaceChildren(cell(route.route), ...rest);
  });
  byId("routes-table").hidden = routes.length === 0;
  const noRoutes = hello?.runtimes.some((runtime) => runtime.tower)
    ? "No request has lost time to a stall. Services with a RequestLayer are counted here."
    : "Requests are not seen: build with the feature tower, and add a RequestLayer.";
  write(byId("no-routes"), routes.length === 0 ? noRoutes : "");
}

function fillSite(row, site) {
  const key = siteKey(site, site.span);
  const reports = [...stalls.values()].filter((stall) => siteKey(stall, stall.span_names) === key);
  const name = site.place ?? "no site: see the reports for the reason";
  const last = reports.at(-1);
  if (!row.firstChild) {
    const link = make("button", { type: "button", className: "link" });
    row.append(make("td", {}, link, make("span", { className: "span" })));
    row.append(make("td", {}, make("span", { className: "swatch" })));
    row.append(cell("", "number"), cell("", "number"), cell("", "number"), make("td"));
  }
  const [place, cause, count, lost, longest, spark] = row.children;
  write(place.firstChild, name);
  place.firstChild.disabled = !last;
  place.firstChild.onclick = () => openReport(last.id);
  write(place.lastChild, site.span ?? "");
  withCause(cause.firstChild, site.cause);
  write(cause.firstChild, site.cause);
  write(count, String(site.count));
  write(lost, human(site.total_seconds));
  write(longest, human(site.longest_seconds));
  spark.replaceChildren(sparkline(reports, site.cause));
}

function svg(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  Object.entries(attributes).forEach(([name, value]) => element.setAttribute(name, value));
  return element;
}

function sparkline(reports, cause) {
  const { bars, seconds } = SPARK;
  const lost = new Array(bars).fill(0);
  for (const report of reports) {
    const age = Math.max(0, clock() - report.started_clock);
    const bar = bars - 1 - Math.floor((age / seconds) * bars);
    if (bar >= 0 && bar < bars) lost[bar] += report.duration_seconds;
  }
  const most = Math.max(...lost, 0.001);
  const graph = svg("svg", { class: "spark", viewBox: `0 0 ${bars * 4} 18`, role: "img" });
  graph.setAttribute("aria-label", `${human(lost.reduce((a, b) => a + b))} in five minutes`);
  lost.forEach((time, bar) => {
    const height = time > 0 ? Math.max(2, (time / most) * 18) : 0;
    graph.append(svg("rect", { x: bar * 4, y: 18 - height, width: 3, height }));
  });
  return withCause(graph, cause);
}

function showCoverage() {
  const several = hello.runtimes.length > 1;
  const gaps = hello.runtimes.flatMap((runtime) =>
    runtime.gaps.map((gap) => (several ? `${runtime.name}: ` : "") + `${gap.sees}: ${gap.why}.`),
  );
  const items = gaps.length > 0 ? gaps : ["Everything that the detector looks for is seen here."];
  byId("coverage").replaceChildren(...items.map((text) => make("li", { textContent: text })));
}

// ---- the report

function openReport(id) {
  const stall = stalls.get(id);
  if (!stall) return;
  fillReport(stall);
  byId("report").showModal();
}

function fillReport(stall) {
  opened = { stall, run };
  write(byId("report-title"), stall.headline);
  write(byId("copy"), "Copy as text");
  const parts = [facts(stall), ...split(stall.time)];
  if (stall.advice) {
    const advice = make("p", { className: "advice", textContent: stall.advice });
    parts.splice(1, 0, make("h3", { textContent: "Write instead" }), advice);
  }
  parts.push(...victims(stall), ...stack(stall));
  if (stall.lacks.length > 0) {
    const lacks = stall.lacks.map((text) => make("li", { textContent: text }));
    parts.push(make("h3", { textContent: "Missing in this report" }), make("ul", {}, ...lacks));
  }
  byId("report-body").replaceChildren(...parts);
}

function facts(stall) {
  const list = make("dl");
  const add = (name, text, className = "") => {
    if (text === null || text === undefined || text === "") return;
    list.append(make("dt", { textContent: name }));
    list.append(make("dd", { textContent: text, className }));
  };
  add("Line", stall.place ?? stall.dependency, "place");
  add("Cause", stall.asleep_in ? `${stall.cause}, in ${stall.asleep_in}` : stall.cause);
  const error = stall.duration_error_seconds;
  const bound = error >= 0.0001 ? ` (± ${human(error)})` : "";
  const soFar = stall.phase === "ended" ? "" : " so far";
  add("Time", human(stall.duration_seconds) + soFar + bound);
  add("Span", stall.span);
  add("Worker", `${stall.worker} of ${stall.runtime}, ${stall.certainty}`);
  add("Thread", stall.thread && `${stall.thread} (${stall.tid})`);
  add("Spawned at", stall.spawned_at);
  add("Began", new Date(stall.started_at * 1000).toLocaleString());
  if (stall.seen_here > 1) {
    add("This line", `${stall.seen_here} stalls, ${human(stall.lost_here_seconds)} lost`);
  }
  const frozen = stall.driver_frozen_seconds;
  if (frozen > 0) add("Driver", `for ${human(frozen)} no socket and no timer moved`);
  return list;
}

function split(time) {
  const all = SPLIT.reduce((sum, [name]) => sum + time[name], 0);
  const parts = SPLIT.filter(([name]) => time[name] > all / 1000);
  if (parts.length === 0) return [];
  const bar = make("div", { className: "split" });
  const words = make("p", { className: "split-words" });
  for (const [name, text, cause] of parts) {
    const part = withCause(make("span"), cause);
    part.style.width = `${(time[name] / all) * 100}%`;
    bar.append(part);
    const textContent = `${text} ${human(time[name])}`;
    words.append(withCause(make("span", { className: "swatch", textContent }), cause));
  }
  return [make("h3", { textContent: "The time went into" }), bar, words];
}

function victims({ victims: held }) {
  if (!held || held.requests + held.waiting + held.frozen === 0) return [];
  const sums = [
    `${held.requests} requests were held up, ${human(held.total_seconds)} together`,
    held.waiting > 0 ? `${held.waiting} wait still` : "",
    held.frozen > 0 ? `${held.frozen} waited while no socket and no timer moved` : "",
  ];
  const lines = [sums.filter(Boolean).join("; ")];
  for (const { route, requests, total_seconds } of held.routes) {
    lines.push(`${route}: ${requests}, ${human(total_seconds)}`);
  }
  const items = lines.map((textContent) => make("li", { textContent }));
  return [make("h3", { textContent: "Victims" }), make("ul", {}, ...items)];
}

function stack({ calls, calls_left_out: leftOut }) {
  if (calls.length === 0) return [];
  const line = ({ call, origin, guessed }) => {
    const textContent = guessed ? `${call} (a guess)` : call;
    return make("li", { textContent, className: origin === "own" ? "own" : "" });
  };
  const list = (lines) => make("ol", { className: "stack" }, ...lines.map(line));
  const inside = calls.filter((call) => call.of_the_poll);
  const below = calls.filter((call) => !call.of_the_poll);
  const parts = [make("h3", { textContent: "Stack, innermost call first" }), list(inside)];
  if (below.length > 0) {
    const textContent = `${below.length + leftOut} calls of the runtime`;
    parts.push(make("details", {}, make("summary", { textContent }), list(below)));
  }
  return parts;
}

async function copyReport() {
  const { text } = opened.stall;
  const copied = await navigator.clipboard?.writeText(text).then(
    () => true,
    () => false,
  );
  write(byId("copy"), copied ? "Copied" : "The text is below");
  if (copied) return;
  // Without a secure context there is no clipboard: the text can be selected instead.
  const area = make("pre", { textContent: text, tabIndex: 0 });
  byId("report-body").append(area);
  getSelection().selectAllChildren(area);
  area.focus();
}

// ---- the flame graph

const flame = { folded: undefined, root: undefined, path: [] };

async function loadFlame() {
  if (loadFlame.busy) {
    loadFlame.again = true;
    return;
  }
  loadFlame.busy = true;
  const answer = await fetch("stalls/folded").catch(() => undefined);
  const folded = answer?.ok ? await answer.text().catch(() => undefined) : undefined;
  if (folded !== undefined && folded !== flame.folded) {
    flame.folded = folded;
    flame.root = tree(folded);
    showFlame();
  }
  // An answer of a moment ago is given again, so the next one is asked for later.
  setTimeout(() => {
    loadFlame.busy = false;
    if (loadFlame.again) {
      loadFlame.again = false;
      loadFlame();
    }
  }, 500);
}

function tree(folded) {
  const root = { name: "All stacks", time: 0, children: new Map() };
  for (const line of folded.split("\n").filter(Boolean)) {
    const at = line.lastIndexOf(" ");
    const time = Number(line.slice(at + 1)) / 1e6;
    let node = root;
    node.time += time;
    for (const name of line.slice(0, at).split(";")) {
      const child = node.children.get(name) ?? { name, time: 0, children: new Map() };
      node.children.set(name, child);
      child.time += time;
      node = child;
    }
  }
  return root;
}

function showFlame() {
  const { root } = flame;
  if (!root || root.time === 0) {
    const none = "The stacks of stalls that are over are shown here.";
    byId("flame").replaceChildren(make("p", { className: "empty", textContent: none }));
    return;
  }
  const above = [root];
  for (const name of flame.path) {
    const next = above.at(-1).children.get(name);
    if (!next) break;
    above.push(next);
  }
  flame.path = above.slice(1).map((node) => node.name);
  const boxes = [];
  const add = (node, path, depth, left, width) => {
    if (width < 0.2) return;
    boxes.push({ node, path, depth, left, width });
    let next = left;
    for (const child of [...node.children.values()].sort((a, b) => b.time - a.time)) {
      const share = (child.time / node.time) * width;
      add(child, [...path, child.name], depth + 1, next, share);
      next += share;
    }
  };
  above.slice(0, -1).forEach((node, depth) => {
    boxes.push({ node, path: flame.path.slice(0, depth), depth, left: 0, width: 100, above: true });
  });
  add(above.at(-1), flame.path, above.length - 1, 0, 100);
  placeBoxes(boxes, root);
  write(byId("flame-of"), `${above.at(-1).name}: ${human(above.at(-1).time)}`);
  byId("flame-reset").disabled = flame.path.length === 0;
}

function placeBoxes(boxes, root) {
  const create = () => make("button", { type: "button" });
  byId("flame").querySelector("p")?.remove();
  keyed(byId("flame"), boxes, (box) => JSON.stringify(box.path), create, (button, box) => {
    button.style.left = `${box.left}%`;
    button.style.width = `${box.width}%`;
    button.style.top = `${box.depth * 20}px`;
    button.classList.toggle("above", Boolean(box.above));
    const share = ((box.node.time / root.time) * 100).toFixed(1);
    button.title = `${box.node.name}: ${human(box.node.time)}, ${share} %`;
    write(button, box.node.name);
    button.onclick = () => zoom(box.path);
  });
}

function zoom(path) {
  flame.path = path;
  showFlame();
  byId("flame").scrollTop = 0;
}

// ---- the beginning

byId("flame-reset").onclick = () => zoom([]);
byId("flame").addEventListener("keydown", (event) => {
  if (event.key === "Escape") zoom([]);
});
byId("close").onclick = () => byId("report").close();
byId("copy").onclick = copyReport;
byId("report").addEventListener("close", () => {
  opened = undefined;
});
byId("report").addEventListener("click", (event) => {
  if (event.target === byId("report")) byId("report").close();
});
// A page that nobody sees does not take the place of another.
document.addEventListener("visibilitychange", () => {
  clearTimeout(connect.hidden);
  if (document.hidden) {
    connect.hidden = setTimeout(() => {
      clearTimeout(connect.again);
      source.close();
    }, 60_000);
  } else if (source.readyState === EventSource.CLOSED) {
    connect();
  }
});
showLegend();
setInterval(show, 250);
// The last minutes go on without news.
setInterval(() => totals && showTables(), 5000);
connect();
