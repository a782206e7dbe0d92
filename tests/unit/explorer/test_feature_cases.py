"""The page of a feature where something is missing, and its heat maps."""

import base64
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from explored import QUICK, make_explored_run
from starlette.testclient import TestClient
from thresher.analysis.encode import encode
from thresher.analysis.explorer.app import make_app
from thresher.analysis.explorer.page import Query, Unavailable
from thresher.analysis.explorer.pages.feature import view
from thresher.analysis.explorer.pages.feature_patches import _entries, heat_answer
from thresher.analysis.explorer.pages.feature_visualisation import data_url
from thresher.analysis.explorer.runs import ExploredRun
from thresher.analysis.explorer.several import Explorer
from thresher.analysis.options import EncodeOptions
from thresher.analysis.stats import stats
from thresher.store.format import Site
from thresher.store.loading import plan_loading
from thresher.store.reader import open_store
from thresher.train.configuration import describe_store
from thresher.train.models import ReluSae
from thresher.train.options import TrainOptions
from thresher.train.run_dir import create_run


@pytest.fixture
def make_plain_run(make_store, tmp_path):
    """A factory of runs whose SAE gives every positive coordinate as it is: feature j is coordinate j.

    So every activation is known by hand.
    """

    def make(rows, **store):
        d = rows.shape[1]
        made = make_store(store.pop("n", len(rows)), d, rows=rows, dtype="float32", **store)
        opened, path = open_store(made.path), tmp_path / "run"
        config = {
            "options": TrainOptions().to_json(),
            "site": opened.sites[0].path,
            "d_in": d,
            "d_sae": d,
            "store": describe_store(opened, path),
            "loading": plan_loading([opened.activations(opened.sites[0])], 64).to_json(),
        }
        create_run(path, config, overwrite=False)
        ReluSae(torch.eye(d), torch.zeros(d), torch.eye(d), torch.zeros(d)).save(path / "sae.safetensors")
        encode(path, EncodeOptions(device="cpu"))
        stats(path, QUICK)
        return made, ExploredRun(path)

    return make


def client_of(path):
    return TestClient(make_app(Explorer([path])), base_url="http://127.0.0.1")


def test_a_feature_that_fires_once_has_a_whole_page(make_plain_run):
    rows = np.full((40, 5), -1.0)
    rows[:, 0] = np.arange(40) + 1
    rows[7, 3] = 2.5
    made, run = make_plain_run(rows)
    found = view(run, Query({"feature": 3}))
    n = found.numbers
    assert (n.n_active, n.density, n.rank, n.n_pos) == (1, 1 / 40, 2, 1)
    assert (n.max, n.mean, n.mean_top) == (2.5, 2.5, 2.5)
    assert np.isnan(n.label_entropy)
    assert n.n_labelled == 1
    assert [[each.row for each in group] for group in found.pictures.values()] == [[7]] * 5
    assert sum(found.histogram.counts) == 1
    assert found.histogram.n_zero == 39
    (label,) = found.labels.rows
    assert (label.share, label.count) == (1, 1)
    assert label.label == made.labels[made.row_image[7]]
    assert label.share_of_label == 1 / 8  # 40 images of 5 labels
    html = client_of(run.path).get("/f/3").text
    assert "over 1 labelled rows, 3 are needed" in html


def test_without_labels_names_are_dashes_and_entropy_is_undefined(tmp_path):
    made = make_explored_run(tmp_path, n_features=24, n_images=60, is_labelled=False)
    run = ExploredRun(made.path)
    found = view(run, Query({"feature": 0}))
    assert {each.name for each in found.pictures["top"]} == {"–"}
    assert np.isnan(found.numbers.label_entropy)
    assert found.numbers.by_chance is None
    assert found.labels.rows == []
    assert found.absent["null"] == "no row has a label"
    page = client_of(made.path).get("/f/0")
    assert page.status_code == 200
    assert "p by chance" not in page.text


def test_statistics_from_the_store_have_the_page_of_stored_features(tmp_path):
    made = make_explored_run(tmp_path, n_features=24, n_images=60, options=None)
    stats(made.path, replace(QUICK, from_store=True, device="cpu", samples=3))
    found = view(ExploredRun(made.path), Query({"feature": 0}))
    assert list(found.pictures) == ["top", "q75", "q50", "q25", "random"]
    assert sum(row.count for row in found.labels.rows) == found.numbers.n_active
    assert client_of(made.path).get("/f/0/labels.json").status_code == 200


def test_statistics_without_samples_have_a_page(tmp_path):
    made = make_explored_run(tmp_path, n_features=24, n_images=60, options=None)
    stats(made.path, replace(QUICK, from_store=True, device="cpu", samples=0, cofiring=0))
    run = ExploredRun(made.path)
    found = view(run, Query({"feature": 0}))
    assert list(found.pictures) == ["top"]
    assert len(found.pictures["top"]) == min(16, found.numbers.n_active)
    assert found.labels is None
    assert found.partners == []
    assert found.decoder
    assert found.absent["samples"] == "left out by --samples 0"
    assert view(run, Query({"feature": 0}, {"group": "q50"})).group == "top"
    client = client_of(made.path)
    html = client.get("/f/0").text
    assert "No samples by quantile" in html
    assert 'role="tab"' not in html
    assert client.get("/f/0/labels.json").status_code == 404
    assert client.get(f"/t/{found.pictures['top'][0].row}").status_code == 200


