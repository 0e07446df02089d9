// The agent's page: tables and live charts out of its REST API. It keeps nothing but a token, in its tab.
// What is exported is tested by page_test.mjs; in a browser, `start` runs at the end.

const POLL_MS = 1000;
const POLL_LOST_MS_MAX = 5000;
// Lists change less often than figures, and are longer.
const LISTS_EVERY_MS = 2000;
// A longer pause between two samples is drawn as a gap: the tab slept.
const GAP_MS = 4000;
// Percentiles are those of the starts of so long: with fewer starts they jump.
const LATENCY_WINDOW_MS = 10_000;
const HISTORY_MS = 15 * 60_000;
const ROWS_AT_FIRST = 200;
const READ_TIME_MAX_MS = 8000;
// A machine has 10 seconds to end by itself.
const ACT_TIME_MAX_MS = 45_000;
const TOKEN_KEY = "lightv-token";

// ---- Numbers as people read them --------------------------------------------------------------------------------------

const round = (value, digits) => value.toFixed(digits).replace(/\.?0+$/, (zeros) => (zeros.includes(".") ? "" : zeros));

/** Three digits at most, then the unit: `1.24 ms`. */
function scaled(value, units, step) {
  let index = 0;
  let rest = value;
  while (index < units.length - 1 && rest >= step * 0.9995) {
    rest /= step;
    index += 1;
  }
  const digits = rest >= 100 || index === 0 && Number.isInteger(rest) ? 0 : rest >= 10 ? 1 : 2;
  return `${round(rest, digits)} ${units[index]}`.trim();
}

export const formatMicros = (us) => (us == null ? "–" : scaled(us, ["µs", "ms", "s"], 1000));
export const formatBytes = (bytes) => (bytes == null ? "–" : scaled(bytes, ["B", "KiB", "MiB", "GiB", "TiB"], 1024));
export const formatRate = (value) => (value == null ? "–" : value >= 100 ? round(value, 0) : round(value, 1));
export const formatPercent = (value) => (value == null ? "–" : `${round(value, value >= 10 ? 0 : 1)} %`);
export const formatCount = (value) => (value == null ? "–" : String(value).replace(/\B(?=(\d{3})+$)/g, " "));

export function formatAge(ms) {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  const [minutes, hours, days] = [60, 3600, 86_400].map((unit) => Math.floor(seconds / unit));
  if (days > 0) return `${days} d ${hours % 24} h`;
  if (hours > 0) return `${hours} h ${minutes % 60} min`;
  return minutes > 0 ? `${minutes} min ${seconds % 60} s` : `${seconds} s`;
}
const formatSpan = (ms) => formatAge(ms).replace(/ 0 s$/, "");

/** Ends of a scale that begins at 0, and two or three round places between. */
export function ticks(max, unitSteps = [1, 2, 2.5, 5, 10]) {
  if (!(max > 0)) return [0, 1];
  const rough = max / 3;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * unitSteps.find((factor) => factor * power >= rough * 0.999);
  return Array.from({ length: Math.ceil(max / step - 0.001) + 1 }, (_, index) => index * step);
}

/** The same for bytes, whose round numbers are powers of two. */
export function byteTicks(max) {
  const unit = 1024 ** Math.max(0, Math.floor(Math.log(Math.max(max, 1)) / Math.log(1024)));
  return ticks(max / unit, [1, 2, 4, 5, 10]).map((tick) => tick * unit);
}

/** Ends of a logarithmic scale, and the powers of ten between. */
export function powers(values) {
  const exponent = (value, edge) => edge(Math.log10(Math.max(value, 1)) + 1e-9 * (edge === Math.ceil ? -1 : 1));
  const low = values.length ? exponent(Math.min(...values), Math.floor) : 2;
  const high = values.length ? exponent(Math.max(...values), Math.ceil) : 3;
  return Array.from({ length: Math.max(high, low + 1) - low + 1 }, (_, index) => 10 ** (low + index));
}

// ---- From what the agent counts to what is drawn -----------------------------------------------------------------------

/**
 * The value below which the share `q` of all lies: `counts[i]` of them are at most `bounds[i]`, the last ones above all
 * bounds. Between two bounds they are taken to be spread evenly. `null` when there are none.
 */
