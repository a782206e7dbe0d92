// A scatter of up to some 100,000 points on a canvas, with both marginals: wheel zooms, a drag selects, keys move.
//
//   new Scatter(element, {x, y, c, cMax, ranges, xLabel, yLabel, mark, onHover, onOpen, onBrush})
//     element   a positioned block of fixed height that takes the focus; gets two canvases
//     x, y, c   Float32Array of one length: places (logarithms; NaN has none) and what the colour says, 0 to cMax, NaN grey
//     mark      {y, label}: a dashed line, or null
//     onHover(id, left, top)  a point under the pointer, and where in the element; null when there is none any more
//     onOpen(id)              it was clicked, or Enter was pressed
//     onBrush(brush)          {x: [low, high], y: [low, high]} drawn by the visitor, or null
//   .colour(c, cMax, isKept)  other colours; those that are not kept are left out (null keeps all)
//   .isMixed = true           points lie over each other in no order, so that no colour covers another
//   .select(isSelected)  Uint8Array: the others are drawn faintly; null for all      .setBrush(brush)  the rectangle drawn
//   .zoom(factor), .reset(), .isMoving = true (drags move instead of selecting)
//
// Points are written into an ImageData in the order of their colour, low ones last: 65,536 take a few milliseconds.
// `data-draw-ms` on the element is how long the last drawing took.

import { drawAxes, keepDrawn, logTicks, theme } from "./axes.js";
import { isDark, ramp, undefinedColour } from "./ramp.js";

const BUCKETS = 64, GREY = BUCKETS; // colours; the last is for undefined
const X_BINS = 64, Y_BINS = 40;
const REACH = 14; // pixels from a point at which it is still pointed at
const DRAG = 4; // pixels below which a press is a click

export class Scatter {
  constructor(element, { x, y, c, cMax, xLabel = "", yLabel = "", mark = null, onHover = () => {}, onOpen = () => {}, onBrush = () => {} }) {
    Object.assign(this, { element, x, y, xLabel, yLabel, mark, onHover, onOpen, onBrush });
    this.kept = null;
    this.isMixed = false;
    this.setColours(c, cMax);
    this.whole = { x: roomy(x, this.order), y: roomy(y, this.order, mark?.y) };
    this.shown = structuredClone(this.whole);
    this.selected = this.brush = this.hovered = null;
    this.isMoving = false;
    this.buffer = document.createElement("canvas");
    [this.below, this.above] = ["points", "over"].map((name) => {
      const canvas = document.createElement("canvas");
      canvas.className = name;
      canvas.setAttribute("aria-hidden", "true");
      element.append(canvas);
      return canvas;
    });
    this.drawBelow = keepDrawn(this.below, (context, width, height) => this.draw(context, width, height), 0);
    this.drawAbove = keepDrawn(this.above, (context) => this.drawOver(context), 0);
    this.listen();
  }

  setColours(c, cMax) {
    this.bucket = Uint8Array.from(c, (value) => (Number.isNaN(value) ? GREY : Math.min(BUCKETS - 1, Math.max(0, Math.floor((value / (cMax || 1)) * BUCKETS)))));
    this.order = this.sorted();
  }

  colour(c, cMax, isKept = null) {
    this.kept = isKept;
    this.setColours(c, cMax);
    this.redraw();
  }

  // Ids that have a place: undefined colours first, then from high to low, so that the low ones lie on top.
  sorted() {
    const counts = new Uint32Array(BUCKETS + 2), place = (id) => GREY - this.bucket[id];
    const hasPlace = (id) => (this.kept === null || this.kept[id] === 1) && !Number.isNaN(this.x[id]) && !Number.isNaN(this.y[id]);
    for (let id = 0; id < this.x.length; id++) if (hasPlace(id)) counts[place(id) + 1]++;
    for (let i = 1; i < counts.length; i++) counts[i] += counts[i - 1];
    const order = new Uint32Array(counts[counts.length - 1]);
    for (let id = 0; id < this.x.length; id++) if (hasPlace(id)) order[counts[place(id)]++] = id;
    if (this.isMixed) for (let i = order.length - 1, at = 1; i > 0; i--) { // shuffled, the same each time
      at = (at * 48271) % 2147483647;
      const j = at % (i + 1);
      [order[i], order[j]] = [order[j], order[i]];
    }
    return order;
  }

  select(selected) { this.selected = selected; this.redraw(); }
  setBrush(brush) { this.brush = brush; this.drawAbove(); }
  reset() { this.shown = structuredClone(this.whole); this.redraw(); }

  // At most one drawing a frame, however many events there are.
  redraw() {
    this.frame ??= requestAnimationFrame(() => { this.frame = null; this.drawBelow(); this.drawAbove(); });
  }

  // Drawing

