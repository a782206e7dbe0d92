"""What a run's tower says of pictures, against whole passes through the model with hooks of one's own."""

import io
import json

import numpy as np
import open_clip
import pytest
import torch
from live_run import CLASSES, LAYER, make_live_run
from PIL import Image
from scipy.special import softmax
from starlette.testclient import TestClient
from thresher.analysis.explorer import tower as tower_
from thresher.analysis.explorer.app import make_app
from thresher.analysis.explorer.page import Unavailable
from thresher.analysis.explorer.runs import ExploredRun
from thresher.analysis.explorer.several import Explorer
from thresher.harvest.vision import load_clip, load_tower
from thresher.harvest.weights import EMBEDDED
from thresher.train.run_dir import open_run


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_live_run(tmp_path_factory.mktemp("live"))


@pytest.fixture(scope="module")
def live(path) -> ExploredRun:
    return ExploredRun(path)


@pytest.fixture(scope="module")
def client(path):
    with TestClient(make_app(Explorer([path])), base_url="http://127.0.0.1") as client:
        yield client


class Reference:
    """The model as open_clip has it, whole passes, and the SAE put in by a hook of our own."""

    def __init__(self, path) -> None:
        loaded = load_clip(EMBEDDED)
        self.clip, folder = loaded.model, str(loaded.source.folder)
        tokenize = open_clip.get_tokenizer("local-dir:" + folder, bpe_path=folder + "/bpe_4096.txt.gz")
        self.preprocess = load_tower(EMBEDDED).preprocess  # open_clip's own transform
        self.sae = open_run(path).load_sae()
        with torch.no_grad():
            texts = self.clip.encode_text(tokenize([f"A photo of a {name.replace('_', ' ')}." for name in CLASSES]))
        self.texts = self.unit(texts)
        self.scale = float(self.clip.logit_scale.detach().exp())

    @staticmethod
    def unit(rows):
        rows = rows.double().numpy()
        return rows / np.linalg.norm(rows, axis=-1, keepdims=True)

    def embedding(self, picture: Image.Image, new_cls=None) -> np.ndarray:
        """Of a picture, with what `new_cls` makes of the class token's activation put in its place."""

        def put(_module, _arguments, output):
            if new_cls is None:
                return None
            output = output.clone()
            output[:, 0] = new_cls(output[:, 0])
            return output

        handle = self.clip.visual.transformer.resblocks[LAYER].register_forward_hook(put)
        try:
            with torch.no_grad():
                return self.unit(self.clip.encode_image(self.preprocess(picture.convert("RGB"))[None]))[0]
        finally:
            handle.remove()

    def chances(self, embedding) -> dict[str, float]:
        each = softmax(self.scale * (self.texts @ embedding))
        return dict(zip((name.replace("_", " ") for name in CLASSES), each, strict=True))


@pytest.fixture(scope="module")
def reference(path):
    return Reference(path)


def read(live: ExploredRun, row: int) -> tuple[bytes, Image.Image]:
    encoded = live.original(row)
    return encoded, Image.open(io.BytesIO(encoded))


def table(answer: dict) -> dict[str, list[float]]:
    return {each["name"]: each["chances"] for each in answer["classes"]}


@pytest.mark.parametrize("row", [0, 9, 31])
def test_a_picture_of_the_store_has_the_features_that_are_stored(client, live, row):
    found = client.post("/upload/picture.json", content=live.original(row)).json()
    index, value = live.code(row)
    assert [each["feature"] for each in found["features"]] == index.tolist()
    np.testing.assert_allclose([each["value"] for each in found["features"]], value, rtol=1e-4)
    norm, sse, cosine = (float(live.row_number(name, row)) for name in ("x_norm", "sse", "cosine"))
    assert found["l0"] == found["counts"]["all"] == len(index)
    assert found["norm"] == pytest.approx(norm, rel=1e-5)
    assert found["relative_error"] == pytest.approx(np.sqrt(sse) / norm, rel=1e-4)
    assert found["cosine"] == pytest.approx(cosine, rel=1e-4)


