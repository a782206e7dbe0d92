"""How hard the explorer's game is on a run: what each way to guess without a human gets right.

python -m thresher.tests.benchmarks.game_difficulty RUN [--rounds 200] [--seed 0]
"""

import argparse
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from thresher.analysis.explorer.game_choice import CLUES, Choices, Game, game_of
from thresher.analysis.explorer.game_pictures import blurred_picture
from thresher.analysis.explorer.runs import ExploredRun

_SIDE_PX = 16
_ALIKE_LEVELS = 8  # of 256: two plain fields of such a difference are hard to tell apart from memory


@dataclass(frozen=True)
class Difficulty:
    """Of some rounds; shares of them."""

    n_rounds: int
    hard: float
    """With three others that were chosen to be alike."""
    unique: float
    """Whose set of five features no other of them has."""
    cosines: tuple[float, float, float]
    """Median cosine of the code of the answer and those of the others, nearest first."""
    by_code: tuple[float, ...]
    """Right by the codes, with 1 to 5 grids open: the choice on which these features fire most, as who read them
    without fail would choose."""
    by_label: tuple[float, ...]
    """Right by labels, with 1 to 5 grids open: the choice whose label has most of the activations shown."""
    by_pixels: tuple[float, ...]
    """Right by pixels, likewise: the choice most correlated with a shown picture, at 16 x 16 pixels."""
    by_middle: float
    """Right by the choices alone: the one whose code is nearest those of the other three."""
    by_blur: float
    """With no other choice whose blurred picture is within 8 of 256 levels of the answer's."""


def difficulty(run: ExploredRun, n: int, seed: int) -> Difficulty:
    """Play `n` rounds of a seed in each way."""
    game = game_of(run)
    rounds, choices = [game.round(seed, i) for i in range(n)], [game.choices(seed, i) for i in range(n)]
    sets = [frozenset(each.clues) for each in rounds]
    others = np.array([sorted(np.delete(each.cosines, each.place))[::-1] for each in choices])
    code, label, pixels = np.zeros((n, CLUES)), np.zeros((n, CLUES)), np.zeros((n, CLUES))
    for i, each in enumerate(choices):
        code[i] = _by_code(run, rounds[i].clues, each)
        label[i], pixels[i] = _by_label(run, game, each, seed, i), _by_pixels(run, game, each, seed, i)
    return Difficulty(
        n_rounds=n,
        hard=float(np.mean([each.is_hard for each in choices])),
        unique=float(np.mean([sets.count(each) == 1 for each in sets])),
        cosines=tuple(np.median(others, axis=0).tolist()),
        by_code=tuple(code.mean(axis=0).tolist()),
        by_label=tuple(label.mean(axis=0).tolist()),
        by_pixels=tuple(pixels.mean(axis=0).tolist()),
        by_middle=float(np.mean([_by_middle(run, each) for each in choices])),
        by_blur=float(np.mean([_by_blur(run, each) for each in choices])),
    )


def _share(scores: NDArray[np.float64], place: int) -> float:
    """Chance that the place is taken, of those with the highest score one at random."""
    best = np.flatnonzero(scores >= scores.max() - 1e-12)
    return float(place in best) / len(best)


def _by_code(run: ExploredRun, clues: tuple[int, ...], choices: Choices) -> list[float]:
    values = np.zeros((len(choices.rows), run.d_sae))
    for i, row in enumerate(choices.rows):
        index, value = run.code(row)
        values[i, index] = value
    summed = values[:, clues].cumsum(axis=1)
    return [_share(summed[:, clue], choices.place) for clue in range(CLUES)]


def _by_label(run: ExploredRun, game: Game, choices: Choices, seed: int, n: int) -> list[float]:
    mine, scores, shares = run.labels(choices.rows), np.zeros(len(choices.rows)), []
    for clue in range(CLUES):
        shown = game.pictures(seed, n, clue)
        for picture, label in zip(shown, run.labels(each.row for each in shown), strict=True):
            scores += [picture.value * (label == own >= 0) for own in mine]
        shares.append(_share(scores, choices.place))
    return shares


def _by_pixels(run: ExploredRun, game: Game, choices: Choices, seed: int, n: int) -> list[float]:
    mine, scores, shares = _pixels(run, choices.rows), np.full(len(choices.rows), -1.0), []
    for clue in range(CLUES):
        shown = _pixels(run, tuple(each.row for each in game.pictures(seed, n, clue)))
        scores = np.maximum(scores, (mine @ shown.T).max(axis=1))
        shares.append(_share(scores, choices.place))
    return shares


def _by_middle(run: ExploredRun, choices: Choices) -> float:
    codes = np.zeros((len(choices.rows), run.d_sae))
    for i, row in enumerate(choices.rows):
        index, value = run.code(row)
        codes[i, index] = value / np.linalg.norm(value)
    return _share((codes @ codes.T).sum(axis=1), choices.place)


def _by_blur(run: ExploredRun, choices: Choices) -> bool:
    fields = np.array([_rgb(blurred_picture(run, row)) for row in choices.rows])
    away = np.sqrt(((fields - fields[choices.place]) ** 2).mean(axis=(1, 2, 3)))
    return bool((np.delete(away, choices.place) > _ALIKE_LEVELS).all())


def _pixels(run: ExploredRun, rows: tuple[int, ...]) -> NDArray[np.float64]:
    """`(n, p)` pixels of thumbnails, centred, of norm 1."""
    found = np.array([_rgb(run.thumbnail(row) or b"").ravel() for row in rows])
    found -= found.mean(axis=1, keepdims=True)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)


def _rgb(picture: bytes) -> NDArray[np.float64]:
    return np.asarray(Image.open(BytesIO(picture)).convert("RGB").resize((_SIDE_PX, _SIDE_PX)), np.float64)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    found = difficulty(ExploredRun(given.run), given.rounds, given.seed)
    rows = [
        ("rounds", f"{found.n_rounds}"),
        ("three others chosen to be alike", _percent(found.hard)),
        ("five features that no other round has", _percent(found.unique)),
        ("median cosine of the others' codes and the answer's", " / ".join(f"{each:.2f}" for each in found.cosines)),
        ("right by codes, 1 to 5 grids open", " / ".join(map(_percent, found.by_code))),
        ("right by labels, 1 to 5 grids open", " / ".join(map(_percent, found.by_label))),
        ("right by pixels, 1 to 5 grids open", " / ".join(map(_percent, found.by_pixels))),
        ("right by the choices alone (their middle)", _percent(found.by_middle)),
        ("the blurred picture fits one choice alone", _percent(found.by_blur)),
    ]
    print("| what | |\n| --- | --- |")
    for name, text in rows:
        print(f"| {name} | {text} |")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


if __name__ == "__main__":
    main()
