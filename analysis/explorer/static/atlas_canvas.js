// The atlas' canvas: up to some 100,000 points, and over them a mosaic of pictures, finer the nearer one looks.
//
//   new AtlasCanvas(element, canvas, {x, y, row, hasPictures, isHidden})
//     x, y, row        of each point: -1 to 1, y upwards; the row of its picture
//     isHidden(i)      whether its picture is not to be seen now
//   .colour(values, isHighLoud)   values 0 to 1, NaN grey; the loud ones lie on top
//   .select(Uint8Array or null)   the others are drawn faintly
//   .at(left, top)                the point under a place in pixels, or null      .toMap(left, top)  that place's [x, y]
//   .zoom(factor, left, top), .move(dx, dy), .fit(), .centre()
//   .names                        of each point, '' for none: they are drawn where few points are in view
//   .path, .hovered               a line to draw, in the map's units, and a point to ring; then .redraw()
//
// Cells: 20 across the whole map, 40, 80 and so on, such that one is some 32 pixels; each shows the picture of the point
// nearest to the mean of those in it. `data-draw-ms`, `data-across` on the element: the last drawing's time and cells.

import { url } from "./api.js";
import { keepDrawn, theme } from "./axes.js";
import { css, isDark, ramp, undefinedColour } from "./ramp.js";

const BUCKETS = 64, REACH = 14, CELL = 32, LARGEST = 110, WAIT_MS = 120, MOST_SEEN = 120, WIDEST = 140;

export class AtlasCanvas {
  constructor(element, canvas, { x, y, row, hasPictures, isHidden }) {
    Object.assign(this, { element, canvas, x, y, row, hasPictures, isHidden });
    this.selected = this.path = this.hovered = this.view = this.image = this.names = null;
    this.levels = new Map();
    this.pictures = new Map();
    this.buffer = document.createElement("canvas");
    this.colour(new Float32Array(x.length), false, false);
    this.drawNow = keepDrawn(canvas, (context, width, height) => this.draw(context, width, height), 0);
  }

  colour(values, isHighLoud, redraws = true) {
    const bucketOf = (value) => Math.min(BUCKETS - 1, Math.max(0, Math.floor((isHighLoud ? 1 - value : value) * BUCKETS)));
    this.bucket = Uint8Array.from(values, (value) => (Number.isNaN(value) ? BUCKETS : bucketOf(value)));
    const starts = new Uint32Array(BUCKETS + 2), order = new Uint32Array(values.length);
    for (const bucket of this.bucket) starts[BUCKETS - bucket + 1]++;
    for (let i = 1; i < starts.length; i++) starts[i] += starts[i - 1];
    for (let i = 0; i < order.length; i++) order[starts[BUCKETS - this.bucket[i]]++] = i;
    this.order = order;
    if (redraws) this.redraw();
  }

  select(selected) { this.selected = selected; this.redraw(); }

  redraw() {
    this.frame ??= requestAnimationFrame(() => { this.frame = null; this.drawNow(); });
  }

  // Where things are

  fit() { this.view = null; this.redraw(); }
  toMap(left, top) { return [this.view.x + (left - this.width / 2) / this.view.scale, this.view.y - (top - this.height / 2) / this.view.scale]; }
  toScreen(x, y) { return [this.width / 2 + (x - this.view.x) * this.view.scale, this.height / 2 - (y - this.view.y) * this.view.scale]; }
  centre() { return [this.width / 2, this.height / 2]; }

  zoom(factor, left = this.width / 2, top = this.height / 2) {
    const [x, y] = this.toMap(left, top), least = this.whole() * 0.7;
    const scale = Math.min(Math.max(this.view.scale * factor, least), this.whole() * 200);
    this.view = { scale, x: x - (left - this.width / 2) / scale, y: y + (top - this.height / 2) / scale };
    this.held();
  }

  move(dx, dy) {
    this.view = { ...this.view, x: this.view.x - dx / this.view.scale, y: this.view.y + dy / this.view.scale };
    this.held();
  }

  held() { // the middle stays on the map
    const hold = (value) => Math.min(1, Math.max(-1, value));
    this.view = { ...this.view, x: hold(this.view.x), y: hold(this.view.y) };
    this.redraw();
  }

  whole() { return Math.min(this.width, this.height) / 2.15; }

