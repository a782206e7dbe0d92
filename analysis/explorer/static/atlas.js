// The atlas' page: waits for the map, draws it, colours it, shows cards, finds phrases, and makes lists with a lasso.

import { has, inlined, isExport, load, loadBytes, make, number, post, url } from "./api.js";
import { AtlasCanvas } from "./atlas_canvas.js";
import { inside, read, thinned, written } from "./lasso.js";
import { css, isDark, ramp } from "./ramp.js";
import { setList } from "./shell.js";

const POLL_MS = 700, CLICK = 4, LISTED = 60, MOST_FOUND = 12, LONGEST_ADDRESS = 30000;
const byId = (id) => document.getElementById(id);
const html = document.documentElement;

// Columns of atlas.bin (pages/atlas.py), without the features that an export has no page of.
async function loaded(n) {
  const bytes = await loadBytes("atlas.bin"), column = (Kind, i) => new Kind(bytes, 4 * n * i, n);
  const all = { id: column(Int32Array, 0), x: column(Float32Array, 1), y: column(Float32Array, 2), density: column(Float32Array, 3),
    entropy: column(Float32Array, 4), meanTop: column(Float32Array, 5), row: column(Int32Array, 6) };
  if (!isExport) return all;
  const kept = Array.from(all.id.keys()).filter((i) => has("features", all.id[i]));
  return Object.fromEntries(Object.entries(all).map(([name, values]) => [name, values.constructor.from(kept, (i) => values[i])]));
}

