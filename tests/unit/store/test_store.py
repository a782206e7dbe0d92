import json
import os
import pickle
import re
import subprocess
import sys
from contextlib import closing
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from thresher.store import format as f
from thresher.store.errors import DamagedStoreError, StoreError, UnfinishedStoreError
from thresher.store.format import Site
from thresher.store.layout import predicted_bytes
from thresher.store.objects import open_objects
from thresher.store.reader import open_store
from thresher.store.shuffle import Permutation, mix
from thresher.store.writer import create_store, resume_store, to_bfloat16, to_float16


@pytest.mark.parametrize("codec", f.CODECS)
@pytest.mark.parametrize("dtype", f.DTYPES)
def test_what_is_written_is_read_back_by_us_and_by_plain_zarr(make_store, dtype, codec):
    widths = {Site(1): 8, Site(2, "mlp_act"): 32}
    made = make_store(200, 8, dtype=dtype, codec=codec, invalid=(0, 70, 199), widths=widths)
    store = open_store(made.path)
    for site in made.spec.sites:
        array = store.activations(site)
        stored = array.read(0, 200)
        np.testing.assert_array_equal(zarr.open_array(made.path / site.path, mode="r")[:], stored)
        got = array.tensor(stored).float().numpy()
        want = torch.from_numpy(made.rows[site]).to(getattr(torch, dtype)).float().numpy()
        np.testing.assert_array_equal(got[made.valid], want[made.valid])
        assert np.isnan(got[~made.valid]).all()


def test_float16_rounds_to_nearest_even_as_numpy_does():
    bits = np.random.default_rng(0).integers(0, 1 << 32, 200_000, np.uint32)
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)  # every value, and between two
    with np.errstate(invalid="ignore", over="ignore"):
        between = (halves[:-1] + halves[1:]) / 2
        x = np.concatenate([bits.view(np.float32), halves, between, np.nextafter(between, np.float32(0))])
        x = x[np.isfinite(x)]
        want = x.astype(np.float16)
    x.flags.writeable = False
    np.testing.assert_array_equal(to_float16(x).view(np.uint16), want.view(np.uint16))


def test_bfloat16_rounds_to_nearest_even_as_torch_does():
    x = np.concatenate(
        [
            np.random.default_rng(0).standard_normal(10_000).astype(np.float32),
            np.array([0.0, -0.0, 1.00390625, 1.01171875, 3.3e38, -1e-40], np.float32),  # two exact ties, a subnormal
        ]
    )
    want = torch.from_numpy(x).bfloat16().view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(to_bfloat16(x), want)


def test_labels_images_keys_and_thumbnails_belong_to_the_row(make_store):
    made = make_store(150, invalid=(3,))
    store = open_store(made.path)
    np.testing.assert_array_equal(store.images(0, 150), made.row_image)
    np.testing.assert_array_equal(store.labels(0, 150), made.labels[made.row_image])
    assert store.keys([0, 77]) == [made.keys[made.row_image[r]].decode() for r in (0, 77)]
    assert store.thumbnail(77) == b"thumbnail %d" % made.row_image[77]
    assert store.thumbnail(3) is None
    assert [(u.image, u.key, u.reason) for u in store.unreadable] == [
        (made.row_image[3], made.keys[made.row_image[3]].decode(), "cannot be read")
    ]


@pytest.mark.parametrize("order", ["random", "source"])
@pytest.mark.parametrize("invalid", [(), (0, 1, 2), (5, 64, 65, 130, 199), tuple(range(0, 200, 3))])
def test_positions_run_over_the_readable_rows_each_once(make_store, invalid, order):
    made = make_store(200, 4, invalid=invalid, order=order)
    store = open_store(made.path)
    rows = store.rows_of(np.arange(store.n_valid))
    np.testing.assert_array_equal(np.sort(rows), np.flatnonzero(made.valid))
    if order == "random":
        assert (np.diff(rows) > 0).all()
    array = store.activations()
    got = array.read_positions(0, store.n_valid)
    np.testing.assert_array_equal(got, array.read(0, 200)[rows])
    starts, lengths = np.array([7, 0, 50]), np.array([30, 3, 1])
    out = np.empty((34, 4), np.float16)
    array.read_runs(starts, lengths, out)
    np.testing.assert_array_equal(out, np.concatenate([got[7:37], got[0:3], got[50:51]]))