  at(left, top, reach = REACH) {
    const [x, y] = this.toMap(left, top);
    const cell = this.cells?.byKey.get(this.keyOf(x, y));
    if (cell && this.isDrawn(cell)) return cell.point;
    let found = null, least = (reach / this.view.scale) ** 2;
    for (let i = 0; i < this.x.length; i++) {
      const away = (this.x[i] - x) ** 2 + (this.y[i] - y) ** 2;
      if (away < least) { least = away; found = i; }
    }
    return found;
  }

  // Cells

  keyOf(x, y) {
    const { across } = this.cells, place = (value) => Math.min(across - 1, Math.max(0, Math.floor(((value + 1) / 2) * across)));
    return place(y) * across + place(x);
  }

  // The cells of a level: keys, how many points, and the point nearest to their mean.
  level(across) {
    if (this.levels.has(across)) return this.levels.get(across);
    const byKey = new Map();
    this.cells = { across, byKey };
    const keys = new Float64Array(this.x.length);
    for (let i = 0; i < keys.length; i++) {
      keys[i] = this.keyOf(this.x[i], this.y[i]);
      const cell = byKey.get(keys[i]);
      if (cell) { cell.n++; cell.x += this.x[i]; cell.y += this.y[i]; } else byKey.set(keys[i], { n: 1, x: this.x[i], y: this.y[i], point: i, away: Infinity });
    }
    for (const cell of byKey.values()) { cell.x /= cell.n; cell.y /= cell.n; }
    for (let i = 0; i < keys.length; i++) {
      const cell = byKey.get(keys[i]), away = (this.x[i] - cell.x) ** 2 + (this.y[i] - cell.y) ** 2;
      if (away < cell.away) { cell.away = away; cell.point = i; }
    }
    this.levels.set(across, this.cells);
    return this.cells;
  }

  isDrawn(cell) {
    const picture = this.pictures.get(this.row[cell.point]);
    return this.hasPictures && picture !== undefined && picture.complete && picture.naturalWidth > 0 && !this.isHidden(cell.point);
  }

  // Drawing

  draw(context, width, height) {
    const start = performance.now();
    [this.width, this.height] = [width, height];
    this.view ??= { x: 0, y: 0, scale: this.whole() };
    const colours = this.palette();
    this.drawPoints(context, colours);
    const level = Math.min(6, Math.max(-1, Math.round(Math.log2((2 * this.view.scale) / (20 * CELL)))));
    this.level(20 * 2 ** level);
    this.cells = this.levels.get(20 * 2 ** level);
    if (this.hasPictures) this.drawMosaic(context, colours);
    if (this.names !== null) this.drawNames(context);
    this.drawMarks(context);
    this.element.dataset.across = this.cells.across;
    this.element.dataset.drawMs = (performance.now() - start).toFixed(2);
  }

  palette() {
    const dark = isDark();
    return [...ramp(dark, BUCKETS), undefinedColour(dark)];
  }

  pointSize() {
    const zoomed = this.view.scale / this.whole(), n = this.x.length / zoomed ** 2;
    return n > 30000 ? 2 : n > 8000 ? 3 : n > 1000 ? 4 : n > 100 ? 6 : 8;
  }

  drawPoints(context, colours) {
    const ratio = context.getTransform().a, w = this.canvas.width, h = this.canvas.height;
    if (this.image === null || this.buffer.width !== w || this.buffer.height !== h) {
      [this.buffer.width, this.buffer.height] = [w, h];
      this.image = this.buffer.getContext("2d").createImageData(w, h);
    }
    const pixels = new Uint32Array(this.image.data.buffer), size = Math.max(1, Math.round(this.pointSize() * ratio));
    pixels.fill(0);
    const asPixel = (alpha) => Uint32Array.from(colours, ([r, g, b]) => ((alpha << 24) | (b << 16) | (g << 8) | r) >>> 0);
    const full = asPixel(255), faint = asPixel(60), { x, y, selected, bucket } = this;
    const scale = this.view.scale * ratio, left = w / 2 - this.view.x * scale - size / 2, top = h / 2 + this.view.y * scale - size / 2;
    for (const pass of selected === null ? [1] : [0, 1]) {
      const palette = pass ? full : faint;
      for (let at = 0; at < this.order.length; at++) {
        const i = this.order[at];
        if (selected !== null && selected[i] !== pass) continue;
        const column = Math.round(left + x[i] * scale), row = Math.round(top - y[i] * scale);
        if (column < 0 || row < 0 || column + size > w || row + size > h) continue;
        const colour = palette[bucket[i]], end = (row + size) * w + column;
        for (let line = row * w + column; line < end; line += w) for (let px = line; px < line + size; px++) pixels[px] = colour;
      }
    }
    this.buffer.getContext("2d").putImageData(this.image, 0, 0);
    context.drawImage(this.buffer, 0, 0, this.width, this.height);
  }