export function quantile(bounds, counts, q) {
  const all = counts.reduce((sum, count) => sum + count, 0);
  if (all === 0) return null;
  let below = 0;
  for (const [index, count] of counts.entries()) {
    if (count > 0 && below + count >= q * all) {
      const low = index === 0 ? 0 : bounds[index - 1];
      // Above all bounds nothing more is known than that.
      const high = index < bounds.length ? bounds[index] : low;
      return low + (high - low) * Math.max(0, (q * all - below) / count);
    }
    below += count;
  }
  return bounds.at(-1);
}

const started = (stats) => stats.starts.warm + stats.starts.cold;

/** What `GET /stats` has told so far, and the figures between two answers. */
export class History {
  #stats = [];
  samples = [];

  /** Takes an answer. That of another process, whose counters begin anew, is the first one again. */
  add(stats) {
    const now = stats.now_unix_ms;
    const last = this.#stats.at(-1);
    const before = last?.started_unix_ms === stats.started_unix_ms ? last : null;
    const kept = before ? this.#stats.filter((old) => now - old.now_unix_ms <= LATENCY_WINDOW_MS) : [];
    this.#stats = [...kept, stats];
    this.samples = this.samples.filter((old) => now - old.at <= HISTORY_MS);
    this.samples.push(this.#sample(stats, before));
  }

  #sample(now, before) {
    const ms = before ? now.now_unix_ms - before.now_unix_ms : 0;
    const isNext = ms > 0 && ms <= GAP_MS;
    const counts = now.start_times.counts.map((count, index) => count - this.#stats[0].start_times.counts[index]);
    // Both times are in steps: a little more than all is all.
    const share = (cpuMs) => (isNext ? Math.min(100, (100 * cpuMs) / ms / now.host.cpus) : null);
    return {
      at: now.now_unix_ms,
      hasGap: this.samples.length > 0 && !isNext,
      starts: isNext ? ((started(now) - started(before)) * 1000) / ms : null,
      failures: isNext ? ((now.starts.failed - before.starts.failed) * 1000) / ms : null,
      p50: quantile(now.start_times.bounds_us, counts, 0.5),
      p99: quantile(now.start_times.bounds_us, counts, 0.99),
      memoryUsed: now.host.memory_bytes - now.host.memory_available_bytes,
      memoryMachines: now.usage.reduce((sum, machine) => sum + machine.memory_bytes, 0),
      cpuHost: share(now.host.cpu_busy_ms - before?.host.cpu_busy_ms),
      cpuMachines: share(grown(now.usage, before?.usage ?? [])),
      cpuOf: isNext ? shares(now.usage, before.usage, ms) : new Map(),
    };
  }
}

/** Processor time that machines took between two answers; of those that are new, all. */
function grown(usage, before) {
  const known = new Map(before.map((machine) => [machine.id, machine.cpu_ms]));
  return usage.reduce((sum, machine) => sum + Math.max(0, machine.cpu_ms - (known.get(machine.id) ?? 0)), 0);
}

/** Per cent of one CPU, by machine. */
function shares(usage, before, ms) {
  const known = new Map(before.map((machine) => [machine.id, machine.cpu_ms]));
  const old = usage.filter((machine) => known.has(machine.id));
  return new Map(old.map((machine) => [machine.id, (100 * Math.max(0, machine.cpu_ms - known.get(machine.id))) / ms]));
}

// ---- Which machines are shown, and in which order ----------------------------------------------------------------------

export const STATES = {
  all: () => true,
  running: (machine) => machine.state === "running" || machine.state === "starting",
  paused: (machine) => machine.state === "paused",
  ended: (machine) => machine.state === "ended",
};

/** Every word has to be in the name, id, image, digest, or in a label. */
export function matches(machine, text) {
  const labels = Object.entries(machine.labels ?? {}).map(([key, value]) => `${key}=${value}`);
  const hay = [machine.name ?? "", machine.id, machine.image, machine.digest ?? "", ...labels].join("\n").toLowerCase();
  return text.toLowerCase().split(/\s+/).every((word) => hay.includes(word));
}

/** What a column is sorted by; nothing known comes last. */
export const SORTS = {
  state: (machine) => ["running", "starting", "paused", "ended"].indexOf(machine.state),
  name: (machine) => machine.name ?? machine.id,
  image: (machine) => machine.image,
  start: (machine) => machine.start_us,
  cpu: (machine) => machine.cpu,
  memory: (machine) => machine.memory,
  age: (machine) => -machine.created_unix_ms,
};

export function sorted(machines, { by, isDown }) {
  const key = SORTS[by];
  const compare = (a, b) => {
    const [left, right] = [key(a), key(b)];
    if (left == null || right == null) return (left == null) - (right == null);
    const order = typeof left === "string" ? left.localeCompare(right, "en", { numeric: true }) : left - right;
    return isDown ? -order : order;
  };
  // The newest first, where nothing else is said.
  return [...machines].sort((a, b) => compare(a, b) || b.created_unix_ms - a.created_unix_ms || (a.id < b.id ? -1 : 1));
}

export const isAlive = (machine) => machine.state !== "ended";
export const hasFailed = (machine) => !isAlive(machine) && machine.exit_code !== 0;

// ---- The document ------------------------------------------------------------------------------------------------------

const SVG = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);