  draw(context, width, height) {
    const start = performance.now();
    this.ratio = context.getTransform().a;
    this.box = { left: 52, top: 46, right: width - 52, bottom: height - 36 };
    const { box, shown } = this;
    this.place = drawAxes(context, box, { range: shown, xTicks: logTicks(...shown.x), yTicks: logTicks(...shown.y), xLabel: this.xLabel, yLabel: this.yLabel });
    const counts = this.drawPoints();
    context.drawImage(this.buffer, box.left, box.top, this.buffer.width / this.ratio, this.buffer.height / this.ratio);
    this.drawMarginals(context, counts);
    if (this.mark) this.drawMark(context);
    this.element.dataset.drawMs = (performance.now() - start).toFixed(2);
  }

  // Writes the points into the buffer, and counts them by bins of both axes: all in view, and the selected ones.
  drawPoints() {
    const { x, y, bucket, order, selected, box, shown, ratio } = this;
    const w = Math.max(1, Math.round((box.right - box.left) * ratio)), h = Math.max(1, Math.round((box.bottom - box.top) * ratio));
    if (this.buffer.width !== w || this.buffer.height !== h || !this.image) {
      [this.buffer.width, this.buffer.height] = [w, h];
      this.image = this.buffer.getContext("2d").createImageData(w, h);
    }
    const pixels = new Uint32Array(this.image.data.buffer);
    pixels.fill(0);
    const [full, faint] = this.palettes(), stamp = disc(this.pointSize() * ratio);
    const xScale = w / (shown.x[1] - shown.x[0]), yScale = h / (shown.y[1] - shown.y[0]);
    const counts = { x: new Uint32Array(X_BINS), y: new Uint32Array(Y_BINS), xSelected: new Uint32Array(X_BINS), ySelected: new Uint32Array(Y_BINS) };
    for (const isPass of selected === null ? [1] : [0, 1]) { // those that are not selected lie below
      const palette = isPass ? full : faint;
      for (let i = 0; i < order.length; i++) {
        const id = order[i];
        if (selected !== null && selected[id] !== isPass) continue;
        const column = (x[id] - shown.x[0]) * xScale, row = (shown.y[1] - y[id]) * yScale;
        if (!(column >= 0 && column < w && row >= 0 && row < h)) continue;
        const xBin = Math.floor((column / w) * X_BINS), yBin = Math.floor((1 - row / h) * Y_BINS - 1e-9);
        counts.x[xBin]++;
        counts.y[yBin < 0 ? 0 : yBin]++;
        if (isPass) { counts.xSelected[xBin]++; counts.ySelected[yBin < 0 ? 0 : yBin]++; }
        const colour = palette[bucket[id]], left = column | 0, top = row | 0;
        for (let j = 0; j < stamp.length; j += 2) {
          const px = left + stamp[j], py = top + stamp[j + 1];
          if (px >= 0 && px < w && py >= 0 && py < h) pixels[py * w + px] = colour;
        }
      }
    }
    this.buffer.getContext("2d").putImageData(this.image, 0, 0);
    return counts;
  }

  pointSize() { // pixels across: fewer points, or fewer in view, are larger
    const share = ((this.shown.x[1] - this.shown.x[0]) * (this.shown.y[1] - this.shown.y[0])) / ((this.whole.x[1] - this.whole.x[0]) * (this.whole.y[1] - this.whole.y[0]));
    const n = this.order.length * Math.min(1, share);
    return n > 30000 ? 2 : n > 8000 ? 3 : n > 2000 ? 4 : n > 300 ? 5 : 7;
  }

  // The colours as pixels, bytes from low to high red, green, blue, alpha; and the same, faint.
  palettes() {
    const dark = isDark(), colours = [...ramp(dark, BUCKETS), undefinedColour(dark)];
    const pixel = (alpha) => Uint32Array.from(colours, ([r, g, b]) => ((alpha << 24) | (b << 16) | (g << 8) | r) >>> 0);
    return [pixel(255), pixel(dark ? 70 : 56)];
  }

  drawMarginals(context, counts) { // heights by the square root: the few outside a large cluster are seen too
    const { box, selected } = this, colours = theme(), tall = 36;
    const bars = (values, colour, most, along) => {
      context.fillStyle = colour;
      const n = values.length, across = along === "x" ? box.right - box.left : box.bottom - box.top;
      for (let i = 0; i < n; i++) {
        if (!values[i]) continue;
        const size = Math.max(1, Math.sqrt(values[i] / most) * tall), step = across / n;
        if (along === "x") context.fillRect(box.left + i * step, box.top - 4 - size, Math.max(1, step - 1), size);
        else context.fillRect(box.right + 4, box.bottom - (i + 1) * step, size, Math.max(1, step - 1));
      }
    };
    for (const along of ["x", "y"]) {
      const most = Math.max(1, ...counts[along]);
      bars(counts[along], selected === null ? colours.mark : colours.line, most, along);
      if (selected !== null) bars(counts[`${along}Selected`], colours.mark, most, along);
    }
  }

