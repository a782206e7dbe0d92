// The overview: histograms, training curves, the scatter with its filter, and the card of the feature under the pointer.
//
// The filter is three ranges, `low:high` with either end open: d log10 density, m log10 mean top activation, e label
// entropy in nats. It lies in the address, under the names by which the list of features takes it.

import { grid, has, inlined, load, loadBytes, make, number, url } from "./api.js";
import { keepDrawn, theme, tickText, ticks } from "./axes.js";
import { histogram, lines } from "./plots.js";
import { css, isDark, ramp, undefinedColour } from "./ramp.js";
import { Scatter } from "./scatter.js";
import { setList } from "./shell.js";

const data = inlined("overview-data");
const element = (id) => document.getElementById(id);
const AXES = ["d", "m", "e"];

// Ranges

// [low, high] of `low:high`; null of nothing; undefined of what is neither.
export function range(text) {
  if (text.trim() === "") return null;
  const parts = text.replaceAll("−", "-").split(":").map((part) => part.trim());
  const [low, high] = parts.map((part, i) => (part === "" ? (i ? Infinity : -Infinity) : Number(part)));
  return parts.length === 2 && low <= high ? [low, high] : undefined;
}

const short = (value) => (Number.isFinite(value) ? String(Number(value.toFixed(3))) : "");
const text = ([low, high]) => `${short(low)}:${short(high)}`;

function asQuery(filter) {
  const parts = AXES.filter((axis) => filter[axis]).map((axis) => `${axis}=${text(filter[axis])}`);
  return parts.length ? `?${parts.join("&")}` : "";
}

// Plots

function drawHistograms() {
  histogram(element("density"), { ...data.density, logX: true, edges: data.density.edges.map((edge) => 10 ** edge), label: "Features by density", xLabel: "density: share of rows on which a feature is above 0" });
  histogram(element("entropy"), { ...data.entropy, label: "Features by label entropy", xLabel: "label entropy (nats)", marks: [{ x: data.max_entropy, label: `ln ${data.k}` }] });
}

async function drawCurves() {
  const place = element("curves");
  if (place === null) return;
  const titles = { loss: "loss", l0: "L0", explained_variance: "explained variance", n_dead: "dead features" };
  const found = await load("curves.json");
  for (const [name, title] of Object.entries(titles)) {
    const curves = Object.entries(found[name]);
    if (curves.length === 0) continue;
    const canvas = make("canvas", { width: 400, height: 180, "aria-label": `${title} against training rows` });
    place.append(make("figure", {}, make("figcaption", {}, title), canvas));
    const most = Math.max(1, ...curves.flatMap(([, { y }]) => y));
    lines(canvas, {
      xLabel: "training rows",
      ...(name === "n_dead" ? { yRange: [0, most * 1.05] } : {}), // a count starts at 0
      series: curves.map(([split, { x, y }]) => ({ x, y, label: split === "heldout" ? "held out" : "batch" })),
    });
  }
  if (place.childElementCount === 0) place.append(make("p", {}, "metrics.jsonl holds no step."));
}

function drawLegend() {
  const top = data.max_entropy || 1;
  keepDrawn(element("legend"), (context, width) => {
    const dark = isDark(), colours = ramp(dark, 64), left = 4, right = width - 96;
    colours.forEach((colour, i) => {
      context.fillStyle = css(colour);
      context.fillRect(left + (i * (right - left)) / 64, 2, (right - left) / 64 + 1, 10);
    });
    context.fillStyle = css(undefinedColour(dark));
    context.fillRect(right + 14, 2, 10, 10);
    context.fillStyle = theme().soft;
    context.textBaseline = "top";
    context.textAlign = "left";
    context.fillText("undefined", right + 28, 2);
    for (const at of ticks(0, top, 3)) {
      context.textAlign = at === 0 ? "left" : "center";
      context.fillText(`${tickText(at)}${at === 0 ? " nats" : ""}`, left + (at / top) * (right - left), 15);
    }
  }, 30);
}

// The card

const cards = new Map();
let wanted = null;

async function showCard(id, left, top, points) {
  wanted = id;
  const card = element("card");
  if (id === null) { card.hidden = true; return; }
  const [density, meanTop, entropy] = points.map((column) => column[id]);
  fillCard(card, id, { density: 10 ** density, meanTop: 10 ** meanTop, entropy }, cards.get(id));
  card.hidden = false;
  const room = element("scatter").clientWidth - card.offsetWidth - 4;
  card.style.left = `${Math.max(4, Math.min(room, left + 14 > room ? left - card.offsetWidth - 14 : left + 14))}px`;
  card.style.top = `${top > element("scatter").clientHeight / 2 ? top - card.offsetHeight - 12 : top + 12}px`;
  if (cards.has(id) || !has("features", id)) return;
  await new Promise((resolve) => setTimeout(resolve, 50)); // what is only passed over is not asked for
  if (wanted !== id) return;
  try {
    cards.set(id, await load(`card/${id}.json`));
  } catch (error) {
    cards.set(id, { name: "", top: [], error: error.message });
  }
  if (wanted === id) showCard(id, left, top, points);
}

