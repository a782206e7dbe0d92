// The page of the game: shows a round, opens its grids, takes the guess, keeps the score.

import { isExport, load, make, number, url } from "./api.js";
import { drawActivations } from "./game_plot.js";
import { addressOf, judge, theClue, theRound } from "./game_rounds.js";
import { accuracyText, forget, keep, score, wasPlayed } from "./game_score.js";

const at = (id) => document.getElementById(id);
const MOST_POINTS = 5, HARD = 1.5;
let round, answer = null, isDone = false, isBlurOpen = false;
const opened = new Set();

// Points of a right guess now.
const worth = (isHard) => (MOST_POINTS - opened.size) * (isHard ? HARD : 1);

function fail(error) {
  at("trouble").textContent = error.message;
  at("trouble").hidden = false;
}

// One thing at a time: a second click while the first is on its way does nothing.
function once(act) {
  let isBusy = false;
  return async (...given) => {
    if (isBusy) return;
    isBusy = true;
    try { await act(...given); } catch (error) { fail(error); } finally { isBusy = false; }
  };
}

function showWorth() {
  at("worth").textContent = isDone ? "" : `A right guess is worth ${number(worth(false))} now${round.mode === "four" ? `, ${number(worth(true))} where the others were chosen to be alike` : ""}.`;
}

function showBlurred() {
  isBlurOpen = true;
  at("blurred-place").replaceChildren(make("img", { src: url.data(round.blurred), alt: "The image, blurred", width: 224, height: 224 }));
}

// Among four it is covered until it is asked for: its colours alone tell the answer in two rounds of three.
function startBlurred() {
  if (round.mode === "free") { showBlurred(); return; }
  at("blurred-caption").textContent = "The image, blurred. Its colours may tell the four apart: rounds in which it was seen are counted apart.";
  at("blurred-place").replaceChildren(make("button", { type: "button", id: "show-blurred", onclick: showBlurred }, "Show it"));
}

function clueCard(feature, place) {
  const button = make("button", { type: "button", id: `open-${place}`, onclick: () => openClue(place), disabled: place > 0 }, "Open (−1 point)");
  const header = make("header", {}, make("h3", {}, `${place + 1}. Feature ${feature}`), button);
  return make("li", { class: "clue", id: `clue-${place}` }, header);
}

const openClue = once(async (place) => {
  if (opened.has(place) || place >= round.clues.length) return;
  const clue = await theClue(round, place);
  opened.add(place);
  showWorth();
  const card = at(`clue-${place}`), header = card.querySelector("header");
  header.querySelector("button").remove();
  if (clue.name) header.append(make("strong", { class: "clue-name" }, clue.name));
  header.append(make("span", { class: "soft" }, `activation ${number(clue.value)}, fires on ${number(100 * clue.density)} % of the images`));
  const pictures = clue.pictures.map(({ row, value }) => make("li", {},
    make("img", { src: url.thumbnail(row), alt: `A picture with activation ${number(value)}`, title: number(value), width: 128, height: 128 })));
  card.append(make("ol", { class: `pictures${clue.is_sensitive ? " sensitive" : ""}` }, ...pictures));
  const next = at(`open-${place + 1}`);
  if (next) next.disabled = false;
});

const nextClue = () => openClue(round.clues.findIndex((_, place) => !opened.has(place)));

function startFour() {
  const buttons = round.choices.map((address, place) => make("button",
    { type: "button", class: `choice${round.is_sensitive ? " sensitive" : ""}`, id: `choice-${place}`, onclick: () => answerTo({ choice: place }) },
    make("img", { src: url.data(address), alt: `Choice ${place + 1}`, width: 224, height: 224 }), make("span", { class: "number" }, String(place + 1))));
  at("guess").replaceChildren(make("div", { class: "choices", role: "group", "aria-label": "Which of the four is the image?" }, ...buttons));
}

function startFree() {
  const parts = [];
  if (round.has_label) {
    const field = make("input", { id: "typed", list: "known", maxlength: 200, autocomplete: "off", placeholder: "What is it?", "aria-label": "What the image is called" });
    parts.push(field, make("datalist", { id: "known" }), make("button", { class: "primary" }, "Guess"));
    field.addEventListener("focus", suggest, { once: true });
  }
  parts.push(make("button", { type: "button", id: "unblur", onclick: () => answerTo({}) }, "I have it in mind: unblur"));
  at("guess").replaceChildren(make("div", { class: "free-guess" }, ...parts));
}

async function suggest() {
  const { labels } = await load("game/labels.json");
  at("known").replaceChildren(...labels.map((label) => make("option", { value: label })));
}