def test_names_and_marks_stand_on_the_page(tmp_path):
    made = make_explored_run(tmp_path, n_features=24, n_images=60)
    (made.path / "names.tsv").write_text("feature\tname\tscore\tmethod\n2\t<b>dogs</b> & cats\t0.75\tclip\n")
    run = ExploredRun(made.path)
    run.annotations.change(2, sensitive=True)
    found = view(run, Query({"feature": 2}))
    assert found.name == "<b>dogs</b> & cats"
    assert (found.naming.status, found.naming.score, found.naming.method) == ("named", 0.75, "clip")
    assert found.is_sensitive
    html = client_of(made.path).get("/f/2").text
    assert "&lt;b&gt;dogs&lt;/b&gt; &amp; cats" in html
    assert "<b>dogs" not in html
    assert 'class="grid  sensitive"' in html or 'class="grid sensitive"' in html
    near = view(run, Query({"feature": found.decoder[0].feature}))
    [seen] = [each for each in near.decoder if each.feature == 2]
    assert (seen.name, seen.is_sensitive) == ("<b>dogs</b> & cats", True)


def test_a_visualisation_is_shown_by_number_only(tmp_path):
    made = make_explored_run(tmp_path, n_features=24, n_images=60)
    folder = made.path / "visualisations"
    folder.mkdir()
    (folder / "2.png").write_bytes(b"\x89PNG of feature 2")
    (folder / "secret").write_bytes(b"secret")
    client = client_of(made.path)
    got = client.get("/f/2/picture-0.webp")
    assert (got.content, got.headers["content-type"]) == (b"\x89PNG of feature 2", "image/png")
    assert "/f/2/picture-0.webp" in client.get("/f/2").text
    assert "/f/3/picture" not in client.get("/f/3").text
    assert str(made.path) not in client.get("/f/2.json").text  # no path leaves the server
    assert client.get("/f/2.json").json()["visualisation"]["seeds"] == [None]
    whole = base64.b64encode(b"\x89PNG of feature 2").decode()
    assert data_url(ExploredRun(made.path), 2, 0) == f"data:image/png;base64,{whole}"
    for path in (
        "/f/3/picture-0.webp",
        "/f/2/picture-1.webp",
        "/f/secret/picture-0.webp",
        "/f/99/picture-0.webp",
        "/f/..%2fsecret/picture-0.webp",
    ):
        assert client.get(path).status_code == 404, path


@pytest.mark.parametrize(("token", "order"), [("patch", "random"), ("all", "source")])
def test_heat_maps_are_the_activations_of_the_images_own_patches(make_plain_run, token, order):
    tokens = 9 if token == "patch" else 10
    rows = np.random.default_rng(0).standard_normal((30 * tokens, 4)).astype(np.float32)
    made, run = make_plain_run(
        rows, n=30, tokens=tokens, sites=(Site(1, "resid_post", token),), order=order, rows_per_chunk=8
    )
    assert view(run, Query({"feature": 1})).has_patches
    found = heat_answer(run, Query({"feature": 1}))
    json.dumps(found)
    assert found["side"] == 3
    top = np.argsort(-rows[:, 1], kind="stable")[:16]
    assert [row for each in found["images"] for row in each["rows"]] != []
    assert {row for each in found["images"] for row in each["rows"]} == set(top.tolist())
    # by hand: a store's own columns say of which image, and which token, each row is
    store = open_store(made.path)
    image, place = store.images(0, store.n_rows), store.tokens(0, store.n_rows)  # the first patch is 1
    for each in found["images"]:
        own = np.flatnonzero(image == image[each["rows"][0]])
        expected = np.zeros(9)
        for row in own:
            if place[row] >= 1:
                expected[place[row] - 1] = max(rows[row, 1], 0)
        assert each["values"] == pytest.approx(expected)
        assert each["at"] == [int(place[row]) - 1 for row in each["rows"]]


def test_a_feature_with_many_activations_is_read_in_part(make_plain_run, monkeypatch):
    rows = np.random.default_rng(1).standard_normal((200 * 4, 3)).astype(np.float32)
    _, run = make_plain_run(rows, n=200, tokens=4, sites=(Site(1, "resid_post", "patch"),), rows_per_chunk=16)
    whole = heat_answer(run, Query({"feature": 0}))
    monkeypatch.setattr("thresher.analysis.explorer.pages.feature_patches._ENTRIES_AT_ONCE", 32)
    assert len(_entries(run, 0, 320, 383)[0]) < 150 < (rows[:, 0] > 0).sum()
    assert heat_answer(run, Query({"feature": 0})) == whole
    for low in range(0, 800, 64):
        row, value = _entries(run, 0, low, low + 63)
        inside = (row >= low) & (row < low + 64)
        expected = np.flatnonzero(rows[low : low + 64, 0] > 0) + low
        assert row[inside].tolist() == expected.tolist()
        assert value[inside] == pytest.approx(rows[expected, 0])


def test_heat_maps_need_patches(run):
    with pytest.raises(Unavailable, match="not trained on single patches"):
        heat_answer(run, Query({"feature": 0}))
