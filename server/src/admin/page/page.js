// The page of a node. What it shows comes by the event stream `api/v1/stream`: the event `second` has what
// the node did in the last second, the event `view` the cluster's nodes and ranges every five seconds.
// second.rs and view.rs beside this file say what their members mean.
//
// Whatever comes from outside (keys, names, messages) is set as text, never as HTML.

const OPS_OF_CLUSTER = new Set(["directory", "status", "admin"]);
const BUCKETS_OF_DOUBLING = 16; // as in second.rs; the first bucket ends at 1 µs
const BUCKETS = 420; // up to 80 s
const SECONDS_KEPT = 900;
const ROWS_OF_PAGE = 20;
const COLUMN_SECONDS = 3; // of the heat map
const COLUMNS = 200;
const STRIPES = 256;
const HOT_COLUMNS = 20;
const SILENT_MS = 4000;
const HISTORY_INTERVAL = 60_000;
const HISTORY_OVERLAP = 300_000; // a node may tell what it did some minutes late
const DAY = 86_400_000;
const EVENTS_KEPT = 500;
const MISSING_SHOWN = 10;
const EVENTS_SHOWN = 50;
const CHANGES_SHOWN = 20;

const $ = (id) => document.getElementById(id);
const media = (query, then) => matchMedia(query).addEventListener("change", then);

// ---- Numbers as text

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const unknown = "–";
const known = (n) => n !== null && n !== undefined && Number.isFinite(n);
const count = (n) => (known(n) ? whole.format(n) : unknown);
const rate = (n) => (!known(n) ? unknown : n > 0 && n < 9.95 ? n.toFixed(1) : whole.format(n));
const short = (n) => (n >= 1e6 ? `${n / 1e6}M` : n >= 1e4 ? `${n / 1e3}k` : rate(n));
const percent = (part) => (known(part) ? `${(part * 100).toFixed(part > 0 && part < 0.0995 ? 1 : 0)} %` : unknown);

function millis(ms) {
  if (!known(ms)) return unknown;
  return ms < 1 ? ms.toFixed(3) : ms < 10 ? ms.toFixed(2) : ms < 100 ? ms.toFixed(1) : whole.format(ms);
}

function bytes(n) {
  if (!known(n)) return unknown;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (n >= 1024 && unit < units.length - 1) [n, unit] = [n / 1024, unit + 1];
  return `${unit === 0 || n >= 99.95 ? whole.format(n) : n.toFixed(1)} ${units[unit]}`;
}

function span(seconds) {
  const [d, h, m] = [Math.floor(seconds / 86400), Math.floor(seconds / 3600) % 24, Math.floor(seconds / 60) % 60];
  return d > 0 ? `${d} d ${h} h` : h > 0 ? `${h} h ${m} min` : m > 0 ? `${m} min` : `${Math.floor(seconds)} s`;
}

const clock = new Intl.DateTimeFormat("sv-SE", { dateStyle: "short", timeStyle: "medium" });
const timeOfDay = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });

// ---- Tables: cells are texts, or objects with `text` and perhaps `style`, `href`, `share`

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// The items of a list, which change only if they differ: a screen reader reads out what changes.
function setList(list, items) {
  if ([...list.children].map((item) => item.textContent).join("\n") === items.join("\n")) return;
  list.replaceChildren(...items.map((text) => Object.assign(document.createElement("li"), { textContent: text })));
}

function table(id, columns) {
  const element = $(id);
  const head = element.createTHead().insertRow();
  for (const [name, style] of columns) {
    const th = document.createElement("th");
    th.scope = "col";
    th.className = style ?? "";
    th.textContent = name;
    head.append(th);
  }
  const body = element.createTBody();
  return (rows, whenEmpty = "none") => {
    if (rows.length === 0) {
      body.replaceChildren();
      const cell = body.insertRow().insertCell();
      cell.colSpan = columns.length;
      cell.className = "none";
      cell.textContent = whenEmpty;
      return;
    }
    while (body.rows.length > rows.length) body.deleteRow(-1);
    rows.forEach((cells, at) => fillRow(body.rows[at] ?? body.insertRow(), cells, columns));
  };
}

function fillRow(row, cells, columns) {
  if (row.cells.length !== cells.length) {
    row.replaceChildren();
    cells.forEach((_, at) => {
      const cell = document.createElement(at === 0 ? "th" : "td");
      if (at === 0) cell.scope = "row";
      row.append(cell);
    });
  }
  cells.forEach((content, at) => {
    const cell = row.cells[at];
    const { text, style, href, share } = typeof content === "object" ? content : { text: content };
    const classes = `${columns[at][1] ?? ""} ${style ?? ""}`.trim();
    if (cell.className !== classes) cell.className = classes;
    if (href !== undefined) return fillLink(cell, text, href);
    if (share !== undefined) return fillShare(cell, text, share);
    setText(cell, text);
  });
}

function fillLink(cell, text, href) {
  let link = cell.querySelector("a");
  if (!link) cell.replaceChildren((link = document.createElement("a")));
  setText(link, text);
  if (link.getAttribute("href") !== href) link.setAttribute("href", href);
}

function fillShare(cell, text, share) {
  let bar = cell.querySelector("progress");
  if (!bar) {
    bar = document.createElement("progress");
    bar.max = 1;
    bar.setAttribute("aria-hidden", "true");
    cell.replaceChildren(bar, document.createElement("span"));
  }
  bar.value = Math.min(1, share);
  setText(cell.lastChild, ` ${text}`);
}

const showOps = table("by-op", [["Operation"], ["per second", "n"], ["p50 ms", "n"], ["p99 ms", "n"], ["p99.9 ms", "n"]]);
const showShards = table("by-shard", [["Shard"], ["per second", "n"], ["p50 ms", "n"], ["p99 ms", "n"], ["p99.9 ms", "n"]]);
const showRefused = table("refused", [["Code", "text"], ["Requests", "n"]]);
const showNodes = table("node-table", [["Node"], ["State"], ["Address", "text"], ["Page"], ["Version"], ["Shards", "n"], ["Leads", "n"], ["Replicas", "n"], ["Up for", "n"], ["p50", "n"], ["p99", "n"], ["Disk free", "n"], ["Clock"]]);
const showRanges = table("range-table", [["Range", "n"], ["From key", "key"], ["Leader, node/shard"], ["Replicas, node/shard"], ["Lag, entries", "n"], ["Size", "n"], ["Reads/s", "n"], ["Writes/s", "n"], ["CPU", "n"], ["State"]]);
const showHot = table("hot", [["Range", "n"], ["From key", "key"], ["Leader"], ["Reads/s", "n"], ["Writes/s", "n"]]);
const showMemory = table("memory-table", [["Purpose"], ["Used", "n"], ["Bound", "n"], ["Used of bound"], ["Lookups/s", "n"], ["Found", "n"]]);
const showThreads = table("thread-table", [["Shard"], ["Busy", "n"], ["Worst delay", "n"], ["In flight", "n"], ["Waiting", "n"], ["Entries", "n"], ["Replicas", "n"], ["Leads", "n"]]);
const showStalls = table("stalls", [["Task", "text"], ["Shard", "n"], ["In the window", "n"], ["Since the start", "n"]]);
const showChanges = table("change-table", [["Range", "n"], ["Node"], ["Shard"], ["What"], ["Entries lacking", "n"]]);
const showEvents = table("events", [["Time"], ["Node"], ["Kind"], ["What", "text"]]);
let showStorage = null; // has a column for each shard

