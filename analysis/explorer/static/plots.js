// Histograms and line plots on a canvas, in the colours of the theme; redrawn on a new size or theme.
//
//   histogram(canvas, {counts, edges, logX, logY, label, xLabel, yLabel, marks, height})
//     counts  n numbers; edges  n + 1 rising values (of a logX axis as values, not as logarithms: the first may be 0
//     and the last Infinity, as those of stored activation histograms, which then are drawn as wide as their neighbour)
//     logY    heights by log10 of 1 + count
//     label   what it shows, for those who do not see it, and the default of xLabel
//     marks   [{x, label}]: dashed lines across
//   lines(canvas, {series, label, xLabel, yLabel, xRange, yRange, logX, logY, band, marks, height})
//     series  [{y, x, label, colour, isDotted}]: y an array of numbers, null or NaN for a gap; x as many (0, 1, ... by default)
//     band    {low, high, label}: a shaded band between two y values, such as what chance gives
//     marks   [{y, label}] or [{x, label}]: dashed lines
// Both show under the pointer what lies there, and give a function that redraws. The canvas becomes an image with a name.

import { number } from "./api.js";
import { drawAxes, keepDrawn, logTicks, theme, tickText, ticks } from "./axes.js";

// Told apart with every common colour blindness (Okabe and Ito 2008), light enough for both themes.
export const seriesColours = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

const log10 = Math.log10;
const asTicks = (values) => values.map((at) => ({ at, text: tickText(at) }));

function describe(canvas, label) {
  canvas.setAttribute("role", "img");
  if (label && !canvas.hasAttribute("aria-label")) canvas.setAttribute("aria-label", label);
}

// Dashed lines with their names, down (x) or across (y).
function drawMarks(context, box, place, marks, { logX, logY }) {
  const colours = theme();
  context.strokeStyle = context.fillStyle = colours.warn;
  context.setLineDash([5, 4]);
  for (const { x, y, label = "" } of marks) {
    const isAcross = y !== undefined;
    const at = isAcross ? place.y(logY ? log10(y) : y) : place.x(logX ? log10(x) : x);
    const [low, high] = isAcross ? [box.top, box.bottom] : [box.left, box.right];
    if (!(at >= low - 1 && at <= high + 1)) continue;
    context.beginPath();
    if (isAcross) { context.moveTo(box.left, at); context.lineTo(box.right, at); } else { context.moveTo(at, box.top); context.lineTo(at, box.bottom); }
    context.stroke();
    context.textBaseline = isAcross ? "bottom" : "top";
    const isLeft = !isAcross && at > (box.left + box.right) / 2;
    context.textAlign = isAcross || isLeft ? "right" : "left";
    context.fillText(label, isAcross ? box.right : at + (isLeft ? -4 : 4), isAcross ? at - 1 : box.top);
  }
  context.setLineDash([]);
}

// A line of text in the upper right corner that says what is under the pointer; `find(x, y)` gives it and a place to mark.
function readout(canvas, redraw, state, find) {
  canvas.addEventListener("pointermove", (event) => {
    const corner = canvas.getBoundingClientRect();
    state.pointed = find(event.clientX - corner.left, event.clientY - corner.top);
    redraw();
  });
  canvas.addEventListener("pointerleave", () => { state.pointed = null; redraw(); });
}

function drawReadout(context, box, pointed) {
  if (!pointed) return;
  const colours = theme();
  context.textAlign = "right";
  context.textBaseline = "top";
  const width = context.measureText(pointed.text).width;
  context.fillStyle = colours.paper;
  context.fillRect(box.right - width - 6, 0, width + 6, 15);
  context.fillStyle = colours.ink;
  context.fillText(pointed.text, box.right, 2);
  if (pointed.at !== undefined) {
    context.strokeStyle = colours.soft;
    context.beginPath();
    context.moveTo(pointed.at, box.top);
    context.lineTo(pointed.at, box.bottom);
    context.stroke();
  }
}

