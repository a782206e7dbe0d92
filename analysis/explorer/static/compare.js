// Two runs beside each other: how far the matching is, the share that is recovered at a threshold, histograms, scatters.

import { has, inlined, isExport, load, loadBytes, number } from "./api.js";
import { histogram } from "./plots.js";
import { css, isDark, ramp } from "./ramp.js";
import { Scatter } from "./scatter.js";
import { percent } from "./shares.js";

const data = inlined("compare-data");
const waiting = document.getElementById("waiting");
const { suffix } = document.documentElement.dataset;

// Asks how far the matching is, and shows the page anew when it is done.
async function wait() {
  const status = await load(`compare-status/${waiting.dataset.run}.json`);
  if (status.is_done) { location.reload(); return; }
  document.getElementById("progress").value = status.share;
  const left = status.left_s === null ? "" : `, about ${number(Math.ceil(status.left_s))} s left`;
  document.getElementById("left").textContent = `${Math.floor(100 * status.share)} %${left}`;
  setTimeout(wait, 700);
}

// Bin i of a run's counts holds best cosines above i / 100 up to (i + 1) / 100.
function showShares() {
  const level = Number(document.getElementById("threshold").value);
  document.getElementById("threshold-text").textContent = (level / 100).toFixed(2);
  ["a", "b"].forEach((name, i) => {
    const sum = (counts) => counts.reduce((total, count) => total + count, 0);
    const all = sum(data.counts[i]);
    document.getElementById(`recovered-${name}`).textContent = percent(sum(data.counts[i].slice(level)) / all, 3);
  });
}

function drawBest(i) {
  const { counts, names, chance } = data;
  const joined = Array.from({ length: 50 }, (_, bin) => counts[i][2 * bin] + counts[i][2 * bin + 1]);
  histogram(document.getElementById(`best-${i}`), {
    counts: joined,
    edges: Array.from({ length: 51 }, (_, edge) => edge / 50),
    label: `Best cosines of the features of ${names[i]} with those of ${names[1 - i]}`,
    xLabel: "cosine with the best match",
    marks: chance === null || i > 0 ? [] : [{ x: chance, label: "chance, p99" }],
  });
}

const OF_RUN = [0, 0.75];  // place of each run's colour on the ramp

// Both runs in one scatter: a colour each while both are shown, the label entropy where one is alone.
async function drawScatter() {
  const columns = await Promise.all(["points.bin", `compare-points/${data.other}.bin`].map(async (path) => {
    const bytes = await loadBytes(path), n = bytes.byteLength / 12;
    return [0, 1, 2].map((column) => new Float32Array(bytes, 4 * column * n, n));
  }));
  const first = columns[0][0].length, [x, y, entropy] = [0, 1, 2].map((column) => Float32Array.from([...columns[0][column], ...columns[1][column]]));
  const runOf = Uint8Array.from(x, (_, i) => (i < first ? 0 : 1)), featureOf = (i) => (i < first ? i : i - first);
  const most = entropy.reduce((highest, value) => (value > highest ? value : highest), 0);
  const boxes = [0, 1].map((run) => document.getElementById(`shows-${run}`)), under = document.getElementById("under");
  // an export knows which features of this run have pages, not those of the other
  const opens = (i) => !isExport || (runOf[i] === 0 && has("features", i));
  const scatter = new Scatter(document.getElementById("scatter"), {
    x, y, c: entropy, cMax: most,
    xLabel: "density (log scale)", yLabel: "mean top activation (log scale)",
    onHover: (i) => {
      under.textContent = i === null ? "\u00a0"
        : `${data.names[runOf[i]]}, feature ${featureOf(i)}: density ${number(10 ** x[i])}, mean top ${number(10 ** y[i])}, entropy ${number(entropy[i])}`;
    },
    onOpen: (i) => { if (opens(i)) location.href = `${data.roots[runOf[i]]}/f/${featureOf(i)}${suffix}`; },
  });
  const show = () => {
    const isShown = boxes.map((box) => box.checked), isBoth = isShown[0] && isShown[1];
    scatter.isMixed = isBoth;
    scatter.colour(isBoth ? Float32Array.from(runOf, (run) => OF_RUN[run]) : entropy, isBoth ? 1 : most, Uint8Array.from(runOf, (run) => (isShown[run] ? 1 : 0)));
    const colours = ramp(isDark(), 64);
    boxes.forEach((box, run) => { box.parentElement.querySelector(".swatch").style.background = isBoth ? css(colours[Math.floor(64 * OF_RUN[run])]) : "none"; });
  };
  for (const box of boxes) box.addEventListener("change", show);
  window.addEventListener("themechange", show);
  show();
}

if (waiting !== null) wait();
if (data !== null) {
  document.getElementById("level-now").hidden = true;
  document.getElementById("threshold").addEventListener("input", showShares);
  showShares();
  [0, 1].forEach(drawBest);
  drawScatter();
}
