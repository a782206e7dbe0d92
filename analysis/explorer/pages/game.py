"""The game: from a few features, find the image on which they fire.

What a visitor has not guessed yet is in no page, address, size or header. Pictures are asked for by the round, a slot
(`blurred`, the place of a choice, `sharp`) and a token, HMAC-SHA256 of these under a key that this process drew; all
are of one size, and no browser may keep them. The token of the sharp picture comes with the answer to a guess, as do
row, key and label. Rounds themselves are `game_choice`'s.
"""

import hmac
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..game_choice import CHOICES, CLUES, Game, Round, game_of
from ..game_pictures import MEDIA_TYPE, blurred_picture, sharp_picture
from ..page import Answer, BadQuery, Chapter, Endpoint, NotHere, Page, PageError, Query
from ..render import to_json
from ..runs import ExploredRun

MODES = ("four", "free")
LARGEST_SEED = 2**31 - 1
LARGEST_NUMBER = 10**6
_RANDOM_SEEDS = 10**6
"""Seeds drawn for who brings none: short enough to be told to a friend."""
_MOST_LABELS = 20_000
_KEY = secrets.token_bytes(32)


class NotThisGame(PageError):
    """A token of another round, slot, run or server process."""

    status = 403


@dataclass(frozen=True)
class GameRound:
    """What is shown before the guess."""

    seed: int
    n: int
    """The round's number, from 0."""
    mode: str
    n_rounds: int
    """Rounds of a seed before an image comes again."""
    features: list[int]
    """All that fire on the image, ascending: x of the activation plot."""
    values: list[float]
    """Their activations there."""
    d_sae: int
    clues: list[int]
    """The strongest of them that have pictures of their own, by falling activation."""
    grids: list[str]
    """Where the pictures of each are asked for; below the run's root, as every address here."""
    blurred: str
    choices: list[str]
    """Of the four pictures; none in free mode."""
    token: str
    """For the guess."""
    has_label: bool
    is_sensitive: bool
    """Whether a feature that fires on the image is marked as sensitive."""


@dataclass(frozen=True)
class _Asked:
    """Which round is asked for."""

    game: Game
    seed: int
    n: int

    @property
    def round(self) -> Round:
        return self.game.round(self.seed, self.n)

    def token(self, slot: str) -> str:
        """What opens a slot of this round to who was given it by this process."""
        text = f"{self.game.identity}/{self.seed}/{self.n}/{slot}"
        return hmac.digest(_KEY, text.encode("utf-8", "replace"), "sha256").hex()[:32]

    def require(self, slot: str, token: str) -> None:
        """`NotThisGame` where the token does not open the slot."""
        if not hmac.compare_digest(token.encode("utf-8", "replace"), self.token(slot).encode()):
            raise NotThisGame(
                "This address belongs to another round, or the explorer was started again: reload the page."
            )

    def address(self, name: str, slot: str) -> str:
        """Where a slot is asked for."""
        return f"game/{name}?seed={self.seed}&n={self.n}&slot={slot}&token={self.token(slot)}"


def view(run: ExploredRun, query: Query) -> GameRound:
    """A round, before the guess; of a seed drawn at random where none is given."""
    game = game_of(run)
    asked = _asked(game, query, secrets.randbelow(_RANDOM_SEEDS))
    mode = query.choice("mode", MODES)
    target = asked.round
    return GameRound(
        seed=asked.seed,
        n=asked.n,
        mode=mode,
        n_rounds=game.n_rounds,
        features=target.features.tolist(),
        values=[float(f"{value:.4g}") for value in target.values],
        d_sae=run.d_sae,
        clues=list(target.clues),
        grids=[asked.address("grid", f"clue{clue}") for clue in range(CLUES)],
        blurred=asked.address("picture", "blurred"),
        choices=[asked.address("picture", f"choice{place}") for place in range(CHOICES)] if mode == "four" else [],
        token=asked.token("guess"),
        has_label=target.label >= 0,
        is_sensitive=not run.annotations.sensitive.isdisjoint(target.features.tolist()),
    )


def grid(run: ExploredRun, query: Query) -> Answer:
    """Pictures of one of the round's features."""
    asked, slot = _slot(run, query)
    clue = _number(slot, "clue", CLUES)
    return _secret(clue_document(run, asked.game, asked.seed, asked.n, clue))


