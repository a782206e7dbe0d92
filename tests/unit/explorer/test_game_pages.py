"""The game over HTTP: nothing tells the answer before the guess, and no address opens what it was not given for."""

import json
import re
from io import BytesIO

import pytest
from explored import make_explored_run
from PIL import Image
from starlette.testclient import TestClient
from thresher.analysis.explorer.app import make_app
from thresher.analysis.explorer.feature_names import FeatureNames
from thresher.analysis.explorer.game_choice import game_of
from thresher.analysis.explorer.pages import game as game_page
from thresher.analysis.explorer.several import Explorer
from thresher.analysis.naming.names_file import Name


@pytest.fixture(scope="module")
def explored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("game")
    made = make_explored_run(folder, n_features=256, n_images=600, n_labels=24)
    second = make_explored_run(folder, n_features=256, n_images=600, n_labels=24, name="run-2", seed=5)
    return Explorer([made.path, second.path])


@pytest.fixture(scope="module")
def run(explored):
    return explored.runs[0]


@pytest.fixture(scope="module")
def client(explored):
    with TestClient(make_app(explored), base_url="http://127.0.0.1") as client:
        yield client


def the_round(client, seed, n=0, mode="four"):
    return client.get(f"/game.json?seed={seed}&n={n}&mode={mode}").json()


def guess(client, shown, **more):
    body = {"seed": shown["seed"], "n": shown["n"], "mode": shown["mode"], "token": shown["token"]} | more
    return client.post("/game/guess", content=json.dumps(body))  # ASCII, lone surrogates too


def everything(client, seed, n, mode):
    """All answers of a round before the guess, by address."""
    shown = the_round(client, seed, n, mode)
    addresses = [f"/game?seed={seed}&n={n}&mode={mode}", f"/game.json?seed={seed}&n={n}&mode={mode}"]
    addresses += [f"/{each}" for each in (*shown["grids"], *shown["choices"], shown["blurred"])]
    return {address: client.get(address) for address in addresses}


@pytest.mark.parametrize("mode", ["four", "free"])
def test_nothing_before_the_guess_tells_the_answer(client, run, mode):
    game, n_looked_at = game_of(run), 0
    for seed in range(40):
        target = game.round(seed, 1)
        if target.row <= 256 or target.label < 5:
            continue  # a row's number that is a feature's too, or a name that is none of its own
        n_looked_at += 1
        alone = re.compile(rf"(?<![\w.])({target.row}|{re.escape(run.label_name(target.label))})(?![\w.])")
        thumbnail, key = run.store.thumbnail(target.row), run.key(target.row)
        for address, answer in everything(client, seed, 1, mode).items():
            assert answer.status_code == 200
            told = {name: value for name, value in answer.headers.items() if name != "content-length"}
            assert not alone.search(f"{address} {told}")
            assert key not in f"{address} {told}"
            assert thumbnail not in answer.content
            if not answer.headers["content-type"].startswith("image/"):
                assert not alone.search(answer.text), address
                assert key not in answer.text
    assert n_looked_at > 10


