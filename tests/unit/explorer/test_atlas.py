"""The atlas' map of a run: made once, kept beside it, made anew when it is of something else."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient
from thresher.analysis.explorer import atlas_map, layout
from thresher.analysis.explorer.app import make_app
from thresher.analysis.explorer.atlas_map import ATLAS_NPZ, atlas_of
from thresher.analysis.explorer.page import Query, Unavailable
from thresher.analysis.explorer.pages import atlas
from thresher.analysis.explorer.runs import ExploredRun
from thresher.analysis.explorer.several import Explorer
from thresher.train.run_dir import RUN_FILES


@pytest.fixture
def own_run(run_path: Path, tmp_path: Path) -> ExploredRun:
    """A copy that may be written into."""
    shutil.copytree(run_path, tmp_path / "run")
    return ExploredRun(tmp_path / "run")


def test_the_page_says_what_is_left_out(own_run: ExploredRun) -> None:
    view = atlas.view(own_run, Query())
    assert view.n_shown + view.n_dead + view.n_uld == own_run.d_sae
    assert view.n_shown == len(own_run.shown)
    atlas_of(own_run).wait()
    with TestClient(make_app(Explorer([own_run.path])), base_url="http://127.0.0.1") as client:
        page = client.get("/atlas").text
        assert "dead" in page
        assert client.get("/atlas.json").json()["n_shown"] == view.n_shown


def test_columns_of_the_map_are_those_of_the_statistics(own_run: ExploredRun) -> None:
    positions = atlas_of(own_run).wait()
    content = atlas.points(own_run, Query()).content
    n, of = len(own_run.shown), own_run.stored.statistics
    assert len(content) == 4 * 7 * n
    columns = [np.frombuffer(content[4 * n * i : 4 * n * (i + 1)], "<i4" if i in (0, 6) else "<f4") for i in range(7)]
    assert columns[0].tolist() == np.flatnonzero((of.n_active > 0) & ~own_run.is_uld).tolist()
    np.testing.assert_array_equal(np.stack(columns[1:3], axis=1), positions)
    np.testing.assert_allclose(columns[3], of.n_active[own_run.shown] / own_run.summary["n_rows"], rtol=1e-6)
    np.testing.assert_array_equal(columns[4], of.label_entropy[own_run.shown])
    np.testing.assert_array_equal(columns[5], of.mean_top[own_run.shown])
    np.testing.assert_array_equal(columns[6], of.top_row[own_run.shown, 0])


def test_the_map_is_kept_beside_the_run_and_read_again(own_run: ExploredRun, monkeypatch: pytest.MonkeyPatch) -> None:
    made = atlas_of(own_run).wait()
    assert (own_run.path / ATLAS_NPZ).exists()
    assert ATLAS_NPZ in RUN_FILES
    monkeypatch.setattr(layout, "lay_out", lambda *_: pytest.fail("made a second time"))
    again = atlas_of(ExploredRun(own_run.path))
    assert again.is_ready
    np.testing.assert_array_equal(again.positions(), made)


@pytest.mark.parametrize("damage", ["cut", "rubbish", "other features", "other version"])
def test_a_kept_map_that_is_damaged_or_of_something_else_is_made_anew(
    own_run: ExploredRun, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = atlas_of(own_run).wait()
    path = own_run.path / ATLAS_NPZ
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:200])
    elif damage == "rubbish":
        path.write_bytes(b"PK\x03\x04 no archive")
    elif damage == "other features":
        np.savez(path, key=np.array("other"), features=own_run.shown, positions=made)
    else:
        monkeypatch.setattr(layout, "VERSION", layout.VERSION + 1)
    again = atlas_of(ExploredRun(own_run.path))
    assert not again.is_ready
    np.testing.assert_array_equal(again.wait(), made)


def test_an_array_of_objects_in_a_kept_map_is_not_unpickled(own_run: ExploredRun) -> None:
    key = atlas_of(own_run).key
    np.savez(own_run.path / ATLAS_NPZ, key=np.array(key), positions=np.array([object()] * 3), allow_pickle=True)
    assert not atlas_of(ExploredRun(own_run.path)).is_ready


def test_where_the_folder_may_not_be_written_the_map_stays_in_memory(
    own_run: ExploredRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(atlas_map, "write_atomically", refuse)
    assert atlas_of(own_run).wait().shape == (len(own_run.shown), 2)
    assert not (own_run.path / ATLAS_NPZ).exists()


def test_another_sae_than_the_statistics_are_of_has_no_map(own_run: ExploredRun) -> None:
    own_run.summary["sae_sha256"] = "0" * 64
    with pytest.raises(Unavailable, match="not the SAE that the statistics are of"):
        atlas_of(own_run).wait()
    assert "not the SAE" in atlas.progress(own_run, Query())["message"]


def test_progress_ends_at_a_map(own_run: ExploredRun) -> None:
    atlas_of(own_run).wait()
    assert atlas.progress(own_run, Query()) == {"is_ready": True, "share": 1.0, "message": ""}


def test_neighbours_of_the_statistics_are_used_only_where_all_are_shown(own_run: ExploredRun) -> None:
    found = atlas_of(own_run)._candidates()
    if found is not None:
        near = own_run.stored.details.array("nearest/decoder_feature")[:][own_run.shown]
        is_shown = np.isin(near, own_run.shown)
        assert (is_shown.sum(axis=1) >= layout.N_NEIGHBOURS).all()
        np.testing.assert_array_equal(own_run.shown[found[is_shown]], near[is_shown])
        assert (found[~is_shown] == -1).all()