function make(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  // Texts become text nodes: whatever a name has in it, it is not markup.
  node.append(...children.filter((child) => child != null && child !== false));
  return node;
}
const h = (tag, attributes = {}, ...children) => make(document.createElement(tag), attributes, children);
const s = (tag, attributes = {}, ...children) => make(document.createElementNS(SVG, tag), attributes, children);

/** Sets what has changed alone, so that a selection survives. */
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// ---- Charts ------------------------------------------------------------------------------------------------------------

const PLOT = { left: 46, right: 4, top: 8, bottom: 18 };

class Chart {
  constructor({ title, series, format, marks = (values) => ticks(Math.max(0, ...values)), isLog = false }, hover) {
    Object.assign(this, { series, format, marks, isLog });
    this.values = series.map(() => h("b"));
    this.when = h("span", { class: "when" });
    const legend = series.map(({ name }, index) => h("span", { class: `s${index}` }, h("i"), name, this.values[index]));
    this.svg = s("svg", { role: "img", "aria-label": title });
    this.empty = h("div", { class: "empty", hidden: true }, "Nothing in this time");
    this.plot = h("div", { class: "plot" }, this.svg, this.empty);
    this.plot.addEventListener("pointermove", (event) => hover(this.#timeAt(event)));
    this.plot.addEventListener("pointerleave", () => hover(null));
    this.root = h(
      "article", { class: "chart" },
      h("div", { class: "top" }, h("h2", {}, title), h("span", { class: "legend" }, ...legend), this.when),
      this.plot,
    );
  }

  #timeAt(event) {
    const box = this.plot.getBoundingClientRect();
    const share = (event.clientX - box.left - PLOT.left) / (box.width - PLOT.left - PLOT.right);
    return this.from + Math.min(1, Math.max(0, share)) * (this.to - this.from);
  }

  draw(samples, { from, to, hovered }) {
    Object.assign(this, { from, to });
    const shown = samples.filter((sample) => sample.at >= from && sample.at <= to);
    const [width, height] = [this.plot.clientWidth || 600, this.plot.clientHeight || 150];
    const values = shown.flatMap((sample) => this.series.map(({ of }) => of(sample))).filter((value) => value != null);
    const marks = this.marks(values);
    const bottom = height - PLOT.bottom;
    const place = (value) => (this.isLog ? Math.log(Math.max(value, 1e-9)) : value);
    const [least, most] = [place(marks[0]), place(marks.at(-1))];
    const x = (at) => PLOT.left + ((at - from) / (to - from)) * (width - PLOT.left - PLOT.right);
    const y = (value) => bottom - ((place(value) - least) / (most - least)) * (bottom - PLOT.top);
    const nodes = marks.flatMap((mark) => [
      s("line", { class: "grid", x1: PLOT.left, x2: width - PLOT.right, y1: y(mark), y2: y(mark) }),
      s("text", { class: "axis", x: PLOT.left - 7, y: y(mark) + 4, "text-anchor": "end" }, this.format(mark)),
    ]);
    for (const [text, at, anchor] of [
      [`${formatSpan(to - from)} ago`, from, "start"], [`${formatSpan((to - from) / 2)} ago`, (from + to) / 2, "middle"], ["now", to, "end"],
    ]) nodes.push(s("text", { class: "axis", x: x(at), y: height - 3, "text-anchor": anchor }, text));
    const nearest = hovered == null ? null : shown.reduce((best, sample) => (
      best && Math.abs(best.at - hovered) <= Math.abs(sample.at - hovered) ? best : sample), null);
    if (nearest) nodes.push(s("line", { class: "cursor", x1: x(nearest.at), x2: x(nearest.at), y1: PLOT.top, y2: bottom }));
    for (const [index, { of }] of this.series.entries()) nodes.push(...curves(shown, of, { index, x, y, bottom }));
    if (nearest) {
      for (const [index, { of }] of this.series.entries()) {
        if (of(nearest) != null) nodes.push(s("circle", { class: `dot s${index}`, cx: x(nearest.at), cy: y(of(nearest)), r: 3 }));
      }
    }
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.replaceChildren(...nodes);
    this.empty.hidden = values.length > 0;
    const told = nearest ?? shown.at(-1);
    for (const [index, { of }] of this.series.entries()) setText(this.values[index], told ? this.format(of(told)) : "–");
    setText(this.when, nearest ? `${formatAge(to - nearest.at)} ago` : "");
  }
}

/** One path for each stretch without a gap; what stands alone is a dot. */
function curves(samples, of, { index, x, y, bottom }) {
  const stretches = [[]];
  for (const sample of samples) {
    const value = of(sample);
    if (value == null || sample.hasGap) stretches.push([]);
    if (value != null) stretches.at(-1).push([x(sample.at), y(value)]);
  }
  return stretches.filter((points) => points.length > 0).flatMap((points) => {
    if (points.length === 1) return [s("circle", { class: `dot s${index}`, cx: points[0][0], cy: points[0][1], r: 2 })];
    const path = points.map((point) => point.map((value) => value.toFixed(1)).join(" ")).join("L");
    const [first, last] = [points[0][0].toFixed(1), points.at(-1)[0].toFixed(1)];
    const area = s("path", { class: "area", d: `M${path}L${last} ${bottom}L${first} ${bottom}Z` });
    const curve = s("path", { class: `curve s${index}`, d: `M${path}` });
    return index === 0 ? [area, curve] : [curve];
  });
}

// ---- Tables ------------------------------------------------------------------------------------------------------------

/** Rows stay the same elements as long as their keys do: a button keeps its focus, a text its selection. */
class Table {
  #rows = new Map();