def test_pictures_are_of_one_size_without_metadata_and_kept_by_no_browser(client):
    sizes = set()
    for address, answer in everything(client, 3, 0, "four").items():
        if "/game/picture" in address:
            assert answer.headers["content-type"] == "image/jpeg"
            assert answer.headers["cache-control"] == "no-store"
            with Image.open(BytesIO(answer.content)) as opened:
                sizes.add(opened.size)
                assert set(opened.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
        elif "/game/grid" in address:
            assert answer.headers["cache-control"] == "no-store"
    assert sizes == {(224, 224)}


def test_a_guess_is_right_at_one_place_alone_and_gives_the_answer(client, run):
    shown, target = the_round(client, 5), game_of(run).round(5, 0)
    answers = [guess(client, shown, choice=place) for place in range(4)]
    assert sorted(answer.json()["is_right"] for answer in answers) == [False, False, False, True]
    for place, answer in enumerate(answers):
        told = answer.json()
        assert answer.headers["cache-control"] == "no-store"
        assert told["is_right"] == (place == told["place"])
        assert (told["row"], told["name"], told["key"]) == (
            target.row,
            run.label_name(target.label),
            run.key(target.row),
        )
        assert told["choices"][told["place"]]["row"] == target.row
        sharp = client.get(f"/{told['picture']}")
        assert sharp.status_code == 200
        assert sharp.content == client.get(f"/{shown['choices'][told['place']]}").content


def test_a_typed_label_is_right_but_for_case_and_spaces(client, run):
    seed = next(seed for seed in range(99) if game_of(run).round(seed, 0).label >= 5)
    shown = the_round(client, seed, mode="free")
    name = run.label_name(game_of(run).round(seed, 0).label)
    assert shown["has_label"]
    assert shown["choices"] == []
    assert guess(client, shown, label=f"  {name.upper()} ".replace(" ", "  ")).json()["is_right"] is True
    assert guess(client, shown, label=name + "x").json()["is_right"] is False
    assert guess(client, shown, label="  ").json()["is_right"] is None
    assert "place" not in guess(client, shown).json()
    assert name in client.get("/game/labels.json").json()["labels"]


def test_a_token_opens_one_slot_of_one_round_of_one_run(client):
    shown, other = the_round(client, 5), the_round(client, 6)
    elsewhere = client.get("/runs/run-2/game.json?seed=5").json()
    token = re.search("token=(.*)", shown["blurred"])[1]
    addresses = [
        shown["blurred"].replace("slot=blurred", "slot=sharp"),
        shown["blurred"].replace("seed=5", "seed=6"),
        shown["blurred"].replace("n=0", "n=1"),
        shown["blurred"].replace(token, ""),
        shown["blurred"].replace(token, token[:-1]),
        shown["choices"][0].replace("choice0", "choice1"),
        shown["grids"][0].replace("clue0", "clue1"),
        elsewhere["blurred"],
        f"game/picture?seed=5&n=0&slot=sharp&token={shown['token']}",
        "game/picture?seed=5&n=0&slot=%F0%9F%98%80&token=%ED%A0%80",
    ]
    assert [client.get(f"/{each}").status_code for each in addresses] == [403] * len(addresses)
    assert guess(client, shown | {"token": other["token"]}, choice=0).status_code == 403
    assert guess(client, shown | {"token": "\ud800"}, choice=0).status_code == 403
    assert guess(client, shown | {"token": ""}, choice=0).json()["error"].endswith("reload the page.")


def test_tokens_of_another_process_are_refused(client, monkeypatch):
    shown = the_round(client, 5)
    monkeypatch.setattr(game_page, "_KEY", b"of a server that was started again")
    for address in (shown["blurred"], *shown["choices"], *shown["grids"]):
        assert client.get(f"/{address}").status_code == 403
    assert guess(client, shown, choice=0).status_code == 403
    assert the_round(client, 5)["token"] != shown["token"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"null",
        b"\xff",
        b'{"n":0,"token":"a"}',
        b'{"seed":true,"token":"a"}',
        b"[" * 9999,
    ]
    + [json.dumps({"seed": seed, "token": "a"}).encode() for seed in (-1, "--5", 2**70, "x", [], None)],
)
def test_a_guess_that_makes_no_sense_is_refused_with_one_line(client, body):
    answer = client.post("/game/guess", content=body)
    assert answer.status_code == 400
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize("query", ["seed=x", "seed=-1", "n=-1", "n=1e3", "mode=hard", "seed=99999999999"])
def test_a_round_that_makes_no_sense_is_refused(client, query):
    assert client.get(f"/game?{query}").status_code == 400


@pytest.mark.parametrize(("choice", "status"), [(4, 400), (-1, 400), ("a", 400), (3, 200)])
def test_a_choice_is_one_of_four(client, choice, status):
    assert guess(client, the_round(client, 5), choice=choice).status_code == status


def test_without_a_seed_each_visit_has_another(client):
    assert len({client.get("/game.json").json()["seed"] for _ in range(8)}) > 4


def test_names_and_sensitive_marks_of_features_are_shown_when_they_are_opened(client, run, monkeypatch):
    shown = the_round(client, 8)
    feature = shown["clues"][0]
    monkeypatch.setattr(run.annotations, "is_sensitive", lambda asked: asked == feature)
    named = FeatureNames({feature: Name("<b>dogs</b>", None, "typed")}, run.annotations, run.d_sae)
    monkeypatch.setitem(run.__dict__, "names", named)
    first, second = (client.get(f"/{shown['grids'][i]}").json() for i in range(2))
    assert (first["feature"], first["is_sensitive"], first["name"]) == (feature, True, "<b>dogs</b>")
    assert (second["is_sensitive"], second["name"]) == (False, None)
    assert [each["value"] for each in first["pictures"]] == sorted(
        (e["value"] for e in first["pictures"]), reverse=True
    )


def test_a_run_that_cannot_be_played_says_why_on_its_page(tmp_path):
    made = make_explored_run(tmp_path, thumbnails=False, n_features=256, n_labels=24)
    with TestClient(make_app(Explorer([made.path])), base_url="http://127.0.0.1") as client:
        answer = client.get("/game")
        assert answer.status_code == 503
        assert "no thumbnails" in answer.text
