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

// Where a search leads that names one thing: a feature's number, img: and a row; null where it is words.
export function target(text) {
  const query = text.trim();
  if (/^\d{1,9}$/.test(query)) return url.feature(Number(query));
  const image = /^img:\s*(\d{1,12})$/i.exec(query);
  return image ? url.image(Number(image[1])) : null;
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
  const found = target(event.target.elements.q.value);
  if (found !== null) { event.preventDefault(); location.href = found; }
});