  /** `columns`: title, and optionally `sort` (a name of SORTS), `kind` (a class), `cell` (makes what `update` changes). */
  constructor(table, columns, onSort) {
    this.columns = columns;
    this.heads = columns.map(({ title, sort, kind }) => h(
      "th", { class: kind, scope: "col" }, sort ? h("button", { type: "button", onclick: () => onSort(sort) }, title) : title,
    ));
    this.body = h("tbody");
    table.replaceChildren(h("thead", {}, h("tr", {}, ...this.heads)), this.body);
  }

  show(items, { key, none, order }) {
    for (const [index, { sort }] of this.columns.entries()) {
      const direction = order && sort === order.by ? (order.isDown ? "descending" : "ascending") : null;
      if (direction) this.heads[index].setAttribute("aria-sort", direction);
      else this.heads[index].removeAttribute("aria-sort");
    }
    const rows = new Map();
    for (const item of items) {
      const row = this.#rows.get(key(item)) ?? this.#make();
      for (const [index, { fill }] of this.columns.entries()) fill(row.cells[index], item, row);
      rows.set(key(item), row);
    }
    this.#rows = rows;
    const wanted = [...rows.values()].map((row) => row.root);
    if (wanted.length === 0) wanted.push(h("tr", { class: "none" }, h("td", { colspan: this.columns.length }, none)));
    const found = [...this.body.children];
    if (found.length !== wanted.length || wanted.some((row, index) => row !== found[index])) this.body.replaceChildren(...wanted);
  }

  #make() {
    const cells = this.columns.map(({ kind }) => h("td", { class: kind }));
    return { cells, root: h("tr", {}, ...cells), memory: {} };
  }
}

/** A column of plain text. */
const plain = (title, of, more = {}) => ({ title, ...more, fill: (cell, item) => setText(cell, of(item)) });
/** A column of more than text, made anew when `of` has changed. */
const rich = (title, of, build, more = {}) => ({
  title, ...more,
  fill: (cell, item, row) => {
    const state = JSON.stringify(of(item));
    if (row.memory[title] !== state) cell.replaceChildren(...build(item).filter(Boolean));
    row.memory[title] = state;
  },
});
const mono = (text) => h("span", { class: "mono", title: text }, text.replace(/^sha256:([0-9a-f]{12})[0-9a-f]+$/, "$1"));

