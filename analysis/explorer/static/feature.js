// The page of a feature: tabs of its images, plots, heat maps, all of its labels, the order of its partners.

import { grid, inlined, load, make, number, url } from "./api.js";
import { histogram, lines } from "./plots.js";
import { percent } from "./shares.js";

const feature = inlined("feature");
const at = (id) => document.getElementById(id);

// Tabs: the chosen group stands in the address, so that a link shows the same.
function choose(group, isKept) {
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const isChosen = tab.dataset.group === group;
    tab.setAttribute("aria-selected", String(isChosen));
    tab.tabIndex = isChosen ? 0 : -1;
  }
  const panel = at("pictures");
  panel.setAttribute("aria-labelledby", `tab-${group}`);
  const sensitive = panel.firstElementChild.classList.contains("sensitive");  // the mark may have changed since
  panel.replaceChildren(grid(feature.pictures[group], { sensitive }));
  feature.group = group;
  if (isKept) history.replaceState(null, "", group === "top" ? location.pathname : `?group=${group}`);
  showHeat();
}

function startTabs() {
  const tabs = [...document.querySelectorAll("[role=tab]")];
  tabs.forEach((tab, i) => {
    tab.addEventListener("click", (event) => { event.preventDefault(); choose(tab.dataset.group, true); });
    tab.addEventListener("keydown", (event) => {
      const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: tabs.length - 1, " ": i }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      const next = tabs[(to + tabs.length) % tabs.length];
      next.focus();
      choose(next.dataset.group, true);
    });
  });
  const asked = new URLSearchParams(location.search).get("group");
  if (asked in feature.pictures && asked !== feature.group) choose(asked, false);  // of an export, which no server asked
}

// The occupied bins and one beside them on either side.
function showHistogram() {
  const { counts, edges } = feature.histogram;
  const first = Math.max(0, counts.findIndex((count) => count > 0) - 1);
  const last = Math.min(counts.length, counts.findLastIndex((count) => count > 0) + 2);
  histogram(at("histogram"), {
    counts: counts.slice(first, last),
    edges: edges.slice(first, last + 1).map((edge) => edge ?? Infinity),
    logX: true, xLabel: "activation", yLabel: "rows", height: 240,
    marks: [{ x: feature.mean_top, label: `mean of the top ${feature.k}` }],
  });
}

// The stored largest cosines as stems at once; every neuron's as a line once the tower has given its vectors.
async function showAlignment() {
  const { top_absolute: top, has_sign: hasSign } = feature.alignment, text = at("alignment-text");
  drawAlignment({ x: top.flatMap(({ id }) => [id, id, id]), y: top.flatMap(({ cosine }) => [0, cosine, null]) });
  text.textContent = `The ${top.length} largest; the others are being computed.`;
  try {
    const { cosines, missing } = await load(`f/${feature.feature}/alignment.json`);
    if (missing) throw new Error(missing);
    drawAlignment({ y: hasSign ? cosines : cosines.map(Math.abs) });
    text.textContent = "";
  } catch (error) {
    text.textContent = `Only the ${top.length} largest are shown. ${error.message}`;
  }
}

function drawAlignment(series) {
  const { n_vectors: n, chance: [first, ...others], has_sign: hasSign } = feature.alignment;
  const canvas = make("canvas", { id: "alignment", "aria-label": at("alignment").getAttribute("aria-label") });
  at("alignment").replaceWith(canvas);  // a plot keeps its canvas
  lines(canvas, {
    series: [series], xRange: [0, n - 1], xLabel: hasSign ? "neuron" : "direction", yLabel: "cosine", height: 220,
    band: first && { low: first.low, high: first.high, label: "random directions" },
    marks: others.map(({ level }) => ({ y: level, label: "level of chance with the rows' covariance" })),
  });
}

// Heat maps lie over the pictures of the largest activations: how strongly the feature fires on each patch.
let heat = null;

async function startHeat() {
  at("heat-line").hidden = false;
  at("heat").addEventListener("click", () => {
    const isOn = at("heat").getAttribute("aria-pressed") !== "true";
    at("heat").setAttribute("aria-pressed", String(isOn));
    at("pictures").dataset.heat = isOn ? "on" : "off";
  });
  try {
    heat = await load(`f/${feature.feature}/heat.json`);
    showHeat();
  } catch (error) {
    at("heat-text").textContent = error.message;
  }
}