// The edges as drawn: logarithms on a log axis, an open or zero end as wide as its neighbour.
function drawnEdges(edges, logX) {
  const drawn = Array.from(edges, (edge) => (logX ? log10(edge) : edge));
  const n = drawn.length;
  if (!Number.isFinite(drawn[0])) drawn[0] = 2 * drawn[1] - drawn[2];
  if (!Number.isFinite(drawn[n - 1])) drawn[n - 1] = 2 * drawn[n - 2] - drawn[n - 3];
  return drawn;
}

export function histogram(canvas, { counts, edges, logX = false, logY = false, label = "", xLabel = label, yLabel = "", marks = [], height = 180 }) {
  describe(canvas, label);
  const at = drawnEdges(edges, logX), state = { pointed: null };
  const tall = (count) => (logY ? log10(1 + count) : count);
  const most = tall(Math.max(1, ...counts)) * 1.04;
  let box, place;
  const redraw = keepDrawn(canvas, (context, width, whole) => {
    box = { left: yLabel ? 50 : 40, top: 16, right: width - 8, bottom: whole - 36 };
    const yTicks = logY ? [0, 1, 10, 100, 1e3, 1e4, 1e5, 1e6].filter((n) => tall(n) <= most).map((n) => ({ at: tall(n), text: tickText(n) }))
      : asTicks(ticks(0, most, 4).filter(Number.isInteger));
    const xTicks = logX ? logTicks(at[0], at[at.length - 1]) : asTicks(ticks(at[0], at[at.length - 1], Math.max(3, Math.min(7, width / 70))));
    place = drawAxes(context, box, { range: { x: [at[0], at[at.length - 1]], y: [0, most] }, xTicks, yTicks, xLabel, yLabel });
    const colours = theme();
    counts.forEach((count, i) => {
      if (!count) return;
      const left = place.x(at[i]), right = place.x(at[i + 1]), top = Math.min(place.y(tall(count)), box.bottom - 1);
      context.fillStyle = state.pointed?.bin === i ? colours.warn : colours.mark;
      context.fillRect(left, top, Math.max(1, right - left - (right - left > 4 ? 1 : 0)), box.bottom - top);
    });
    drawMarks(context, box, place, marks, { logX });
    drawReadout(context, box, state.pointed);
  }, height);
  readout(canvas, redraw, state, (x) => {
    const bin = at.findIndex((_, i) => i < counts.length && x >= place.x(at[i]) && x < place.x(at[i + 1]));
    return bin < 0 ? null : { bin, text: `${number(edges[bin])} to ${Number.isFinite(edges[bin + 1]) ? number(edges[bin + 1]) : "∞"}: ${number(counts[bin])}` };
  });
  return redraw;
}