// ---- The page ----------------------------------------------------------------------------------------------------------

const RANGES = { "1 min": 60_000, "5 min": 300_000, "15 min": HISTORY_MS };

class Page {
  history = new History();
  lists = { sandboxes: [], pools: [], images: [] };
  view = { state: "all", text: "", order: { by: "state", isDown: false }, rows: ROWS_AT_FIRST, range: RANGES["5 min"], hovered: null };

  constructor(api) {
    this.api = api;
    this.charts = this.#charts();
    byId("charts").replaceChildren(...this.charts.map((chart) => chart.root));
    this.tiles = new Tiles(byId("tiles"));
    this.machines = new Table(byId("machines"), this.#machineColumns(), (by) => this.#sort(by));
    this.pools = new Table(byId("pools"), poolColumns());
    this.images = new Table(byId("images"), imageColumns());
    this.#choices("ranges", Object.keys(RANGES), "5 min", (name) => { this.view.range = RANGES[name]; this.drawCharts(); });
    this.#choices("states", ["All", "Running", "Paused", "Ended"], "All", (name) => {
      this.view.state = name.toLowerCase();
      this.drawMachines();
    });
    byId("filter").addEventListener("input", (event) => { this.view.text = event.target.value.trim(); this.drawMachines(); });
    byId("show-more").addEventListener("click", () => { this.view.rows *= 5; this.drawMachines(); });
    this.question = new Question();
  }

  #choices(id, names, first, choose) {
    const buttons = names.map((name) => h("button", { type: "button", "aria-pressed": String(name === first) }, name));
    for (const [index, button] of buttons.entries()) {
      button.addEventListener("click", () => {
        for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
        choose(names[index]);
      });
    }
    byId(id).replaceChildren(...buttons);
  }

  #charts() {
    const hover = (at) => { this.view.hovered = at; this.drawCharts(); };
    const rate = (value) => (value == null ? "–" : `${formatRate(value)}/s`);
    return [
      { title: "Starts", format: rate, series: [{ name: "started", of: (at) => at.starts }, { name: "failed", of: (at) => at.failures }] },
      { title: "Time of a start", format: formatMicros, marks: powers, isLog: true, series: [{ name: "p50", of: (at) => at.p50 }, { name: "p99", of: (at) => at.p99 }] },
      { title: "Memory", format: formatBytes, marks: (values) => byteTicks(Math.max(0, ...values)), series: [{ name: "machines' own", of: (at) => at.memoryMachines }, { name: "host in use", of: (at) => at.memoryUsed }] },
      { title: "CPU", format: formatPercent, marks: () => ticks(100), series: [{ name: "machines", of: (at) => at.cpuMachines }, { name: "host", of: (at) => at.cpuHost }] },
    ].map((chart) => new Chart(chart, hover));
  }

  #sort(by) {
    const { order } = this.view;
    this.view.order = { by, isDown: order.by === by ? !order.isDown : ["cpu", "memory", "start"].includes(by) };
    this.drawMachines();
  }

  #machineColumns() {
    return [
      rich("State", (vm) => [vm.state, vm.exit_code, vm.end_reason], (vm) => [
        h("span", { class: `state ${hasFailed(vm) ? "failed" : vm.state}`, title: vm.end_reason },
          vm.state === "ended" ? (vm.exit_code == null ? "ended" : `ended: ${vm.exit_code}`) : vm.state),
      ], { sort: "state" }),
      rich("Name", (vm) => [vm.name, vm.id], (vm) => [
        h("span", { class: "name-cell" }, h("b", {}, vm.name || vm.id), vm.name && vm.name !== vm.id ? mono(vm.id) : null),
      ], { sort: "name", kind: "wide" }),
      plain("Image", (vm) => vm.image, { sort: "image", kind: "wide" }),
      rich("Started in", (vm) => [vm.start_us, vm.warm], (vm) => [
        formatMicros(vm.start_us), vm.start_us != null && h("span", { class: `tag${vm.warm ? " warm" : ""}` }, vm.warm ? "warm" : "cold"),
      ], { sort: "start", kind: "number" }),
      plain("CPU", (vm) => (isAlive(vm) ? formatPercent(vm.cpu) : "–"), { sort: "cpu", kind: "number" }),
      plain("Memory", (vm) => (isAlive(vm) ? formatBytes(vm.memory) : "–"), { sort: "memory", kind: "number" }),
      plain("Age", (vm) => formatAge(this.now - vm.created_unix_ms), { sort: "age", kind: "number" }),
      rich("Labels", (vm) => vm.labels, (vm) => Object.entries(vm.labels ?? {}).map(([key, value]) => h("span", { class: "tag" }, `${key}=${value}`)), { kind: "labels wide" }),
      plain("Process", (vm) => (isAlive(vm) && vm.pid ? String(vm.pid) : "–"), { kind: "number" }),
      rich("", isAlive, (vm) => [
        isAlive(vm)
          ? h("button", { class: "row-button", type: "button", onclick: () => this.#askStop(vm) }, "Stop")
          : h("button", { class: "row-button", type: "button", onclick: () => this.#askRemove(vm) }, "Remove"),
      ], { kind: "number" }),
    ];
  }

  #askStop(vm) {
    this.question.ask({
      title: `Stop ${vm.name || vm.id}?`,
      text: "Its program is told to end (SIGTERM); a machine that does not is ended.",
      yes: "Stop",
      act: () => this.#act("POST", `/sandboxes/${encodeURIComponent(vm.id)}/stop`),
    });
  }

  #askRemove(vm) {
    this.question.ask({
      title: `Remove ${vm.name || vm.id}?`,
      text: "The agent forgets how it ended, and its log.",
      yes: "Remove",
      act: () => this.#act("DELETE", `/sandboxes/${encodeURIComponent(vm.id)}`),
    });
  }

  async #act(method, path) {
    await this.api.send(method, path);
    await this.loadLists();
  }

  async load() {
    this.stats = await this.api.get("/stats");
    this.history.add(this.stats);
    if (!this.listsAt || Date.now() - this.listsAt >= LISTS_EVERY_MS) await this.loadLists();
    this.draw();
  }

  async loadLists() {
    const [sandboxes, pools, images] = await Promise.all(["/sandboxes", "/pools", "/images"].map((path) => this.api.get(path)));
    this.lists = { sandboxes, pools, images };
    this.listsAt = Date.now();
    if (this.stats) this.draw();
  }

  /** By the agent's clock: ours may go wrong. */
  get now() {
    return this.stats.now_unix_ms;
  }

  draw() {
    const { stats, lists } = this;
    setText(byId("host"), `${stats.host_name} · ${stats.lightv_version} · up ${formatAge(stats.now_unix_ms - stats.started_unix_ms)}`);
    this.tiles.show(stats, lists.pools, this.history.samples);
    this.drawCharts();
    this.drawMachines();
    setText(byId("pools-count"), lists.pools.length ? String(lists.pools.length) : "");
    this.pools.show(lists.pools, { key: (pool) => pool.image, none: "No pools. `lightv pool set IMAGE --min 4` keeps warm machines of an image." });
    setText(byId("images-count"), lists.images.length ? String(lists.images.length) : "");
    this.images.show(lists.images, { key: (image) => image.name, none: "No images. `lightv images push NAME FILE.lv` adds one." });
  }

  drawCharts() {
    if (!this.stats) return;
    const { range, hovered } = this.view;
    for (const chart of this.charts) chart.draw(this.history.samples, { from: this.now - range, to: this.now, hovered });
  }

  drawMachines() {
    if (!this.stats) return;
    const { view, lists } = this;
    const memory = new Map(this.stats.usage.map((machine) => [machine.id, machine.memory_bytes]));
    const cpu = this.history.samples.at(-1).cpuOf;
    const all = lists.sandboxes.map((vm) => ({ ...vm, memory: memory.get(vm.id), cpu: cpu.get(vm.id) }));
    const found = sorted(all.filter((vm) => STATES[view.state](vm) && matches(vm, view.text)), view.order);
    const count = found.length === all.length ? formatCount(all.length) : `${formatCount(found.length)} of ${formatCount(all.length)}`;
    setText(byId("machines-count"), count);
    const none = all.length === 0 ? "No machines. `lightv run IMAGE` or POST /sandboxes starts one." : "None of the machines is like that.";
    this.machines.show(found.slice(0, view.rows), { key: (vm) => vm.id, none, order: view.order });
    byId("machines-more").hidden = found.length <= view.rows;
    setText(byId("show-more"), `Show more of ${formatCount(found.length)}`);
  }
}

