// The page of the host agent in node: `node --test tests/browser/page_test.mjs`. With LIGHTV_PAGE_URL and LIGHTV_PAGE_TOKEN it
// is shown by a real agent too, which must have a machine with LIGHTV_PAGE_MACHINE's name.

import assert from "node:assert/strict";
import { test } from "node:test";

import { documentOf } from "./dom.mjs";
import * as page from "../../tools/agent/web/page.mjs";

const INDEX = new URL("../../tools/agent/web/index.html", import.meta.url).pathname;
const DEADLINE_MS = 20_000;

// ---- Parts -------------------------------------------------------------------------------------------------------------

test("numbers have three digits and a unit", () => {
  for (const [us, text] of [[0, "0 µs"], [467, "467 µs"], [999.96, "1 ms"], [1240, "1.24 ms"], [12_345, "12.3 ms"], [1_500_000, "1.50 s"], [null, "–"]]) {
    assert.equal(page.formatMicros(us), text);
  }
  for (const [bytes, text] of [[0, "0 B"], [1023, "1023 B"], [1024, "1 KiB"], [(1 << 20) * 2.5, "2.50 MiB"], [24 * 2 ** 30, "24 GiB"]]) {
    assert.equal(page.formatBytes(bytes), text);
  }
  assert.equal(page.formatCount(1234567), "1 234 567");
  assert.equal(page.formatRate(100.4), "100");
  assert.equal(page.formatRate(20), "20");
  assert.equal(page.formatPercent(0.04), "0 %");
  assert.equal(page.formatPercent(100), "100 %");
  for (const [ms, text] of [[-5, "0 s"], [61_000, "1 min 1 s"], [3_600_000, "1 h 0 min"], [90_000_000, "1 d 1 h"]]) {
    assert.equal(page.formatAge(ms), text);
  }
});

test("scales are round and hold the greatest value", () => {
  for (const max of [0.3, 1, 7, 31.4, 99, 100, 12_345]) {
    const marks = page.ticks(max);
    assert.ok(marks.at(-1) >= max * 0.999 && marks.length <= 5, `${max}: ${marks}`);
    assert.equal(marks[0], 0);
  }
  assert.deepEqual(page.ticks(0), [0, 1]);
  assert.deepEqual(page.ticks(100), [0, 50, 100]);
  assert.deepEqual(page.byteTicks(5.5 * 2 ** 30), [0, 2, 4, 6].map((gib) => gib * 2 ** 30));
  assert.deepEqual(page.powers([300, 14_000]), [100, 1000, 10_000, 100_000]);
  assert.deepEqual(page.powers([1000, 1000]), [1000, 10_000]);
  assert.deepEqual(page.powers([]), [100, 1000]);
});

test("a percentile lies in the bucket that holds it", () => {
  const bounds = [100, 200, 400];
  assert.equal(page.quantile(bounds, [0, 0, 0, 0], 0.5), null);
  assert.equal(page.quantile(bounds, [0, 10, 0, 0], 0.5), 150);
  assert.equal(page.quantile(bounds, [50, 49, 1, 0], 0.99), 200);
  assert.equal(page.quantile(bounds, [98, 0, 2, 0], 0.99), 300);
  // Above all bounds nothing is known but that.
  assert.equal(page.quantile(bounds, [0, 0, 0, 5], 0.5), 400);
  assert.equal(page.quantile(bounds, [1, 0, 0, 0], 0), 0);
});

const SANDBOX = {
  id: "00000000000000aa", name: "web", image: "hello", digest: `sha256:${"ab".repeat(32)}`, state: "running", pid: 7, warm: true,
  memory_mib: 128, labels: { team: "blue" }, created_unix_ms: 1000, start_us: 467,
};

function stats({ now, cold = 0, failed = 0, counts = [0, 0, 0], cpu = 0, usage = [], started = 1000 }) {
  return {
    lightv_version: "0.1.0", host_name: "node-7", now_unix_ms: now, started_unix_ms: started,
    counts: { images: 1, starting: 0, running: 1, paused: 0, ended: 0, pools: 0, memory_mib: 128 },
    limits: { sandboxes: 4096, requests: 512, connections: 1024 },
    starts: { warm: 0, cold, failed }, start_times: { bounds_us: [1000, 2000], counts },
    host: { cpus: 2, cpu_busy_ms: cpu, memory_bytes: 2 ** 34, memory_available_bytes: 2 ** 33 }, usage,
  };
}