// The least and largest finite number of several arrays; what no log axis can show is passed over.
function extent(arrays, isLog) {
  let low = Infinity, high = -Infinity;
  for (const values of arrays) {
    for (const value of values) {
      if (value === null || !Number.isFinite(value) || (isLog && value <= 0)) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  if (low > high) [low, high] = isLog ? [1, 10] : [0, 1];
  if (isLog) [low, high] = [log10(low), log10(high)];
  const room = high > low ? (high - low) * 0.05 : Math.abs(high) * 0.1 || 1;
  return [low - room, high + room];
}

export function lines(canvas, { series, label = "", xLabel = "", yLabel = "", xRange, yRange, logX = false, logY = false, band = null, marks = [], height = 180 }) {
  describe(canvas, label);
  const drawn = series.map((each, i) => ({ colour: seriesColours[i % seriesColours.length], x: each.y.map((_, j) => j), ...each }));
  const spanned = marks.filter((mark) => mark.y !== undefined).map((mark) => mark.y);
  if (band) spanned.push(band.low, band.high);
  const xs = xRange ?? extent(drawn.map((each) => each.x), logX), ys = yRange ?? extent([...drawn.map((each) => each.y), spanned], logY);
  if (!xRange && !logX && drawn.length) { const room = (xs[1] - xs[0]) * 0.045; xs[0] += room; xs[1] -= room; }
  const state = { pointed: null };
  let box, place;
  const redraw = keepDrawn(canvas, (context, width, whole) => {
    box = { left: yLabel ? 58 : 46, top: 18, right: width - 8, bottom: whole - 36 };
    const few = Math.max(3, Math.min(7, width / 70));
    const xTicks = logX ? logTicks(...xs) : asTicks(ticks(...xs, few)), yTicks = logY ? logTicks(...ys) : asTicks(ticks(...ys, 4));
    place = drawAxes(context, box, { range: { x: xs, y: ys }, xTicks, yTicks, xLabel, yLabel });
    const colours = theme();
    context.save();
    context.beginPath();
    context.rect(box.left - 4, box.top - 4, box.right - box.left + 8, box.bottom - box.top + 8); // whole dots at the ends
    context.clip();
    if (band) {
      const [top, bottom] = [band.high, band.low].map((value) => place.y(logY ? log10(value) : value));
      context.globalAlpha = 0.14;
      context.fillStyle = colours.warn;
      context.fillRect(box.left, top, box.right - box.left, bottom - top);
      context.globalAlpha = 1;
      context.textAlign = "right";
      context.textBaseline = "top";
      context.fillText(band.label ?? "", box.right - 2, top + 2);
    }
    for (const each of drawn) drawLine(context, place, each, logX, logY);
    context.restore();
    drawMarks(context, box, place, marks, { logX, logY });
    if (drawn.length > 1 && !state.pointed) drawLegend(context, box, drawn);
    drawReadout(context, box, state.pointed);
  }, height);
  readout(canvas, redraw, state, (x) => nearest(drawn, place, box, x, logX, xLabel));
  return redraw;
}

function drawLine(context, place, { x, y, colour, isDotted }, logX, logY) {
  context.strokeStyle = context.fillStyle = colour;
  context.lineWidth = y.length > 1000 ? 0.8 : 1.6;
  context.setLineDash(isDotted ? [2, 3] : []);
  context.beginPath();
  let isPen = false;
  for (let i = 0; i < y.length; i++) {
    const value = y[i];
    if (value === null || !Number.isFinite(value) || (logY && value <= 0)) { isPen = false; continue; }
    const h = place.x(logX ? log10(x[i]) : x[i]), v = place.y(logY ? log10(value) : value);
    if (isPen) context.lineTo(h, v); else context.moveTo(h, v);
    if (y.length === 1) { context.arc(h, v, 3.5, 0, 2 * Math.PI); context.fill(); }
    isPen = true;
  }
  context.stroke();
  context.setLineDash([]);
}

function drawLegend(context, box, drawn) {
  let right = box.right;
  context.textAlign = "right";
  context.textBaseline = "top";
  for (const { label = "", colour } of [...drawn].reverse()) {
    context.fillStyle = theme().soft;
    context.fillText(label, right, 2);
    right -= context.measureText(label).width + 14;
    context.fillStyle = colour;
    context.fillRect(right, 6, 10, 3);
    right -= 10;
  }
}

// What the series are at the place under the pointer: the point of each that is nearest along x.
function nearest(drawn, place, box, pointer, logX, xLabel) {
  if (pointer < box.left - 4 || pointer > box.right + 4) return null;
  const parts = [];
  let at, where;
  for (const { x, y, label = "" } of drawn) {
    let best = -1, least = Infinity;
    for (let i = 0; i < x.length; i++) {
      if (y[i] === null || !Number.isFinite(y[i])) continue;
      const away = Math.abs(place.x(logX ? log10(x[i]) : x[i]) - pointer);
      if (away < least) { least = away; best = i; }
    }
    if (best < 0) continue;
    where ??= x[best];
    at ??= place.x(logX ? log10(x[best]) : x[best]);
    parts.push(`${drawn.length > 1 ? `${label} ` : ""}${number(y[best])}`);
  }
  return parts.length ? { at, text: `${xLabel ? `${xLabel} ` : ""}${number(where)}: ${parts.join("  ")}` } : null;
}
