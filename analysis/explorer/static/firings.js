// The features that fire on a picture, one a line, as `templates/image_parts.html` makes them; zero-shot tables.

import { make, number, url } from "./api.js";
import { chance as chanceText, percent } from "./shares.js";

const svg = (tag, attributes, ...children) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
};

// A bar as wide as a share of its place.
export function bar(share, kind = "") {
  const rect = svg("rect", { width: Math.max(0, Math.min(100, 100 * share)).toFixed(2), height: 10, class: kind });
  return svg("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" }, rect);
}

// One line; `controls` are put at its end.
export function firing(each, ...controls) {
  const what = make("span", { class: "what" }, make("a", { class: "id", href: url.feature(each.feature) }, String(each.feature)));
  if (each.is_uld) what.append(" ", make("span", { class: "badge", title: "In the ultra-low-density cluster" }, "ULD"));
  if (each.name) what.append(" ", make("span", { class: "name", dir: "auto" }, each.name));
  const pictures = each.images.map(({ row, value, name }) => make("a", { href: url.image(row), title: `${name}, ${number(value)}` },
    make("img", { src: url.thumbnail(row), alt: name, loading: "lazy", width: 56, height: 56 })));
  const title = `Feature ${each.feature} is ${number(each.value)} on this picture; it is above 0 on ${percent(each.density)} of the rows`;
  return make("li", {}, what,
    make("span", { class: "how", title }, bar(each.share), make("span", { class: "value" }, number(each.value))),
    make("span", { class: each.is_sensitive ? "tops sensitive" : "tops" }, ...pictures), ...controls);
}

// Chances of classes in some ways, as a table; `ways` name them, `own` is the label of the picture, -1 for none.
export function chances(classes, ways, own = -1) {
  const head = make("tr", {}, make("th", { scope: "col" }, "Class"),
    ...ways.map((way) => make("th", { scope: "col" }, way)));
  const lines = classes.map(({ name, label, chances: each }) => make("tr", label === own ? { class: "own" } : {},
    make("th", { scope: "row" }, make("a", { href: url.label(label), dir: "auto" }, name), label === own ? make("span", { class: "badge" }, "its class") : ""),
    ...each.map((chance) => make("td", {}, bar(chance ?? 0), make("span", { class: "value" }, chanceText(chance))))));
  return make("div", { class: "wide" }, make("table", { class: "chances" }, make("thead", {}, head), make("tbody", {}, ...lines)));
}
