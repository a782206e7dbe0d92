import shutil

import numpy as np
import pytest
from thresher.store.errors import DamagedStoreError, StoreError, UnfinishedStoreError
from thresher.store.format import Site
from thresher.store.objects import open_objects
from thresher.store.parts import add_part, merge_stores, next_part
from thresher.store.reader import open_store
from thresher.store.verify import verify_store


def _append(make_store, base, n, **options):
    """A part made below a store, as a harvest with --append does, and committed."""
    objects = open_objects(base.path)
    part = next_part(objects)
    made = make_store(n, place=part.url, key_prefix="more ", seed=9, **options)
    add_part(objects, part)
    return made


def test_rows_labels_images_keys_and_thumbnails_of_parts_stand_end_to_end(make_store):
    first = make_store(130, invalid=(2,))
    second = _append(make_store, first, 70, invalid=(5,), rows_per_chunk=16)
    store, alone = open_store(first.path), open_store(first.path, n_parts=1)
    assert (store.n_rows, store.n_images, store.n_valid, len(store.parts)) == (200, 200, 198, 2)
    array = store.activations()
    want = np.concatenate([each.rows[Site(1)].astype(np.float16) for each in (first, second)])
    valid = np.concatenate([first.valid, second.valid])
    np.testing.assert_array_equal(store.valid(0, 200), valid)
    np.testing.assert_array_equal(array.read(0, 200)[valid], want[valid])
    np.testing.assert_array_equal(array.read(120, 140)[:10], alone.activations().read(120, 130))
    np.testing.assert_array_equal(store.images(0, 200), np.concatenate([first.row_image, 130 + second.row_image]))
    labels = np.concatenate([each.labels[each.row_image] for each in (first, second)])
    np.testing.assert_array_equal(store.labels(0, 200), labels)
    assert store.keys([129, 130]) == [
        first.keys[first.row_image[129]].decode(),
        second.keys[second.row_image[0]].decode(),
    ]
    assert store.thumbnail(131) == b"thumbnail %d" % second.row_image[1]
    assert [each.image for each in store.unreadable] == [first.row_image[2], 130 + second.row_image[5]]
    np.testing.assert_array_equal(store.invalid_rows, [2, 135])


def test_positions_number_the_training_rows_of_all_parts_then_the_held_out_ones(make_store):
    first = make_store(300, invalid=(2,))
    _append(make_store, first, 150)
    store = open_store(first.path)
    alone = open_store(first.path, n_parts=1)
    assert store.split("train") == (0, 296 + 148)
    assert store.n_held_out == 3 + 2
    rows = store.rows_of(np.arange(store.n_valid))
    np.testing.assert_array_equal(np.sort(rows), np.flatnonzero(store.valid(0, 450)))
    np.testing.assert_array_equal(store.positions_of(rows), np.arange(store.n_valid))
    assert store.positions_of(np.array([2]))[0] == -1
    held_out = set(rows[store.n_train :].tolist())
    assert held_out == set(alone.rows_of(np.arange(*alone.split("heldout"))).tolist()) | {448, 449}


def test_an_unfinished_addition_is_not_seen(make_store):
    first = make_store(130)
    part = next_part(open_objects(first.path))
    make_store(70, place=part.url, key_prefix="more ", windows=range(1))
    store = open_store(first.path)
    assert store.n_rows == 130
    assert verify_store(first.path).problems == []
    with pytest.raises(UnfinishedStoreError, match="holds 64 of 70 rows"):
        add_part(open_objects(first.path), part)
    assert open_store(first.path).fingerprint == store.fingerprint


def test_adding_changes_the_fingerprint_and_the_first_parts_keep_theirs(make_store):
    first = make_store(130)
    before = open_store(first.path).fingerprint
    _append(make_store, first, 70)
    assert open_store(first.path).fingerprint != before
    assert open_store(first.path, n_parts=1).fingerprint == before