@pytest.mark.parametrize(("n", "held_out"), [(1, 0), (2, 1), (99, 1), (100, 1), (101, 2), (1000, 10)])
def test_the_held_out_rows_are_the_last_hundredth_and_at_least_one(make_store, n, held_out):
    store = open_store(make_store(n).path)
    assert store.split("heldout") == (n - held_out, n)
    assert store.split("train") == (0, n - held_out)
    assert store.split("all") == (0, n)
    np.testing.assert_array_equal(store.rows_of(np.arange(n)), np.arange(n))


def test_a_store_without_all_of_its_chunks_is_unfinished_and_says_how_far_it_got(make_store):
    made = make_store(200, windows=range(2))
    with pytest.raises(UnfinishedStoreError, match=r"holds 128 of 200 rows.*same `thresher harvest` again"):
        open_store(made.path)


def test_a_resumed_store_has_the_bytes_of_an_unbroken_one(make_store):
    whole = make_store(200, name="whole.zarr", invalid=(9,))
    part = make_store(200, name="part.zarr", invalid=(9,), windows=range(0, 4, 3))
    with resume_store(part.path, part.spec) as writer:
        assert writer.pending == [1, 2]
        for number in list(writer.pending):
            start, stop = writer.window_rows(number)
            window = writer.window(number)
            window.put(
                start,
                {site: rows[start:stop] for site, rows in part.rows.items()},
                part.valid[start:stop],
                [],
                [b"thumbnail %d" % image for image in part.row_image[start:stop]],
            )
            window.commit()
    names = sorted(p.relative_to(whole.path) for p in whole.path.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(part.path) for p in part.path.rglob("*") if p.is_file())
    for name in names:
        assert (whole.path / name).read_bytes() == (part.path / name).read_bytes(), name


def test_resuming_with_other_settings_names_the_field(make_store):
    from dataclasses import replace

    made = make_store(200)
    for change, field in (
        ({"provenance": replace(made.spec.provenance, weights_sha256="1")}, "weights_sha256"),
        ({"provenance": replace(made.spec.provenance, seed=5)}, "seed"),
        ({"rows_per_chunk": 32}, "rows_per_chunk"),
        ({"codec": "zstd"}, "codec"),
    ):
        with pytest.raises(StoreError, match=f"{field} is"):
            resume_store(made.path, replace(made.spec, **change))
    resume_store(
        made.path, replace(made.spec, provenance=replace(made.spec.provenance, packages={"torch": "9"}))
    ).close()


def test_a_second_writer_is_refused_while_the_first_writes(make_store):
    made = make_store(200)
    with (
        resume_store(made.path, made.spec),
        pytest.raises(StoreError, match="being written by another process"),
    ):
        resume_store(made.path, made.spec)


def test_nothing_is_overwritten_unless_told_and_only_stores_ever(make_store, tmp_path):
    made = make_store(20)
    arguments = {"keys": made.keys, "labels": made.labels}
    with pytest.raises(StoreError, match="--overwrite"):
        create_store(made.path, made.spec, **arguments)
    writer = create_store(made.path, made.spec, **arguments, overwrite=True)
    writer.close()
    assert writer.pending == [0]
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.txt").write_text("years of work")
    with pytest.raises(StoreError, match="not replaced"):
        create_store(other, made.spec, **arguments, overwrite=True)
    assert (other / "chapter.txt").read_text() == "years of work"


def test_a_store_that_another_process_writes_is_not_marked_for_replacement(make_store):
    made = make_store(20)
    arguments = {"keys": made.keys, "labels": made.labels, "overwrite": True}
    before = sorted(made.path.rglob("*"))
    with (
        closing(open_objects(made.path).lock()),
        pytest.raises(StoreError, match="is being written by another process"),
    ):
        create_store(made.path, made.spec, **arguments)
    assert sorted(made.path.rglob("*")) == before  # a mark left there would have the next harvest remove it all