test("figures come from the difference of two answers, and not from the first one", () => {
  const history = new page.History();
  history.add(stats({ now: 10_000, cold: 5, counts: [5, 0, 0], usage: [{ id: "a", cpu_ms: 100, memory_bytes: 1 }] }));
  assert.equal(history.samples[0].starts, null);
  assert.equal(history.samples[0].p50, null);
  const usage = [{ id: "a", cpu_ms: 600, memory_bytes: 2 }, { id: "b", cpu_ms: 100, memory_bytes: 3 }];
  history.add(stats({ now: 12_000, cold: 9, failed: 1, counts: [5, 4, 0], cpu: 2000, usage }));
  const last = history.samples[1];
  assert.deepEqual([last.starts, last.failures, last.p50], [2, 0.5, 1500]);
  assert.deepEqual([last.cpuHost, last.cpuMachines, last.memoryMachines], [50, 15, 5]);
  assert.deepEqual([...last.cpuOf], [["a", 25]]);
  // The tab slept: no rate over the whole time, and a gap in the curve.
  history.add(stats({ now: 60_000, cold: 99, counts: [5, 94, 0], cpu: 9000 }));
  assert.equal(history.samples[2].starts, null);
  assert.ok(history.samples[2].hasGap);
  // Another agent counts from 0.
  history.add(stats({ now: 61_000, cold: 1, counts: [1, 0, 0], started: 60_500 }));
  assert.equal(history.samples[3].starts, null);
});

test("machines are found by every word, and sorted with nothing known last", () => {
  const found = (text) => page.matches(SANDBOX, text);
  for (const text of ["", "web", "WEB hello", "team=blue", "team=", "00aa", "abab"]) assert.ok(found(text), text);
  for (const text of ["web other", "team=red", "x"]) assert.ok(!found(text), text);
  const machines = [{ id: "c", start_us: 5 }, { id: "a" }, { id: "b", start_us: 9 }].map((more) => ({ ...SANDBOX, start_us: undefined, ...more }));
  const ids = (order) => page.sorted(machines, order).map((machine) => machine.id).join("");
  assert.equal(ids({ by: "start", isDown: false }), "cba");
  assert.equal(ids({ by: "start", isDown: true }), "bca");
  assert.equal(page.sorted([{ ...SANDBOX, name: "vm-10" }, { ...SANDBOX, name: "vm-9" }], { by: "name", isDown: false })[0].name, "vm-9");
});

// ---- The page as a whole -----------------------------------------------------------------------------------------------

/** The page in front of `fetch`, with what a person would do there. */
function show(t, { fetch, base = "http://agent/", token = null }) {
  const document = documentOf(INDEX);
  globalThis.document = document;
  const stored = new Map();
  const storage = { setItem: (key, value) => stored.set(key, value), removeItem: (key) => stored.delete(key) };
  let isOn = true;
  const sleep = () => new Promise((resolve) => { setTimeout(resolve, 5); });
  const ended = page.start({ api: new page.Api({ base, token, fetch }), sleep, goesOn: () => isOn, storage });
  const by = (id) => document.getElementById(id);
  const until = async (what, holds) => {
    const end = Date.now() + DEADLINE_MS;
    while (!holds()) {
      assert.ok(Date.now() < end, `this does not come: ${what}`);
      await sleep();
    }
  };
  const button = (id, text) => by(id).all("button").find((found) => found.textContent === text);
  // However the test ends: else node would go on.
  t.after(async () => { isOn = false; by("token-form").dispatch("submit"); await ended; });
  return { by, until, button, stored };
}

/** An agent that answers out of `state`. */
function agent(state) {
  return async (url, { method, headers }) => {
    state.requests.push(`${method} ${url.pathname}`);
    if (state.isGone) throw new TypeError("fetch failed");
    const answer = (status, body) => ({ status, ok: status < 300, json: async () => body });
    if (state.token && headers.Authorization !== `Bearer ${state.token}`) return answer(401, { fault_message: "token" });
    if (method === "POST" && state.refusal) return answer(409, { fault_message: state.refusal });
    if (method !== "GET") {
      state.sandboxes = state.sandboxes.map((vm) => (url.pathname.includes(vm.id) ? { ...vm, state: "ended", exit_code: 143 } : vm));
      return answer(204, null);
    }
    state.now += 1000;
    return answer(200, {
      "/stats": stats({ now: state.now, cold: state.now / 1000 }), "/sandboxes": state.sandboxes, "/pools": state.pools, "/images": state.images,
    }[url.pathname]);
  };
}

const hostile = '<img src=x onerror="alert(1)">';
const fresh = (more = {}) => ({
  requests: [], now: 1_000_000, images: [{ name: "hello", digest: SANDBOX.digest, bytes: 12_000_000, memory_mib: 128 }],
  pools: [{ image: "hello", digest: SANDBOX.digest, min: 1, max: 8, ready: 3, target: 4, starting: 1, served: 12, missed: 2 }],
  sandboxes: [SANDBOX, { ...SANDBOX, id: "00000000000000bb", name: hostile, warm: false, labels: { [hostile]: hostile } }], ...more,
});

test("everything that there is is shown, and names are text", async (t) => {
  const shown = show(t, { fetch: agent(fresh()) });
  await shown.until("two machines", () => shown.by("machines").all("tr").length === 3);
  await shown.until("charts", () => shown.by("charts").all("path").length > 3);
  const table = shown.by("machines").textContent;
  for (const text of ["web", "467 µs", "warm", "cold", "team=blue", hostile]) assert.ok(table.includes(text), text);
  assert.equal(shown.by("machines").all("img").length, 0);
  assert.ok(shown.by("pools").textContent.includes("3 + 1"), shown.by("pools").textContent);
  assert.ok(shown.by("images").textContent.includes("11.4 MiB"), shown.by("images").textContent);
  assert.ok(shown.by("tiles").textContent.includes("1 of 4 096"), shown.by("tiles").textContent);
  assert.equal(shown.by("link").textContent, "Live");
  shown.by("filter").dispatch("input", { target: { value: "team=blue" } });
  await shown.until("one machine", () => shown.by("machines").all("tr").length === 2);
  assert.equal(shown.by("machines-count").textContent, "1 of 2");
  shown.by("filter").dispatch("input", { target: { value: "none such" } });
  assert.ok(shown.by("machines").textContent.includes("None of the machines"));
});