  drawMark(context) {
    const { box, place, mark } = this, at = place.y(mark.y), colours = theme();
    if (at < box.top || at > box.bottom) return;
    context.strokeStyle = context.fillStyle = colours.warn;
    context.setLineDash([6, 4]);
    context.beginPath();
    context.moveTo(box.left, at);
    context.lineTo(box.right, at);
    context.stroke();
    context.setLineDash([]);
    context.textAlign = "right";
    context.textBaseline = "bottom";
    context.fillText(mark.label, box.right - 4, at - 2);
  }

  drawOver(context) {
    const { brush, box, place, hovered } = this, colours = theme();
    if (!place) return;
    if (brush) {
      const clip = (value, low, high) => Math.min(Math.max(value, low), high);
      const [left, right] = brush.x.map((value) => clip(place.x(value), box.left, box.right));
      const [bottom, top] = brush.y.map((value) => clip(place.y(value), box.top, box.bottom));
      context.strokeStyle = colours.mark;
      context.lineWidth = 1.5;
      context.strokeRect(left, top, right - left, bottom - top);
    }
    if (hovered !== null) {
      context.strokeStyle = colours.ink;
      context.lineWidth = 2;
      context.beginPath();
      context.arc(place.x(this.x[hovered]), place.y(this.y[hovered]), 6, 0, 2 * Math.PI);
      context.stroke();
    }
  }

  // Finding points

  // The id in view that is nearest to a place in pixels, or null; `cost` gives what a point so far away (in pixels) costs.
  nearest(left, top, { cost = (dx, dy) => dx * dx + dy * dy, most = REACH * REACH, within = null } = {}) {
    const { x, y, order, shown, box } = this;
    const xScale = (box.right - box.left) / (shown.x[1] - shown.x[0]), yScale = (box.bottom - box.top) / (shown.y[1] - shown.y[0]);
    let found = null, least = most;
    for (let i = order.length - 1; i >= 0; i--) { // the upper ones first
      const id = order[i];
      if ((within !== null && !within[id]) || x[id] < shown.x[0] || x[id] > shown.x[1] || y[id] < shown.y[0] || y[id] > shown.y[1]) continue;
      const price = cost(box.left + (x[id] - shown.x[0]) * xScale - left, box.bottom - (y[id] - shown.y[0]) * yScale - top);
      if (price < least) { least = price; found = id; }
    }
    return found;
  }

  hover(id) {
    if (id === this.hovered) return;
    this.hovered = id;
    if (id === null) delete this.element.dataset.hovered;
    else this.element.dataset.hovered = id;
    this.drawAbove();
    if (id === null) this.onHover(null);
    else this.onHover(id, this.place.x(this.x[id]), this.place.y(this.y[id]));
  }

  // Moves to the nearest (selected) point to the left (-1, 0), above (0, -1), ...; sideways costs more than onwards.
  step(right, down) {
    const { box, place, hovered } = this, isIn = hovered !== null;
    const left = isIn ? place.x(this.x[hovered]) : (box.left + box.right) / 2, top = isIn ? place.y(this.y[hovered]) : (box.top + box.bottom) / 2;
    const cost = (dx, dy) => {
      const onwards = dx * right + dy * down, aside = Math.abs(dx * down) + Math.abs(dy * right);
      return onwards > 0.5 && aside <= 2 * onwards ? onwards * onwards + 4 * aside * aside : Infinity;
    };
    const found = this.nearest(left, top, { ...(isIn ? { cost } : {}), most: Infinity, within: this.selected });
    if (found !== null) this.hover(found);
  }

  // Zoom and move

  zoom(factor, left = (this.box.left + this.box.right) / 2, top = (this.box.top + this.box.bottom) / 2) {
    const { box, shown, whole } = this;
    const shares = { x: (left - box.left) / (box.right - box.left), y: (box.bottom - top) / (box.bottom - box.top) };
    for (const axis of ["x", "y"]) {
      const [low, high] = shown[axis], at = low + shares[axis] * (high - low), full = whole[axis][1] - whole[axis][0];
      const size = Math.min(full * 1.2, Math.max(full / 200, (high - low) / factor));
      shown[axis] = [at - shares[axis] * size, at + (1 - shares[axis]) * size];
    }
    this.redraw();
  }

