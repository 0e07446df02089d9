// As much of a document as tools/agent/web/page.mjs uses, so that node can run it: elements, texts, events.

import { readFileSync } from "node:fs";

class Element {
  #text = "";
  #listeners = new Map();
  attributes = new Map();
  children = [];
  hidden = false;
  disabled = false;
  value = "";
  open = false;
  clientWidth = 600;
  clientHeight = 150;

  constructor(name) {
    this.name = name;
    const classes = () => (this.attributes.get("class") ?? "").split(" ").filter(Boolean);
    const set = (all) => this.setAttribute("class", [...new Set(all)].join(" "));
    this.classList = {
      contains: (one) => classes().includes(one),
      add: (one) => set([...classes(), one]),
      remove: (one) => set(classes().filter((other) => other !== one)),
      toggle: (one, isOn) => (isOn ? this.classList.add(one) : this.classList.remove(one)),
    };
  }

  get textContent() {
    return this.#text + this.children.map((child) => child.textContent).join("");
  }

  set textContent(text) {
    this.children = [];
    this.#text = String(text);
  }

  setAttribute(name, value) {
    this.attributes.set(name, String(value));
    if (name === "hidden") this.hidden = true;
  }

  removeAttribute(name) {
    this.attributes.delete(name);
  }

  append(...children) {
    this.children.push(...children.map((child) => (child instanceof Element ? child : text(child))));
  }

  replaceChildren(...children) {
    this.textContent = "";
    this.append(...children);
  }

  addEventListener(kind, listener) {
    this.#listeners.set(kind, [...(this.#listeners.get(kind) ?? []), listener]);
  }

  /** What a person does. */
  dispatch(kind, more = {}) {
    if (kind === "click" && this.disabled) return;
    for (const listener of this.#listeners.get(kind) ?? []) listener({ preventDefault() {}, target: this, ...more });
  }

  getBoundingClientRect() {
    return { left: 0, top: 0, width: this.clientWidth, height: this.clientHeight };
  }

  focus() {}

  showModal() {
    this.open = true;
  }

  close() {
    this.open = false;
  }

  /** All elements below with this tag. */
  all(name) {
    return this.children.flatMap((child) => [...(child.name === name ? [child] : []), ...child.all(name)]);
  }
}

function text(value) {
  const node = new Element("#text");
  node.textContent = value;
  return node;
}

/** A document with the elements of an HTML file that have an id, empty. */
export function documentOf(path) {
  const html = readFileSync(path, "utf8");
  const byId = new Map();
  for (const [, name, attributes] of html.matchAll(/<([a-z0-9]+)\b([^>]*)>/g)) {
    const id = attributes.match(/\bid="([^"]+)"/)?.[1];
    if (!id) continue;
    if (byId.has(id)) throw new Error(`two elements have the id ${id}`);
    const element = new Element(name);
    element.hidden = /\bhidden\b/.test(attributes);
    byId.set(id, element);
  }
  return {
    getElementById: (id) => {
      if (!byId.has(id)) throw new Error(`${path} has no element ${id}`);
      return byId.get(id);
    },
    createElement: (name) => new Element(name),
    createElementNS: (_, name) => new Element(name),
  };
}