// ---- Latencies

// Buckets of one operation on one shard, or the sum of several.
class Latencies {
  buckets = new Float64Array(BUCKETS);
  count = 0;

  // Adds pairs of bucket and count, or takes them away.
  change(pairs, sign) {
    for (let at = 0; at < pairs.length; at += 2) {
      this.buckets[Math.min(pairs[at], BUCKETS - 1)] += sign * pairs[at + 1];
      this.count += sign * pairs[at + 1];
    }
  }

  add(other) {
    for (let at = 0; at < BUCKETS; at++) this.buckets[at] += other.buckets[at];
    this.count += other.count;
  }

  // The latency in milliseconds below which this part of the requests lies.
  quantile(part) {
    if (this.count === 0) return null;
    let left = part * this.count;
    for (let at = 0; at < BUCKETS; at++) {
      const here = this.buckets[at];
      if (here > 0 && left <= here) return bucketEnd(at - 1 + left / here);
      left -= here;
    }
    return bucketEnd(BUCKETS);
  }
}

const bucketEnd = (bucket) => 2 ** (bucket / BUCKETS_OF_DOUBLING) / 1000;
const bucketOf = (ms) => Math.log2(ms * 1000) * BUCKETS_OF_DOUBLING;
const quantiles = (latencies) => [0.5, 0.99, 0.999].map((part) => latencies.quantile(part));

// ---- What was received

let seconds = []; // the last ones, oldest first
let last = null; // the last second
let view = null; // the last view, with its ranges as objects
let columns = []; // of the heat map, oldest first
let column = null; // the one that is being gathered
let seen = []; // events that this page noticed, newest first
let history = null; // of all nodes: the last day
let historyRefused = ""; // why it was not told
const sums = new Map(); // "operation shard" -> latencies in the window
const summed = { from: 0, to: 0 }; // times of the seconds that are in the sums
const chosen = { op: "", shard: "", window: 300 };

const isChosen = (op, shard) =>
  (chosen.op === "" ? !OPS_OF_CLUSTER.has(op) : chosen.op === op) &&
  (chosen.shard === "" || Number(chosen.shard) === shard);

function change(second, sign) {
  second.shards.forEach((shard, number) => {
    for (const [op, pairs] of shard?.ops ?? []) {
      const key = `${op} ${number}`;
      if (!sums.has(key)) sums.set(key, new Latencies());
      sums.get(key).change(pairs, sign);
    }
  });
}

// Brings the sums to the present window.
function slide() {
  const from = last.t - chosen.window * 1000;
  for (const second of seconds) {
    const [is, was] = [second.t > from, second.t > summed.from && second.t <= summed.to];
    if (is !== was) change(second, is ? 1 : -1);
  }
  [summed.from, summed.to] = [from, last.t];
}

const inWindow = () => seconds.filter((second) => second.t > summed.from);

// The points of the charts for one second and the present choice.
function points(second) {
  if (second.points?.of === `${chosen.op} ${chosen.shard}`) return second.points;
  const [total, byOp] = [new Latencies(), {}];
  let time = 0;
  second.shards.forEach((shard, number) => {
    if (!shard || shard.seconds === 0) return;
    time = Math.max(time, shard.seconds);
    for (const [op, pairs] of shard.ops) {
      if (!isChosen(op, number)) continue;
      const before = total.count;
      total.change(pairs, 1);
      byOp[op] = (byOp[op] ?? 0) + (total.count - before) / shard.seconds;
    }
  });
  const found = { of: `${chosen.op} ${chosen.shard}`, time, rate: time > 0 ? total.count / time : null, byOp, quantiles: quantiles(total) };
  return (second.points = found);
}

function onSecond(second) {
  if (last && (second.node !== last.node || second.uptime_s < last.uptime_s)) forget("the node was started anew");
  else if (last && second.t <= last.t) forget("the node’s clock was set back");
  seconds.push(second);
  last = second;
  if (seconds.length > SECONDS_KEPT) {
    const oldest = seconds.shift();
    if (oldest.t > summed.from && oldest.t <= summed.to) change(oldest, -1);
  }
  gatherColumn(second);
  slide();
}

// What was gathered does not go on.
function forget(why) {
  notice(last.node, "node", why);
  [seconds, columns, column] = [[], [], null];
  sums.clear();
  [summed.from, summed.to] = [0, 0];
}

// A range of a view. Of a replica that does its part there is the place alone, so the others are rare.
function rangeOf([id, flags, start, node, shard, term, applied, replicas, [size, live, reads, writes, cpu]]) {
  const range = { id, system: (flags & 1) > 0, under: (flags & 2) > 0, down: (flags & 4) > 0, splitting: (flags & 8) > 0, start, node, shard, term, applied, replicas, size, live, reads, writes, cpu };
  [range.moving, range.unwell, range.blind, range.lag] = [false, false, 0, 0];
  for (const at of replicas) {
    if (at.length === 2) continue;
    const [, , votes, lag, state] = at;
    range.moving ||= !votes;
    range.unwell ||= state !== "ok";
    if (known(lag)) range.lag = Math.max(range.lag, lag);
    else range.blind += 1;
  }
  return range;
}

function onView(data) {
  const before = view;
  if (data.error !== undefined) {
    view = before ? { ...before, error: data.error } : { error: data.error, ranges: [], byId: new Map(), status: null };
    return;
  }
  const ranges = data.ranges.map(rangeOf);
  const users = ranges.filter((range) => !range.system);
  users.forEach((range, at) => (range.index = at));
  view = { status: data.status, reasons: data.reasons, ranges, users, byId: new Map(ranges.map((range) => [range.id, range])) };
  if (before?.status) noticeChanges(before, view);
  rearrange(before);
}

// ---- Events that this page noticed

function notice(node, kind, text) {
  seen.unshift({ t: Date.now(), node, kind, text });
  seen.length = Math.min(seen.length, EVENTS_SHOWN);
}

function noticeChanges(before, after) {
  const states = new Map(before.status.nodes.map((node) => [node.id, node.state]));
  for (const node of after.status.nodes) {
    const was = states.get(node.id);
    if (was === undefined) notice(node.id, "node", "joined the cluster");
    else if (was !== node.state) notice(node.id, "node", `is ${node.state}, was ${was}`);
    states.delete(node.id);
  }
  for (const id of states.keys()) notice(id, "node", "left the cluster");
  if (before.status.health !== after.status.health) {
    notice("", "health", `the cluster is ${after.status.health}, was ${before.status.health}`);
  }
  let leaders = [];
  for (const range of after.ranges) {
    const was = before.byId.get(range.id);
    if (was && was.node !== range.node) leaders.push([range, was]);
  }
  if (leaders.length > 5) notice("", "leader", `${count(leaders.length)} ranges have another leader`);
  else for (const [range, was] of leaders) notice(range.node ?? "", "leader", `range ${range.id} is led by ${range.node ?? "nobody"}, was by ${was.node ?? "nobody"}`);
  const more = after.ranges.length - before.ranges.length;
  if (more !== 0) notice("", "range", `${count(Math.abs(more))} ranges ${more > 0 ? "more" : "fewer"}`);
}

