"""Runs that lack something, were moved, or are of an unusual store: each address gives a page or one clear line."""

import json
import re
import shutil

import pytest
from explored import QUICK, make_explored_run
from starlette.testclient import TestClient
from thresher.analysis.encode import encode
from thresher.analysis.explorer.app import chapters, make_app
from thresher.analysis.explorer.several import Explorer
from thresher.analysis.options import EncodeOptions, StatsOptions
from thresher.analysis.stats import stats

PATHS = [page.path for chapter in chapters() for page in chapter.pages]
ENDS = [end.path for chapter in chapters() for end in chapter.endpoints if not end.is_post]
FROM_STORE = StatsOptions(from_store=True, figures=False, min_labelled=3, null_draws=0, device="cpu")


def asked(path):
    """Status by address of all pages, their twins and what their scripts load; a failure raises."""
    found = {}
    with TestClient(make_app(Explorer([path])), base_url="http://127.0.0.1") as client:
        for each in [*PATHS, *(f"{path}.json" for path in PATHS if path != "/"), *ENDS, "/t/0", "/t/5"]:
            address = re.sub(r"{\w+(:\w+)?}", lambda match: "5" if match[1] else "run", each)
            answer = client.get(address)
            found[address] = answer.status_code
            assert answer.status_code in (200, 400, 404, 503), address
            if answer.status_code == 503:
                message = answer.json()["error"] if "json" in answer.headers["content-type"] else answer.text
                assert "Traceback" not in message
                assert "\n" not in message or message.startswith("<!doctype html>")
    return found


def copied(made, tmp_path):
    """A copy of the run and its store, side by side as they were."""
    folder = tmp_path / "copied"
    shutil.copytree(made.path.parent, folder)
    return folder / made.path.name, folder / made.store_path.name


def edited(path, **changes):
    document = json.loads(path.read_text())
    document |= changes
    path.write_text(json.dumps({name: value for name, value in document.items() if value is not None}))


def notes_of(path):
    return " ".join(Explorer([path]).runs[0].notes)


@pytest.fixture
def moved(made, tmp_path):
    """The run and its store in a place that the run does not know."""
    path, store_path = copied(made, tmp_path)
    for name in ("stats.json", "config.json"):
        text = (path / name).read_text()
        (path / name).write_text(text.replace(str(made.store_path), "/nowhere/store.zarr"))
    return path, store_path


def test_a_run_that_was_moved_with_its_store_shows_pictures(moved):
    path, store_path = moved
    run = Explorer([path]).runs[0]
    assert run.notes == []
    assert run.store.objects.local.resolve() == store_path.resolve()
    assert asked(path)["/t/5"] == 200


def test_without_its_store_it_says_so_and_shows_the_rest(moved):
    path, store_path = moved
    shutil.rmtree(store_path)
    assert "The activation store /nowhere/store.zarr is out of reach" in notes_of(path)
    found = asked(path)
    assert (found["/"], found["/f/5"], found["/features"], found["/t/5"]) == (200, 200, 200, 503)


def test_another_store_in_its_place_is_not_taken_for_it(moved):
    path, store_path = moved
    shutil.rmtree(store_path)
    other = make_explored_run(path.parent / "other", n_images=60, options=None)
    shutil.move(other.store_path, store_path)
    assert re.search(r"is not the store that \S* was trained on: n_images is 240 there and 60 here: no", notes_of(path))
    assert asked(path)["/t/5"] == 503


def test_another_store_in_the_place_of_one_that_was_only_encoded_is_not_taken_for_it(made, tmp_path):
    path, store_path = copied(made, tmp_path)
    others = make_explored_run(tmp_path / "other", n_images=60, options=None).store_path
    encode(path, EncodeOptions(device="cpu", overwrite=True, store=str(others)))
    stats(path, QUICK)
    assert notes_of(path) == ""
    shutil.rmtree(others)
    shutil.copytree(store_path, others)
    assert re.search(r"is not the store that was encoded: fingerprint is .* there and .* here: no", notes_of(path))


def test_a_store_that_is_damaged_is_not_said_to_be_out_of_reach(moved):
    path, store_path = moved
    (store_path / "rows/image/zarr.json").write_text("{}")
    assert re.search(r"rows/image/zarr.json .*: no thumbnails, no names of images", notes_of(path))


