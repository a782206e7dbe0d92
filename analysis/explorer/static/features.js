// The table of features, filtered as one types: its state is the address, so that reload, back and links keep it.

import { inlined, isExport, load, make, number, url } from "./api.js";
import { listed } from "./features_local.js";
import { percent } from "./shares.js";
import { setList } from "./shell.js";

const TYPING_MS = 180;
const form = document.getElementById("filters");
const table = document.getElementById("table");
const fields = ["q", "set", "d", "m", "e", "a", "s", "tag", "named", "verdict", "label", "ids", "sort", "order"];
let asked = 0;

// What the form holds beyond the defaults, as a query string with `?`.
function query(changes = {}) {
  const values = { ...Object.fromEntries(new FormData(form)), ...changes };
  const found = new URLSearchParams();
  for (const name of [...fields, "page"]) {
    const value = (values[name] ?? "").trim();
    if (value !== "" && !(name === "set" && value === "shown") && !(name === "page" && value === "1")) found.set(name, value);
  }
  const text = found.toString().replaceAll("%3A", ":").replaceAll("%2C", ",").replaceAll("%7E", "~");
  return text === "" ? "" : `?${text}`;
}

// Puts what an address says into the form.
function fill(address) {
  const values = new URLSearchParams(address);
  for (const name of fields) {
    const field = form.elements[name];
    if (field === undefined) {
      if (values.has(name)) form.append(make("input", { type: "hidden", name, value: values.get(name) }));
    } else if (field.type === "hidden" && !values.has(name)) field.remove();
    else field.value = values.get(name) ?? (name === "set" ? "shown" : "");
  }
}