const poolColumns = () => [
  rich("Image", (pool) => [pool.image, pool.digest], (pool) => [
    h("span", { class: "name-cell" }, h("b", {}, pool.image), mono(pool.digest ?? "")),
  ], { kind: "wide" }),
  rich("Ready", (pool) => [pool.ready, pool.starting, pool.max, pool.fault], (pool) => [
    meter(pool), pool.fault && h("span", { class: "tag bad", title: pool.fault }, pool.fault),
  ], { kind: "wide" }),
  plain("Wanted", (pool) => `${pool.target}`, { kind: "number" }),
  plain("Bounds", (pool) => `${pool.min}–${pool.max}`, { kind: "number" }),
  plain("Served warm", (pool) => formatCount(pool.served), { kind: "number" }),
  plain("Missed", (pool) => formatCount(pool.missed), { kind: "number" }),
];

const imageColumns = () => [
  rich("Name", (image) => image.name, (image) => [h("b", {}, image.name)], { kind: "wide" }),
  rich("Digest", (image) => image.digest, (image) => [mono(image.digest)]),
  plain("Size", (image) => formatBytes(image.bytes), { kind: "number" }),
];

/** A bar as long as the pool may be: how many are ready, and how many come. */
function meter({ ready, starting, max }) {
  const width = (count) => (max > 0 ? 84 * Math.min(1, count / max) : 0);
  return h(
    "span", { class: "meter" },
    s("svg", { viewBox: "0 0 84 8", preserveAspectRatio: "none", "aria-hidden": "true" },
      s("rect", { class: "coming", width: width(ready + starting), height: 8, rx: 3 }),
      s("rect", { class: `fill${ready === 0 ? " low" : ""}`, width: width(ready), height: 8, rx: 3 })),
    starting > 0 ? `${ready} + ${starting}` : String(ready),
  );
}

