// Which points lie within a line drawn around them (even-odd rule, the line closed by its ends).
//
//   inside(path, x, y)      Uint8Array of 1 for the points within; path is [[x, y], ...] in the points' own units
//   thinned(path, least)    the path without points nearer than `least` to the one before
//   written(path)           the path as text for an address, of at most 80 points
//   read(text)              that path again; null where the text is none

export function thinned(path, least) {
  const kept = [];
  for (const [x, y] of path) {
    const last = kept[kept.length - 1];
    if (last === undefined || Math.hypot(x - last[0], y - last[1]) >= least) kept.push([x, y]);
  }
  return kept;
}

const MOST_POINTS = 80, DIGITS = 4;

export function written(path) {
  const far = Math.max(...[0, 1].map((axis) => Math.max(...path.map((each) => each[axis])) - Math.min(...path.map((each) => each[axis]))));
  let kept = path;
  for (let least = far / 200; kept.length > MOST_POINTS; least *= 1.3) kept = thinned(path, least);
  return kept.flat().map((value) => Number(value.toFixed(DIGITS))).join("_");
}

export function read(text) {
  const values = text.split("_").map(Number);
  if (values.length < 6 || values.length > 2 * MOST_POINTS || values.length % 2 || !values.every(Number.isFinite)) return null;
  return Array.from({ length: values.length / 2 }, (_, i) => [values[2 * i], values[2 * i + 1]]);
}

export function inside(path, x, y) {
  const found = new Uint8Array(x.length);
  if (path.length < 3) return found;
  const xs = path.map((each) => each[0]), ys = path.map((each) => each[1]);
  const [left, right, low, high] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  for (let i = 0; i < x.length; i++) {
    const px = x[i], py = y[i];
    if (px < left || px > right || py < low || py > high) continue;
    let isIn = 0;
    for (let a = 0, b = path.length - 1; a < path.length; b = a++) {
      if (ys[a] > py !== ys[b] > py && px < ((xs[b] - xs[a]) * (py - ys[a])) / (ys[b] - ys[a]) + xs[a]) isIn ^= 1;
    }
    found[i] = isIn;
  }
  return found;
}