function showHeat() {
  if (heat === null) return;
  const isTop = feature.group === "top";
  at("heat-text").textContent = isTop ? "activation on each patch; the patch of the picture's own row is framed" : "of the largest activations only";
  if (!isTop) return;
  const most = Math.max(...heat.images.flatMap((image) => image.values));
  document.querySelectorAll("#pictures li a").forEach((link, i) => {
    const row = feature.pictures.top[i].row, image = heat.images.find((each) => each.rows.includes(row));
    if (!image) return;
    const picture = link.querySelector("img"), canvas = make("canvas", { "aria-hidden": "true" });
    link.append(canvas);
    const draw = () => drawHeat(canvas, picture, image.values, image.at[image.rows.indexOf(row)], most);
    if (picture.complete) draw(); else picture.addEventListener("load", draw);
  });
}

// The patches cover the middle square of a picture, or the whole of it, as the tower's preprocessing has it.
function drawHeat(canvas, picture, values, own, most) {
  const size = 128, side = heat.side, context = canvas.getContext("2d");
  canvas.width = canvas.height = size;
  const w = picture.naturalWidth || 1, h = picture.naturalHeight || 1, scale = size / Math.max(w, h);
  const [wide, tall] = { middle: [Math.min(w, h) * scale, Math.min(w, h) * scale], whole: [w * scale, h * scale] }[heat.crop] ?? [size, size];
  const left = (size - wide) / 2, top = (size - tall) / 2;
  values.forEach((value, i) => {
    if (value <= 0) return;
    context.fillStyle = `rgb(255 64 0 / ${0.12 + 0.63 * (value / most)})`;
    context.fillRect(left + (i % side) * wide / side, top + Math.floor(i / side) * tall / side, wide / side, tall / side);
  });
  if (own < 0) return;
  context.strokeStyle = "#fff";
  context.lineWidth = 2;
  context.strokeRect(left + (own % side) * wide / side + 1, top + Math.floor(own / side) * tall / side + 1, wide / side - 2, tall / side - 2);
}

async function showAllLabels() {
  const button = at("all-labels");
  button.disabled = true;
  const { rows } = await load(`f/${feature.feature}/labels.json`);
  at("labels").tBodies[0].replaceChildren(...rows.map(labelRow));
  button.remove();
}

function labelRow({ label, name, share, count, share_of_label: ofLabel }) {
  const bar = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  for (const [key, value] of [["class", "share"], ["viewBox", "0 0 100 10"], ["preserveAspectRatio", "none"], ["aria-hidden", "true"]]) bar.setAttribute(key, value);
  const rect = bar.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "rect"));
  rect.setAttribute("width", 100 * share);
  rect.setAttribute("height", 10);
  return make("tr", {}, make("td", { dir: "auto" }, make("a", { href: url.label(label) }, name)), make("td", { class: "n" }, percent(share)),
    make("td", {}, bar), make("td", { class: "n" }, number(count)), make("td", { class: "n" }, percent(ofLabel)));
}

// The partners that are shown are those with the largest Jaccard index, whichever order they stand in.
function startOrder() {
  const group = at("order"), list = document.querySelector("#partners .cards"), items = [...list.children];
  group.hidden = false;
  group.addEventListener("click", (event) => {
    const by = event.target.dataset.by;
    if (!by) return;
    for (const button of group.children) button.setAttribute("aria-pressed", String(button === event.target));
    list.append(...items.map((item, i) => [feature.partners[i][by], item]).sort((a, b) => b[0] - a[0]).map(([, item]) => item));
  });
}

function startCopy() {
  const button = at("copy");
  button.hidden = false;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(location.href);
      at("copied").textContent = "Copied.";
    } catch {
      at("copied").textContent = location.href;  // a page that is not served securely has no clipboard
    }
  });
}

startCopy();
if (document.querySelector("[role=tab]")) startTabs();
if (at("histogram")) showHistogram();
if (feature.alignment) showAlignment();
if (feature.has_patches && at("pictures")) startHeat();
if (at("all-labels")) { at("all-labels").hidden = false; at("all-labels").addEventListener("click", showAllLabels); }
if (at("partners")) startOrder();