// guess: {choice} or {label}; with neither the image is shown and the player judges.
const answerTo = once(async (guess) => {
  if (isDone) return;
  answer = await judge(round, guess);
  isDone = true;
  showWorth();
  const { choice = null } = guess;
  for (const button of document.querySelectorAll("#guess button, #guess input")) button.disabled = true;
  if (round.mode === "four") {
    at(`choice-${answer.place}`).classList.add("is-answer");
    if (choice !== null && choice !== answer.place) at(`choice-${choice}`).classList.add("is-wrong");
    answer.choices.forEach(({ name, row }, place) => {
      const text = at(`choice-${place}`).querySelector(".number");
      text.replaceChildren(`${place + 1} · ${name}`);
      at(`choice-${place}`).title = place === answer.place ? "" : `Cosine of the codes: ${number(answer.cosines[place])}`;
      at(`choice-${place}`).querySelector("img").alt = `Choice ${place + 1}: ${name}, row ${row}`;
    });
  }
  const picture = at("blurred-place");
  picture.classList.toggle("sensitive", round.is_sensitive);
  picture.replaceChildren(make("img", { src: url.data(answer.picture), id: "sharp", alt: `The image: ${answer.name}`, width: 224, height: 224 }));
  at("blurred-caption").textContent = "The image";
  if (answer.is_right === null) askForJudgement();
  else finish(answer.is_right, false);
});

// Free mode without a typed label: the player says whether it was right.
function askForJudgement() {
  at("result").replaceChildren(make("p", { class: "verdict" }, `It was: ${answer.name}`), make("div", { class: "actions" },
    make("button", { type: "button", id: "was-right", class: "primary", onclick: () => finish(true, true) }, "I was right"),
    make("button", { type: "button", id: "was-wrong", onclick: () => finish(false, true) }, "I was wrong")));
  at("was-right").focus();
}

function finish(isRight, isOwn) {
  const isHard = round.mode === "four" && answer.is_hard;
  const before = wasPlayed(round), points = isRight ? worth(isHard) : 0;
  keep(round, { isRight, isOwn, isSeen: isBlurOpen, revealed: opened.size, points });
  const words = before ? "This round was played before and counts once." : `${number(points)} ${points === 1 ? "point" : "points"}${isHard && points > 0 ? ", with half as much again for hard choices" : ""}.`;
  const page = url.image(answer.row), features = round.clues.map((feature) => [url.feature(feature), feature]);
  at("result").replaceChildren(
    make("p", { class: `verdict ${isRight ? "is-right" : "is-wrong"}` }, isRight ? "Right." : "Wrong."),
    make("p", {}, words),
    make("p", {}, "The image: ", make(page ? "a" : "span", { href: page, id: "answer" }, `row ${answer.row}`), `, ${answer.name}`, answer.key ? ` (${answer.key})` : ""),
    make("p", {}, "Its features: ", ...features.flatMap(([address, feature], i) => [i ? ", " : "", make(address ? "a" : "span", { href: address }, String(feature))])),
    make("div", { class: "actions" }, make("a", { class: "button", id: "next", href: addressOf(round.seed, round.n + 1, round.mode) }, "Next round")));
  at("result").focus({ preventScroll: true });
  at("result").scrollIntoView({ block: "nearest" });
  showScore();
}

function showScore() {
  const now = score();
  for (const name of ["points", "streak", "longest", "played"]) at(name).textContent = number(now[name]);
  at("accuracy").textContent = accuracyText(now.groups);
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    at("copied").textContent = "Copied.";
  } catch {
    at("copied").textContent = text;  // where a browser gives pages no clipboard, to copy by hand
  }
}

function startKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, dialog")) return;
    if (event.key === "c") nextClue();
    else if (event.key === "n" && isDone) at("next")?.click();
    else if (/^[1-4]$/.test(event.key) && round.mode === "four") answerTo({ choice: Number(event.key) - 1 });
  });
}

async function start() {
  showScore();
  round = await theRound();
  const address = addressOf(round.seed, round.n, round.mode);
  if (!isExport) history.replaceState(null, "", address);  // a page opened from a folder may not
  for (const mode of ["four", "free"]) {
    at(`mode-${mode}`).href = addressOf(round.seed, round.n, mode);
    if (mode === round.mode) at(`mode-${mode}`).setAttribute("aria-current", "page");
  }
  at("where").textContent = `Round ${number(round.n + 1)} of seed ${round.seed}`;
  at("copy-link").addEventListener("click", () => copy(new URL(address, location.href).href));
  at("copy-accuracy").addEventListener("click", () => copy(`${accuracyText(score().groups)} (${document.documentElement.dataset.run})`));
  at("forget").addEventListener("click", () => { forget(); showScore(); });
  at("n-firing").textContent = number(round.features.length);
  at("board").hidden = false;
  drawActivations(at("plot"), round);
  startBlurred();
  showWorth();
  at("clues").replaceChildren(...round.clues.map(clueCard));
  at("guess").addEventListener("submit", (event) => { event.preventDefault(); answerTo({ label: at("typed").value }); });
  if (round.mode === "four") startFour(); else startFree();
  startKeys();
}

start().catch(fail);