def test_a_creation_that_was_killed_is_begun_anew(make_store):
    made = make_store(20)
    (made.path / "zarr.json").unlink()
    (made.path / f.CREATING).touch()
    with pytest.raises(UnfinishedStoreError, match="harvest"):
        open_store(made.path)
    writer = create_store(made.path, made.spec, keys=made.keys, labels=made.labels)
    writer.close()
    assert not (made.path / f.CREATING).exists()


@pytest.mark.parametrize(
    ("dtype", "largest", "beyond", "remedy"),
    [
        ("float16", 65504, 65505, "beyond float16's 65504. Harvest with --dtype bfloat16 or --dtype float32."),
        # 2^128 - 2^120; what lies halfway from it to 2^128 would be rounded to infinity
        ("bfloat16", 3.3895314e38, 3.4e38, "beyond bfloat16's 3.38953e+38. Harvest with --dtype float32."),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_value_beyond_the_range_of_a_dtype_is_an_error_that_names_the_remedy(
    make_store, dtype, largest, beyond, remedy, sign
):
    rows = np.ones((10, 4), np.float32)
    rows[7, 2] = sign * beyond
    with pytest.raises(StoreError, match=f"row 7 reaches {beyond:.6g}, {remedy}".replace("+", r"\+")):
        make_store(10, 4, rows=rows, dtype=dtype)
    assert open_store(make_store(10, 4, rows=rows, dtype="float32", name="b.zarr").path).n_valid == 10
    rows[7, 2] = sign * largest
    array = open_store(make_store(10, 4, rows=rows, dtype=dtype, name="c.zarr").path).activations()
    assert array.tensor(array.read(7, 8))[0, 2].float().item() == np.float32(sign * largest)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_an_error_unless_its_image_was_unreadable(make_store, bad):
    rows = np.ones((10, 4), np.float32)
    rows[7, 2] = bad
    with pytest.raises(StoreError, match="row 7 is not finite"):
        make_store(10, 4, rows=rows)
    make_store(10, 4, rows=rows, invalid=(7,), name="b.zarr")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "nowhere", "does not exist"),
        (lambda p: p, "holds no zarr.json"),
    ],
)
def test_what_is_no_store_is_said_to_be_none(tmp_path, make, message):
    with pytest.raises(StoreError, match=message):
        open_store(make(tmp_path))


@pytest.mark.parametrize("text", [None, "", "[]", '{"zarr_format": 3, "node_type": "group", "attributes": {}}'])
def test_a_store_that_lost_its_first_file_is_said_to_be_damaged_and_may_be_replaced(make_store, text):
    made = make_store(20)
    arguments = {"keys": made.keys, "labels": made.labels, "overwrite": True}
    (made.path / f.GROUP_JSON).unlink()
    if text is not None:
        (made.path / f.GROUP_JSON).write_text(text)
    with pytest.raises(DamagedStoreError, match=r"but the rest of a store is there\. Run `thresher verify`"):
        open_store(made.path)
    writer = create_store(made.path, made.spec, **arguments)
    writer.close()
    assert writer.pending == [0]


def test_a_harvest_does_not_go_on_in_a_store_without_its_metadata_record(make_store):
    made = make_store(20)
    (made.path / f.METADATA_RECORD).unlink()
    with pytest.raises(DamagedStoreError, match=r"metadata\.json is missing"):
        resume_store(made.path, made.spec)


def test_a_foreign_zarr_group_and_a_foreign_version_are_refused(make_store, tmp_path):
    zarr.create_group(tmp_path / "foreign.zarr", attributes={"format": "ome"})
    with pytest.raises(StoreError, match="'ome'"):
        open_store(tmp_path / "foreign.zarr")
    made = make_store(20)
    text = (made.path / "zarr.json").read_text()
    (made.path / "zarr.json").write_text(text.replace('"version": 1', '"version": 2'))
    with pytest.raises(StoreError, match="version 2"):
        open_store(made.path)


def test_several_sites_must_be_told_apart(make_store):
    store = open_store(make_store(20, sites=(Site(1), Site(2))).path)
    with pytest.raises(StoreError, match="--layer"):
        store.activations()
    with pytest.raises(StoreError, match=r"does not hold layer 5.*it holds layer 1"):
        store.activations(Site(5))