def clue_document(run: ExploredRun, game: Game, seed: int, n: int, clue: int) -> dict[str, Any]:
    """What a revealed feature shows."""
    found = game.round(seed, n)
    feature = found.clues[clue]
    return {
        "feature": feature,
        "name": run.names.now().of(feature) or None,
        "value": float(found.values[found.features == feature][0]),
        "density": float(run.density[feature]),
        "is_sensitive": run.annotations.is_sensitive(feature),
        "pictures": game.pictures(seed, n, clue),
    }


def picture(run: ExploredRun, query: Query) -> Answer:
    """A picture of the round, by its slot."""
    asked, slot = _slot(run, query)
    if slot == "blurred":
        content = blurred_picture(run, asked.round.row)
    elif slot == "sharp":
        content = sharp_picture(run, asked.round.row)
    else:
        place = _number(slot, "choice", CHOICES)
        content = sharp_picture(run, asked.game.choices(asked.seed, asked.n).rows[place])
    return Answer(content, MEDIA_TYPE, is_kept=False)


def guess(run: ExploredRun, query: Query) -> Answer:
    """The answer to a round, and whether the guess was right.

    The body is a JSON object with `seed`, `n`, `mode` and `token`, and with `choice` (a place) or `label` (what the
    image is called); without either the player gives up or judges alone, and `is_right` is null.
    """
    body = _body(query.body)
    asked = _asked(game_of(run), body, None)
    asked.require("guess", body.text("token"))
    mode = body.choice("mode", MODES)
    choice = body.integer("choice", -1, 0, CHOICES - 1)
    answer = answer_document(run, asked.game, asked.seed, asked.n, mode)
    if mode == "four":
        is_right = choice == answer["place"] if choice >= 0 else None
    else:
        is_right = is_named(body.text("label"), answer["name"]) if body.text("label").strip() else None
    return _secret(answer | {"is_right": is_right, "picture": asked.address("picture", "sharp")})


def answer_document(run: ExploredRun, game: Game, seed: int, n: int, mode: str) -> dict[str, Any]:
    """What a player learns after the guess."""
    target = game.round(seed, n)
    found: dict[str, Any] = {"row": target.row, "label": target.label, "name": run.label_name(target.label)}
    found["key"] = run.key(target.row)
    if mode == "four":
        choices = game.choices(seed, n)
        labels = run.labels(choices.rows)
        found |= {"place": choices.place, "is_hard": choices.is_hard, "cosines": choices.cosines}
        found["choices"] = [
            {"row": row, "label": label, "name": run.label_name(label)}
            for row, label in zip(choices.rows, labels, strict=True)
        ]
    return found


def is_named(text: str, name: str) -> bool:
    """Whether what was typed is a label's name, but for case and spaces."""
    return _plain(text) == _plain(name)


def labels(run: ExploredRun, query: Query) -> dict[str, list[str]]:
    """What images of this run are called, for suggestions."""
    ids = run.stored.statistics.label_ids.tolist()
    return {"labels": sorted({" ".join(run.label_name(label).split()) for label in ids})[:_MOST_LABELS]}


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _asked(game: Game, query: Query, seed: int | None) -> _Asked:
    if seed is None and not query.values.get("seed"):
        raise BadQuery("seed must be an integer; it is not given.")
    seed = query.integer("seed", seed or 0, 0, LARGEST_SEED)
    return _Asked(game, seed, query.integer("n", 0, 0, LARGEST_NUMBER))


def _slot(run: ExploredRun, query: Query) -> tuple[_Asked, str]:
    """The round and the slot that are asked for, with the right token."""
    asked, slot = _asked(game_of(run), query, None), query.text("slot")
    asked.require(slot, query.text("token"))
    return asked, slot


def _number(slot: str, name: str, n: int) -> int:
    """The number at a slot's end."""
    for number in range(n):
        if slot == f"{name}{number}":
            return number
    raise NotHere(f"There is no {slot[:40]!r} in a round.")


def _body(body: bytes) -> Query:
    """The object that a guess sends, as a query."""
    try:
        sent = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadQuery(f"a guess is a JSON object ({error}).") from error
    if not isinstance(sent, Mapping):
        raise BadQuery("a guess is a JSON object.")
    return Query(values={name: str(value) for name, value in sent.items() if isinstance(value, str | int)})


def _secret(document: dict[str, Any]) -> Answer:
    return Answer(to_json(document), "application/json", is_kept=False)


CHAPTER = Chapter(
    pages=(Page("game", "/game", view),),
    endpoints=(
        Endpoint("/game/grid", grid, is_slow=True),
        Endpoint("/game/picture", picture, is_slow=True),
        Endpoint("/game/guess", guess, is_post=True, is_slow=True),
        Endpoint("/game/labels.json", labels),
    ),
)
