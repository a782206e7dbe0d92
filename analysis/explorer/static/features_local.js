// The table of features filtered and sorted in the browser: what a static export does in place of the server.

const PER_PAGE = 100;
const FALLING = ["name_score", "density", "mean_top", "max", "monosemanticity", "cosine", "agreement", "verdict"];
const LOG_MEAN_TOP = (row) => (row.mean_top === null ? null : Math.log10(row.mean_top));
const NAMED = { 1: (row) => row.name !== "", unnamed: (row) => row.name === "", own: (row) => row.is_own_name };
const TEXTS = { name: (row) => row.name.toLowerCase(), label: (row) => (row.label < 0 ? "" : row.label_name.toLowerCase()), verdict: (row) => row.verdict };

function range(text, name) {
  if (!text) return () => true;
  const ends = text.split(":").map((end) => (end.trim() === "" ? null : Number(end)));
  if (ends.length !== 2 || ends.some((end) => end !== null && !Number.isFinite(end))) {
    throw new Error(`${name} must be two numbers such as -4:-1, either may be left out.`);
  }
  const [low, high] = ends;
  return (value) => value !== null && (low === null || value >= low) && (high === null || value <= high);
}

function matches(row, word) {
  return String(row.id) === word || [row.name, row.label < 0 ? "" : row.label_name, ...row.tags].some((text) => text.toLowerCase().includes(word));
}

// Undefined numbers and empty texts come last in both directions, equals by rising id.
function sorted(rows, key, falls) {
  const of = TEXTS[key] ?? ((row) => row[key]);
  const none = (value) => value === null || value === "";
  return [...rows].sort((a, b) => {
    const [x, y] = [of(a), of(b)];
    if (none(x) || none(y)) return none(x) - none(y) || a.id - b.id;
    return (x < y ? -1 : x > y ? 1 : 0) * (falls ? -1 : 1) || a.id - b.id;
  });
}

function address(values, changes) {
  const found = new URLSearchParams();
  const merged = { ...values, page: undefined, ...changes };
  for (const [name, value] of Object.entries(merged)) if (value) found.set(name, value);
  return found.size === 0 ? "" : `?${found}`;
}

// What `features.json` answers on a server, and all ids of the list.
export function listed({ features, sets }, columns, search) {
  const values = Object.fromEntries([...new URLSearchParams(search)].filter(([, value]) => value !== ""));
  const { q = "", set = "shown", tag = "", ids = "" } = values;
  if (q.startsWith("~")) throw new Error("Phrases are compared by the text tower, which an export does not have.");
  const words = q.toLowerCase().split(/\s+/).filter(Boolean);
  const [inD, inM, inE, inA, inS] = ["d", "m", "e", "a", "s"].map((name) => range(values[name], name));
  const given = ids.split(",").filter(Boolean).map(Number);
  const only = new Set(given);
  const inSet = sets[set] ?? sets.shown;
  let rows = features.filter((row, i) => inSet[i] === 1 && inD(row.density) && inM(LOG_MEAN_TOP(row)) && inE(row.entropy)
    && inA(row.agreement) && inS(row.name_score) && (!values.verdict || row.verdict === values.verdict)
    && (!values.label || row.label === Number(values.label)) && (!tag || row.tags.includes(tag.toLowerCase()))
    && (NAMED[values.named] ?? (() => true))(row) && (given.length === 0 || only.has(row.id)) && words.every((word) => matches(row, word)));
  const sort = values.sort ?? (given.length > 0 ? "given" : "id");
  const falls = values.order ? values.order === "desc" : FALLING.includes(sort);
  if (sort === "given") {
    const place = new Map(given.map((id, i) => [id, i]));
    rows.sort((a, b) => (place.get(a.id) - place.get(b.id)) * (falls ? -1 : 1) || a.id - b.id);
  } else rows = sorted(rows, sort, falls);
  const nPages = Math.max(1, Math.ceil(rows.length / PER_PAGE));
  const page = Math.min(Math.max(1, Number(values.page) || 1), nPages);
  const heads = columns.map((head) => {
    const next = head.key === sort ? !falls : FALLING.includes(head.key);
    return { ...head, direction: head.key !== sort ? "none" : falls ? "descending" : "ascending",
      link: address(values, { sort: head.key, order: next === FALLING.includes(head.key) ? undefined : next ? "desc" : "asc" }) };
  });
  return {
    values, message: null, total: rows.length, page, n_pages: nPages, heads, lists: "",
    ids: rows.map((row) => row.id), rows: rows.slice((page - 1) * PER_PAGE, page * PER_PAGE),
    label_name: features.find((row) => row.label === Number(values.label))?.label_name ?? "",
    without_label: address(values, { label: undefined }), without_ids: address(values, { ids: undefined }),
    previous: page > 1 ? address(values, { page: String(page - 1) }) : null,
    next: page < nPages ? address(values, { page: String(page + 1) }) : null,
  };
}
