// The smallest driver of headless Chromium: the DevTools protocol over two pipes, without a package or a port.

import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const ANSWER_MS_MAX = 60_000;

export class Chromium {
  #waiting = new Map();
  #listeners = new Set();
  #next = 1;
  #read = "";

  /** Starts `program`. It gets a profile of its own, which `close` removes. */
  constructor(program) {
    this.profile = mkdtempSync(join(tmpdir(), "lightv-chromium-"));
    const flags = [
      "--headless", "--remote-debugging-pipe", `--user-data-dir=${this.profile}`, "--no-first-run", "--disable-gpu",
      "--hide-scrollbars", "--disable-extensions", "--disable-background-networking", "--disable-dev-shm-usage",
      // Its own sandbox needs a user that is not root. It is shown one page: ours.
      ...(process.getuid() === 0 ? ["--no-sandbox"] : []),
      "about:blank",
    ];
    this.child = spawn(program, flags, { stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"], detached: true });
    this.ended = new Promise((resolve) => {
      this.child.on("exit", resolve);
      this.child.on("error", resolve);
    });
    this.ended.then((cause) => {
      for (const { reject } of this.#waiting.values()) reject(new Error(`${program} has ended: ${cause}`));
    });
    const [orders, answers] = [this.child.stdio[3], this.child.stdio[4]];
    orders.on("error", () => {});
    answers.setEncoding("utf8").on("data", (text) => this.#take(text));
    this.orders = orders;
  }

  #take(text) {
    const parts = (this.#read + text).split("\0");
    this.#read = parts.pop();
    for (const message of parts.map((part) => JSON.parse(part))) {
      const waiting = this.#waiting.get(message.id);
      this.#waiting.delete(message.id);
      if (!waiting) this.#listeners.forEach((listener) => listener(message));
      else if (message.error) waiting.reject(new Error(message.error.message));
      else waiting.resolve(message.result);
    }
  }

  call(method, params = {}, sessionId = undefined) {
    const id = this.#next++;
    const answered = new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      setTimeout(() => reject(new Error(`no answer to ${method}`)), ANSWER_MS_MAX).unref();
    });
    this.orders.write(`${JSON.stringify({ id, method, params, sessionId })}\0`);
    return answered;
  }

  /** A tab of `width` times `height` points that shows `url`. */
  async open(url, { width, height }) {
    const { targetId } = await this.call("Target.createTarget", { url: "about:blank" });
    const { sessionId } = await this.call("Target.attachToTarget", { targetId, flatten: true });
    const tab = new Tab(this, sessionId);
    this.#listeners.add((message) => { if (message.sessionId === sessionId) tab.hear(message); });
    for (const domain of ["Page", "Runtime", "Log"]) await tab.call(`${domain}.enable`);
    await tab.call("Emulation.setDeviceMetricsOverride", { width, height, deviceScaleFactor: 1, mobile: false });
    const { errorText } = await tab.call("Page.navigate", { url });
    if (errorText) throw new Error(`${url}: ${errorText}`);
    await tab.loaded;
    return tab;
  }

  async close() {
    // It has children, which are of its group.
    if (this.child.pid) process.kill(-this.child.pid, "SIGKILL");
    await this.ended;
    this.child.stdio.forEach((stream) => stream?.destroy());
    rmSync(this.profile, { recursive: true, force: true, maxRetries: 5 });
  }
}

class Tab {
  /** What went wrong in the page: uncaught errors, refusals by its policy, failed loads. */
  faults = [];

  constructor(browser, sessionId) {
    Object.assign(this, { browser, sessionId });
    this.loaded = new Promise((resolve) => { this.isLoaded = resolve; });
  }

  call(method, params) {
    return this.browser.call(method, params, this.sessionId);
  }

  hear({ method, params }) {
    if (method === "Page.loadEventFired") this.isLoaded();
    if (method === "Runtime.exceptionThrown") this.faults.push(params.exceptionDetails.exception?.description ?? params.exceptionDetails.text);
    if (method === "Log.entryAdded" && params.entry.level === "error") this.faults.push(`${params.entry.text} (${params.entry.url ?? ""})`);
  }

  /** The value of an expression of the page's. */
  async value(expression) {
    const { result, exceptionDetails } = await this.call("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true });
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    return result.value;
  }

  /** Waits until an expression is true. */
  async until(expression, ms = 30_000) {
    const end = Date.now() + ms;
    while (!(await this.value(expression))) {
      if (Date.now() > end) throw new Error(`this does not come: ${expression}`);
      await new Promise((resolve) => { setTimeout(resolve, 50); });
    }
  }

  /** Clicks what a selector finds, as a mouse does. */
  async click(selector) {
    const box = await this.value(`(() => { const found = document.querySelector(${JSON.stringify(selector)});
      found.scrollIntoView({ block: "center" }); const { x, y, width, height } = found.getBoundingClientRect();
      return { x: x + width / 2, y: y + height / 2 }; })()`);
    for (const type of ["mouseMoved", "mousePressed", "mouseReleased"]) {
      await this.call("Input.dispatchMouseEvent", { type, ...box, button: type === "mouseMoved" ? "none" : "left", clickCount: 1 });
    }
  }

  type(text) {
    return this.call("Input.insertText", { text });
  }

  scheme(value) {
    return this.call("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value }] });
  }

  /** The page as PNG, as far as its window shows it. */
  async picture() {
    const { data } = await this.call("Page.captureScreenshot", { format: "png" });
    return Buffer.from(data, "base64");
  }
}
