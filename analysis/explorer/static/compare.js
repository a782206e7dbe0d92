// Two runs beside each other: how far the matching is, the share that is recovered at a threshold, histograms, scatters.

import { has, inlined, isExport, load, loadBytes, number } from "./api.js";
import { histogram } from "./plots.js";
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

async function drawScatter(i) {
  const bytes = await loadBytes(i === 0 ? "points.bin" : `compare-points/${data.other}.bin`);
  const n = bytes.byteLength / 12;
  const [x, y, c] = [0, 1, 2].map((column) => new Float32Array(bytes, 4 * column * n, n));
  const cMax = c.reduce((most, value) => (value > most ? value : most), 0);
  const under = document.getElementById(`under-${i}`);
  // an export knows which features of this run have pages, not those of the other
  const opens = (id) => !isExport || (i === 0 && has("features", id));
  new Scatter(document.getElementById(`scatter-${i}`), {
    x, y, c, cMax,
    xLabel: "density (log scale)", yLabel: "mean top activation (log scale)",
    onHover: (id) => {
      under.textContent = id === null ? "\u00a0"
        : `Feature ${id}: density ${number(10 ** x[id])}, mean top ${number(10 ** y[id])}, entropy ${number(c[id])}`;
    },
    onOpen: (id) => { if (opens(id)) location.href = `${data.roots[i]}/f/${id}${suffix}`; },
  });
}

if (waiting !== null) wait();
if (data !== null) {
  document.getElementById("level-now").hidden = true;
  document.getElementById("threshold").addEventListener("input", showShares);
  showShares();
  [0, 1].forEach(drawBest);
  [0, 1].forEach(drawScatter);
}