class Tiles {
  constructor(root) {
    this.tiles = Object.fromEntries(["Running", "Warm and ready", "Started", "Start p50 / p99", "Success", "Memory left"].map((name) => {
      const [value, note] = [h("div", { class: "value" }), h("div", { class: "note" })];
      return [name, { root: h("div", { class: "tile" }, h("div", { class: "name" }, name), value, note), value, note }];
    }));
    root.replaceChildren(...Object.values(this.tiles).map((tile) => tile.root));
  }

  #set(name, value, unit, note) {
    const tile = this.tiles[name];
    if (tile.value.textContent !== value + unit) tile.value.replaceChildren(value, h("small", {}, unit));
    setText(tile.note, note);
  }

  show(stats, pools, samples) {
    const { counts, limits, host, starts } = stats;
    const sum = (field) => pools.reduce((all, pool) => all + pool[field], 0);
    const all = started(stats);
    this.#set("Running", formatCount(counts.running + counts.starting), ` of ${formatCount(limits.sandboxes)}`,
      `${formatCount(counts.paused)} paused, ${formatCount(counts.ended)} ended`);
    this.#set("Warm and ready", formatCount(sum("ready")), pools.length ? ` of ${formatCount(sum("target"))}` : "",
      pools.length ? `${sum("starting")} coming, ${formatCount(sum("missed"))} missed` : "no pools");
    this.#set("Started", formatCount(all), "", `${formatCount(starts.warm)} warm, ${formatCount(starts.cold)} cold`);
    const last = samples.findLast((sample) => sample.p50 != null);
    this.#set("Start p50 / p99", formatMicros(last?.p50), last ? ` / ${formatMicros(last.p99)}` : "",
      last ? (last === samples.at(-1) ? "the last 10 s" : `${formatAge(stats.now_unix_ms - last.at)} ago`) : "no starts yet");
    const share = all + starts.failed ? (100 * all) / (all + starts.failed) : null;
    // Rounded down: 100 % is said when nothing has failed alone.
    this.#set("Success", share == null ? "–" : `${Math.floor(share * 100) / 100}`, share == null ? "" : " %", `${formatCount(starts.failed)} failed`);
    this.tiles.Success.root.classList.toggle("bad", starts.failed > 0 && share < 99);
    const [left, whole] = [host.memory_available_bytes, host.memory_bytes].map((bytes) => formatBytes(bytes).split(" "));
    const unit = left[1] === whole[1] ? "" : ` ${left[1]}`;
    this.#set("Memory left", left[0], `${unit} of ${whole.join(" ")}`, `machines take ${formatBytes(samples.at(-1).memoryMachines)}`);
  }
}