def test_zero_shot_before_and_after_is_that_of_whole_passes_with_the_sae_put_in_by_a_hook(client, live, reference):
    for row in (2, 20):
        _, picture = read(live, row)
        before = reference.chances(reference.embedding(picture))
        after = reference.chances(reference.embedding(picture, lambda x: reference.sae.decode(reference.sae.encode(x))))
        found = client.get(f"/i/{row}/zero-shot.json").json()
        assert found["n_classes"] == 4
        for name, (one, other) in table(found).items():
            assert one == pytest.approx(before[name], abs=1e-5)
            assert other == pytest.approx(after[name], abs=1e-5)
        assert list(table(found)) == sorted(before, key=before.get, reverse=True)
        uploaded = client.post("/upload/picture.json", content=live.original(row)).json()["zero_shot"]
        for name, both in table(uploaded).items():
            assert both == pytest.approx(table(found)[name], abs=1e-7)


def test_sliders_at_one_change_nothing_and_an_edit_is_the_splice_of_a_hand_edited_code(client, live, reference):
    encoded, picture = read(live, 5)
    sent = client.post("/upload/picture.json", content=encoded).json()
    strongest = [each["feature"] for each in sent["features"][:3]]

    def ask(factors, keep_error):
        body = {"token": sent["token"], "factors": factors, "keep_error": keep_error}
        found = client.post("/upload/edit.json", json=body).json()
        assert found["is_held"]
        return table(found), found["cosine"]

    ones = {str(feature): 1 for feature in strongest}
    for name, (before, after, changed) in ask(ones, True)[0].items():
        assert changed == pytest.approx(before, abs=1e-6), name
        assert ask(ones, False)[0][name][2] == pytest.approx(after, abs=1e-6)
    assert ask({}, True)[1] == pytest.approx(1, abs=1e-6)

    factors = {strongest[0]: 0.0, strongest[1]: 2.5}
    sae = reference.sae

    def edited(x, keep_error):
        f = sae.encode(x)
        new = f.clone()
        for feature, factor in factors.items():
            new[:, feature] = factor * f[:, feature]
        rest = x - sae.decode(f) if keep_error else 0
        return sae.decode(new) + rest

    for keep_error in (True, False):
        embedding = reference.embedding(picture, lambda x, keep_error=keep_error: edited(x, keep_error))
        expected = reference.chances(embedding)
        changed, cosine = ask({str(feature): factor for feature, factor in factors.items()}, keep_error)
        assert {name: each[2] for name, each in changed.items()} == pytest.approx(expected, abs=1e-5)
        assert cosine == pytest.approx(float(embedding @ reference.embedding(picture)), abs=1e-5)
        assert max(abs(each[2] - each[0]) for each in changed.values()) > 1e-3  # or the edit did nothing


def test_a_picture_of_the_store_is_most_like_itself_by_code(client, live):
    sent = client.post("/upload/picture.json", content=live.original(3)).json()
    found = client.get(f"/upload/similar.json?token={sent['token']}").json()
    assert found["is_held"]
    assert found["images"][0]["row"] == 3
    assert found["images"][0]["value"] == pytest.approx(1, abs=1e-6)


def test_the_last_pictures_are_held_and_earlier_ones_let_go(client, live):
    tokens = [client.post("/upload/picture.json", content=live.original(row)).json()["token"] for row in range(9)]
    assert len(set(tokens)) == 9
    ask = {"factors": {}, "keep_error": True}
    assert client.post("/upload/edit.json", json={"token": tokens[0], **ask}).json() == {"is_held": False}
    assert client.get(f"/upload/similar.json?token={tokens[0]}").json() == {"is_held": False}
    assert client.post("/upload/edit.json", json={"token": tokens[1], **ask}).json()["is_held"]


def test_the_tower_says_where_it_runs(client):
    found = client.get("/upload/tower.json").json()
    assert found == {"is_ready": True, "reason": "", "device": found["device"], "precision": "fp32"}


