// Uses the host agent's page in headless Chromium as a person would, and fails when it has a fault:
// `node use_page.mjs CHROMIUM URL TOKEN MACHINE [PICTURE]`. It writes what the page looks like after a minute as PICTURE.

import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";

import { Chromium } from "./chromium.mjs";

const WINDOW = { width: 1440, height: 1400 };
// So long machines come and go in front of the page before its picture is taken.
const WATCHED_MS = 62_000;

const [program, url, token, machine, picture] = process.argv.slice(2);
const browser = new Chromium(program);
try {
  const tab = await browser.open(url, WINDOW);
  await tab.scheme("light");
  const text = (id) => `document.getElementById("${id}").textContent`;
  const shown = (id) => `!document.getElementById("${id}").hidden`;

  await tab.until(shown("sign-in"));
  await tab.click("#token");
  await tab.type(token);
  await tab.click("#token-form button");
  await tab.until(shown("main"));
  // The one refusal is the one that it began with.
  const refusals = tab.faults.splice(0);
  assert.ok(refusals.every((fault) => fault.includes("401")), refusals.join("\n"));

  await tab.click("#ranges button");
  await tab.until(`${text("machines")}.includes(${JSON.stringify(machine)})`);
  if (picture) await new Promise((resolve) => { setTimeout(resolve, WATCHED_MS); });
  await tab.until(`document.querySelectorAll("#charts path.curve").length >= 8`);
  // Nothing may be wider than the window.
  assert.equal(await tab.value("document.documentElement.scrollWidth"), WINDOW.width);
  if (picture) writeFileSync(picture, await tab.picture());

  await tab.click("#filter");
  await tab.type(machine);
  await tab.until(`document.querySelectorAll("#machines tbody tr").length === 1`);
  await tab.click("#machines tbody .row-button");
  await tab.until(`document.getElementById("question").open && ${text("question-title")}.includes(${JSON.stringify(machine)})`);
  await tab.click("#question-yes");
  await tab.until(`!document.getElementById("question").open && ${text("machines")}.includes("ended")`);

  await tab.scheme("dark");
  const ground = await tab.value("getComputedStyle(document.body).backgroundColor");
  assert.equal(ground, "rgb(13, 17, 23)");
  await tab.click("#sign-out");
  await tab.until(shown("sign-in"));
  assert.equal(await tab.value("sessionStorage.length"), 0);
  const faults = tab.faults.filter((fault) => !fault.includes("401"));
  assert.deepEqual(faults, []);
} finally {
  await browser.close();
}
