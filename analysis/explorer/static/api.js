// Addresses of this explorer and what it answers; the one place that knows whether pages come from a server or lie in a folder.

const { root, suffix, thumbnail: thumbnailEnd } = document.documentElement.dataset;

export const isExport = suffix !== "";

// Whether there is a page of a feature, row, label or neuron: always on a server, of the chosen ones in an export.
const chosen = {};
export function has(kind, number) {
  if (!isExport) return true;
  chosen[kind] ??= new Set(window.thresherExport[kind]);
  return chosen[kind].has(Number(number));
}

// Addresses; null where an export holds no such page, which makes a link (see `make`) plain text.
export const url = {
  page: (path, query = "") => `${root}/${path || (isExport ? "index" : "")}${suffix}${query}`,
  feature: (id) => has("features", id) ? `${root}/f/${id}${suffix}` : null,
  image: (row) => has("rows", row) ? `${root}/i/${row}${suffix}` : null,
  label: (label) => has("labels", label) ? `${root}/c/${label}${suffix}` : null,
  neuron: (neuron) => has("neurons", neuron) ? `${root}/neurons/${neuron}${suffix}` : null,
  thumbnail: (row) => `${root}/t/${row}${thumbnailEnd}`,
  data: (path) => `${root}/${path}`,
};

// What the page was made from: the JSON in its <script type="application/json" id="...">.
export function inlined(id) {
  const element = document.getElementById(id);
  return element === null ? null : JSON.parse(element.textContent);
}

// What an address of this explorer answers, such as "features.json?q=dog".
export async function load(path) {
  if (isExport) return (await exported(path)).value;
  const response = await fetch(`${root}/${path}`);
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error ?? response.statusText);
  return answer;
}

// The same for an address that gives bytes: an ArrayBuffer.
export async function loadBytes(path) {
  if (isExport) {
    const text = atob((await exported(path)).base64);
    return Uint8Array.from(text, (c) => c.charCodeAt(0)).buffer;
  }
  const response = await fetch(`${root}/${path}`);
  if (!response.ok) throw new Error((await response.json()).error ?? response.statusText);
  return response.arrayBuffer();
}

// Sends something to this explorer; a body that is no string, Blob or ArrayBuffer goes as JSON. What is sent with
// `keepalive` arrives though the page is left meanwhile.
export async function post(path, body, { keepalive = false } = {}) {
  const isRaw = typeof body === "string" || body instanceof Blob || body instanceof ArrayBuffer;
  const response = await fetch(`${root}/${path}`, { method: "POST", body: isRaw ? body : JSON.stringify(body), keepalive });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error ?? response.statusText);
  return answer;
}

// A file opened from a folder may not fetch another: data of an export lie in scripts, which may be added to the page.
function exported(path) {
  const known = (window.thresherData ??= {});
  if (known[path] !== undefined) return Promise.resolve(known[path]);
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = `${root}/data/${path.replace(/[^A-Za-z0-9._-]/g, "_")}.js`;
    script.onload = () => (known[path] === undefined ? reject(new Error(`${path} is not part of this export`)) : resolve(known[path]));
    script.onerror = () => reject(new Error(`${path} is not part of this export`));
    document.head.append(script);
  });
}

// An element with attributes and children; text is set as text, never as HTML.
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// A grid of pictures as `templates/parts.html` makes it; firings are {row, value, name}.
export function grid(firings, { small = false, sensitive = false } = {}) {
  const items = firings.map(({ row, value, name }) =>
    make("li", {}, make("a", { href: url.image(row) },
      make("img", { src: url.thumbnail(row), alt: name, loading: "lazy", width: 128, height: 128 }),
      make("span", { class: "value" }, number(value)), make("span", { class: "label" }, name))));
  return make("ol", { class: `grid${small ? " small" : ""}${sensitive ? " sensitive" : ""}` }, ...items);
}

// A number as people read it, with three significant digits.
export function number(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(digits - 1);
  return Number(value.toPrecision(digits)).toLocaleString("en", { maximumSignificantDigits: digits });
}