test("a machine is stopped after a question alone", async (t) => {
  const state = fresh();
  const shown = show(t, { fetch: agent(state) });
  await shown.until("a machine", () => shown.button("machines", "Stop"));
  shown.button("machines", "Stop").dispatch("click");
  assert.ok(shown.by("question").open);
  assert.ok(shown.by("question-title").textContent.startsWith("Stop "));
  assert.ok(!state.requests.some((request) => request.startsWith("POST")));
  // A refusal is shown where it was asked for.
  state.refusal = "Sandbox 00aa is being started; wait until it runs.";
  shown.by("question-yes").dispatch("click");
  await shown.until("the refusal", () => shown.by("question-fault").textContent === state.refusal);
  assert.ok(shown.by("question").open);
  state.refusal = null;
  await shown.until("a second try", () => !shown.by("question-yes").disabled);
  shown.by("question-yes").dispatch("click");
  await shown.until("its end", () => shown.by("machines").textContent.includes("ended: 143"));
  assert.ok(!shown.by("question").open);
  assert.ok(state.requests.some((request) => /^POST \/sandboxes\/0{14}[ab]{2}\/stop$/.test(request)), state.requests.join());
});

test("a token is asked for, kept in the tab, and dropped when it is wrong", async (t) => {
  const state = fresh({ token: "right" });
  const shown = show(t, { fetch: agent(state) });
  const signIn = (token) => { shown.by("token").value = token; shown.by("token-form").dispatch("submit"); };
  await shown.until("the question", () => !shown.by("sign-in").hidden);
  assert.ok(shown.by("main").hidden);
  assert.equal(shown.by("token-fault").textContent, "");
  signIn("wrong");
  await shown.until("a refusal", () => shown.by("token-fault").textContent.includes("does not know"));
  signIn("right");
  await shown.until("the page", () => !shown.by("main").hidden && shown.by("sign-in").hidden);
  assert.deepEqual([...shown.stored.values()], ["right"]);
  assert.equal(shown.by("token").value, "");
  shown.by("sign-out").dispatch("click");
  await shown.until("the question again", () => !shown.by("sign-in").hidden);
  assert.equal(shown.stored.size, 0);
  // Whoever waits there is let go.
  signIn("right");
  await shown.until("the page again", () => !shown.by("main").hidden);
});

test("an agent that is gone is told of, and one that comes back too", async (t) => {
  const state = fresh();
  const shown = show(t, { fetch: agent(state) });
  await shown.until("the page", () => !shown.by("main").hidden);
  state.isGone = true;
  await shown.until("the banner", () => !shown.by("banner").hidden);
  assert.ok(shown.by("main").classList.contains("stale"));
  assert.ok(shown.by("banner").textContent.includes("does not answer"));
  state.isGone = false;
  await shown.until("its return", () => shown.by("banner").hidden && !shown.by("main").classList.contains("stale"));
});

test("nothing at all is shown as such", async (t) => {
  const shown = show(t, { fetch: agent(fresh({ sandboxes: [], pools: [], images: [] })) });
  await shown.until("the page", () => !shown.by("main").hidden);
  for (const [id, text] of [["machines", "No machines."], ["pools", "No pools."], ["images", "No images."]]) {
    assert.ok(shown.by(id).textContent.includes(text), shown.by(id).textContent);
  }
});

// ---- In front of a real agent ------------------------------------------------------------------------------------------

const { LIGHTV_PAGE_URL: base, LIGHTV_PAGE_TOKEN: token, LIGHTV_PAGE_MACHINE: machine } = process.env;

test("a real agent's machine is shown, and stopped", { skip: base ? false : "LIGHTV_PAGE_URL names no agent" }, async (t) => {
  const shown = show(t, { fetch: globalThis.fetch, base });
  await shown.until("the question", () => !shown.by("sign-in").hidden);
  shown.by("token").value = token;
  shown.by("token-form").dispatch("submit");
  shown.by("filter").dispatch("input", { target: { value: machine } });
  await shown.until("the machine", () => shown.button("machines", "Stop"));
  const row = shown.by("machines").all("tr")[1].textContent;
  assert.ok(row.includes(machine) && row.includes("running"), row);
  await shown.until("what it takes", () => /MiB|KiB/.test(shown.by("machines").all("tr")[1].all("td")[5].textContent));
  shown.button("machines", "Stop").dispatch("click");
  shown.by("question-yes").dispatch("click");
  await shown.until("its end", () => shown.by("machines").textContent.includes("ended"));
});