def test_the_size_is_predicted_within_a_tenth(make_store):
    made = make_store(5000, 256, rows_per_chunk=1000, thumbnails=False)
    mean_key = np.mean([len(key) for key in made.keys])
    size = sum(p.stat().st_size for p in made.path.rglob("*") if p.is_file())
    assert predicted_bytes(made.spec, key_bytes=float(mean_key)) == pytest.approx(size, rel=0.1)


def test_arrays_travel_to_another_process_as_their_path(make_store):
    made = make_store(100)
    array = open_store(made.path).activations()
    again = pickle.loads(pickle.dumps(array))
    np.testing.assert_array_equal(again.read(0, 100), array.read(0, 100))


def test_more_chunks_than_files_may_be_open_are_read(make_store):
    made = make_store(600, 2, rows_per_chunk=2, thumbnails=False)
    code = (
        "import resource, numpy as np; resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))\n"
        "from thresher.store.reader import open_store\n"
        f"a = open_store({str(made.path)!r}).activations()\n"
        "x = a.read(0, 600); np.testing.assert_array_equal(x, a.read(0, 600)); print(np.isfinite(x).all())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "True", done.stderr


def test_the_format_page_names_every_field_that_a_store_has(make_store):
    page = files("thresher.store").joinpath("FORMAT.md").read_text()
    made = make_store(100, invalid=(3,))
    document = json.loads((made.path / "zarr.json").read_bytes())["attributes"]
    named = set(re.findall(r"`([\w/<>*.]+)`", page))
    for name in [*document, *document["provenance"]]:
        assert name in named, f"attribute {name} is not on the page"
    for path in made.path.rglob("commits/**/*.json"):
        for name in json.loads(path.read_bytes()):
            assert name in named, f"{name} of {path.name} is not on the page"
    for name in (f.ROW_IMAGE, f.ROW_LABEL, f.ROW_VALID, f.KEY_BLOB, f.KEY_OFFSET, f.METADATA_RECORD):
        assert name in named
    for name, shape in (
        ("layers/1/resid_post/cls", "(N, d)"),
        ("rows/image", "(N,)"),
        ("rows/label", "(N,)"),
        ("rows/valid", "(N,)"),
        ("images/key_offset", "(M + 1,)"),
    ):
        array = zarr.open_array(made.path / name, mode="r")
        row = next(line for line in page.splitlines() if line.startswith(f"| `{_general(name)}`"))
        assert shape in row
        assert array.dtype.name in row
        assert (str(array.fill_value).lower() in row.lower()) or np.isnan(array.fill_value)
    assert f.FORMAT_NAME in page
    assert f"version {f.FORMAT_VERSION}" in page


@pytest.mark.parametrize(("n", "key"), [(1, (1, 0)), (2, (1, 0)), (37, (1, 7)), (1025, (5, 3, 2048)), (70, (1, 2**40))])
def test_the_permutation_and_the_hash_on_the_format_page_are_those_of_the_code(n, key):
    page = files("thresher.store").joinpath("FORMAT.md").read_text()
    block = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "def permuted" in block)
    names: dict[str, Any] = {}
    exec(block, names)
    assert [names["permuted"](i, n, *key) for i in range(n)] == Permutation(n, *key)(np.arange(n)).tolist()
    assert [names["mix"](i) for i in range(n)] == mix(np.arange(n, dtype=np.uint64)).tolist()


def _general(name: str) -> str:
    return re.sub(r"layers/\d+/\w+/\w+", "layers/<layer>/<site>/<token>", name)


def test_key_bytes_that_are_not_utf8_come_back_as_the_file_system_had_them(make_store, tmp_path):
    made = make_store(3)
    keys = [b"a b\n.jpg", b"caf\xe9.jpg", "café.jpg".encode()]
    create_store(tmp_path / "k.zarr", made.spec, keys=keys, labels=made.labels).close()
    with resume_store(tmp_path / "k.zarr", made.spec) as writer:
        window = writer.window(0)
        window.put(0, {Site(1): made.rows[Site(1)]}, made.valid)
        window.commit()
    store = open_store(tmp_path / "k.zarr")
    assert [os.fsencode(key) for key in store.keys(range(3))] == [keys[image] for image in store.images(0, 3)]
