// What every plot shares: colours of the theme, a canvas as sharp as the screen, round ticks, axes, redrawing when needed.
//
//   theme()                              {ink, soft, line, wash, paper, mark, warn} as CSS colours of the moment
//   keepDrawn(canvas, draw, height)      calls draw(context, width, height) now, on a new size and on a new theme; gives a function that redraws
//   ticks(low, high, n)                  about n round numbers within [low, high]
//   logTicks(low, high)                  [{at, text}] for an axis of log10: decades, 2 and 5 where there are few, less where there is none
//   drawAxes(context, box, {...})        frame, ticks, names of both axes; gives {x, y}: a value's place in pixels
//   tickText(value)                      a tick's number, short

export function theme() {
  const style = getComputedStyle(document.documentElement);
  const names = ["ink", "soft", "line", "wash", "paper", "mark", "warn"];
  return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

export function keepDrawn(canvas, draw, height = 180) {
  canvas.style.width = "100%";
  if (height) canvas.style.height = `${height}px`;
  function redraw() {
    const { width, height: tall } = canvas.getBoundingClientRect();
    if (width < 1 || tall < 1) return;
    const ratio = window.devicePixelRatio || 1;
    const size = [Math.round(width * ratio), Math.round(tall * ratio)];
    if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, tall);
    context.font = '11px system-ui, "DejaVu Sans", sans-serif';
    draw(context, width, tall);
  }
  new ResizeObserver(redraw).observe(canvas);
  window.addEventListener("themechange", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  redraw();
  return redraw;
}

export function ticks(low, high, n = 5) {
  if (!(high > low)) return [low];
  const rough = (high - low) / n, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((size) => size * power >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

export function logTicks(low, high) {
  if (high - low < 0.8) { // less than a decade: round numbers, whatever they begin with
    return ticks(10 ** low, 10 ** high, 6).filter((value) => value > 0).map((value) => ({ at: Math.log10(value), text: tickText(value) }));
  }
  const found = [], every = Math.max(1, Math.ceil((high - low) / 7));
  const within = high - low < 2.2 ? [1, 2, 5] : [1];
  for (let decade = Math.floor(low); decade <= Math.ceil(high); decade++) {
    if (decade % every !== 0) continue;
    for (const part of within) {
      const at = decade + Math.log10(part);
      if (at >= low - 1e-9 && at <= high + 1e-9) found.push({ at, text: tickText(Number(`${part}e${decade}`)) });
    }
  }
  return found;
}

export function tickText(value) {
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 1e6 || size < 1e-3) return value.toExponential().replace(/\.?0*e\+?/, "e").replace("-", "−").replace("e-", "e−");
  return (size >= 1e4 ? `${Number((value / 1e3).toPrecision(4))}k` : String(Number(value.toPrecision(4)))).replace("-", "−");
}

// box: {left, top, right, bottom} in pixels; range: {x: [low, high], y: [low, high]} as drawn (log10 on a log axis);
// xTicks, yTicks: [{at, text}]; xLabel, yLabel: what the axes are.
export function drawAxes(context, box, { range, xTicks, yTicks, xLabel = "", yLabel = "" }) {
  const colours = theme();
  const x = (value) => box.left + ((value - range.x[0]) / (range.x[1] - range.x[0])) * (box.right - box.left);
  const y = (value) => box.bottom - ((value - range.y[0]) / (range.y[1] - range.y[0])) * (box.bottom - box.top);
  context.strokeStyle = colours.line;
  context.lineWidth = 1;
  context.beginPath();
  for (const { at } of yTicks) { const h = Math.round(y(at)) + 0.5; context.moveTo(box.left, h); context.lineTo(box.right, h); }
  for (const { at } of xTicks) { const v = Math.round(x(at)) + 0.5; context.moveTo(v, box.bottom); context.lineTo(v, box.bottom + 4); }
  context.moveTo(box.left, Math.round(box.bottom) + 0.5);
  context.lineTo(box.right, Math.round(box.bottom) + 0.5);
  context.stroke();
  context.fillStyle = colours.soft;
  context.textBaseline = "middle";
  context.textAlign = "right";
  for (const { at, text } of yTicks) context.fillText(text, box.left - 5, y(at));
  context.textBaseline = "top";
  context.textAlign = "center";
  let free = -Infinity;
  for (const { at, text } of xTicks) {
    const half = context.measureText(text).width / 2;
    if (x(at) - half < free) continue;
    context.fillText(text, x(at), box.bottom + 6);
    free = x(at) + half + 6;
  }
  context.fillText(xLabel, (box.left + box.right) / 2, box.bottom + 20);
  if (yLabel) {
    context.save();
    context.translate(9, (box.top + box.bottom) / 2);
    context.rotate(-Math.PI / 2);
    context.textBaseline = "middle";
    context.fillText(yLabel, 0, 0);
    context.restore();
  }
  return { x, y };
}