// ---- The heat map

function loads(second) {
  const found = new Map();
  for (const shard of second?.shards ?? []) {
    if (!shard || shard.seconds === 0) continue;
    for (const [id, reads, writes] of shard.load) {
      const [r, w] = found.get(id) ?? [0, 0];
      found.set(id, [r + reads / shard.seconds, w + writes / shard.seconds]);
    }
    // Seconds are kept, and these would take most of the memory.
    shard.load = [];
  }
  return found;
}

// Reads and writes of a range a second: of the last second where this node leads it, else of the last ten as
// its leader has reported them.
function loadOf(range, second) {
  if (range.node === second.node) return second.loads.get(range.id) ?? [0, 0];
  return known(range.node) ? [range.reads, range.writes] : [0, 0];
}

// Adds a second to the column that is being gathered; a column that is full joins the map.
function gatherColumn(second) {
  second.loads = loads(second);
  if (seconds.length > 1) delete seconds[seconds.length - 2].loads;
  const users = view?.users;
  if (!users?.length) return;
  if (column?.reads.length !== users.length) {
    column = { t: second.t, seconds: 0, reads: new Float32Array(users.length), writes: new Float32Array(users.length) };
  }
  for (const [at, range] of users.entries()) {
    const [reads, writes] = loadOf(range, second);
    column.reads[at] += reads / COLUMN_SECONDS;
    column.writes[at] += writes / COLUMN_SECONDS;
  }
  column.seconds += 1;
  column.t = second.t;
  if (column.seconds < COLUMN_SECONDS) return;
  columns.push(column);
  if (columns.length > COLUMNS) columns.shift();
  column = null;
  heat.isOld = true;
}

// When ranges have come or gone, what was gathered keeps to its ranges.
function rearrange(before) {
  const same = before?.users?.length === view.users.length && view.users.every((range, at) => before.users[at].id === range.id);
  if (same) return;
  const from = view.users.map((range) => before?.byId.get(range.id)?.index ?? -1);
  for (const old of columns) {
    for (const name of ["reads", "writes"]) {
      const values = old[name];
      old[name] = Float32Array.from(from, (at) => (at < 0 ? 0 : (values[at] ?? 0)));
    }
  }
  column = null;
  heat.stripes = null;
  heat.isOld = true;
}

const heat = { stripes: null, madeAt: 0, isOld: false, cursor: null, max: 0, values: [] };

// The sums of a column's loads, one for each stripe.
function stripeValues(of, what) {
  return Float32Array.from(heat.stripes, ({ from, to }) => {
    let [reads, writes] = [0, 0];
    for (let at = from; at < to; at++) {
      reads += of.reads[at];
      writes += of.writes[at];
    }
    return what === "reads" ? reads : what === "writes" ? writes : reads + writes;
  });
}

// Divides the ranges into stripes: one for each, or if there are too many, finer ones where the load is.
function makeStripes() {
  const users = view.users;
  const weights = new Float64Array(users.length);
  for (const of of columns) for (let at = 0; at < weights.length; at++) weights[at] += of.reads[at] + of.writes[at];
  const load = weights.reduce((sum, weight) => sum + weight, 0);
  const base = 0.25 / users.length;
  let left = 0;
  for (let at = 0; at < weights.length; at++) left += weights[at] = base + (load > 0 ? weights[at] / load : 0);
  const stripes = [];
  let [from, sum] = [0, 0];
  for (let at = 0; at < users.length; at++) {
    sum += weights[at];
    const [stripesLeft, rangesLeft] = [STRIPES - stripes.length, users.length - at - 1];
    const isFull = users.length <= STRIPES || rangesLeft < stripesLeft || (stripesLeft > 1 && sum >= left / stripesLeft);
    if (isFull || rangesLeft === 0) {
      stripes.push({ from, to: at + 1, led: users.slice(from, at + 1).some((range) => known(range.node)) });
      [from, left, sum] = [at + 1, left - sum, 0];
    }
  }
  return stripes;
}

function drawHeat() {
  if (!last || !view?.users?.length || !columns.length) return;
  if (!heat.stripes || performance.now() - heat.madeAt > 10_000) {
    heat.stripes = makeStripes();
    heat.madeAt = performance.now();
    labelHeat();
    for (const of of columns) of.stripes = null;
  }
  const what = $("heat-of").value;
  heat.max = 0;
  for (const of of columns) {
    if (of.stripes?.of !== what) of.stripes = { of: what, values: stripeValues(of, what) };
    for (const value of of.stripes.values) heat.max = Math.max(heat.max, value);
  }
  paintHeat();
  setText($("keys-of"), `${count(heat.stripes.length)} stripes of ${count(view.users.length)} ranges, ${COLUMNS * COLUMN_SECONDS / 60} minutes; ranges that nobody leads are blank`);
  setText($("heat-high"), `${rate(heat.max)} per second and stripe`);
  if (heat.cursor) readHeat();
}

function ramp(part, dark) {
  const stops = dark ? [[26, 32, 39], [37, 72, 120], [49, 142, 160], [240, 210, 110]] : [[255, 255, 255], [168, 205, 232], [46, 117, 182], [84, 20, 90]];
  const place = Math.min(part, 0.9999) * (stops.length - 1);
  const [low, share] = [Math.floor(place), place % 1];
  return stops[low].map((from, at) => Math.round(from + (stops[low + 1][at] - from) * share));
}

const isDark = () => matchMedia("(prefers-color-scheme: dark)").matches;

