// Your image: takes a picture, shows what the run makes of it, and what changes when its features are multiplied.

import { grid, load, make, number, post } from "./api.js";
import { chances, firing } from "./firings.js";
import { chance } from "./shares.js";

const byId = (id) => document.getElementById(id);
const drop = byId("drop"), list = byId("firings"), status = byId("status");
const MOST_BYTES = Number(drop.dataset.mostBytes), SLIDERS = Number(list.dataset.sliders), LARGEST = list.dataset.largest;
const AT_ONCE = 24;

let file = null; // the picture, to be sent again where the server has let go of it
let token = "";
let factors = new Map(); // by feature, those that are not 1
let round = 0; // answers to an earlier picture are dropped

const tile = (name, definition, value) =>
  make("div", { class: "tile" }, make("dt", {}, make("abbr", { title: definition }, name)), make("dd", {}, value));

async function take(picture) {
  if (picture === undefined || picture === null) return;
  if (picture.size > MOST_BYTES) {
    status.textContent = `This file has ${number(picture.size / 1048576)} MiB; at most ${MOST_BYTES / 1048576} are taken.`;
    return;
  }
  const mine = ++round;
  file = picture;
  status.textContent = "Your picture goes through the tower …";
  drop.classList.add("busy");
  try {
    const found = await post("upload/picture.json", picture);
    if (mine === round) show(found);
  } catch (error) {
    if (mine === round) status.textContent = error.message;
  } finally {
    if (mine === round) drop.classList.remove("busy");
  }
}

function show(found) {
  token = found.token;
  factors = new Map();
  URL.revokeObjectURL(byId("own").src);
  byId("own").src = URL.createObjectURL(file);
  byId("seen").src = found.picture;
  const several = found.n_tokens > 1;
  byId("tiles").replaceChildren(
    tile("L0", several ? "Features above 0, a mean over the tokens" : "Features above 0 on this picture", number(found.l0)),
    several ? tile("Features", "Features above 0 on any of the tokens", number(found.counts.all))
      : tile("L0 above 0.1", "Features above 0.1 on this picture", number(found.counts.above)),
    ...(found.counts.without_uld === null || several ? [] : [tile("L0 without ULD", "Features above 0 that are not in the ultra-low-density cluster", number(found.counts.without_uld))]),
    tile("Relative error", "||x_hat - x|| / ||x||: what the SAE's reconstruction leaves of the activation x", number(found.relative_error)),
    tile("Cosine", several ? "Cosine of x and its reconstruction x_hat, a mean over the tokens" : "Cosine of x and its reconstruction x_hat", number(found.cosine, 4)),
    tile("Norm", "||x|| of the activation", number(found.norm, 4)));
  showChances(found.zero_shot, found.problem);
  byId("edit-tools").hidden = byId("edit-how").hidden = !found.can_edit;
  showFeatures(found.features, found.can_edit, found.counts.all);
  status.textContent = "";
  byId("result").hidden = false;
  showSimilar();
}

function showChances(zeroShot, problem = "") {
  const text = zeroShot === null ? "" : `Among ${number(zeroShot.n_classes)} classes, ${zeroShot.captions}.`;
  byId("zero-shot-status").textContent = `${text} ${problem}`.trim();
  const ways = ["original", "with the SAE", "with your changes"];
  byId("zero-shot").replaceChildren(...(zeroShot === null ? [] : [chances(zeroShot.classes, ways.slice(0, zeroShot.classes[0].chances.length))]));
  if (zeroShot === null) return;
  const last = ({ chances: each }) => each[each.length === 3 ? 2 : 0]; // with the changes, where there are some
  const likeliest = [...zeroShot.classes].sort((a, b) => last(b) - last(a)).slice(0, 3);
  byId("now").textContent = `CLIP says: ${likeliest.map((each) => `${each.name} ${chance(last(each))}`).join(", ")}`;
}

function showFeatures(features, canEdit, total) {
  const left = features.map((each, place) => firing(each, ...(canEdit && place < SLIDERS ? [slider(each.feature)] : [])));
  const more = byId("more");
  const add = () => {
    list.append(...left.splice(0, AT_ONCE));
    more.hidden = left.length === 0;
    more.textContent = total > features.length ? `Show more (the strongest ${features.length} of ${number(total)})` : "Show more";
  };
  list.replaceChildren();
  more.onclick = add;
  add();
}