def test_codes_of_a_later_encoding_are_left_out(made, tmp_path):
    path, _ = copied(made, tmp_path)
    encode(path, EncodeOptions(device="cpu", overwrite=True, rows=100))
    assert "encoded again since its statistics were made" in notes_of(path)
    found = asked(path)
    assert (found["/"], found["/f/5"], found["/i/5"]) == (200, 200, 503)


def test_statistics_without_codes_have_all_pages_but_those_of_images(tmp_path):
    made = make_explored_run(tmp_path, options=None)
    shutil.rmtree(made.path / "features.zarr", ignore_errors=True)
    stats(made.path, FROM_STORE)
    found = asked(made.path)
    assert (found["/"], found["/f/5"], found["/features"], found["/t/5"]) == (200, 200, 200, 200)
    assert found["/i/5"] == 503


def test_an_imported_run_without_a_store(made, tmp_path):
    path, store_path = copied(made, tmp_path)
    shutil.rmtree(store_path)
    imported = {"format": "sae-lens", "source": "somewhere"}
    edited(path / "config.json", imported=imported, store=None, options=None, loading=None, site=None)
    edited(path / "stats.json", store="/nowhere/store.zarr")
    (path / "metrics.jsonl").unlink()
    found = asked(path)
    assert (found["/"], found["/f/5"], found["/features"]) == (200, 200, 200)


def test_details_that_were_left_out_are_left_out(made, tmp_path):
    path, _ = copied(made, tmp_path)
    none = StatsOptions(figures=False, overwrite=True, samples=0, cofiring=0, nearest=0, null_draws=0, min_labelled=3)
    stats(path, none)
    found = asked(path)
    assert (found["/"], found["/f/5"], found["/i/5"], found["/features"]) == (200, 200, 200, 200)


@pytest.mark.parametrize(
    "of",
    [{"tokens": 4, "n_images": 60}, {"is_labelled": False, "thumbnails": False}, {"n_images": 8, "n_features": 16}],
    ids=["patches", "neither labels nor pictures", "a handful"],
)
def test_unusual_stores(tmp_path, of):
    made = make_explored_run(tmp_path, options=QUICK, **of)
    found = asked(made.path)
    assert (found["/"], found["/f/5"], found["/i/5"], found["/features"]) == (200, 200, 200, 200)


def test_statistics_of_a_dense_matrix_are_no_run(made, tmp_path):
    (tmp_path / "dense").mkdir()
    shutil.copy(made.path / "stats.json", tmp_path / "dense")
    with pytest.raises(Exception, match="is not a run directory") as refused:
        Explorer([tmp_path / "dense"])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("stats.zarr/cofiring/feature/c/0/0", b"rubbish"),
        ("stats.zarr/labels/indptr/zarr.json", b'{"shape"'),
        ("features.zarr/indptr/c/0", b"rubbish"),
        ("features.zarr/rows/label/zarr.json", b"\xff"),
        ("metrics.jsonl", None),
        ("evaluate.json", None),
        ("alignment.json", None),
        ("alignment.json", b"[]"),
    ],
)
def test_a_damaged_file_takes_no_more_than_the_pages_that_need_it(made, tmp_path, name, content):
    path, _ = copied(made, tmp_path)
    damaged = path / name
    damaged.unlink(missing_ok=True)
    if content is None:
        damaged.mkdir()  # a folder in its place
    else:
        damaged.write_bytes(content)
    found = asked(path)
    assert (found["/t/5"], found["/upload"]) == (200, 200)
    Explorer([path]).runs[0].preload()  # in a thread of its own, where a failure would be a traceback


def test_browsers_keep_a_thumbnail_only_under_the_version_of_its_store(run, client):
    """Another run may be shown at the same address tomorrow, and its row 0 is another image."""
    page = client.get("/f/5").text
    address = f"/t/{run.stored.statistics.top_row[5, 0]}?of={run.pictures_version}"
    assert f'src="{address}"' in page
    assert "immutable" in client.get(address).headers["cache-control"]
    for other in ("/t/0", "/t/0?of=", "/t/0?of=000000000000"):
        assert client.get(other).headers["cache-control"] == "no-cache"