function paintHeat() {
  const [canvas, rows] = [$("heat"), heat.stripes.length];
  if (canvas.width !== COLUMNS || canvas.height !== rows) [canvas.width, canvas.height] = [COLUMNS, rows];
  const image = new ImageData(COLUMNS, rows);
  const pixels = new Uint32Array(image.data.buffer);
  const pixel = ([red, green, blue]) => (255 << 24) | (blue << 16) | (green << 8) | red;
  const dark = isDark();
  const colors = Uint32Array.from({ length: 64 }, (_, at) => pixel(ramp(at / 63, dark)));
  const [blank, scale] = [pixel(dark ? [18, 22, 27] : [236, 239, 243]), heat.max > 0 ? 63 / Math.log1p(heat.max) : 0];
  const first = COLUMNS - columns.length;
  pixels.fill(blank);
  columns.forEach((of, at) => {
    for (let y = 0; y < rows; y++) {
      const value = of.stripes.values[y];
      if (heat.stripes[y].led || value > 0) pixels[y * COLUMNS + first + at] = colors[Math.round(scale * Math.log1p(value))];
    }
  });
  if (heat.cursor) {
    const { x, y } = heat.cursor;
    for (let at = 0; at < COLUMNS; at++) pixels[y * COLUMNS + at] ^= 0xffffff;
    for (let at = 0; at < rows; at++) pixels[at * COLUMNS + x] ^= 0xffffff;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  const legend = new ImageData(120, 10);
  new Uint32Array(legend.data.buffer).forEach((_, at, all) => (all[at] = colors[Math.floor((at % 120) / 1.9)]));
  $("heat-scale").getContext("2d").putImageData(legend, 0, 0);
}

const keyOf = (range) => (range?.index === 0 ? "(first)" : (range?.start ?? "(end)"));

function labelHeat() {
  const [axis, rows] = [$("heat-keys"), heat.stripes.length];
  const labels = Math.min(rows, 9);
  axis.replaceChildren();
  for (let at = 0; at < labels; at++) {
    const stripe = Math.floor((at * rows) / labels);
    const label = document.createElement("span");
    label.textContent = keyOf(view.users[heat.stripes[stripe].from]);
    label.style.top = `${(stripe / rows) * 256}px`;
    axis.append(label);
  }
}

function readHeat() {
  const { x, y } = heat.cursor;
  const [stripe, of] = [heat.stripes[y], columns[x - (COLUMNS - columns.length)]];
  if (!stripe) return;
  const [first, next] = [view.users[stripe.from], view.users[stripe.to]];
  const ranges = stripe.to - stripe.from === 1 ? `range ${first.id}` : `${count(stripe.to - stripe.from)} ranges`;
  const when = of ? timeOfDay.format(of.t) : "before this page was opened";
  const what = !of ? "" : stripe.led ? `: ${rate(of.stripes.values[y])} per second` : ": nobody leads it";
  setText($("heat-read"), `${keyOf(first)} to ${keyOf(next)}, ${ranges}, ${when}${what}`);
}

function moveCursor(x, y) {
  if (!heat.stripes || !columns.length) return;
  const within = (at, size) => Math.max(0, Math.min(size - 1, at));
  heat.cursor = { x: within(x, COLUMNS), y: within(y, heat.stripes.length) };
  paintHeat();
  readHeat();
}

// ---- Charts

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const DASHES = [[], [6, 3], [2, 2], [9, 3, 2, 3], [3, 1], [12, 3], [1, 3], [5, 5]];
const BORDERS = ["solid", "dashed", "dotted", "double", "groove", "ridge", "inset", "outset"];
const charts = new Map(); // id -> { chart, of: what it was made for }

function axis(more) {
  return { stroke: style("--quiet"), font: "11px system-ui", grid: { stroke: style("--grid"), width: 1 }, ticks: { stroke: style("--line"), width: 1 }, ...more };
}

function line(label, at, value) {
  const color = style(`--c${(at % 8) + 1}`);
  return { label, stroke: color, width: 1.5, dash: DASHES[at % 8], points: { show: false }, spanGaps: false, value: (_, n) => value(n) };
}

// Draws data into a chart, which is made anew if `of` has changed.
function draw(id, of, data, options) {
  const host = $(id);
  if (host.clientWidth === 0) return;
  const present = charts.get(id);
  if (present?.of === of) return present.chart.setData(data);
  present?.chart.destroy();
  const size = { width: host.clientWidth, height: host.clientHeight - 30 };
  const legend = { markers: { width: 2, dash: (_, at) => BORDERS[(at - 1) % 8] ?? "solid" } };
  const chart = new uPlot({ ...size, legend, cursor: { drag: { x: false, y: false } }, ...options() }, data, host);
  charts.set(id, { chart, of });
}

const timeAxis = () => axis({ size: 28, space: 50, values: (_, times) => times.map((t) => timeOfDay.format(t * 1000).slice(...(chosen.window >= 300 ? [0, 5] : [3]))) });
const clockSeries = { label: "time", value: (_, t) => (t === null || t === undefined ? unknown : timeOfDay.format(t * 1000)) };
const msAxis = () => axis({ size: 46, values: (_, ms) => ms.map((n) => (n === null ? "" : String(n))) });
const logScale = { distr: 3, range: (_, low, high) => [10 ** Math.floor(Math.log10(low || 0.1)), 10 ** Math.ceil(Math.log10(high || 1) + 1e-9)] };

function drawTraffic() {
  const within = inWindow();
  const found = within.map(points);
  const times = within.map((second) => second.t / 1000);
  const ops = [...new Set(found.flatMap((point) => Object.keys(point.byOp)))].sort();
  const range = () => [last.t / 1000 - chosen.window, last.t / 1000];
  const rates = ops.map((op) => found.map((point) => (point.time > 0 ? (point.byOp[op] ?? 0) : null)));
  draw("chart-ops", `${ops} ${chosen.window}`, [times, ...(ops.length ? rates : [times.map(() => 0)])], () => ({
    scales: { x: { range }, y: { range: (_, low, high) => [0, Math.max(1, high * 1.08)] } },
    axes: [timeAxis(), axis({ size: 52, values: (_, all) => all.map(short) })],
    series: [clockSeries, ...(ops.length ? ops : ["no operations"]).map((op, at) => line(op, at, rate))],
  }));
  const lines = [0, 1, 2].map((at) => found.map((point) => point.quantiles[at]));
  draw("chart-latency", `${chosen.window}`, [times, ...lines], () => ({
    scales: { x: { range }, y: logScale },
    axes: [timeAxis(), msAxis()],
    series: [clockSeries, line("p50", 0, millis), line("p99", 1, millis), line("p99.9", 2, millis)],
  }));
}

const GROUP = 4; // buckets of one bar

function drawHistogram(total) {
  const used = [...total.buckets.keys()].filter((at) => total.buckets[at] > 0);
  const [low, high] = used.length ? [Math.floor((used[0] - 8) / GROUP), Math.ceil((used.at(-1) + 8) / GROUP)] : [16, 60];
  const [places, counts] = [[], []];
  for (let at = Math.max(0, low); at <= high; at++) {
    places.push(at * GROUP + GROUP / 2);
    counts.push(total.buckets.subarray(at * GROUP, (at + 1) * GROUP).reduce((sum, n) => sum + n, 0));
  }
  const decades = [0.001, 0.01, 0.1, 1, 10, 100, 1000, 10_000];
  const marks = [1, 3].flatMap((step) => decades.map((ms) => ms * step)).sort((a, b) => a - b);
  draw("chart-histogram", "", [places, counts], () => ({
    scales: { x: { time: false, range: (_, from, to) => [from - GROUP, to + GROUP] }, y: { range: (_, from, to) => [0, Math.max(1, to * 1.08)] } },
    axes: [
      axis({ size: 28, splits: (u) => marks.map(bucketOf).filter((at) => at >= u.scales.x.min && at <= u.scales.x.max), values: (_, at) => at.map((n) => `${Number(bucketEnd(n).toPrecision(2))}`), space: 10 }),
      axis({ size: 52, values: (_, all) => all.map(short) }),
    ],
    series: [
      { label: "ms up to", value: (_, at) => (known(at) ? millis(bucketEnd(at + GROUP / 2)) : unknown) },
      { label: "operations", fill: style("--c1"), width: 0, paths: uPlot.paths.bars({ size: [0.9, 60], align: 0 }), points: { show: false }, value: (_, n) => count(n) },
    ],
  }));
}

// ---- What is shown

function showTraffic() {
  const within = inWindow();
  const time = within.reduce((sum, second) => sum + points(second).time, 0);
  const [total, byOp, byShard, ops] = [new Latencies(), new Map(), new Map(), new Set()];
  const addTo = (map, key, latencies) => {
    if (!map.has(key)) map.set(key, new Latencies());
    map.get(key).add(latencies);
  };
  for (const [key, latencies] of sums) {
    const [op, shard] = key.split(" ");
    ops.add(op);
    if (latencies.count === 0) continue;
    if (isChosen(op, Number(shard))) total.add(latencies);
    if (chosen.shard === "" || chosen.shard === shard) addTo(byOp, op, latencies);
    if (chosen.op === "" ? !OPS_OF_CLUSTER.has(op) : chosen.op === op) addTo(byShard, shard, latencies);
  }
  options("op", [...ops].sort());
  options("shard", last.shards.map((_, number) => String(number)));
  const row = ([name, latencies]) => [name, rate(latencies.count / time), ...quantiles(latencies).map(millis)];
  showOps([...byOp].sort((a, b) => b[1].count - a[1].count).map(row));
  showShards([...byShard].sort((a, b) => a[0] - b[0]).map(row));
  drawTraffic();
  drawHistogram(total);
  const refused = {};
  for (const second of within) for (const shard of second.shards) for (const [code, n] of shard?.refused ?? []) refused[code] = (refused[code] ?? 0) + n;
  showRefused(Object.entries(refused).sort((a, b) => b[1] - a[1]).map(([code, n]) => [code, count(n)]));
  showTiles(total, refused);
}

function options(id, values) {
  const select = $(id);
  for (let at = select.options.length; at <= values.length; at++) select.add(new Option());
  values.forEach((value, at) => {
    const option = select.options[at + 1];
    if (option.value !== value) [option.value, option.text] = [value, value];
  });
  select.value = chosen[id];
}

function showTiles(total, refused) {
  const point = points(last);
  const shards = last.shards.filter(Boolean);
  const sum = (of) => shards.reduce((all, shard) => all + of(shard), 0);
  const tiles = [
    ["Now", rate(point.rate), "per second"],
    ...["p50", "p99", "p99.9"].map((name, at) => [`${name}, window`, millis(quantiles(total)[at]), "ms"]),
    ["Refused, window", count(Object.values(refused).reduce((all, n) => all + n, 0))],
    ["In flight", count(sum((shard) => shard.in_flight))],
    ["Connections", count(last.connections[0]), `clients, ${count(last.connections[1])} links`],
    ["Shards busy", percent(sum((shard) => shard.thread.busy) / (shards.length || 1)), `of ${last.shards.length}`],
  ];
  const list = $("tiles");
  while (list.children.length < tiles.length) {
    const tile = document.createElement("div");
    const value = document.createElement("dd");
    value.append(document.createElement("span"), document.createElement("small"));
    tile.append(document.createElement("dt"), value);
    list.append(tile);
  }
  tiles.forEach(([name, value, unit], at) => {
    const [term, shown] = list.children[at].children;
    setText(term, name);
    setText(shown.firstChild, value);
    setText(shown.lastChild, unit ? ` ${unit}` : "");
  });
}

const MARKS = { alive: ["●", "state-ok"], silent: ["◐", "state-warn"], draining: ["◐", "state-warn"], decommissioning: ["◐", "state-warn"], decommissioned: ["○", "state-warn"], dead: ["✕", "state-bad"], unreachable: ["▲", "state-bad"] };
const withMark = (state) => ({ text: `${MARKS[state]?.[0] ?? "?"} ${state}`, style: MARKS[state]?.[1] ?? "state-warn" });

// A node's state, with what keeps it from leading.
function stateOf(node) {
  const state = withMark(node.state);
  const words = [node.membership === "active" ? null : node.membership, node.slow_disk ? "slow disk" : null].filter(Boolean);
  return words.length === 0 ? state : { text: `${state.text}, ${words.join(", ")}`, style: "state-warn" };
}

// The address of another node's page; null if this browser cannot reach it.
function pageOf(node) {
  const isAtHome = (host) => host === "localhost" || host === "[::1]" || host.startsWith("127.");
  try {
    const url = new URL(`http://${node.http}/`);
    const isOpen = ["0.0.0.0", "[::]"].includes(url.hostname);
    if (isOpen) url.hostname = new URL(`http://${node.address}/`).hostname;
    return isAtHome(url.hostname) && !isAtHome(location.hostname) ? null : url.href;
  } catch {
    return null;
  }
}

function showNodeTable() {
  const nodes = view?.status?.nodes ?? [];
  setText($("nodes-count"), view?.status ? `${count(nodes.length)} in the cluster; node ${view.status.system_leader.node} manages it` : "");
  const rows = nodes.map((node) => {
    const isHere = node.id === last?.node;
    const page = isHere ? null : node.http && pageOf(node);
    const [free, all] = isHere && last.disk ? last.disk : [node.disk_free, node.disk_total];
    const disk = known(free) ? `${bytes(free)} of ${bytes(all)}` : unknown;
    const [kept, error] = isHere && last.clock ? last.clock : [node.clock_kept, node.clock_error_us];
    const time = typeof kept !== "boolean" ? unknown : kept ? { text: `● within ${millis(error / 1000)} ms`, style: "state-ok" } : { text: "▲ no time service", style: "state-warn" };
    const took = (micros) => known(micros) ? `${millis(micros / 1000)} ms` : unknown;
    return [
      `${node.id}${isHere ? " (this one)" : ""}`, stateOf(node), node.address,
      isHere ? "this page" : page ? { text: "open", href: page } : { text: node.http ? "not reachable from here" : "has none", style: "none" },
      node.version, count(node.shards), count(node.leaders), count(node.replicas),
      node.state === "dead" ? unknown : span(Math.max(0, (last.t - Number(node.started_ms)) / 1000)), took(node.p50_us), took(node.p99_us), disk, time,
    ];
  });
  showNodes(rows, view?.error ?? "not known yet");
}

function showHealth() {
  const section = $("health");
  const [words, reasons] = [[], []];
  let grade = "ok";
  if (view?.status) {
    const { health, ranges, under_replicated: under, unavailable: down } = view.status;
    grade = { ok: "ok", degraded: "warn", unavailable: "bad" }[health] ?? "warn";
    const mark = { ok: "✓", warn: "▲", bad: "✕" }[grade];
    const parts = [down && `${count(down)} serve nothing`, under && `${count(under)} have too few replicas`].filter(Boolean);
    words.push(`${mark} The cluster is ${health === "ok" ? "whole" : health}: ${parts.length ? `of ${count(ranges)} ranges ${parts.join(", ")}` : `all ${count(ranges)} ranges serve`}.`);
    for (const reason of view.status.reasons.slice(0, 5)) {
      const who = known(reason.range) ? `range ${reason.range}` : `node ${reason.nodes.join(", ")}`;
      reasons.push(`${who}: ${reason.reason}`);
    }
    if (view.reasons > reasons.length) reasons.push(`and ${count(view.reasons - reasons.length)} more`);
  } else grade = "warn";
  if (view?.error) reasons.push(`The cluster’s state is not known now: ${view.error}`);
  if (last && !last.ready) [grade, words[words.length]] = ["bad", `✕ This node does not serve: ${last.state}`];
  for (const [node, why] of Object.entries(last?.refused_by ?? {})) reasons.push(`node ${node} refuses this node: ${why}`);
  const silent = (last?.shards ?? []).flatMap((shard, number) => (shard ? [] : [number]));
  if (silent.length) reasons.push(`shards that did not answer: ${silent.join(", ")}`);
  for (const [name, what] of [["disk_full", "the disk is full, writes are refused"], ["stuck", "compactions fail, writes are refused"], ["starved", "files wait for descriptors or memory"]]) {
    if (last?.shards.some((shard) => shard?.tree[name])) [grade, reasons[reasons.length]] = ["bad", what];
  }
  section.className = grade;
  setText($("health-word"), words.join(" ") || "? The cluster’s state is not known yet.");
  setList($("reasons"), reasons);
}

// The table of ranges: `listed` holds those that the controls choose, in their order.
let [listed, pageAt] = [[], 0];

function listRanges() {
  const [find, show, sort] = [$("range-find").value.trim().toLowerCase(), $("range-show").value, $("range-sort").value];
  const node = /^node\s*=?\s*(\d+)$/.exec(find)?.[1];
  const matches = (range) => {
    if (!find) return true;
    if (node) return range.replicas.some((at) => at[0] === Number(node));
    return String(range.id) === find || range.start.toLowerCase().includes(find);
  };
  const shows = { "": () => true, bad: (r) => r.down || r.under || r.unwell, here: (r) => r.node === last?.node, moving: (r) => r.moving };
  listed = (view?.ranges ?? []).filter((range) => shows[show](range) && matches(range));
  const load = (range) => (last?.loads ? loadOf(range, last).reduce((a, b) => a + b) : 0);
  if (sort === "load") listed.sort((a, b) => load(b) - load(a));
  if (sort === "cpu") listed.sort((a, b) => b.cpu - a.cpu);
  if (sort === "size") listed.sort((a, b) => b.size - a.size);
  if (sort === "lag") listed.sort((a, b) => b.lag - a.lag);
  if (sort === "id") listed.sort((a, b) => a.id - b.id);
}

function showRangeTable() {
  const pages = Math.max(1, Math.ceil(listed.length / ROWS_OF_PAGE));
  pageAt = Math.max(0, Math.min(pageAt, pages - 1));
  const all = view?.ranges.length ?? 0;
  setText($("ranges-count"), view?.status ? `${count(all)} in the cluster${listed.length === all ? "" : `, ${count(listed.length)} shown`}` : "");
  setText($("page-at"), `page ${count(pageAt + 1)} of ${count(pages)}`);
  $("page-back").disabled = pageAt === 0;
  $("page-on").disabled = pageAt >= pages - 1;
  const rows = listed.slice(pageAt * ROWS_OF_PAGE, (pageAt + 1) * ROWS_OF_PAGE).map((range) => {
    const [reads, writes] = last?.loads ? loadOf(range, last) : [null, null];
    const places = range.replicas.map(([node, shard, votes = true, , state = "ok"]) => `${node}/${shard}${votes ? "" : " (new)"}${state === "ok" ? "" : ` (${state})`}`);
    const [mark, text] = range.down ? ["state-bad", "✕ unavailable"] : range.under ? ["state-warn", "▲ too few replicas"] : range.unwell ? ["state-warn", "▲ replica not well"] : range.splitting ? ["state-ok", "● splitting"] : ["state-ok", "● ok"];
    const start = range.system ? "(the cluster’s records)" : range.start === "" ? "(first)" : range.start;
    return [String(range.id), start, known(range.node) ? `${range.node}/${range.shard}` : { text: "nobody", style: "state-bad" }, places.join(", "), `${count(range.lag)}${range.blind ? ` (${range.blind} unknown)` : ""}`, bytes(range.size), rate(reads), rate(writes), percent(range.cpu / 1000), { text: text + (range.moving ? ", changing" : ""), style: mark }];
  });
  showRanges(rows, view?.status ? "no such range" : (view?.error ?? "not known yet"));
}

function showHotRanges() {
  const [users, recent] = [view?.users ?? [], columns.slice(-HOT_COLUMNS)];
  const busy = [];
  for (let at = 0; at < users.length; at++) {
    let [reads, writes] = [0, 0];
    for (const of of recent) {
      reads += of.reads[at];
      writes += of.writes[at];
    }
    if (reads + writes > 0) busy.push({ range: users[at], reads: reads / recent.length, writes: writes / recent.length });
  }
  busy.sort((a, b) => b.reads + b.writes - a.reads - a.writes);
  showHot(busy.slice(0, 10).map(({ range, reads, writes }) => [String(range.id), keyOf(range), known(range.node) ? `${range.node}/${range.shard}` : "nobody", rate(reads), rate(writes)]), "no load");
}

function showMemoryTable() {
  const budgets = new Map();
  let time = 0;
  for (const shard of last.shards) {
    time = Math.max(time, shard?.seconds ?? 0);
    for (const [name, ...numbers] of shard?.memory ?? []) {
      const sum = budgets.get(name) ?? [0, 0, 0, 0];
      budgets.set(name, sum.map((n, at) => n + numbers[at]));
    }
  }
  const row = (name, [used, bound, hits, misses]) => [
    name.replaceAll("_", " "), bytes(used), bytes(bound), { text: percent(used / bound), share: used / bound },
    time > 0 && hits + misses > 0 ? rate((hits + misses) / time) : unknown, hits + misses > 0 ? percent(hits / (hits + misses)) : unknown,
  ];
  const total = [...budgets.values()].reduce((sum, one) => [sum[0] + one[0], sum[1] + one[1], 0, 0], [0, 0, 0, 0]);
  showMemory([...[...budgets].map(([name, numbers]) => row(name, numbers)), row("all together", total)]);
}

const perSecond = (of, as = rate) => [(shard) => (shard.seconds > 0 ? of(shard) / shard.seconds : null), as];
const STORAGE = [
  ["Log: durable writes/s", ...perSecond((s) => s.wal.writes)],
  ["Log: records/s", ...perSecond((s) => s.wal.records)],
  ["Log: bytes/s", ...perSecond((s) => s.wal.bytes, bytes)],
  ["Log: durable write p50, ms", (s) => walQuantile(s, 0.5), millis, "max"],
  ["Log: durable write p99, ms", (s) => walQuantile(s, 0.99), millis, "max"],
  ["Log: waits for a write", (s) => s.wal.pending_bytes, bytes],
  ["Log: segments in use", (s) => s.wal.segments, count],
  ["Log: entries not purged", (s) => s.wal.live_bytes, bytes],
  ["Log: kept for snapshots", (s) => s.wal.pinned_bytes, bytes],
  ["Log: a start would apply again", (s) => s.wal.replay_bytes, bytes],
  ["Tree: tables", (s) => s.tree.tables, count],
  ["Tree: bytes of tables", (s) => s.tree.bytes, bytes],
  ["Tree: runs in level 0", (s) => s.tree.level0_runs, count, "max"],
  ["Tree: memtables that wait for a flush", (s) => s.tree.frozen, count],
  ["Tree: flushes since the start", (s) => s.tree.flushes, count],
  ["Tree: compactions since the start", (s) => s.tree.compactions, count],
  ["Tree: reads that waited for the disk/s", ...perSecond((s) => s.tree.cold_reads)],
  ["Tree: behind its writers", (s) => s.tree.pressure, percent, "max"],
];

function walQuantile(shard, part) {
  const latencies = new Latencies();
  latencies.change(shard.wal.latency, 1);
  return latencies.quantile(part);
}

function showStorageTable() {
  const shards = last.shards;
  if (!showStorage || showStorage.shards !== shards.length) {
    $("storage-table").replaceChildren();
    const heads = shards.map((_, number) => [`Shard ${number}`, "n"]);
    showStorage = table("storage-table", [["What"], ["All", "n"], ...heads]);
    showStorage.shards = shards.length;
  }
  showStorage(STORAGE.map(([name, of, as, all]) => {
    const values = shards.map((shard) => (shard ? of(shard) : null));
    const there = values.filter(known);
    const sum = there.length === 0 ? null : all === "max" ? Math.max(...there) : there.reduce((a, b) => a + b, 0);
    return [name, all === "max" && there.length > 1 ? `max ${as(sum)}` : as(sum), ...values.map(as)];
  }));
}

function showThreadTables() {
  showThreads(last.shards.map((shard, number) => {
    if (!shard) return [String(number), { text: "✕ does not answer", style: "state-bad" }, "", "", "", "", "", ""];
    const { thread, ranges } = shard;
    return [String(number), percent(thread.busy), `${millis(thread.stall_longest_ms)} ms`, count(shard.in_flight), count(ranges.waiting), count(ranges.in_flight), count(ranges.held), count(ranges.led)];
  }));
  const stalls = new Map();
  for (const second of inWindow()) {
    second.shards.forEach((shard, number) => {
      for (const [task, more, all] of shard?.thread.stalls ?? []) {
        const key = `${number} ${task}`;
        stalls.set(key, { task, number, all, more: (stalls.get(key)?.more ?? 0) + more });
      }
    });
  }
  const rows = [...stalls.values()].sort((a, b) => b.more - a.more || b.all - a.all).slice(0, 20);
  showStalls(rows.map(({ task, number, more, all }) => [task, String(number), count(more), count(all)]));
}

// States of a replica that are those of its node.
const ABSENT = new Set(["silent", "dead", "unreachable"]);

function showReplication() {
  const [changes, absent, ranges] = [[], new Map(), view?.ranges ?? []];
  let [followers, blind, worst] = [0, 0, null];
  for (const range of ranges) {
    followers += range.replicas.length - (known(range.node) ? 1 : 0);
    blind += range.blind;
    if (range.lag > (worst?.lag ?? 0)) worst = range;
    if (!range.moving && !range.unwell) continue;
    for (const [node, shard, votes = true, lag = 0, state = "ok"] of range.replicas) {
      if (votes && ABSENT.has(state)) absent.set(`${node} ${state}`, (absent.get(`${node} ${state}`) ?? 0) + 1);
      else if (!votes) changes.push([String(range.id), `node ${node}`, String(shard), `◐ being added${state === "ok" ? "" : `, ${state}`}`, count(lag)]);
      else if (state !== "ok") changes.push([String(range.id), `node ${node}`, String(shard), `▲ ${state}`, count(lag)]);
    }
  }
  const most = worst ? `the one furthest behind lacks ${count(worst.lag)} entries, of range ${worst.id}` : "none is known to lack an entry";
  const unknowns = blind > 0 ? `; of ${count(blind)} nobody knows` : "";
  setText($("lag"), !view?.status ? "" : followers === 0 ? "No range has more than one replica." : `Of ${count(followers)} replicas that follow, ${most}${unknowns}.`);
  const more = changes.length > CHANGES_SHOWN ? [["", "", "", `and ${count(changes.length - CHANGES_SHOWN)} more`, ""]] : [];
  const ofNodes = [...absent].map(([key, replicas]) => {
    const [node, state] = key.split(" ");
    return [`${count(replicas)} ranges`, `node ${node}`, "", `▲ ${state}, as their node is`, ""];
  });
  showChanges([...ofNodes, ...changes.slice(0, CHANGES_SHOWN), ...more], view?.status ? "none" : "not known yet");
}

function showEventTable() {
  const told = (history?.events ?? []).map((event) => ({ ...event, t: timeOf(event.t) }));
  const all = [...seen.map((event) => ({ ...event, kind: `${event.kind}, seen by this page` })), ...told];
  all.sort((a, b) => b.t - a.t);
  const rows = all.slice(0, EVENTS_SHOWN).map(({ t, node, kind, text }) => [known(t) ? clock.format(t) : unknown, String(node ?? ""), String(kind), String(text)]);
  showEvents(rows, history ? "none" : "none since this page was opened");
}

// A time in milliseconds, from a number, digits or a date.
function timeOf(t) {
  const number = Number(t);
  if (!Number.isFinite(number)) return Date.parse(t);
  return number < 1e11 ? number * 1000 : number;
}

function showMissing() {
  const missing = (history?.missing_nodes ?? []).map(({ node, address, reason }) => `▲ node ${node} at ${address} has not told its history: ${reason}`);
  const rest = missing.splice(MISSING_SHOWN).length;
  if (rest > 0) missing.push(`▲ and ${count(rest)} more`);
  if (history?.nodes_unknown) missing.push(`▲ the other nodes are missing, since the list of nodes cannot be read: ${history.nodes_unknown}`);
  if (historyRefused) missing.push(`▲ the history is not told now: ${historyRefused}`);
  setList($("history-missing"), missing);
}

function nodesTold({ nodes, missing_nodes: missing, nodes_unknown: why }) {
  if (why || nodes.length + missing.length === 1) return `node ${nodes[0]}`;
  return missing.length > 0 ? `${count(nodes.length)} of ${count(nodes.length + missing.length)} nodes` : `all ${count(nodes.length)} nodes`;
}

function showHistory() {
  showMissing();
  const minutes = (history?.minutes ?? []).map((minute) => ({ ...minute, t: timeOf(minute.t) / 1000 })).sort((a, b) => a.t - b.t);
  $("history-charts").hidden = minutes.length === 0;
  if (!history) return void (historyRefused && setText($("history-note"), "No history is known yet."));
  const errors = minutes.reduce((sum, minute) => sum + Number(minute.errors), 0);
  setText($("history-note"), `${count(minutes.length)} minutes of ${nodesTold(history)}; ${count(errors)} requests were refused in them.`);
  if (minutes.length === 0) return;
  const times = minutes.map((minute) => minute.t);
  const dayAxis = () => axis({ size: 28, space: 60, values: (_, all) => all.map((t) => timeOfDay.format(t * 1000).slice(0, 5)) });
  const when = { label: "time", value: (_, t) => (known(t) ? clock.format(t * 1000) : unknown) };
  draw("chart-day-ops", "", [times, minutes.map((minute) => Number(minute.ops) / 60)], () => ({
    scales: { y: { range: (_, low, high) => [0, Math.max(1, high * 1.08)] } },
    axes: [dayAxis(), axis({ size: 52, values: (_, all) => all.map(short) })],
    series: [when, line("operations", 0, rate)],
  }));
  const lines = ["p50_us", "p99_us", "p999_us"].map((name) => minutes.map((minute) => (Number(minute[name]) > 0 ? Number(minute[name]) / 1000 : null)));
  draw("chart-day-latency", "", [times, ...lines], () => ({
    scales: { y: logScale },
    axes: [dayAxis(), msAxis()],
    series: [when, line("p50", 0, millis), line("p99", 1, millis), line("p99.9", 2, millis)],
  }));
}

function showHeader() {
  const shard = last.shards.length === 1 ? "1 shard" : `${last.shards.length} shards`;
  setText($("title"), `node ${last.node}`);
  setText($("facts"), `version ${last.version} · ${shard} · up for ${span(last.uptime_s)} · cluster ${last.cluster}`);
  setText($("traffic-of"), `of node ${last.node}`);
  const title = `${view?.status && view.status.health !== "ok" ? "▲ " : ""}node ${last.node} – RangeDB`;
  if (document.title !== title) document.title = title;
}

// ---- One update, timed for those who test this page

const worst = { ms: 0, updates: 0 };

// Takes what has come, and shows it.
function take(what, isView) {
  const begun = performance.now();
  what();
  if (!last || document.hidden) return;
  update(isView);
  const ms = performance.now() - begun;
  worst.updates += 1;
  // The first ones compile the script and make the charts.
  if (worst.updates > 3) worst.ms = Math.max(worst.ms, ms);
  Object.assign($("main").dataset, { updates: worst.updates, lastMs: ms.toFixed(1), worstMs: worst.ms.toFixed(1) });
}

function update(isView) {
  if (!last || document.hidden) return;
  showHeader();
  showHealth();
  showTraffic();
  showMemoryTable();
  showStorageTable();
  showThreadTables();
  if (isView) {
    showReplication();
    listRanges();
  }
  showNodeTable();
  showRangeTable();
  if (heat.isOld) {
    heat.isOld = false;
    drawHeat();
    showHotRanges();
  }
  showEventTable();
}

// ---- The stream

let [heardAt, source] = [0, null];

function setLive(isLive, text) {
  const element = $("live");
  element.className = isLive ? "on" : "off";
  setText(element, text);
}

function connect() {
  source = new EventSource("api/v1/stream");
  source.addEventListener("second", (event) => {
    heardAt = performance.now();
    setLive(true, "● live");
    take(() => onSecond(JSON.parse(event.data)), worst.updates === 0);
  });
  source.addEventListener("view", (event) => {
    take(() => onView(JSON.parse(event.data)), true);
  });
  source.onerror = () => {
    setLive(false, "○ no connection, trying again");
    if (source.readyState === EventSource.CLOSED) refused();
  };
}

// The node does not serve the stream: it says why, and the page tries again.
async function refused() {
  setTimeout(connect, 5000);
  try {
    const answer = await fetch("readyz");
    const why = (await answer.text()).trim();
    setLive(false, answer.ok ? "○ too many pages are open on this node, trying again" : `○ ${why}, trying again`);
  } catch {
    setLive(false, "○ the node does not answer, trying again");
  }
}

class Refusal extends Error {}

// The history of all nodes from a time on, or all of it.
async function historyFrom(from) {
  const answer = await fetch(`api/v1/history/all${from === null ? "" : `?from=${from}`}`);
  const told = await answer.json();
  if (!answer.ok) throw new Refusal(told.message);
  return told;
}

// What was known, up to what was told since.
function joined(known, told, from) {
  const [first, ended] = [Date.now() - DAY, (row) => timeOf(row.t) < from];
  const minutes = [...known.minutes.filter(ended), ...told.minutes].filter((minute) => timeOf(minute.t) >= first);
  const events = [...known.events.filter(ended), ...told.events].slice(-EVENTS_KEPT);
  return { ...told, minutes, events };
}

async function loadHistory() {
  try {
    const newest = history?.minutes.at(-1);
    const from = newest ? timeOf(newest.t) - HISTORY_OVERLAP : null;
    const told = await historyFrom(from);
    // The minutes that are known are sums of other nodes if another one has told its history.
    const isOfOthers = from !== null && String(told.nodes) !== String(history.nodes);
    if (isOfOthers) history = await historyFrom(null);
    else history = from === null ? told : joined(history, told, from);
    historyRefused = "";
  } catch (error) {
    // The stream tells that there is no connection.
    if (!(error instanceof Refusal)) return;
    historyRefused = error.message;
  }
  showHistory();
  showEventTable();
}

function redraw() {
  for (const { chart } of charts.values()) chart.destroy();
  charts.clear();
  heat.isOld = true;
  update(true);
  showHistory();
}

function listen() {
  for (const id of ["op", "shard", "window"]) {
    $(id).addEventListener("change", () => {
      chosen[id] = id === "window" ? Number($(id).value) : $(id).value;
      if (last) slide();
      update(false);
    });
  }
  for (const id of ["range-find", "range-show", "range-sort"]) {
    $(id).addEventListener("input", () => {
      pageAt = 0;
      listRanges();
      showRangeTable();
    });
  }
  for (const [id, step] of [["page-back", -1], ["page-on", 1]]) {
    $(id).addEventListener("click", () => {
      pageAt += step;
      showRangeTable();
    });
  }
  $("heat-of").addEventListener("change", drawHeat);
  const canvas = $("heat");
  canvas.addEventListener("pointermove", (event) => {
    moveCursor(Math.floor((event.offsetX / canvas.clientWidth) * COLUMNS), Math.floor((event.offsetY / canvas.clientHeight) * (heat.stripes?.length ?? 1)));
  });
  canvas.addEventListener("pointerleave", () => {
    heat.cursor = null;
    if (heat.stripes && columns.length) paintHeat();
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step || !heat.stripes) return;
    event.preventDefault();
    const at = heat.cursor ?? { x: COLUMNS, y: 0 };
    moveCursor(at.x + step[0], at.y + step[1]);
  });
  media("(prefers-color-scheme: dark)", redraw);
  document.addEventListener("visibilitychange", () => update(true));
  const sized = new ResizeObserver((entries) => {
    for (const { target } of entries) charts.get(target.id)?.chart.setSize({ width: target.clientWidth, height: target.clientHeight - 30 });
  });
  document.querySelectorAll(".chart").forEach((host) => sized.observe(host));
  setInterval(() => {
    if (heardAt > 0 && performance.now() - heardAt > SILENT_MS && source.readyState === EventSource.OPEN) setLive(false, "○ connected, but the node is silent");
  }, 1000);
}

listen();
connect();
loadHistory();
setInterval(loadHistory, HISTORY_INTERVAL);
