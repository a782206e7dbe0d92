// Where the game's rounds come from and who judges a guess: the server, or in an export its files (see game_export.py).
//
//   theRound()                       the round that the page's address asks for
//   theClue(round, place)            pictures of one of its features
//   judge(round, {choice, label})    {is_right, row, name, picture, ...}; neither choice nor label gives it up
//   addressOf(seed, n, mode)         of another round

import { inlined, isExport, load, post, url } from "./api.js";
import { sha256 } from "./sha256.js";

export const addressOf = (seed, n, mode) => url.page("game", `?seed=${seed}&n=${n}&mode=${mode}`);

export async function theRound() {
  if (!isExport) return inlined("round");
  const asked = new URLSearchParams(location.search);
  const { n_rounds } = await load("game/rounds.json");
  const n = Number(asked.get("n") ?? Math.floor(Math.random() * n_rounds));
  const mode = asked.get("mode") === "free" ? "free" : "four";
  if (!Number.isInteger(n) || n < 0) throw new Error(`n must be an integer from 0 on, not ${asked.get("n")}.`);
  return { ...await load(`game/round-${n % n_rounds}.json`), n: n % n_rounds, mode };
}

export const theClue = (round, place) => load(round.grids[place]);

export async function judge(round, { choice = null, label = "" }) {
  if (isExport) return opened(round, choice, label);
  const guess = { seed: round.seed, n: round.n, mode: round.mode, token: round.token, label };
  return post("game/guess", choice === null ? guess : { ...guess, choice });
}

function opened(round, choice, label) {
  const place = [0, 1, 2, 3].find((p) => sha256(`${round.salt}/check/${p}`) === round.check);
  const answer = JSON.parse(unsealed(round.sealed, `${round.salt}/seal/${place}`));
  const plain = (text) => text.trim().replace(/\s+/g, " ").toLowerCase();
  const isRight = round.mode === "four" ? (choice === null ? null : choice === place)
    : label.trim() ? plain(label) === plain(answer.name) : null;
  return { ...answer, is_right: isRight, picture: round.choices[place] };
}

function unsealed(sealed, key) {
  const bytes = new Uint8Array(sealed.length / 2);
  for (let i = 0, stream = ""; i < bytes.length; i++) {
    if (i % 32 === 0) stream = sha256(`${key}/${i / 32}`);
    bytes[i] = parseInt(sealed.slice(2 * i, 2 * i + 2), 16) ^ parseInt(stream.slice(2 * (i % 32), 2 * (i % 32) + 2), 16);
  }
  return new TextDecoder().decode(bytes);
}
