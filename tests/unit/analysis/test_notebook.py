"""A run in a notebook: a feature's HTML, its one line, its attributes."""

import base64
import re
import subprocess
import sys

import numpy as np
import pytest
import thresher
from explored import make_explored_run
from thresher.store.errors import StoreError
from thresher.train.run_dir import Run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    made = make_explored_run(tmp_path_factory.mktemp("notebook"))
    (made.path / "names.tsv").write_text("feature\tname\tscore\tmethod\n2\t<i>a name</i>\t0.5\tclip\n")
    return made


@pytest.fixture(scope="module")
def run(made):
    return thresher.open_run(made.path)


def test_an_opened_run_is_a_run(run, made):
    assert isinstance(run, thresher.Run)
    assert run == type(run)(made.path, run.config)
    assert (run.d_sae, run.site.layer) == (96, 1)
    assert type(run) is not Run


def test_the_html_is_whole_in_itself(run, made):
    seen = run.feature(0)
    html = seen._repr_html_()
    assert "<script" not in html
    assert not re.findall(r"(?:src|href)=\"(?!data:)", html)
    pictures = re.findall(r'src="data:image/webp;base64,([^"]+)"', html)
    store = thresher.open_store(made.store_path)
    assert [base64.b64decode(each) for each in pictures] == [store.thumbnail(int(row)) for row in seen.top_rows[:16]]
    assert len(pictures) == 16


def test_a_picture_made_for_a_feature_outlasts_a_change_of_folder_and_may_go(tmp_path, monkeypatch):
    made = make_explored_run(tmp_path, n_features=24, n_images=200)
    folder = made.path / "visualisations"
    folder.mkdir()
    (folder / "3.webp").write_bytes(b"a picture")
    monkeypatch.chdir(made.path.parent)
    seen = thresher.open_run(made.path.name).feature(3)
    monkeypatch.chdir(tmp_path.parent)
    assert seen.picture() == b"a picture"
    assert base64.b64encode(b"a picture").decode() in seen._repr_html_()
    (folder / "3.webp").unlink()
    assert 'class="made' not in seen._repr_html_()
    with pytest.raises(StoreError, match="no picture 0"):
        seen.picture()


def test_names_and_labels_are_escaped(run):
    html = run.feature(0)._repr_html_() + run.feature(2)._repr_html_()
    assert "<script>alert(1)" not in html
    assert "&lt;i&gt;a name&lt;/i&gt;" in html
    assert "<i>a name" not in html
    assert (run.feature(2).name, run.feature(2).naming.score) == ("<i>a name</i>", 0.5)


def test_the_attributes_are_the_stored_statistics(run, made):
    s = thresher.open_statistics(made.path).statistics
    for feature in (0, 11, 40):
        seen = run.feature(feature)
        rows, values = seen.firings()
        assert seen.density == pytest.approx(len(rows) / s.n_rows)
        order = np.argsort(-values, kind="stable")[: s.k]
        assert seen.top_rows.tolist() == rows[order].tolist()
        assert seen.top_values == pytest.approx(values[order])
        assert seen.mean_top == pytest.approx(values[order].astype(np.float64).mean(), rel=1e-6)
        assert len(seen.top_labels) == len(order)
        assert sum(each.count for each in seen.labels) <= len(rows)
        assert seen.partners[0].jaccard == pytest.approx(max(each.jaccard for each in seen.partners))
        assert seen.nearest("encoder")[0].cosine <= 1 + 1e-6
        assert f"{len(rows):,} of {s.n_rows:,} rows" in repr(seen)


def test_a_dead_feature_says_so(run, made):
    dead = run.feature(int(made.dead[0]))
    assert "dead, 0 on all" in repr(dead)
    assert "It is 0 on all" in dead._repr_html_()
    assert len(dead.top_rows) == len(dead.top_values) == len(dead.top_labels) == len(dead.firings()[0]) == 0
    assert np.isnan(dead.mean_top)


def test_a_number_that_is_no_feature_is_refused(run):
    for feature in (-1, 96):
        with pytest.raises(ValueError, match="0 to 95"):
            run.feature(feature)
    with pytest.raises(ValueError, match="decoder or encoder"):
        run.feature(0).nearest("other")


def test_a_run_without_statistics_says_what_to_run(tmp_path):
    made = make_explored_run(tmp_path, n_features=24, n_images=40, options=None)
    run = thresher.open_run(made.path)
    assert run.d_sae == 24
    with pytest.raises(StoreError, match="thresher stats"):
        run.feature(0)


def test_sensitive_pictures_are_blurred(made, tmp_path):
    run = thresher.open_run(made.path)
    run._explored.annotations.change(7, sensitive=True)
    assert 'class="pictures sensitive"' in run.feature(7)._repr_html_()
    assert 'class="pictures"' in run.feature(8)._repr_html_()


def test_opening_a_run_and_looking_at_a_feature_needs_no_torch(made):
    shown = f"thresher.open_run({str(made.path)!r}).feature(0)._repr_html_()"
    code = f"import sys, thresher; {shown}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False"], done.stderr