/** Asks before something is done that cannot be undone, and shows why it failed. */
class Question {
  constructor() {
    this.dialog = byId("question");
    byId("question-yes").addEventListener("click", () => this.#act());
  }

  ask({ title, text, yes, act }) {
    this.act = act;
    byId("question-title").textContent = title;
    byId("question-text").textContent = text;
    byId("question-yes").textContent = yes;
    byId("question-fault").textContent = "";
    this.dialog.showModal();
  }

  async #act() {
    const button = byId("question-yes");
    button.disabled = true;
    try {
      await this.act();
      this.dialog.close();
    } catch (error) {
      byId("question-fault").textContent = error.message;
    } finally {
      button.disabled = false;
    }
  }
}

// ---- The agent's API ---------------------------------------------------------------------------------------------------

/** The agent asks for a token, or for another one. */
export class TokenWanted extends Error {}

export class Api {
  /** `base`: where the API begins, seen from the page. */
  constructor({ base, token, fetch: ask = fetch }) {
    Object.assign(this, { base, token, ask });
  }

  async get(path) {
    return (await this.send("GET", path)).json();
  }

  async send(method, path) {
    const headers = this.token ? { Authorization: `Bearer ${this.token}` } : {};
    const signal = AbortSignal.timeout(method === "GET" ? READ_TIME_MAX_MS : ACT_TIME_MAX_MS);
    // Called without `this`: a browser's fetch wants none.
    const { ask } = this;
    const answer = await ask(new URL(`.${path}`, this.base), { method, headers, signal, cache: "no-store" });
    if (answer.status === 401) throw new TokenWanted(this.token ? "The agent does not know this token." : "");
    if (!answer.ok) {
      const fault = await answer.json().catch(() => ({}));
      throw new Error(fault.fault_message ?? `The agent answered ${answer.status}.`);
    }
    return answer;
  }
}

/** Shows the page and keeps it up to date, as long as `goesOn` says so. */
export async function start({ api, sleep, goesOn = () => true, storage }) {
  const page = new Page(api);
  let [wait, wakeUp] = [POLL_MS, () => {}];
  byId("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    api.token = byId("token").value.trim();
    wakeUp();
  });
  byId("sign-out").addEventListener("click", () => {
    api.token = null;
    storage.removeItem(TOKEN_KEY);
    wakeUp();
  });
  const link = (kind, text) => { byId("link").setAttribute("class", `link ${kind}`); setText(byId("link"), text); };
  while (goesOn()) {
    try {
      await page.load();
      wait = POLL_MS;
      link("live", "Live");
      byId("banner").hidden = true;
      byId("sign-in").hidden = true;
      byId("main").hidden = false;
      byId("main").classList.remove("stale");
      byId("sign-out").hidden = !api.token;
      if (api.token) storage.setItem(TOKEN_KEY, api.token);
      byId("token").value = "";
    } catch (error) {
      if (error instanceof TokenWanted) {
        link("", "Not signed in");
        setText(byId("token-fault"), error.message);
        storage.removeItem(TOKEN_KEY);
        byId("main").hidden = true;
        byId("sign-in").hidden = false;
        byId("sign-out").hidden = true;
        byId("banner").hidden = true;
        byId("token").focus();
        await new Promise((resolve) => { wakeUp = resolve; });
        continue;
      }
      wait = Math.min(POLL_LOST_MS_MAX, wait * 1.5);
      link("lost", "No answer");
      byId("banner").hidden = false;
      setText(byId("banner"), `The agent does not answer (${error.message}). What is shown is old; the page asks again.`);
      byId("main").classList.add("stale");
    }
    await Promise.race([sleep(wait), new Promise((resolve) => { wakeUp = resolve; })]);
  }
}

if (typeof window !== "undefined") {
  const token = sessionStorage.getItem(TOKEN_KEY);
  const seen = () => new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
  // A tab that nobody sees asks nothing.
  const sleep = async (ms) => {
    await new Promise((resolve) => { setTimeout(resolve, ms); });
    while (document.hidden) await seen();
  };
  // The page lies in a folder of its own below the API.
  start({ api: new Api({ base: new URL("../", document.baseURI), token }), sleep, storage: sessionStorage });
}