def test_words_are_embedded_as_the_text_tower_does(live, reference):
    found = live.tower.embed_text(["apple", "fire_truck", "red_ball", "zebra"])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, reference.texts, atol=1e-6)
    plain = live.tower.embed_text(["A photo of a zebra."], caption="{}")
    np.testing.assert_allclose(plain[0], reference.texts[3], atol=1e-6)
    simple = live.tower.embed_text(["zebra"], templates="simple")
    assert np.linalg.norm(simple) == pytest.approx(1, abs=1e-6)
    assert not np.allclose(simple[0], reference.texts[3], atol=1e-3)


def test_captions_are_those_that_evaluate_was_last_given(path, live, tmp_path):
    copy = tmp_path / "run"
    copy.mkdir()
    for each in path.iterdir():
        (copy / each.name).symlink_to(each)
    (copy / "evaluate.json").write_text(json.dumps({"options": {"caption": "A {} on its own.", "templates": "none"}}))
    run = ExploredRun(copy)
    with run.tower.turn():
        texts = run.tower.class_texts()
    assert texts.names == ["apple", "fire truck", "red ball", "zebra"]
    assert "A {} on its own." in texts.description
    np.testing.assert_allclose(
        texts.embeddings, live.tower.embed_text(texts.names, caption="A {} on its own."), atol=1e-6
    )


def test_a_visitor_is_told_that_the_tower_is_busy(client, live, monkeypatch):
    taken = [tower_._PLACES.acquire(blocking=False) for _ in range(tower_._MOST_WAITING)]
    try:
        assert all(taken)
        answer = client.post("/upload/picture.json", content=live.original(0))
        assert answer.status_code == 503
        assert "busy" in answer.json()["error"]
    finally:
        for _ in taken:
            tower_._PLACES.release()
    monkeypatch.setattr(tower_, "_LONGEST_WAIT_S", 0.05)
    with tower_._TURN, pytest.raises(Unavailable, match="busy"):
        live.tower.embed_text(["zebra"])
    assert client.post("/upload/picture.json", content=live.original(0)).status_code == 200


def test_an_sae_that_is_not_the_one_counted_is_not_used(path, tmp_path):
    copy = tmp_path / "run"
    copy.mkdir()
    for each in path.iterdir():
        if each.name != "sae.safetensors":
            (copy / each.name).symlink_to(each)
    sae = open_run(path).load_sae()
    sae.tensors()["b_dec"].add_(1.0)
    sae.save(copy / "sae.safetensors")
    with TestClient(make_app(Explorer([copy])), base_url="http://127.0.0.1") as client:
        answer = client.post("/upload/picture.json", content=ExploredRun(path).original(0))
    assert answer.status_code == 503
    assert "is not the SAE that its statistics are of" in answer.json()["error"]


def test_of_a_store_of_patches_a_picture_has_each_features_largest_value_and_edits_reach_every_token(
    path, tmp_path_factory
):
    folder = path.parent
    run = ExploredRun(make_live_run(folder, name="patches", token="patch"))
    with TestClient(make_app(Explorer([run.path])), base_url="http://127.0.0.1") as client:
        sent = client.post("/upload/picture.json", content=run.original(0)).json()
        rows = run.rows_of_image(0)
        codes = np.zeros((len(rows), run.d_sae))
        for place, row in enumerate(rows):
            index, value = run.code(int(row))
            codes[place, index] = value
        assert sent["n_tokens"] == len(rows) > 1
        assert sent["l0"] == pytest.approx((codes > 0).sum(axis=1).mean())
        largest = codes.max(axis=0)
        assert sent["counts"]["all"] == (largest > 0).sum()
        for each in sent["features"]:
            assert each["value"] == pytest.approx(largest[each["feature"]], rel=1e-3)
        norm = np.array([run.row_number("x_norm", int(row)) for row in rows], np.float64)
        sse = np.array([run.row_number("sse", int(row)) for row in rows], np.float64)
        assert sent["relative_error"] == pytest.approx(np.sqrt(sse.sum() / np.square(norm).sum()), rel=1e-3)
        factors = {str(each["feature"]): 0 for each in sent["features"]}
        body = {"token": sent["token"], "factors": factors, "keep_error": False}
        found = client.post("/upload/edit.json", json=body).json()
        reference = Reference(run.path)
        kept = [feature for feature in range(run.d_sae) if str(feature) not in factors]

        def put(_module, _arguments, output):
            f = reference.sae.encode(output[0, 1:])
            only = torch.zeros_like(f)
            only[:, kept] = f[:, kept]
            output = output.clone()
            output[0, 1:] = reference.sae.decode(only)
            return output

        handle = reference.clip.visual.transformer.resblocks[LAYER].register_forward_hook(put)
        expected = reference.chances(reference.embedding(read(run, 0)[1]))
        handle.remove()
        assert {name: each[2] for name, each in table(found).items()} == pytest.approx(expected, abs=1e-4)
        answer = client.get(f"/upload/similar.json?token={sent['token']}")
        assert answer.status_code == 503