  move(dx, dy) {
    const { box, shown, whole } = this;
    const by = { x: (-dx / (box.right - box.left)) * (shown.x[1] - shown.x[0]), y: (dy / (box.bottom - box.top)) * (shown.y[1] - shown.y[0]) };
    for (const axis of ["x", "y"]) {
      const [low, high] = shown[axis], middle = (low + high) / 2;
      const held = Math.min(whole[axis][1], Math.max(whole[axis][0], middle + by[axis])) - middle; // never out of sight
      shown[axis] = [low + held, high + held];
    }
    this.redraw();
  }

  // What visitors do

  listen() {
    const { element } = this;
    element.addEventListener("wheel", (event) => {
      event.preventDefault();
      const { left, top } = this.at(event);
      this.zoom(1.0015 ** -event.deltaY, left, top);
    }, { passive: false });
    element.addEventListener("pointerdown", (event) => this.press(event));
    element.addEventListener("pointermove", (event) => this.drag(event));
    element.addEventListener("pointerup", (event) => this.release(event));
    element.addEventListener("pointercancel", () => { this.pressed = null; });
    element.addEventListener("pointerleave", (event) => { if (!this.pressed && event.pointerType === "mouse") this.hover(null); });
    element.addEventListener("dblclick", () => this.reset());
    element.addEventListener("keydown", (event) => this.key(event));
  }

  at(event) {
    const corner = this.element.getBoundingClientRect();
    return { left: event.clientX - corner.left, top: event.clientY - corner.top };
  }

  press(event) {
    if (event.button > 1 || event.target.closest("a")) return;
    this.element.setPointerCapture(event.pointerId);
    this.pressed = { ...this.at(event), from: this.at(event), isDrag: false, isMove: this.isMoving || event.shiftKey || event.button === 1 };
  }

  drag(event) {
    const here = this.at(event), { pressed } = this;
    if (!pressed) { this.hover(this.nearest(here.left, here.top)); return; }
    pressed.isDrag ||= Math.hypot(here.left - pressed.from.left, here.top - pressed.from.top) > DRAG;
    if (!pressed.isDrag) return;
    this.hover(null);
    if (pressed.isMove) this.move(here.left - pressed.left, here.top - pressed.top);
    else this.setBrush(this.between(pressed.from, here));
    Object.assign(pressed, here);
  }

  release(event) {
    const { pressed } = this, here = this.at(event);
    this.pressed = null;
    if (!pressed) return;
    if (pressed.isDrag) { if (!pressed.isMove) this.onBrush(this.brush); return; }
    const found = this.nearest(here.left, here.top), isTouch = event.pointerType !== "mouse";
    if (found === null) { this.hover(null); if (this.brush) this.onBrush(null); return; }
    if (isTouch && found !== this.hovered) this.hover(found); // a first touch shows, a second opens
    else this.onOpen(found);
  }

  // The rectangle between two places in pixels, in the numbers of the axes.
  between(a, b) {
    const { box, shown } = this;
    const value = (at, low, high, [from, to]) => from + (Math.min(1, Math.max(0, (at - low) / (high - low)))) * (to - from);
    const xs = [a.left, b.left].map((left) => value(left, box.left, box.right, shown.x));
    const ys = [a.top, b.top].map((top) => value(top, box.bottom, box.top, shown.y));
    return { x: [Math.min(...xs), Math.max(...xs)], y: [Math.min(...ys), Math.max(...ys)] };
  }

  key(event) {
    const acts = {
      ArrowLeft: () => this.step(-1, 0), ArrowRight: () => this.step(1, 0), ArrowUp: () => this.step(0, -1), ArrowDown: () => this.step(0, 1),
      Enter: () => { if (this.hovered !== null) this.onOpen(this.hovered); },
      "+": () => this.zoom(1.4), "-": () => this.zoom(1 / 1.4), 0: () => this.reset(),
      Escape: () => { this.hover(null); this.onBrush(null); },
    };
    if (event.ctrlKey || event.metaKey || event.altKey || !acts[event.key]) return;
    event.preventDefault();
    acts[event.key]();
  }
}

// The range of the values of some ids, and of one more, with a little room.
function roomy(values, ids, more) {
  let low = more ?? Infinity, high = more ?? -Infinity;
  for (const id of ids) {
    if (values[id] < low) low = values[id];
    if (values[id] > high) high = values[id];
  }
  if (low > high) return [-1, 0];
  const room = Math.max((high - low) * 0.04, 0.05);
  return [low - room, high + room];
}

// Offsets x, y, x, y, ... of the pixels of a disc.
function disc(across) {
  const offsets = [], reach = Math.ceil(across / 2), centre = Math.round(across) % 2 ? 0 : 0.5;
  for (let dy = -reach; dy <= reach; dy++) {
    for (let dx = -reach; dx <= reach; dx++) {
      if ((dx + centre) ** 2 + (dy + centre) ** 2 <= (across * across) / 4 + 0.3) offsets.push(dx, dy);
    }
  }
  return Int32Array.from(offsets);
}