function fillCard(card, id, { density, meanTop, entropy }, found) {
  const title = make("a", { href: url.feature(id), class: "id" }, `Feature ${id}`);
  const isRoom = found === undefined ? has("features", id) : found.top.length > 0;
  const pictures = isRoom ? [grid(found?.top ?? [], { small: true, sensitive: found?.is_sensitive })] : [];
  card.replaceChildren(
    title,
    ...(found?.name ? [make("p", { class: "name" }, found.name)] : []),
    make("p", { class: "soft" }, `density ${number(density)} · mean top ${number(meanTop)} · entropy ${Number.isNaN(entropy) ? "undefined" : `${number(entropy)} nats`}`),
    ...pictures,
    ...(found?.error ? [make("p", { class: "warning" }, found.error)] : []),
    ...(has("features", id) ? [] : [make("p", { class: "soft" }, "Not among the features of this export.")]),
  );
}

// The scatter and its filter

class Filtered {
  constructor(points) {
    this.points = points;
    this.filter = {};
    this.selected = null;
    this.n = points[0].length;
    this.ids = null;
    this.scatter = new Scatter(element("scatter"), {
      x: points[0], y: points[1], c: points[2], cMax: data.max_entropy,
      xLabel: "density (log scale)", yLabel: "mean top activation (log scale)",
      mark: data.log10_threshold === null ? null : { y: data.log10_threshold, label: "ULD threshold" },
      onHover: (id, left, top) => { this.say(id); showCard(id, left, top, points).then(() => { if (id === wanted) this.say(id); }); },
      onOpen: (id) => this.open(id),
      onBrush: (brush) => this.brushed(brush),
    });
    this.scatter.element.append(element("card"));
  }

  // Takes ranges, by name; draws, counts and remembers them.
  set(filter) {
    const { points, n } = this;
    this.filter = Object.fromEntries(AXES.filter((axis) => filter[axis]).map((axis) => [axis, range(text(filter[axis]))]));
    const ranges = AXES.flatMap((axis, i) => (this.filter[axis] ? [[points[i], ...this.filter[axis]]] : []));
    this.selected = ranges.length ? new Uint8Array(n) : null;
    let count = 0, places = 0;
    for (let id = 0; id < n; id++) {
      if (Number.isNaN(points[0][id])) continue;
      places++;
      if (ranges.every(([values, low, high]) => values[id] >= low && values[id] <= high)) { count++; if (this.selected) this.selected[id] = 1; }
    }
    const { d, m } = this.filter;
    this.scatter.setBrush(d || m ? { x: d ?? [-Infinity, Infinity], y: m ?? [-Infinity, Infinity] } : null);
    this.scatter.select(this.selected);
    element("count").textContent = `${number(count)} of ${number(places)} features`;
    const query = asQuery(this.filter);
    element("as-list").href = url.page("features", query && `${query}&set=all`); // the list leaves the ULD cluster out by itself
    history.replaceState(null, "", `${location.pathname}${query}${location.hash}`);
    for (const axis of AXES) if (document.activeElement !== element(`range-${axis}`)) element(`range-${axis}`).value = this.filter[axis] ? text(this.filter[axis]) : "";
  }

  brushed(brush) {
    const { d, m, ...others } = this.filter;
    this.set(brush ? { ...others, d: brush.x, m: brush.y } : others);
  }

  typed() {
    const filter = {};
    let isRight = true;
    for (const axis of AXES) {
      const field = element(`range-${axis}`);
      filter[axis] = range(field.value);
      field.setCustomValidity(filter[axis] === undefined ? "a range such as -3:-1, :-1 or 0:0.5" : "");
      isRight &&= filter[axis] !== undefined;
    }
    if (isRight) this.set(filter);
  }

  // Keys j and k then walk along what is selected.
  open(id) {
    const address = url.feature(id);
    if (address === null) return;
    if (this.selected) setList(Array.from(this.selected.keys()).filter((each) => this.selected[each] && has("features", each)));
    location.href = address;
  }

  say(id) {
    element("said").textContent = id === null ? "" : `Feature ${id}${cards.get(id)?.name ? `, ${cards.get(id).name}` : ""}`;
  }
}

async function drawScatter() {
  const bytes = await loadBytes("points.bin"), n = bytes.byteLength / 12;
  const points = [0, 1, 2].map((i) => new Float32Array(bytes, 4 * i * n, n)); // little-endian, as every browser's machine
  const filtered = new Filtered(points), { scatter } = filtered, given = new URLSearchParams(location.search);
  filtered.set(Object.fromEntries(AXES.map((axis) => [axis, range(given.get(axis) ?? "")])));
  for (const axis of AXES) element(`range-${axis}`).addEventListener("input", () => filtered.typed());
  element("filter").addEventListener("submit", (event) => { event.preventDefault(); location.href = element("as-list").href; });
  element("zoom-in").addEventListener("click", () => scatter.zoom(1.4));
  element("zoom-out").addEventListener("click", () => scatter.zoom(1 / 1.4));
  element("reset").addEventListener("click", () => { scatter.reset(); filtered.set({}); });
  element("preset").addEventListener("click", () => filtered.set({ d: [-4, Infinity], m: [-0.7, Infinity], e: [0, Infinity] }));
  for (const [id, isMoving] of [["mode-select", false], ["mode-move", true]]) {
    element(id).addEventListener("click", () => {
      scatter.isMoving = isMoving;
      element("mode-select").setAttribute("aria-pressed", !isMoving);
      element("mode-move").setAttribute("aria-pressed", isMoving);
    });
  }
  drawLegend();
  element("tools").hidden = false;
  performance.mark("scatter-drawn");
  element("scatter").classList.add("drawn");
}

// Where something cannot be shown, its place says why.
async function tried(id, draw) {
  try {
    await draw();
  } catch (error) {
    element(id).append(make("p", { class: "warning" }, error.message));
    throw error;
  }
}

drawHistograms();
tried("scatter", drawScatter);
tried("curves", drawCurves);