async function waitForMap(state) {
  for (;;) {
    const { is_ready: isReady, share, message } = await load("atlas-progress.json");
    if (isReady) return;
    if (share === 0 && message && !message.startsWith("The map is being made")) throw new Error(message);
    state.textContent = `The map is made at the first visit: ${Math.round(100 * share)} % done.`;
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

// Puts a phrase or a lasso into the address, so that a reload or a link shows the same; null takes it out.
function remember(changes) {
  const values = new URLSearchParams(location.search);
  for (const [name, value] of Object.entries(changes)) if (value === null) values.delete(name); else values.set(name, value);
  try { history.replaceState(null, "", `${location.pathname}${values.size ? "?" : ""}${values}`); } catch { /* a page that was opened from a folder, in some browsers */ }
}

class AtlasPage {
  constructor(points, { hasThumbnails, sensitive }) {
    this.points = points;
    this.sensitive = new Set(sensitive);
    this.tools = byId("atlas-tools").elements;
    this.element = byId("atlas");
    this.cards = new Map();
    this.names = {};
    this.pointers = new Map();
    this.scores = null;
    this.map = new AtlasCanvas(this.element, this.element.querySelector("canvas"), {
      ...points, hasPictures: hasThumbnails, isHidden: (i) => this.sensitive.has(points.id[i]) && html.dataset.sensitive !== "shown",
    });
    this.recolour();
    this.listen();
    this.element.dataset.n = points.id.length;
  }

  // Names stand on cards, in lists, and on the map where it shows few features.
  async name() {
    this.names = (await load("names.json")).names;
    this.map.names = Array.from(this.points.id, (id) => this.names[id] ?? "");
    this.map.redraw();
    this.element.dataset.named = "";
  }

  // Colours

  recolour() {
    const kind = this.tools.colour.value, { points } = this;
    const values = { entropy: points.entropy, density: points.density, meanTop: points.meanTop, phrase: this.scores ?? points.entropy }[kind];
    const isLog = kind === "density", finite = Float64Array.from(values).filter(Number.isFinite).sort();
    const low = kind === "entropy" ? 0 : finite[Math.floor(finite.length * (kind === "phrase" ? 0.5 : 0))] ?? 0, high = Math.max(finite[finite.length - 1] ?? 1, low);
    const scaled = isLog ? Math.log10 : (value) => value, [from, to] = [scaled(low), scaled(high)];
    this.map.colour(Float32Array.from(values, (value) => (to > from ? (scaled(value) - from) / (to - from) : 0 * value)), kind !== "entropy");
    const legend = byId("atlas-legend");
    legend.hidden = false;
    legend.querySelector(".low").textContent = (kind === "phrase" ? "≤ " : "") + number(low, 2);
    legend.querySelector(".high").textContent = number(high, 2);
    const what = { entropy: "nats of label entropy; grey: undefined", density: "share of rows, logarithmic", meanTop: "mean top activation", phrase: "cosine with the phrase" };
    legend.querySelector(".what").textContent = what[kind];
    this.drawLegend(kind !== "entropy");
  }

  drawLegend(isHighLoud) {
    const canvas = byId("atlas-legend").querySelector("canvas"), context = canvas.getContext("2d"), colours = ramp(isDark(), canvas.width);
    colours.forEach((colour, i) => {
      context.fillStyle = css(colour);
      context.fillRect(isHighLoud ? canvas.width - 1 - i : i, 0, 1, canvas.height);
    });
  }

  async find(phrase) {
    const state = byId("atlas-state"), asked = (this.asked = phrase), query = `q=${encodeURIComponent(phrase)}`;
    state.hidden = false;
    state.textContent = "Comparing with the phrase; the first time the tower is loaded …";
    try {
      const scores = new Float32Array(await loadBytes(`phrase.bin?${query}`));
      const { features, is_exact: isExact } = await load(`phrase.json?${query}&n=${MOST_FOUND}`);
      if (asked !== this.asked) return;
      this.scores = scores;
      const option = this.tools.colour.querySelector("[value=phrase]");
      option.disabled = false;
      option.textContent = `“${phrase}”`;
      this.tools.colour.value = "phrase";
      state.hidden = true;
      this.recolour();
      this.map.path = null;
      this.map.select(null);
      this.list(`Nearest to “${phrase}”`, features.map((each) => ({ ...each, text: `${number(each.score, 2)} ${each.name || each.feature}` })), features.map((each) => each.feature),
        `By the cosine with the mean embedding of the pictures on which each feature is largest${isExact ? "" : ", through the tower's last layer norm and projection alone"}.`);
      remember({ q: phrase, lasso: null });
    } catch (error) {
      state.textContent = error.message;
    }
  }

  // Lists

  selectInside(path) {
    const { points, map } = this;
    map.path = path;
    const found = inside(path, points.x, points.y), ids = [], entries = [];
    found.forEach((isIn, i) => {
      if (!isIn) return;
      ids.push(points.id[i]);
      if (entries.length < LISTED) entries.push({ feature: points.id[i], row: points.row[i], is_sensitive: this.sensitive.has(points.id[i]), text: this.names[points.id[i]] ?? `${points.id[i]}` });
    });
    map.select(ids.length ? found : null);
    this.list(`${number(ids.length)} feature${ids.length === 1 ? "" : "s"} in the lasso`, entries, ids, ids.length > LISTED ? `The first ${LISTED} of them:` : "");
  }

  list(title, entries, ids, why) {
    const section = byId("atlas-list"), joined = ids.join(",");
    byId("atlas-list-title").textContent = title;
    section.hidden = false;
    section.querySelector(".why").textContent = why;
    const acts = [];
    if (ids.length) {
      if (joined.length <= LONGEST_ADDRESS) acts.push(make("a", { href: url.page("features", `?ids=${joined}&set=all`) }, "Open as a list"));
      acts.push(make("button", { type: "button", name: "walk", title: "j and k go on to the next and the previous one", onclick: () => { setList(ids); location.href = url.feature(ids[0]); } }, "Walk through them"));
      if (!isExport) acts.push(...this.tagging(ids));
    }
    acts.push(make("button", { type: "button", name: "close", onclick: () => { section.hidden = true; this.map.path = null; this.map.select(null); remember({ lasso: null }); } }, "Close"));
    section.querySelector(".acts").replaceChildren(...acts);
    const items = entries.map((each) => make("li", {}, make("a", { href: url.feature(each.feature), class: each.is_sensitive ? "sensitive" : "" },
      ...(this.map.hasPictures ? [make("img", { src: url.thumbnail(each.row), alt: `Feature ${each.feature}`, loading: "lazy", width: 128, height: 128 })] : []), each.text)));
    section.querySelector(".pictures").replaceChildren(make("ol", { class: "found" }, ...items));
  }

  tagging(ids) {
    const input = make("input", { "aria-label": "Tag", placeholder: "tag", maxlength: 60, size: 12 }), said = make("span", { class: "soft", role: "status" });
    const save = async () => {
      const tag = input.value.trim();
      if (!tag) { input.focus(); return; }
      said.textContent = "Saving …";
      try {
        const features = Object.fromEntries(ids.map((id) => [id, { tags: [tag] }]));
        const { n_features: n } = await post("annotations", { format: "thresher-annotations", format_version: 1, features });
        said.textContent = `${number(n)} tagged.`;
      } catch (error) { said.textContent = `Not saved: ${error.message}`; }
    };
    input.addEventListener("keydown", (event) => { if (event.key === "Enter") save(); });
    return [input, make("button", { type: "button", name: "tag", onclick: save }, "Tag them"), said];
  }

  // The card

  hover(i) {
    const { map, element, points } = this;
    if (i === map.hovered) return;
    map.hovered = i;
    map.redraw();
    const card = byId("atlas-card");
    if (i === null) {
      delete element.dataset.hovered;
      card.hidden = true;
      return;
    }
    const id = points.id[i];
    element.dataset.hovered = id;
    this.fill(card, i, this.cards.get(id));
    card.hidden = false;
    const [left, top] = map.toScreen(points.x[i], points.y[i]);
    card.style.left = `${Math.max(4, Math.min(map.width - card.offsetWidth - 4, left + 16 + card.offsetWidth > map.width ? left - card.offsetWidth - 16 : left + 16))}px`;
    card.style.top = `${Math.max(4, Math.min(map.height - card.offsetHeight - 4, top > map.height / 2 ? top - card.offsetHeight - 14 : top + 14))}px`;
    byId("atlas-said").textContent = this.names[id] ? `Feature ${id}, ${this.names[id]}` : `Feature ${id}`;
    clearTimeout(this.timer);
    if (!this.cards.has(id)) this.timer = setTimeout(() => this.look(i, id), 80);
  }

  async look(i, id) {
    try { this.cards.set(id, await load(`card/${id}.json`)); } catch { return; }
    if (this.map.hovered === i) {
      this.fill(byId("atlas-card"), i, this.cards.get(id));
      if (this.cards.get(id).name) byId("atlas-said").textContent = `Feature ${id}, ${this.cards.get(id).name}`;
    }
  }

  fill(card, i, found) {
    const { points } = this, id = points.id[i], score = this.scores && this.tools.colour.value === "phrase" ? ` · cosine ${number(this.scores[i], 2)}` : "";
    const called = found?.name || this.names[id];
    const pictures = (found?.top ?? []).map(({ row, name }) => make("img", { src: url.thumbnail(row), alt: name, width: 128, height: 128 }));
    card.replaceChildren(
      make("p", {}, make("a", { href: url.feature(id), tabindex: -1 }, `Feature ${id}`), ...(called ? [" ", make("bdi", {}, called)] : [])),
      make("p", { class: "soft" }, `density ${number(points.density[i], 2)} · mean top ${number(points.meanTop[i])} · entropy ${number(points.entropy[i], 2)}${score}`),
      make("div", { class: `four${this.sensitive.has(id) ? " sensitive" : ""}` }, ...pictures));
  }

  open(i) { if (i !== null) location.href = url.feature(this.points.id[i]); }

  // What visitors do

  listen() {
    const { element, tools, map } = this;
    element.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.hover(null);
      map.zoom(1.0015 ** -event.deltaY, ...this.place(event));
    }, { passive: false });
    element.addEventListener("pointerdown", (event) => this.press(event));
    element.addEventListener("pointermove", (event) => this.drag(event));
    element.addEventListener("pointerup", (event) => this.release(event));
    element.addEventListener("pointercancel", (event) => this.release(event, true));
    element.addEventListener("pointerleave", () => { if (this.pointers.size === 0) this.hover(null); });
    element.addEventListener("keydown", (event) => this.key(event));
    tools.colour.addEventListener("change", () => this.recolour());
    tools.pictures?.addEventListener("change", () => { map.hasPictures = tools.pictures.checked; map.redraw(); });
    tools.lasso.addEventListener("click", () => this.setLasso(tools.lasso.getAttribute("aria-pressed") !== "true"));
    tools.in.addEventListener("click", () => map.zoom(1.6));
    tools.out.addEventListener("click", () => map.zoom(1 / 1.6));
    tools.fit.addEventListener("click", () => map.fit());
    byId("atlas-tools").addEventListener("submit", (event) => {
      event.preventDefault();
      const phrase = tools.phrase?.value.trim();
      if (phrase) this.find(phrase);
    });
    window.addEventListener("themechange", () => this.drawLegend(tools.colour.value !== "entropy"));
    new MutationObserver(() => map.redraw()).observe(html, { attributeFilter: ["data-sensitive"] });
  }

  setLasso(isOn) {
    this.tools.lasso.setAttribute("aria-pressed", isOn);
    this.element.dataset.mode = isOn ? "lasso" : "move";
  }

  place(event) {
    const corner = this.element.getBoundingClientRect();
    return [event.clientX - corner.left - this.element.clientLeft, event.clientY - corner.top - this.element.clientTop];
  }

  press(event) {
    if (event.button > 0 || event.target.closest("a")) return;
    this.element.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, this.place(event));
    this.start = { at: this.place(event), isMoved: this.pointers.size > 1, isTouch: event.pointerType !== "mouse", before: this.map.hovered };
    const draws = this.pointers.size === 1 && (event.shiftKey || this.element.dataset.mode === "lasso");
    this.map.path = draws ? [this.map.toMap(...this.start.at)] : null;
    this.isDrawing = draws;
  }

  drag(event) {
    const here = this.place(event), last = this.pointers.get(event.pointerId);
    if (last === undefined) {
      if (event.pointerType === "mouse" && !event.target.closest("a")) this.hover(this.map.at(...here));
      return;
    }
    if (!this.start.isMoved && Math.hypot(here[0] - this.start.at[0], here[1] - this.start.at[1]) < CLICK) return;
    this.start.isMoved = true;
    this.hover(null);
    if (this.isDrawing) {
      this.map.path.push(this.map.toMap(...here));
      this.map.redraw();
    } else {
      this.element.dataset.moving = "";
      const other = [...this.pointers].find(([id]) => id !== event.pointerId)?.[1];
      const spread = (place) => Math.hypot(place[0] - other[0], place[1] - other[1]);
      this.map.move((here[0] - last[0]) / (other ? 2 : 1), (here[1] - last[1]) / (other ? 2 : 1));
      if (other) this.map.zoom(spread(here) / Math.max(1, spread(last)), (here[0] + other[0]) / 2, (here[1] + other[1]) / 2);
    }
    this.pointers.set(event.pointerId, here);
  }

  release(event, isCancelled = false) {
    if (!this.pointers.delete(event.pointerId)) return;
    delete this.element.dataset.moving;
    if (this.isDrawing) {
      const path = thinned(this.map.path, 2 / this.map.view.scale);
      this.isDrawing = false;
      if (this.start.isMoved && path.length > 2 && !isCancelled) {
        const kept = written(path);
        remember({ lasso: kept });
        this.selectInside(read(kept));  // as a reload will
        return;
      }
      this.map.path = null;
    }
    if (this.start.isMoved || isCancelled) return;
    const found = this.map.at(...this.place(event));
    // a finger cannot hover: its first touch shows the card, the second opens the page
    if (this.start.isTouch && found !== this.start.before) this.hover(found);
    else this.open(found);
  }

  key(event) {
    const { map } = this, far = 0.15 * Math.min(map.width, map.height);
    const acts = {
      ArrowLeft: () => map.move(far, 0), ArrowRight: () => map.move(-far, 0), ArrowUp: () => map.move(0, far), ArrowDown: () => map.move(0, -far),
      "+": () => map.zoom(1.6), "=": () => map.zoom(1.6), "-": () => map.zoom(1 / 1.6), 0: () => map.fit(),
      Enter: () => { if (map.hovered !== null) this.open(map.hovered); },
    };
    if (!(event.key in acts) || event.ctrlKey || event.metaKey || event.altKey || event.target !== this.element) return;
    event.preventDefault();
    acts[event.key]();
    if (event.key === "Enter") return;
    requestAnimationFrame(() => requestAnimationFrame(() => this.hover(map.at(...map.centre(), Infinity))));
  }
}

async function openAtlas() {
  const data = inlined("atlas-data"), state = byId("atlas-state");
  if (data === null || state === null) return;
  try {
    if (!data.isReady) await waitForMap(state);
    const page = new AtlasPage(await loaded(data.n), data);
    state.hidden = true;
    if (data.hasNames) page.name().catch(() => {});  // the map is the same without
    const asked = new URLSearchParams(location.search), phrase = isExport ? null : asked.get("q"), lasso = asked.get("lasso");
    if (phrase) {
      page.tools.phrase.value = phrase;
      await page.find(phrase);
    }
    const path = lasso && read(lasso);
    if (path) {
      remember({ lasso });
      page.selectInside(path);
    }
  } catch (error) {
    state.textContent = error.message;
  }
}

openAtlas();
