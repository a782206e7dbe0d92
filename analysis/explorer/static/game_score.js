// The score of the game, in this browser alone: points, streak, and how often guesses were right.
//
//   wasPlayed(round)                          what came of this round before: {points, isRight}, or null
//   keep(round, {isRight, isOwn, isSeen, revealed, points})    once a round; isOwn: the player judged alone, isSeen: saw the blurred image
//   score()                                   {points, streak, longest, played, groups}
//   accuracyText(groups)                      one line a group, with a 95 % interval
//   forget()                                  starts over

const place = `thresher-game-${document.documentElement.dataset.run}`;
const nothing = () => ({ points: 0, streak: 0, longest: 0, rounds: {}, groups: {} });
const nameOf = ({ seed, n, mode }) => `${seed}/${n}/${mode}`;
let state = { ...nothing(), ...read() };

// What is stored; null where nothing is, or a browser lets pages store nothing.
function read() {
  try { return JSON.parse(localStorage.getItem(place)); } catch { return null; }
}

function write() {
  try { localStorage.setItem(place, JSON.stringify(state)); } catch { /* private window: kept until the page is left */ }
}

export const wasPlayed = (round) => state.rounds[nameOf(round)] ?? null;

export function keep(round, { isRight, isOwn, isSeen, revealed, points }) {
  state = read() ?? state;  // another tab may have played on
  if (wasPlayed(round)) return;
  state.rounds[nameOf(round)] = { isRight, points };
  state.points += points;
  state.streak = isRight ? state.streak + 1 : 0;
  state.longest = Math.max(state.longest, state.streak);
  const group = state.groups[round.mode === "four" ? (isSeen ? "seen" : "four") : isOwn ? "own" : "typed"] ??= { n: 0, right: 0, revealed: 0 };
  group.n += 1;
  group.right += isRight ? 1 : 0;
  group.revealed += revealed;
  write();
}

export const score = () => ({ ...state, played: Object.keys(state.rounds).length });

export function forget() {
  state = nothing();
  write();
}

const titles = { four: "among four (chance: 25 %)", seen: "among four with the blurred image seen", typed: "with a typed label", own: "by own judgement" };

export function accuracyText(groups) {
  const lines = Object.keys(titles).filter((name) => groups[name]?.n).map((name) => {
    const { n, right, revealed } = groups[name], [low, high] = wilson(right, n);
    return `${right} of ${n} right ${titles[name]}: ${percent(right / n)} (95 % interval ${percent(low)} to ${percent(high)}), with ${(revealed / n).toFixed(1)} of 5 grids open on average.`;
  });
  return lines.length ? `Human accuracy: ${lines.join(" ")}` : "No round played yet.";
}

const percent = (share) => `${Math.round(100 * share)} %`;

// The interval of a share by Wilson's score (JASA 1927).
export function wilson(right, n) {
  const z = 1.959964, share = right / n, size = 1 + z * z / n;
  const middle = (share + z * z / (2 * n)) / size, half = z * Math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / size;
  return [Math.max(0, middle - half), Math.min(1, middle + half)];
}
