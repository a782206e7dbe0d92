"""Rounds of the game for a static export, which has no server to keep a secret.

What that protects: row, key, label and place of an answer stand nowhere in the clear, and no file's name, size or
address tells them. A player who reads the page, the names of its files and what the browser loads learns nothing before
the guess.

What it does not: there are four choices, and all that it takes to check one of them is in the files, so that whoever
writes a few lines of code opens any round at once. Comparing the pixels of the blurred picture with those of the
choices does it too. It keeps honest players from seeing the answer by accident, no more.

A round's answer is the place p of its picture among the choices. With a salt of its own, SHA-256 over UTF-8 text:

    check      H("salt/check/p"), as hexadecimal digits
    sealed     the answer's JSON, XORed with H("salt/seal/p/0"), H("salt/seal/p/1"), ..., as hexadecimal digits

In free mode the page tries the places until `check` holds, and its picture is that of the choice.
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from itertools import count
from typing import Any

from .game_choice import CHOICES, CLUES, game_of
from .game_pictures import blurred_picture, sharp_picture
from .page import Query
from .pages.game import answer_document, clue_document, labels, view
from .render import plain, to_json
from .runs import ExploredRun


@dataclass(frozen=True)
class ExportedGame:
    """What an export holds of the game."""

    files: dict[str, bytes]
    """Pictures, by their path below the run's root: the rounds' own, and the thumbnails that features show."""
    documents: dict[str, Any]
    """JSON by the address under which the page loads it."""


def export_rounds(run: ExploredRun, n: int, seed: int) -> ExportedGame:
    """The first `n` rounds of a seed, or as many as there are before an image comes again.

    Raises
    ------
    Unavailable
        When the run has no game.
    """
    game = game_of(run)
    n = min(n, game.n_rounds)
    key = secrets.token_bytes(32)
    files: dict[str, bytes] = {}
    documents: dict[str, Any] = {"game/rounds.json": {"seed": seed, "n_rounds": n}}
    documents["game/labels.json"] = labels(run, Query())
    for number in range(n):
        choices, target = game.choices(seed, number), game.round(seed, number)
        salt, place = _token(key, number, "salt"), choices.place
        names = {slot: f"game/{_token(key, number, slot)}.jpg" for slot in ("blurred", *map(str, range(CHOICES)))}
        files[names["blurred"]] = blurred_picture(run, target.row)
        for slot, row in enumerate(choices.rows):
            files[names[str(slot)]] = sharp_picture(run, row)
        for clue in range(CLUES):
            document = plain(clue_document(run, game, seed, number, clue))
            documents[f"game/clue-{number}-{clue}.json"] = document
            for each in document["pictures"]:
                files[f"t/{each['row']}.webp"] = run.thumbnail(each["row"]) or b""
        shown = plain(view(run, Query(values={"seed": str(seed), "n": str(number)})))
        documents[f"game/round-{number}.json"] = shown | {
            "n_rounds": n,
            "grids": [f"game/clue-{number}-{clue}.json" for clue in range(CLUES)],
            "blurred": names["blurred"],
            "choices": [names[str(slot)] for slot in range(CHOICES)],
            "token": None,
            "salt": salt,
            "check": digest(salt, "check", place),
            "sealed": seal(to_json(answer_document(run, game, seed, number, "four")), salt, place).hex(),
        }
    return ExportedGame(files, documents)


def digest(salt: str, purpose: str, place: int) -> str:
    """H("salt/purpose/place")."""
    return hashlib.sha256(f"{salt}/{purpose}/{place}".encode()).hexdigest()


def seal(text: bytes, salt: str, place: int) -> bytes:
    """Bytes XORed with what follows from salt and place; twice gives them back."""
    stream = b""
    for part in count():
        if len(stream) >= len(text):
            break
        stream += hashlib.sha256(f"{salt}/seal/{place}/{part}".encode()).digest()
    return bytes(a ^ b for a, b in zip(text, stream, strict=False))


def _token(key: bytes, number: int, slot: str) -> str:
    return hmac.digest(key, f"{number}/{slot}".encode(), "sha256").hex()[:32]