def test_merged_stores_move_together_and_are_checked_when_opened(make_store, tmp_path):
    folder = tmp_path / "here"
    folder.mkdir()
    a = make_store(100, name="here/a.zarr")
    b = make_store(60, name="here/b.zarr", key_prefix="b ", seed=1)
    assert merge_stores([str(a.path), str(b.path)], str(folder / "all.zarr")) == 2
    shutil.move(folder, tmp_path / "there")
    store = open_store(tmp_path / "there" / "all.zarr")
    assert store.n_rows == 160
    assert verify_store(tmp_path / "there" / "all.zarr").problems == []
    shutil.rmtree(tmp_path / "there" / "b.zarr")
    make_store(60, name="there/b.zarr", key_prefix="other ", seed=2)
    with pytest.raises(DamagedStoreError, match=r"^part \.\./b\.zarr of .*all\.zarr, at .*b\.zarr, is another store"):
        open_store(tmp_path / "there" / "all.zarr")


def test_merging_merged_stores_joins_their_parts(make_store, tmp_path):
    made = [make_store(50 + i, name=f"{i}.zarr", key_prefix=f"{i} ", seed=i) for i in range(3)]
    paths = [str(each.path) for each in made]
    merge_stores(paths[:2], str(tmp_path / "two.zarr"))
    assert merge_stores([str(tmp_path / "two.zarr"), paths[2]], str(tmp_path / "three.zarr")) == 3
    assert open_store(tmp_path / "three.zarr").n_rows == 153


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"dtype": "float32"}, "dtype is 'float16' there and 'float32' here"),
        ({"d": 16}, "width is 8"),
        ({"sites": (Site(2),)}, "arrays is"),
        ({"tokens": 3}, "tokens_per_image is 1"),
    ],
)
def test_rows_of_another_kind_are_refused_by_name(make_store, tmp_path, options, field):
    a = make_store(100)
    b = make_store(**{"n": 60, "name": "b.zarr", "key_prefix": "b "} | options)
    with pytest.raises(StoreError, match=field):
        merge_stores([str(a.path), str(b.path)], str(tmp_path / "all.zarr"))
    assert not (tmp_path / "all.zarr").exists()


def test_a_part_that_was_moved_away_is_said_to_be_missing_from_the_store_that_joins_it(make_store, tmp_path):
    a, b = make_store(100), make_store(60, name="b.zarr", key_prefix="b ")
    merge_stores([str(a.path), str(b.path)], str(tmp_path / "all.zarr"))
    b.path.rename(tmp_path / "elsewhere.zarr")
    with pytest.raises(
        StoreError, match=r"^part \.\./b\.zarr of .*all\.zarr is not at .*b\.zarr, where it was joined: put it back"
    ):
        open_store(tmp_path / "all.zarr")
    a.path.rename(b.path)
    (tmp_path / "elsewhere.zarr").rename(a.path)
    with pytest.raises(DamagedStoreError, match="is another store than was joined"):
        open_store(tmp_path / "all.zarr")


def test_the_same_images_are_refused_twice(make_store, tmp_path):
    a = make_store(100)
    with pytest.raises(StoreError, match="holds the same images"):
        merge_stores([str(a.path), str(a.path)], str(tmp_path / "all.zarr"))


def test_labels_of_parts_are_joined_by_name_also_where_two_classes_share_one(make_store, tmp_path):
    names = ["crane", "maillot", "crane"]  # ImageNet has both twice
    a = make_store(90, n_labels=3, label_names=names)
    b = make_store(
        60, n_labels=3, label_names=["owl", "crane", "crane"], name="b.zarr", key_prefix="b ", unlabelled=(7,)
    )
    merge_stores([str(a.path), str(b.path)], str(tmp_path / "all.zarr"))
    store = open_store(tmp_path / "all.zarr")
    assert store.label_names == ["crane", "maillot", "crane", "owl"]
    of_b = b.labels[b.row_image]
    np.testing.assert_array_equal(store.labels(90, 150), np.array([3, 0, 2, -1])[of_b])
    np.testing.assert_array_equal(store.labels(0, 90), a.labels[a.row_image])
