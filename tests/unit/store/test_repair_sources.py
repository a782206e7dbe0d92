"""What repair does where the source of the rows is gone, or gives others than it gave."""

import numpy as np
import pytest
from made_harvest import CLS, FromMemory, Told, bytes_below, flip, made_with
from thresher.store import format as f
from thresher.store.format import Site
from thresher.store.reader import open_store
from thresher.store.repair import repair_store
from thresher.store.verify import verify_store


def test_without_the_source_the_rest_is_repaired_and_what_is_left_says_why(make_store):
    made = make_store(150)
    flip(made.path / f.chunk_file(CLS, 1, 2))
    flip(made.path / f.chunk_file(f.ROW_IMAGE, 0, 1))
    report = repair_store(made.path, FromMemory([]).harvest())
    assert [(p.array, p.chunk, p.rows) for p in report.problems] == [(CLS, 1, (64, 128))]
    assert "not repaired: /data/images holds other images" in report.problems[0].what
    assert [done.problem.array for done in report.repaired] == [f.ROW_IMAGE]
    assert [p.array for p in verify_store(made.path).problems] == [CLS]


def test_rows_that_come_out_otherwise_are_recorded_anew_with_a_warning_of_how_far_they_are(make_store):
    made = make_store(150, 16, sites=(Site(1), Site(2)), invalid=(70,), dtype="float32")
    flip(made.path / f.chunk_file(CLS, 1, 2), 43)  # the exponent of row 0's eleventh number
    kept = (made.path / f.chunk_file(Site(2).path, 1, 2)).read_bytes()
    told = Told()
    report = repair_store(made.path, FromMemory([made], noise=1e-3).harvest(), told)
    assert report.problems == []
    assert [done.how for done in report.repaired] == ["harvested again and recorded anew"]
    (warning,) = told.warned
    assert "window 1" in warning
    # 63 readable rows of the undamaged site, 62 of the other: the flipped byte is one row's
    assert "125 stored vectors" in warning
    assert "by 0.001 at most" in warning
    assert (made.path / f.chunk_file(Site(2).path, 1, 2)).read_bytes() == kept
    array = open_store(made.path).activations(Site(1))
    np.testing.assert_array_equal(array.read(0, 64), made.rows[Site(1)][:64])
    new = made.rows[Site(1)][64:128] * np.float32(1.001)
    new[70 - 64] = np.nan
    np.testing.assert_array_equal(array.read(64, 128), new)
    assert verify_store(made.path).problems == []


def test_rows_that_come_out_otherwise_under_other_packages_are_refused_by_the_package(make_store):
    other = made_with(make_store, packages={"torch": "2.0", "numpy": "1"})
    flip(other.path / f.chunk_file(CLS, 1, 2))
    before = bytes_below(other.path)
    source = FromMemory([other], noise=1e-3, versions={"torch": "2.9", "numpy": "2"})
    report = repair_store(other.path, source.harvest())
    assert "packages.torch is '2.0' there and '2.9' here" in report.problems[0].what
    assert bytes_below(other.path) == before
    source.noise = 0.0  # the same bytes all the same: nothing else matters
    assert repair_store(other.path, source.harvest()).problems == []


@pytest.mark.parametrize("sites", [(Site(1),), (Site(1), Site(2))])
def test_where_chunk_and_record_are_lost_the_rest_of_the_window_vouches_for_the_new_one(make_store, sites):
    made = make_store(150, sites=sites)
    before = bytes_below(made.path)
    names = (f.chunk_file(CLS, 1, 2), f.record_file(CLS, 1))
    for name in names:
        (made.path / name).unlink()
    told = Told()
    report = repair_store(made.path, FromMemory([made]).harvest(), told)
    assert report.problems == []
    (done,) = report.repaired
    what = "whether these are the same bits" if len(sites) == 1 else "the rest of its window came out bit for bit"
    assert what in done.how
    assert (bytes_below(made.path), told.warned) == (before, [])
    other = made_with(make_store, packages={"torch": "2.0"})
    for name in names:
        (other.path / name).unlink()
    report = repair_store(other.path, FromMemory([other], versions={"torch": "2.9"}).harvest())
    assert "its rows may come out otherwise than they were committed, and packages.torch" in report.problems[0].what


def test_an_image_that_cannot_be_read_any_more_is_not_put_in_place_of_one_that_could(make_store):
    made = make_store(150)
    flip(made.path / f.chunk_file(CLS, 1, 2))
    before = bytes_below(made.path)
    gone = int(made.order.images(np.array([100]))[0])
    report = repair_store(made.path, FromMemory([made], gone=(gone,)).harvest())
    assert "had 64 readable rows, now 63" in report.problems[0].what
    assert bytes_below(made.path) == before


@pytest.mark.parametrize("lost", [f.chunk_file(CLS, 1, 2), f.record_file(CLS, 1)])
def test_another_image_shows_also_where_its_window_has_one_chunk_alone(make_store, lost):
    made = make_store(150, 16, thumbnails=False)
    row, path = 100, made.path / lost
    if "/c/" in lost:
        flip(path, 2 * 16 * 3 + 1)  # another row's
    else:
        path.unlink()
    before = bytes_below(made.path)
    made.rows[Site(1)][row] = made.rows[Site(1)][row - 1]
    (problem,) = repair_store(made.path, FromMemory([made]).harvest()).problems
    assert "that no damage touched come out bit for bit, and others do not. Name the original" in problem.what
    assert bytes_below(made.path) == before


@pytest.mark.parametrize("shows", ["vectors", "thumbnails"])
def test_another_image_under_the_name_of_one_is_not_put_in_its_place(make_store, shows):
    made = make_store(150, 16, sites=(Site(1), Site(2)), thumbnails=shows == "thumbnails")
    flip(made.path / f.chunk_file(CLS, 1, 2))
    before = bytes_below(made.path)
    row = 100
    image = int(made.order.images(np.array([row]))[0])
    if shows == "vectors":
        for rows in made.rows.values():
            rows[row] = rows[row - 1]
        source = FromMemory([made])
    else:  # of a window whose every vector is damaged
        flip(made.path / f.chunk_file(Site(2).path, 1, 2))
        before = bytes_below(made.path)
        source = FromMemory([made], noise=1e-3, other_pictures=(image,))
    report = repair_store(made.path, source.harvest())
    assert "the images of window 1 are others than were harvested, though named alike" in report.problems[0].what
    assert bytes_below(made.path) == before