  drawMosaic(context, colours) {
    const { across, byKey } = this.cells, side = (2 / across) * this.view.scale, shown = Math.min(side - 2, LARGEST), wanted = [];
    for (const [key, cell] of byKey) {
      const [left, top] = this.toScreen(((key % across) + 0.5) * (2 / across) - 1, (Math.floor(key / across) + 0.5) * (2 / across) - 1);
      if (left < -side || top < -side || left > this.width + side || top > this.height + side) continue;
      if (!this.isDrawn(cell)) { if (!this.isHidden(cell.point)) wanted.push(this.row[cell.point]); continue; }
      context.globalAlpha = this.selected !== null && !this.selected[cell.point] ? 0.25 : 1;
      context.fillStyle = css(colours[this.bucket[cell.point]]);
      context.fillRect(left - shown / 2, top - shown / 2, shown, shown);
      context.drawImage(this.pictures.get(this.row[cell.point]), left - shown / 2 + 2.5, top - shown / 2 + 2.5, shown - 5, shown - 5);
    }
    context.globalAlpha = 1;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => wanted.forEach((row) => this.fetch(row)), WAIT_MS); // not of what is only passed by
  }

  // Names under what is in view, where it is few enough; of names that would cover each other the first stands.
  drawNames(context) {
    const { ink, paper } = theme(), { x, y, width, height, names } = this, seen = [];
    for (let i = 0; i < x.length; i++) {
      const [left, top] = this.toScreen(x[i], y[i]);
      if (left < 0 || top < 0 || left > width || top > height) continue;
      if (seen.push([i, left, top]) > MOST_SEEN) return;
    }
    const side = (2 / this.cells.across) * this.view.scale, shown = Math.min(side - 2, LARGEST), taken = [];
    context.font = "12px system-ui, sans-serif";
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (const [i, left, top] of seen) {
      if (!names[i]) continue;
      const key = this.keyOf(x[i], y[i]), cell = this.cells.byKey.get(key), hasPicture = cell !== undefined && this.hasPictures && this.isDrawn(cell);
      if (hasPicture && cell.point !== i) continue;  // lies under another's picture
      const middle = hasPicture ? this.toScreen(((key % this.cells.across) + 0.5) * (2 / this.cells.across) - 1, (Math.floor(key / this.cells.across) + 0.5) * (2 / this.cells.across) - 1) : [left, top];
      const text = clipped(context, names[i], WIDEST), wide = context.measureText(text).width + 6, at = middle[1] + (hasPicture ? shown / 2 : this.pointSize() / 2) + 10;
      const box = [middle[0] - wide / 2, at - 8, middle[0] + wide / 2, at + 8];
      if (taken.some((other) => box[0] < other[2] && other[0] < box[2] && box[1] < other[3] && other[1] < box[3])) continue;
      taken.push(box);
      context.globalAlpha = 0.8;
      context.fillStyle = paper;
      context.fillRect(box[0], box[1], wide, 16);
      context.globalAlpha = 1;
      context.fillStyle = ink;
      context.fillText(text, middle[0], at);
    }
    this.element.dataset.names = taken.length;
  }

  fetch(row) {
    if (row < 0 || this.pictures.has(row)) return;
    const picture = new Image();
    picture.onload = () => this.redraw();
    picture.src = url.thumbnail(row);
    this.pictures.set(row, picture);
  }

  drawMarks(context) {
    const { ink, mark } = theme();
    context.lineWidth = 2;
    if (this.path !== null && this.path.length > 1) {
      context.strokeStyle = mark;
      context.beginPath();
      for (const [x, y] of this.path) context.lineTo(...this.toScreen(x, y));
      context.closePath();
      context.stroke();
    }
    if (this.hovered !== null) {
      context.strokeStyle = ink;
      context.beginPath();
      context.arc(...this.toScreen(this.x[this.hovered], this.y[this.hovered]), 8, 0, 2 * Math.PI);
      context.stroke();
    }
  }
}

// As much of a text as has room.
function clipped(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  const letters = [...text];
  while (letters.length > 0 && context.measureText(`${letters.join("")}…`).width > width) letters.pop();
  return `${letters.join("")}…`;
}