// A slider and a box that ablates the feature.
function slider(feature) {
  const range = make("input", { type: "range", min: 0, max: LARGEST, step: 0.05, value: 1, "aria-label": `Feature ${feature}, times` });
  const shown = make("output", {}, "× 1");
  const box = make("input", { type: "checkbox", "aria-label": `Take feature ${feature} out` });
  const change = () => {
    const factor = box.checked ? 0 : Number(range.value);
    range.disabled = box.checked;
    shown.textContent = `× ${number(factor)}`;
    if (factor === 1) factors.delete(feature);
    else factors.set(feature, factor);
    byId("reset").disabled = factors.size === 0;
    askSoon();
  };
  range.addEventListener("input", change);
  box.addEventListener("change", change);
  return make("span", { class: "edit" }, range, shown, make("label", {}, box, " take out"));
}

// One question at a time: what moves meanwhile is asked when its answer is there.
let isAsking = false, isMore = false, timer = 0;

function askSoon() {
  clearTimeout(timer);
  timer = setTimeout(ask, 120);
}

async function ask() {
  if (isAsking) { isMore = true; return; }
  isAsking = true;
  const mine = round;
  try {
    const question = () => post("upload/edit.json", { token, factors: Object.fromEntries(factors), keep_error: byId("keep-error").checked });
    let found = await question();
    if (!found.is_held && mine === round) {
      token = (await post("upload/picture.json", file)).token;
      found = await question();
    }
    if (mine === round && found.is_held) {
      showChances(found, `Cosine of the picture's embedding with and without your changes: ${number(found.cosine, 4)}.`);
    }
  } catch (error) {
    if (mine === round) byId("zero-shot-status").textContent = error.message;
  }
  isAsking = false;
  if (isMore) { isMore = false; ask(); }
}

async function showSimilar() {
  const mine = round, line = byId("similar-status"), place = byId("similar");
  line.textContent = "Codes are compared …";
  place.replaceChildren();
  try {
    const { images, is_exact } = await load(`upload/similar.json?token=${token}`);
    if (mine !== round) return;
    place.append(grid(images));
    line.textContent = images.length === 0 ? "No image of the store shares a feature with yours."
      : `By the cosine of their feature activations with yours.${is_exact ? "" : " The densest features were left out of the search: another image may be as near."}`;
  } catch (error) {
    if (mine === round) line.textContent = error.message;
  }
}

async function getReady() {
  status.textContent = "The tower is loaded …";
  try {
    const { is_ready, reason, precision } = await load("upload/tower.json");
    const rounded = is_ready && precision !== "fp32" ? `The tower computes in ${precision}, as when the store was made: last digits may differ from the store's. ` : "";
    if (round === 0) status.textContent = rounded + reason;
    if (!is_ready) {
      drop.classList.add("off");
      byId("file").disabled = true;
      status.className = "warning";
    }
  } catch (error) {
    if (round === 0) status.textContent = error.message;
  }
}

const picked = (files) => [...files].find((each) => each.type.startsWith("image/")) ?? files[0];
const isOff = () => drop.classList.contains("off");

byId("file").addEventListener("change", (event) => take(event.target.files[0]));
document.addEventListener("paste", (event) => {
  if (!isOff() && event.clipboardData.files.length > 0) take(picked(event.clipboardData.files));
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.classList.add("over");
});
document.addEventListener("dragleave", () => drop.classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  if (!isOff()) take(picked(event.dataTransfer.files));
});
byId("keep-error").addEventListener("change", askSoon);
byId("reset").addEventListener("click", () => {
  for (const line of list.querySelectorAll(".edit")) {
    const [range, box] = line.querySelectorAll("input");
    range.value = 1;
    range.disabled = box.checked = false;
    line.querySelector("output").textContent = "× 1";
  }
  factors = new Map();
  byId("reset").disabled = true;
  askSoon();
});
getReady();