// As the server writes it: with its last digits, though they be zeros.
function exact(value, digits = 3) {
  if (value === null || Number.isInteger(value) || Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6) return number(value, digits);
  const decimals = Math.max(0, digits - 1 - Math.floor(Math.log10(Math.abs(value))));
  return Number(value.toPrecision(digits)).toLocaleString("en", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
}

const share = (value) => percent(value, 2, exact);
const fixed = (value) => (value === null ? "–" : value.toFixed(2));
const cells = {
  density: (row) => [fixed(row.density)],
  mean_top: (row) => [exact(row.mean_top)],
  max: (row) => [exact(row.max)],
  entropy: (row) => [exact(row.entropy), " ", make("span", { class: "soft" }, `(${row.n_labelled})`)],
  monosemanticity: (row) => [exact(row.monosemanticity)],
  cosine: (row) => [exact(row.cosine)],
  agreement: (row) => [exact(row.agreement)],
  score: (row) => [exact(row.score)],
};

function line(row, keys) {
  const address = url.feature(row.id);
  const badge = (text, title) => [" ", make("span", { class: "badge", title }, text)];
  const made = [
    make("th", { scope: "row", class: "id" }, make("a", { href: address }, String(row.id)),
      ...(row.is_uld ? badge("ULD", "in the ultra-low-density cluster") : []), ...(row.is_dead ? badge("dead") : [])),
    make("td", { class: "pictures" }, ...(row.thumbs.length === 0 ? [] : [make("a", { class: `thumbs${row.sensitive ? " sensitive" : ""}`, href: address, tabindex: -1 },
      ...row.thumbs.map((thumb) => make("img", { src: url.thumbnail(thumb.row), alt: thumb.name, loading: "lazy", width: 48, height: 48 })))])),
  ];
  if (keys.includes("name")) made.push(make("td", { class: "name" }, make("bdi", {}, row.name), ...(row.is_own_name ? badge("yours", "a person gave this name") : [])),
    make("td", { class: "n name_score" }, exact(row.name_score)));
  made.push(make("td", { class: "label" }, ...(row.label < 0 ? []
    : [make("a", { href: url.label(row.label) }, row.label_name), " ", make("span", { class: "soft" }, share(row.share))])));
  for (const key of keys) {
    if (key === "verdict") made.push(make("td", { class: `verdict ${row.verdict}` }, row.verdict || "–"));
    else if (cells[key]) made.push(make("td", { class: `n ${key}` }, ...cells[key](row)));
  }
  made.push(make("td", { class: "tags" }, ...row.tags.flatMap((tag) => [
    make("a", { class: "badge", href: url.page("features", `?set=all&tag=${encodeURIComponent(tag)}`) }, tag), " "])));
  return make("tr", {}, ...made);
}

function show(view) {
  const here = (link) => url.page("features", link);
  const keys = view.heads.map((head) => head.key);
  const heads = view.heads.map((head) => make("th", { scope: "col", class: `${head.key}${cells[head.key] || head.key === "name_score" ? " n" : ""}`, "aria-sort": head.direction },
    make("a", { href: here(head.link), title: head.title, "data-sort": head.key },
      head.text + ({ ascending: " ▲", descending: " ▼" }[head.direction] ?? ""))));
  heads.splice(1, 0, make("th", { scope: "col", class: "pictures" }, "Strongest rows"));
  const focused = document.activeElement?.dataset?.sort;
  table.tHead.rows[0].replaceChildren(...heads, make("th", { scope: "col" }, "Tags"));
  if (focused) table.querySelector(`[data-sort="${focused}"]`)?.focus();
  table.tBodies[0].replaceChildren(...view.rows.map((row) => line(row, keys)));
  document.getElementById("count").textContent = `${number(view.total)} ${view.total === 1 ? "feature" : "features"}`;
  document.getElementById("none").hidden = view.total > 0;
  const message = document.getElementById("message");
  message.textContent = view.message ?? "";
  message.hidden = !view.message;
  for (const file of document.querySelectorAll("#files a[download]")) file.href = file.href.split("?")[0] + view.lists;
  const chip = (text, link) => make("a", { class: "badge", href: here(link) }, `${text} ✕`);
  document.getElementById("chips").replaceChildren(
    ...("label" in view.values ? [chip(`top label: ${view.label_name}`, view.without_label)] : []),
    ...("ids" in view.values ? [chip("a list of given features", view.without_ids)] : []));
  const pages = document.getElementById("pages");
  pages.hidden = view.n_pages === 1;
  pages.replaceChildren(
    ...(view.previous === null ? [] : [make("a", { href: here(view.previous), rel: "prev" }, "Previous")]),
    make("span", {}, `Page ${number(view.page)} of ${number(view.n_pages)}`),
    ...(view.next === null ? [] : [make("a", { href: here(view.next), rel: "next" }, "Next")]));
}

// Asks for the list of an address and shows it; of several asked for, the last.
async function update(address) {
  const number_ = ++asked;
  table.setAttribute("aria-busy", "true");
  try {
    const view = isExport ? listed(await load("features/table.json"), inlined("columns"), address) : await load(`features.json${address}`);
    if (number_ !== asked) return;
    show(view);
    keepList(address, view);
  } catch (error) {
    if (number_ !== asked) return;
    const message = document.getElementById("message");
    message.textContent = error.message;
    message.hidden = false;
  } finally {
    if (number_ === asked) table.removeAttribute("aria-busy");
  }
}

// The whole list, in order, is what j and k walk along.
async function keepList(address, view) {
  const number_ = asked;
  const ids = isExport ? view.ids : (await load(`features/ids.json${address}`)).ids;
  if (number_ === asked) setList(ids);
}

let timer = null;
function filterSoon(event) {
  clearTimeout(timer);
  const isTyped = event.target.matches("input");
  if (isTyped && event.target.name === "q" && event.target.value.startsWith("~")) return;  // the tower is asked on Enter
  timer = setTimeout(() => {
    const address = query();
    if (isTyped) history.replaceState(null, "", url.page("features", address));
    else history.pushState(null, "", url.page("features", address));
    update(address);
  }, isTyped ? TYPING_MS : 0);
}
form.addEventListener("input", (event) => { if (event.target.matches("input")) filterSoon(event); });
form.addEventListener("change", (event) => { if (event.target.matches("select")) filterSoon(event); });
form.addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(timer);
  history.pushState(null, "", url.page("features", query()));
  update(query());
});
// Heads, pages and chips are links that work as they are; here they change the table in place.
document.getElementById("main").addEventListener("click", (event) => {
  const link = event.target.closest("a[data-sort], #pages a, #chips a, #ends a, #filters a");
  if (link === null || event.ctrlKey || event.metaKey || event.shiftKey || event.button !== 0) return;
  event.preventDefault();
  const address = new URL(link.href).search;
  history.pushState(null, "", url.page("features", address));
  fill(address);
  update(address).then(() => { if (link.closest("#pages")) document.querySelector("h1").scrollIntoView(); });
});
window.addEventListener("popstate", () => { fill(location.search); update(location.search); });

if (isExport) { // the page as written lists all features, the table those that have pages
  fill(location.search);
  update(location.search);
} else keepList(location.search, null);