def test_where_the_site_cannot_be_replaced_features_are_shown_and_the_reason_is_said(path):
    run_path = make_live_run(path.parent, name="mean", token="mean")
    with TestClient(make_app(Explorer([run_path])), base_url="http://127.0.0.1") as client:
        sent = client.post("/upload/picture.json", content=ExploredRun(run_path).original(1)).json()
        index, value = ExploredRun(run_path).code(1)
        assert [each["feature"] for each in sent["features"]] == index.tolist()
        np.testing.assert_allclose([each["value"] for each in sent["features"]], value, rtol=1e-4)
        assert not sent["can_edit"]
        assert "mean of the patches is no place in the tower" in sent["problem"]
        assert all(each["chances"][1] is None for each in sent["zero_shot"]["classes"])
        answer = client.post("/upload/edit.json", json={"token": sent["token"], "factors": {}, "keep_error": True})
        assert answer.status_code == 503


def test_a_transcoder_replaces_what_it_gives_and_errors_are_of_that(path):
    sites = {"site": ("resid_pre", "mlp_out")}
    trained = {"site": "resid_pre", "to_site": "mlp_out"}
    run = ExploredRun(make_live_run(path.parent, name="transcoder", trained=trained, **sites))
    with TestClient(make_app(Explorer([run.path])), base_url="http://127.0.0.1") as client:
        sent = client.post("/upload/picture.json", content=run.original(0)).json()
        index, value = run.code(0)
        assert [each["feature"] for each in sent["features"]] == index.tolist()
        np.testing.assert_allclose([each["value"] for each in sent["features"]], value, rtol=1e-4)
        norm, sse = float(run.row_number("x_norm", 0)), float(run.row_number("sse", 0))
        assert sent["norm"] == pytest.approx(norm, rel=1e-4)
        assert sent["relative_error"] == pytest.approx(np.sqrt(sse) / norm, rel=1e-3)
        body = {"token": sent["token"], "factors": {str(index[0]): 0.5}, "keep_error": False}
        changed = client.post("/upload/edit.json", json=body).json()

    reference = Reference(run.path)
    block = reference.clip.visual.transformer.resblocks[LAYER]
    read_there: list[torch.Tensor] = []

    def chances(factor: float) -> dict[str, float]:
        def put(_module, _arguments, output):
            f = reference.sae.encode(read_there.pop())
            f[:, index[0]] *= factor
            output = output.clone()
            output[:, 0] = reference.sae.decode(f)
            return output

        handles = [
            block.register_forward_pre_hook(lambda _module, arguments: read_there.append(arguments[0][:, 0])),
            block.mlp.register_forward_hook(put),
        ]
        found = reference.chances(reference.embedding(read(run, 0)[1]))
        for handle in handles:
            handle.remove()
        return found

    after, half = chances(1.0), chances(0.5)
    for name, each in table(changed).items():
        assert each[1] == pytest.approx(after[name], abs=1e-5)
        assert each[2] == pytest.approx(half[name], abs=1e-5)
