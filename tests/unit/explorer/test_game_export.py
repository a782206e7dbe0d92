"""Rounds of the game in an export: nothing in the clear, everything there, opened by the place of the answer alone."""

import hashlib
import json
from io import BytesIO
from itertools import count

import numpy as np
import pytest
from explored import make_explored_run
from PIL import Image
from thresher.analysis.explorer.game_choice import game_of
from thresher.analysis.explorer.game_export import export_rounds
from thresher.analysis.explorer.runs import ExploredRun


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    made = make_explored_run(tmp_path_factory.mktemp("game"), n_features=256, n_images=600, n_labels=24)
    return ExploredRun(made.path)


@pytest.fixture(scope="module")
def exported(run):
    return export_rounds(run, 4, 9)


def opened(document, place):
    """By the module's description: what the place opens."""
    digests = (hashlib.sha256(f"{document['salt']}/seal/{place}/{part}".encode()).digest() for part in count())
    sealed, text = bytes.fromhex(document["sealed"]), b""
    while len(text) < len(sealed):
        piece = sealed[len(text) : len(text) + 32]
        text += bytes(a ^ b for a, b in zip(piece, next(digests), strict=False))
    return text


def test_the_place_of_the_answer_opens_it_and_no_other_does(run, exported):
    game = game_of(run)
    for n in range(4):
        document, choices = exported.documents[f"game/round-{n}.json"], game.choices(9, n)
        checks = [hashlib.sha256(f"{document['salt']}/check/{p}".encode()).hexdigest() for p in range(4)]
        assert [check == document["check"] for check in checks] == [p == choices.place for p in range(4)]
        answer = json.loads(opened(document, choices.place))
        assert (answer["row"], answer["place"]) == (game.round(9, n).row, choices.place)
        assert answer["key"] == run.key(answer["row"])
        assert b"row" not in opened(document, (choices.place + 1) % 4)


def test_every_picture_that_a_round_names_is_there_under_a_name_that_tells_nothing(exported):
    names = []
    for n in range(4):
        document = exported.documents[f"game/round-{n}.json"]
        names += [document["blurred"], *document["choices"]]
        for address in document["grids"]:
            assert all(f"t/{each['row']}.webp" in exported.files for each in exported.documents[address]["pictures"])
    assert len(set(names)) == len(names) == 20
    assert {name for name in exported.files if name.startswith("game/")} == set(names)
    for name in names:
        assert set(name.removeprefix("game/").removesuffix(".jpg")) <= set("0123456789abcdef")
        with Image.open(BytesIO(exported.files[name])) as picture:
            assert picture.size == (224, 224)


def test_no_document_tells_row_label_or_key(run, exported):
    game = game_of(run)
    for n in range(4):
        target = game.round(9, n)
        document = exported.documents[f"game/round-{n}.json"]
        assert not {"row", "label", "name", "key", "place"} & set(document)
        assert document["token"] is None
        rows = [each["row"] for address in document["grids"] for each in exported.documents[address]["pictures"]]
        assert target.row not in rows
        assert run.store.thumbnail(target.row) not in [exported.files[f"t/{row}.webp"] for row in rows]


def test_two_exports_of_the_same_rounds_share_no_name(run, exported):
    again = export_rounds(run, 4, 9)
    shared = set(again.files) & set(exported.files)
    assert all(name.startswith("t/") for name in shared)
    for n in range(4):
        assert (
            again.documents[f"game/round-{n}.json"]["features"]
            == exported.documents[f"game/round-{n}.json"]["features"]
        )


def test_no_more_rounds_than_there_are_images(run, monkeypatch):
    game = game_of(run)
    monkeypatch.setattr(game, "targets", (game.targets[0], np.array(game.targets[1][:3])))
    assert export_rounds(run, 100, 0).documents["game/rounds.json"] == {"seed": 0, "n_rounds": 3}
