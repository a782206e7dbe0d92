// What every page has: keys, search, theme, blur, the list of features that j and k walk along.

import { has, inlined, load, url } from "./api.js";

const html = document.documentElement;
const remembered = (name) => { try { return localStorage.getItem(`thresher-${name}`); } catch { return null; } };
const remember = (name, value) => { try { localStorage.setItem(`thresher-${name}`, value); } catch { /* private window */ } };

function setTheme(theme) {
  html.dataset.theme = theme;
  remember("theme", theme);
  window.dispatchEvent(new Event("themechange"));
}

function toggleTheme() {
  const isDark = html.dataset.theme === "dark"
    || (!html.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  setTheme(isDark ? "light" : "dark");
}

// The list that j and k walk along: ids in order, kept for this tab.
export function setList(ids) {
  try { sessionStorage.setItem(`thresher-list-${html.dataset.run}`, JSON.stringify(ids)); } catch { /* too long or private */ }
}

async function currentList() {
  try {
    const kept = sessionStorage.getItem(`thresher-list-${html.dataset.run}`);
    if (kept) return JSON.parse(kept).filter((id) => has("features", id));  // of a server's run of that name, perhaps
  } catch { /* private window */ }
  return (await load("ids.json")).ids;
}

async function step(by) {
  const ids = await currentList();
  if (ids.length === 0) return;
  const here = ids.indexOf(inlined("feature-id"));
  location.href = url.feature(ids[here < 0 ? 0 : (here + by + ids.length) % ids.length]);
}

async function random() {
  const ids = await currentList();
  if (ids.length > 0) location.href = url.feature(ids[Math.floor(Math.random() * ids.length)]);
}

// The one thing that a search names: ["feature", number] or, of img: and a row, ["image", row]; null where it is words.
export function named(text) {
  const found = /^(img:\s*)?(\d{1,12})$/i.exec(text.trim());
  return found && [found[1] ? "image" : "feature", Number(found[2])];
}

const keys = {
  "/": () => document.querySelector("#search input").focus(),
  j: () => step(1),
  k: () => step(-1),
  r: random,
  g: () => { location.href = url.page("game"); },
  x: () => { html.dataset.sensitive = html.dataset.sensitive === "shown" ? "" : "shown"; remember("sensitive", html.dataset.sensitive); },
  "?": () => document.getElementById("help").showModal(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (event.target.closest("input, select, textarea, [contenteditable], dialog")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const act = keys[event.key];
  if (act) { event.preventDefault(); act(); }
});

if (remembered("theme")) html.dataset.theme = remembered("theme");
if (remembered("sensitive")) html.dataset.sensitive = remembered("sensitive");
document.getElementById("theme").addEventListener("click", toggleTheme);
document.getElementById("help-open").addEventListener("click", keys["?"]);
document.getElementById("runs")?.addEventListener("change", (event) => { location.href = event.target.value; });
document.getElementById("search").addEventListener("submit", (event) => {
  const field = event.target.elements.q, found = named(field.value);
  if (found === null) return;
  event.preventDefault();
  const [kind, id] = found, address = url[kind](id);
  if (address !== null) { location.href = address; return; }
  field.setCustomValidity(`This export holds no page of ${kind} ${id}.`);
  field.reportValidity();
});
document.querySelector("#search input").addEventListener("input", (event) => event.target.setCustomValidity(""));
