// The list of MLP neurons, sorted and paged in the browser: in an export there is nobody else to do it.

import { grid, inlined, load, make, number, url } from "./api.js";
import { percent } from "./shares.js";

const view = inlined("neurons-view");
const form = document.getElementById("sorting");
const steps = document.querySelector("nav.steps");
const keys = {
  cosine: (c) => c.cosine.map((value) => (value === null ? null : -Math.abs(value))),
  entropy: (c) => c.entropy,
  density: (c) => c.density.map((value) => -value),
  max: (c) => c.max.map((value) => -value),
  id: (c) => c.density.map(() => 0),
};
let columns = null;
let order = [];
let page = view.page;

// What is undefined goes last, equal ones stay by number.
function sorted(sort) {
  const values = keys[sort](columns);
  const all = Array.from({ length: view.n_units }, (_, unit) => unit);
  if (values.length === 0) return all;
  return all.sort((a, b) => (values[a] === null) - (values[b] === null) || values[a] - values[b] || a - b);
}

function row(unit) {
  const name = unit < columns.n_neurons ? String(unit) : `−${unit - columns.n_neurons}`;
  const feature = columns.feature[unit] ?? -1;
  const firings = columns.rows[unit].filter((each) => each >= 0).map((each) => ({ row: each, value: null, name: "" }));
  return make("tr", {},
    make("th", { scope: "row" }, make("a", { href: url.neuron(unit) }, name)),
    ...[percent(columns.density[unit]), number(columns.entropy[unit]), number(columns.max[unit]), number(columns.cosine[unit])]
      .map((text) => make("td", { class: "n" }, text)),
    make("td", {}, feature < 0 ? "" : make("a", { href: url.feature(feature) }, String(feature))),
    make("td", {}, grid(firings, { small: true })));
}

function show() {
  const first = page * view.a_page;
  const shown = order.slice(first, first + view.a_page);
  document.querySelector("#neurons tbody").replaceChildren(...shown.map(row));
  document.getElementById("shown").textContent =
    `${number(first + 1)} to ${number(first + shown.length)} of ${number(view.n_units)}`;
  const link = (text, to) => make("button", { type: "button", onclick: () => { page = to; show(); scrollTo(0, form.offsetTop); } }, text);
  steps.replaceChildren(
    ...(page > 0 ? [link("← before", page - 1)] : []),
    ...(first + view.a_page < view.n_units ? [link("after →", page + 1)] : []));
}

async function sort(to) {
  columns ??= await load(view.index);
  order = sorted(form.elements.sort.value);
  page = to;
  show();
}

document.getElementById("sort-now").hidden = true;
form.elements.sort.addEventListener("change", () => sort(0));
form.addEventListener("submit", (event) => {
  event.preventDefault();
  const unit = document.getElementById("goto").value;
  if (unit !== "") location.href = url.neuron(Number(unit));
});
steps.addEventListener("click", (event) => {
  const link = event.target.closest("a");
  if (link === null) return;
  event.preventDefault();
  sort(page + (link.id === "after" ? 1 : -1));
});
