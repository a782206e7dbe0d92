"""The page of an image, against the stored rows and the SAE in float64."""

import io
import json
from html import unescape

import numpy as np
import pytest
from explored import HOSTILE_KEYS, make_explored_run
from PIL import Image
from starlette.testclient import TestClient
from thresher.analysis.encode import encode
from thresher.analysis.explorer import runs
from thresher.analysis.explorer.app import make_app
from thresher.analysis.explorer.page import NotHere, Query, Unavailable
from thresher.analysis.explorer.pages import image
from thresher.analysis.explorer.runs import ExploredRun
from thresher.analysis.explorer.several import Explorer
from thresher.analysis.options import EncodeOptions, StatsOptions
from thresher.analysis.stats import stats
from thresher.store.reader import open_store

UNREADABLE = 17


def page(run: ExploredRun, row: int) -> image.ImagePage:
    return image.view(run, Query({"row": row}))


@pytest.fixture(scope="module")
def dense(made) -> dict[str, np.ndarray]:
    """x, f and x_hat of every row, by the definition, in float64."""
    store = open_store(made.store_path)
    x = store.activations().read(0, store.n_rows).astype(np.float64)
    w = {name: tensor.double().numpy() for name, tensor in made.sae.tensors().items()}
    f = np.maximum((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"], 0)
    return {"x": x, "f": f, "x_hat": f @ w["W_dec"] + w["b_dec"]}


def test_numbers_are_those_of_the_definitions(run, dense):
    for row in range(0, 240, 7):
        found, x, f, x_hat = page(run, row), dense["x"][row], dense["f"][row], dense["x_hat"][row]
        assert found.l0.all == (f > 0).sum()
        assert found.l0.above == (f > 0.1).sum()
        assert found.l0.without_uld == (f[~run.is_uld] > 0).sum()
        assert found.norm == pytest.approx(np.linalg.norm(x), rel=1e-5)
        assert found.relative_error == pytest.approx(np.linalg.norm(x_hat - x) / np.linalg.norm(x), rel=1e-4)
        cosine = x @ x_hat / np.linalg.norm(x) / np.linalg.norm(x_hat)
        assert found.cosine == pytest.approx(cosine, rel=1e-4)


def test_features_come_by_falling_value_with_the_images_on_which_they_are_largest(run, dense):
    row = int(np.nanargmax(np.where(np.isfinite(dense["f"]), dense["f"] > 0, 0).sum(axis=1)))
    f = dense["f"][row]
    shown = page(run, row).features
    order = np.argsort(-f, kind="stable")[: len(shown)]
    assert [each.feature for each in shown] == order.tolist()
    assert [each.value for each in shown] == pytest.approx(f[order], rel=1e-4)
    assert [each.share for each in shown] == pytest.approx(f[order] / f.max(), rel=1e-4)
    for each in shown:
        column = np.nan_to_num(dense["f"][:, each.feature])
        assert [picture.value for picture in each.images] == pytest.approx(
            np.sort(column)[::-1][: min(4, (column > 0).sum())], rel=1e-4
        )
        assert [column[picture.row] for picture in each.images] == pytest.approx(
            [picture.value for picture in each.images], rel=1e-4
        )
        assert each.density == pytest.approx((column > 0).sum() / 239)
        assert each.is_uld == run.is_uld[each.feature]


def test_features_past_the_first_come_with_the_page_and_the_rest_as_json(client, run, monkeypatch):
    row = 5
    index, value = run.code(row)
    assert len(index) > 3
    monkeypatch.setattr(image, "FIRST", 1)
    monkeypatch.setattr(image, "MOST", 3)
    found = page(run, row)
    assert [each.feature for each in found.features + found.more] == index[:3].tolist()
    assert (len(found.features), len(found.more)) == (1, 2)
    text = client.get(f"/i/{row}").text
    assert f"The first 3 of {len(index)}" in text
    inlined = text.split('id="more-features">')[1].split("</script>")[0]
    assert [each["feature"] for each in json.loads(inlined)] == index[1:3].tolist()
    whole = client.get(f"/i/{row}/code.json").json()
    assert whole["features"] == index.tolist()
    assert whole["values"] == pytest.approx(value.tolist())


def test_an_image_knows_its_key_class_split_and_neighbours(run, made):
    store = open_store(made.store_path)
    order = store.parts[0].order
    for row in (0, 100, 239):
        found = page(run, row)
        picture = int(order.images(np.array([row]))[0])
        assert found.label == (-1 if picture in (3, 4) else picture % 7)
        assert found.label_name == run.label_name(found.label)
        assert found.split == ("held out" if row >= 237 else "training")  # 1 % of 240, rounded up, are held out
        assert (found.previous, found.next) == (row - 1 if row else None, row + 1 if row < 239 else None)
        assert (found.token, found.tokens) == ("", [])
        if picture >= len(HOSTILE_KEYS):
            assert found.key == f"pictures/{picture}.png"


def test_an_image_that_could_not_be_read_says_why(client, run):
    found = page(run, UNREADABLE)
    assert found.problem == "This image could not be read when the store was harvested: cannot be read."
    assert (found.features, found.norm, found.relative_error, found.cosine) == ([], None, None, None)
    assert found.split == "not encoded"
    assert not found.has_thumbnail
    answer = client.get(f"/i/{UNREADABLE}")
    assert answer.status_code == 200
    assert "could not be read when the store was harvested" in unescape(answer.text)
    assert client.get(f"/i/{UNREADABLE}/similar.json").json() == {"images": [], "is_exact": True}


def test_a_row_that_is_none_is_told(client, run):
    with pytest.raises(NotHere, match="Row 240 is not one of the 240 rows"):
        page(run, 240)
    for path in ("/i/240", "/i/99999999999999999999", "/i/240.json", "/i/240/code.json", "/picture/240"):
        assert client.get(path).status_code == 404
    assert client.get("/i/-1").status_code == 404


def test_hostile_names_stay_text(client, made):
    order = open_store(made.store_path).parts[0].order
    for picture in range(6):
        row = int(order.places(np.array([picture]))[0])
        answer = client.get(f"/i/{row}")
        assert answer.status_code == 200
        for markup in ("<script>alert", "<img src=x", "{% raw %}</title>"):
            assert markup not in answer.text
        assert client.get(f"/i/{row}.json").json()["row"] == row


def test_the_json_twin_holds_what_the_page_shows(client, run):
    twin, found = client.get("/i/8.json").json(), page(run, 8)
    assert twin["relative_error"] == pytest.approx(found.relative_error)
    assert [each["feature"] for each in twin["features"]] == [each.feature for each in found.features]
    assert twin["l0"] == vars(found.l0)


def test_similar_images_come_with_cosines_and_names(client, run):
    found = client.get("/i/8/similar.json").json()
    assert found["is_exact"]
    cosines = [each["value"] for each in found["images"]]
    assert cosines == sorted(cosines, reverse=True)
    assert 8 not in [each["row"] for each in found["images"]]
    for each in found["images"]:
        assert each["name"] == run.label_name(run.labels([each["row"]])[0])


def test_zero_shot_says_that_the_source_is_out_of_reach(client):
    answer = client.get("/i/8/zero-shot.json")
    assert answer.status_code == 503
    assert "made up" in answer.json()["error"]


def test_of_several_rows_an_image_the_page_is_of_one_and_names_the_others(tmp_path):
    made = make_explored_run(tmp_path, n_images=30, tokens=4, n_features=60, unreadable=())
    run = ExploredRun(made.path)
    images = run.store.images(0, 120)
    for row in (0, 40, 119):
        found = page(run, row)
        rows = [each.row for each in found.tokens]
        assert sorted(rows) == np.flatnonzero(images == images[row]).tolist()
        places = run.store.tokens(0, 120)[rows]
        assert places.tolist() == [1, 2, 3, 4]  # in the tower's sequence; 0 is the class token
        assert [each.name for each in found.tokens] == ["patch 0", "patch 1", "patch 2", "patch 3"]
        assert found.token == f"patch {places[rows.index(row)] - 1}"
        assert found.n_columns == 2
        if found.next is not None:
            assert run.store.tokens(found.next, found.next + 1) == run.store.tokens(row, row + 1)
            assert page(run, found.next).previous == row
    walked, row = 1, page(run, 0)
    while row.previous is not None:
        row = page(run, row.previous)
    while row.next is not None:
        row, walked = page(run, row.next), walked + 1
    assert walked == 30
    with TestClient(make_app(Explorer([made.path])), base_url="http://127.0.0.1") as client:
        text = client.get("/i/40").text
    assert 'aria-current="page" title="patch' in text


def test_a_row_that_was_not_encoded_says_so(tmp_path):
    made = make_explored_run(tmp_path, n_images=120, options=None)
    encode(made.path, EncodeOptions(device="cpu", split="heldout"))
    stats(made.path, StatsOptions(figures=False, min_labelled=1, null_draws=2, samples=2, split="heldout"))
    run = ExploredRun(made.path)
    found = page(run, 0)
    assert found.problem == "This row was not encoded: `thresher encode` was given another split, or fewer rows."
    assert found.has_thumbnail
    assert page(run, 119).split == "held out"


def test_without_the_store_a_page_still_has_its_numbers(made, run, tmp_path):
    copy = tmp_path / "run"
    copy.mkdir()
    for each in made.path.iterdir():
        (copy / each.name).symlink_to(each)
    (copy / "stats.json").unlink()
    document = json.loads((made.path / "stats.json").read_text()) | {"store": str(tmp_path / "gone.zarr")}
    (copy / "stats.json").write_text(json.dumps(document))
    config = json.loads((made.path / "config.json").read_text())
    config["store"] |= {"path": str(tmp_path / "gone.zarr"), "path_from_run": "gone.zarr"}
    (copy / "config.json").unlink()
    (copy / "config.json").write_text(json.dumps(config))
    explorer = Explorer([copy])
    found, whole = page(explorer.runs[0], 8), page(run, 8)
    assert (found.l0, found.norm, found.key, found.has_thumbnail) == (whole.l0, whole.norm, "", False)
    with TestClient(make_app(explorer), base_url="http://127.0.0.1") as client:
        assert client.get("/i/8").status_code == 200
        assert client.get("/picture/8").status_code == 503
        assert client.get("/i/8/similar.json").json()["images"][0]["row"] >= 0


@pytest.mark.parametrize(
    ("kind", "size", "media_type", "largest"),
    [
        ("PNG", (40, 30), "image/png", 40),
        ("GIF", (40, 30), "image/gif", 40),
        ("TIFF", (40, 30), "image/jpeg", 40),
        ("PNG", (3000, 20), "image/jpeg", 2048),
    ],
)
def test_a_full_picture_is_sent_as_it_is_where_browsers_show_it_and_it_is_not_huge(
    run, monkeypatch, kind, size, media_type, largest
):
    saved = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(saved, kind)
    monkeypatch.setattr(ExploredRun, "original", lambda self, row: saved.getvalue())
    answer = image.picture(run, Query({"row": 0}))
    assert answer.media_type == media_type
    assert (answer.content == saved.getvalue()) == (media_type != "image/jpeg")
    with Image.open(io.BytesIO(answer.content)) as opened:
        assert max(opened.size) == largest


def test_a_source_picture_that_cannot_be_read_is_told_and_none_at_all_gives_the_thumbnail(run, monkeypatch):
    thumbnail = image.picture(run, Query({"row": 0}))
    assert (thumbnail.content, thumbnail.media_type) == (run.thumbnail(0), "image/webp")
    monkeypatch.setattr(ExploredRun, "original", lambda self, row: b"<svg onload=alert(1)>")
    with pytest.raises(Unavailable, match="cannot be read"):
        image.picture(run, Query({"row": 0}))


def test_a_sensitive_feature_is_blurred_and_a_named_one_is_named(made, tmp_path):
    copy = tmp_path / "run"
    copy.mkdir()
    for each in made.path.iterdir():
        (copy / each.name).symlink_to(each)
    run = ExploredRun(copy)
    first, second = (int(feature) for feature in run.code(5)[0][:2])
    (copy / "names.tsv").write_text(f"feature\tname\tscore\tmethod\n{second}\tstripes <b>\t0.9\tclip\n")
    run.annotations.change(first, sensitive=True)
    explorer = Explorer([copy])
    found = page(explorer.runs[0], 5)
    assert [each.is_sensitive for each in found.features[:2]] == [True, False]
    assert [each.name for each in found.features[:2]] == ["", "stripes <b>"]
    with TestClient(make_app(explorer), base_url="http://127.0.0.1") as client:
        text = client.get("/i/5").text
    assert text.count("tops sensitive") == 1
    assert "stripes &lt;b&gt;" in text


def test_while_the_source_is_being_opened_others_see_thumbnails(made, monkeypatch):
    monkeypatch.setattr(runs, "_LONGEST_OPENING_S", 0.01)
    run = ExploredRun(made.path)
    with run._opening:
        assert run.picture(0) == run.thumbnail(0)
        with pytest.raises(Unavailable, match="are being listed"):
            run.original(0)
    with pytest.raises(Unavailable, match="made up"):
        run.original(0)
