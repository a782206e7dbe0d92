import json
import uuid
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from thresher.progress import Reporter
from thresher.store import format as f
from thresher.store import image_digest
from thresher.store.codec import ChunkCodec, encode_chunk
from thresher.store.errors import DamagedStoreError, StoreError, UnfinishedStoreError
from thresher.store.format import Site
from thresher.store.metadata import recover_metadata
from thresher.store.objects import open_objects
from thresher.store.part_check import largest_bits, magnitude_bits
from thresher.store.part_files import PartFiles
from thresher.store.parts import add_part, merge_stores, next_part
from thresher.store.reader import open_store
from thresher.store.records import decode_record, encode_record
from thresher.store.verify import run_ahead, verify_store
from thresher.store.writer import create_store, to_bfloat16

CLS = Site(1).path


def _problems(path) -> list[tuple]:
    return [(p.array, p.chunk, p.rows) for p in verify_store(path).problems]


def _append(make_store, base, n, **options):
    place = next_part(open_objects(base.path))
    made = make_store(n, place=place.url, key_prefix=f"more {n} ", seed=n, **options)
    add_part(open_objects(base.path), place)
    return made


def _commit_anew(path, array: str, chunk: int, values: np.ndarray) -> None:
    """Write other values as a writer would: the checksums of chunk and record are right."""
    parts, committed = encode_chunk(values, ChunkCodec("none"))
    (path / f.chunk_file(array, chunk, values.ndim)).write_bytes(b"".join(parts))
    record = path / f.record_file(array, chunk)
    record.write_bytes(encode_record({**decode_record(record.read_bytes(), ""), **committed}))


def _stored(path, array: str, chunk: int, dtype) -> np.ndarray:
    return np.frombuffer((path / f.chunk_file(array, chunk, 1)).read_bytes()[:-4], dtype).copy()


@pytest.mark.parametrize(
    "options",
    [{}, {"tokens": 3, "rows_per_chunk": 32}, {"codec": "zstd"}, {"dtype": "bfloat16"}, {"order": "source"}],
    ids=str,
)
def test_a_whole_store_is_whole_and_each_of_its_bytes_is_counted(make_store, options):
    made = make_store(200, invalid=(5, 70), **options)
    report = verify_store(made.path)
    assert (report.problems, report.leftovers) == ([], [])
    chunks = [p for p in made.path.rglob("c/**/*") if p.is_file()]
    assert report.n_bytes == sum(p.stat().st_size for p in chunks)
    n_thumbnails = len(list((made.path / "thumbs").glob("*/blob")))
    assert report.n_chunks == len(chunks) - n_thumbnails  # blob and offset of a window count once


def test_a_missing_swapped_or_foreign_chunk_is_an_error_and_not_nan(make_store):
    made = make_store(200)
    other = make_store(200, name="other.zarr", seed=1)
    chunk = [made.path / f.chunk_file(CLS, i, 2) for i in range(4)]
    kept = chunk[1].read_bytes()
    for spoil, message in (
        (lambda: chunk[1].unlink(), "is missing"),
        (lambda: chunk[1].write_bytes(chunk[0].read_bytes()), "was committed"),
        (lambda: chunk[1].write_bytes((other.path / f.chunk_file(CLS, 1, 2)).read_bytes()), "was committed"),
        (lambda: chunk[1].write_bytes(kept[:-10]), "bytes"),
        (lambda: chunk[1].write_bytes(kept + b"\0"), "bytes"),
    ):
        spoil()
        array = open_store(made.path).activations()
        array.read(0, 64)
        with pytest.raises(DamagedStoreError, match=message):
            array.read(0, 65)
        assert _problems(made.path) == [(CLS, 1, (64, 128))]
        chunk[1].write_bytes(kept)
    assert verify_store(made.path).problems == []


def test_a_chunk_moved_together_with_its_record_is_found_in_place_array_and_store(make_store):
    made = make_store(200, sites=(Site(1), Site(2)))
    other = make_store(200, name="other.zarr", seed=1)
    for origin, array, chunk, field in (
        (made.path, CLS, 0, "chunk is 0, not 1"),
        (made.path, Site(2).path, 1, "array is"),
        (other.path, CLS, 1, "metadata_crc32c is"),
    ):
        kept = {}
        for mine, theirs in (
            (f.chunk_file(CLS, 1, 2), f.chunk_file(array, chunk, 2)),
            (f.record_file(CLS, 1), f.record_file(array, chunk)),
        ):
            kept[mine] = (made.path / mine).read_bytes()
            (made.path / mine).write_bytes((origin / theirs).read_bytes())
        (problem,) = verify_store(made.path).problems
        assert (problem.array, problem.chunk, problem.rows) == (CLS, 1, (64, 128))
        assert field in problem.what
        with pytest.raises(DamagedStoreError, match="belongs elsewhere"):
            open_store(made.path).activations(Site(1)).read(64, 65)
        for name, data in kept.items():
            (made.path / name).write_bytes(data)


def test_what_is_damaged_beside_the_metadata_is_named_too(make_store):
    made = make_store(200, sites=(Site(1), Site(2)), widths=None)
    for name in ("zarr.json", f"{CLS}/zarr.json", f.METADATA_RECORD):
        text = (made.path / name).read_bytes()
        (made.path / name).write_bytes(text.replace(b"1", b"7", 1))
        chunk = made.path / f.chunk_file(CLS, 2, 2)
        kept = chunk.read_bytes()
        chunk.write_bytes(kept[:-1])
        with pytest.raises(StoreError):
            open_store(made.path)
        assert _problems(made.path) == [(name, None, None), (CLS, 2, (128, 192))]
        (made.path / name).write_bytes(text)
        chunk.write_bytes(kept)


def test_a_store_whose_metadata_is_lost_says_so(make_store):
    made = make_store(100)
    for name in (f.GROUP_JSON, f.METADATA_RECORD):
        (made.path / name).write_bytes(b"\0" * 10)
    (problem,) = verify_store(made.path).problems
    assert problem.array == f.METADATA_RECORD
    assert "does not tell" in problem.what


def test_damage_in_a_part_is_named_with_the_part_and_the_rows_of_the_whole_store(make_store):
    first = make_store(130)
    _append(make_store, first, 40, rows_per_chunk=16)
    _append(make_store, first, 70)
    for place, array, chunk, want in (
        (first.path, CLS, 2, "layers/1/resid_post/cls, chunk 2, rows 128 to 129: "),
        (first.path / "parts/1", CLS, 1, "part parts/1: layers/1/resid_post/cls, chunk 1, rows 146 to 161: "),
        (first.path / "parts/2", CLS, 1, "part parts/2: layers/1/resid_post/cls, chunk 1, rows 234 to 239: "),
    ):
        path = place / f.chunk_file(array, chunk, 2)
        kept = path.read_bytes()
        path.write_bytes(kept[:-1])
        (problem,) = verify_store(first.path).problems
        assert str(problem).startswith(want)
        start, stop = problem.rows
        array_ = open_store(first.path).activations()
        array_.read(0, start)
        array_.read(stop, 240)
        with pytest.raises(DamagedStoreError):
            array_.read(start, start + 1)
        path.write_bytes(kept)


@pytest.mark.parametrize("spoil", [lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes().replace(b"1", b"2"))])
def test_parts_are_checked_though_the_record_of_one_is_damaged(make_store, spoil):
    first = make_store(130)
    _append(make_store, first, 40)
    _append(make_store, first, 70)
    spoil(first.path / f.part_record_file(1))
    damaged = first.path / "parts/2" / f.chunk_file(CLS, 0, 2)
    damaged.write_bytes(b"")
    report = verify_store(first.path)
    assert [(p.array, p.part, p.rows) for p in report.problems] == [
        (f.part_record_file(1), None, None),
        (CLS, "parts/2", (170, 234)),
    ]


def test_a_lost_record_of_the_last_part_is_found(make_store, tmp_path):
    first = make_store(130)
    _append(make_store, first, 40)
    (first.path / f.part_record_file(1)).unlink()
    (problem,) = verify_store(first.path).problems
    assert problem.array == f.part_record_file(1)
    assert "parts/1/ holds a finished store" in problem.what
    other = make_store(70, name="other.zarr", key_prefix="other ")
    merge_stores([str(first.path), str(other.path)], str(tmp_path / "all.zarr"))
    (tmp_path / "all.zarr" / f.part_record_file(2)).unlink()
    assert "2 joined parts" in verify_store(tmp_path / "all.zarr").problems[0].what
    with pytest.raises(DamagedStoreError, match="1 of 2"):
        open_store(tmp_path / "all.zarr")


def test_parts_elsewhere_are_checked_where_they_are(make_store, tmp_path):
    a, b = make_store(100, name="a.zarr"), make_store(60, name="b.zarr", key_prefix="b ")
    merge_stores([str(a.path), str(b.path)], str(tmp_path / "all.zarr"))
    assert verify_store(tmp_path / "all.zarr").problems == []
    (b.path / f.chunk_file(f.ROW_VALID, 0, 1)).write_bytes(b"")
    (b.path / "notes.txt").write_text("mine")
    report = verify_store(tmp_path / "all.zarr")
    assert [str(p) for p in report.problems] == [
        "part ../b.zarr: rows/valid, chunk 0, rows 100 to 159: rows/valid/c/0 has 0 bytes, 68 were committed"
    ]
    assert report.leftovers == ["../b.zarr/notes.txt"]
    create_store(b.path, b.spec, keys=b.keys[::-1], labels=b.labels, overwrite=True).close()
    assert any(p.part == "../b.zarr" for p in verify_store(tmp_path / "all.zarr").problems)


@pytest.mark.parametrize("tokens", [1, 3])
def test_row_ids_that_do_not_follow_the_row_order_are_found_though_their_checksums_are_right(make_store, tokens):
    made = make_store(100, tokens=tokens)
    for array in (f.ROW_IMAGE, f.ROW_TOKEN)[:tokens]:
        values = _stored(made.path, array, 0, np.uint32 if array == f.ROW_IMAGE else np.uint16)
        at = int(np.flatnonzero(values != values[0])[0])
        spoilt = values.copy()
        spoilt[[0, at]] = values[[at, 0]]
        _commit_anew(made.path, array, 0, spoilt)
        (problem,) = verify_store(made.path).problems
        assert (problem.array, problem.rows) == (array, (0, made.spec.n_rows))
        assert f"2 rows do not hold what the row order gives them; row 0 of the part holds {values[at]}" in problem.what
        _commit_anew(made.path, array, 0, values)


@pytest.mark.parametrize("array", [f.ROW_LABEL, f.KEY_BLOB, f.KEY_OFFSET])
def test_keys_and_labels_are_held_to_the_digest_in_the_provenance(make_store, array):
    made = make_store(100)
    values = _stored(made.path, array, 0, {f.ROW_LABEL: np.int32, f.KEY_BLOB: np.uint8}.get(array, np.uint64))
    values[7] += 1
    _commit_anew(made.path, array, 0, values)
    assert _problems(made.path) == [("images", None, None)]


def test_tokens_of_one_image_must_have_one_label(make_store):
    made = make_store(100, tokens=3)
    values = _stored(made.path, f.ROW_LABEL, 0, np.int32)
    values[7] += 1
    _commit_anew(made.path, f.ROW_LABEL, 0, values)
    (problem,) = verify_store(made.path).problems
    assert "give one image several labels" in problem.what


@pytest.mark.parametrize("tokens", [1, 3])
def test_the_digest_of_the_arrays_is_that_of_the_images_whatever_the_chunks(make_store, monkeypatch, tokens):
    monkeypatch.setattr(f, "STATIC_CHUNK", 37)
    monkeypatch.setattr(image_digest, "_KEYS_AT_ONCE", 11)
    monkeypatch.setattr(image_digest, "_LABELS_AT_ONCE", 29)
    made = make_store(100, tokens=tokens, unlabelled=(3,))
    objects = open_objects(made.path)
    files = PartFiles(objects, recover_metadata(objects))
    assert files.array(f.KEY_BLOB).n_chunks > 30
    assert image_digest.image_digest(files) == made.spec.provenance.keys_sha256  # layout.keys_sha256 made it
    assert verify_store(made.path).problems == []


def test_rows_that_are_not_what_their_records_say_are_found_though_the_checksums_are_right(make_store):
    made = make_store(100, 4, rows_per_chunk=100, invalid=(3,))
    values = np.frombuffer((made.path / f.chunk_file(CLS, 0, 2)).read_bytes()[:-4], np.float16).reshape(100, 4)
    for change, what in (
        ((5, np.nan), "not finite"),
        ((3, 0.0), "not finite, or one of an unreadable image is"),
        ((5, 60000.0), "largest magnitude"),
    ):
        spoilt = values.copy()
        spoilt[change[0]] = change[1]
        _commit_anew(made.path, CLS, 0, spoilt)
        (problem,) = verify_store(made.path).problems
        assert (problem.array, problem.rows) == (CLS, (0, 100))
        assert what in problem.what
    _commit_anew(made.path, CLS, 0, values)
    _commit_anew(made.path, f.ROW_VALID, 0, np.ones(100, bool))
    assert "unreadable images differ" in verify_store(made.path).problems[0].what


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_the_largest_magnitude_of_a_row_is_known_from_its_bits(dtype):
    rng = np.random.default_rng(0)
    if dtype == "float32":
        bits = rng.integers(0, 1 << 32, (3000, 5), np.uint32)
        values = bits.view(np.float32)
    else:
        bits = rng.integers(0, 1 << 16, (3000, 5), np.uint16)
        values = bits.view(np.float16) if dtype == "float16" else (bits.astype(np.uint32) << 16).view(np.float32)
    stored = bits if dtype == "bfloat16" else values
    largest, limit = largest_bits(stored), {"float16": 0x7BFF, "bfloat16": 0x7F7F, "float32": 0x7F7FFFFF}[dtype]
    finite = np.isfinite(values).all(axis=1)  # numpy on the values is the oracle
    np.testing.assert_array_equal(largest <= limit, finite)
    want = np.abs(values[finite].astype(np.float64)).max(axis=1)
    got = [bits_ for bits_ in largest[finite]]
    width = np.uint32 if dtype == "float32" else np.uint16
    of_bits = np.array(got, width)
    as_float = (of_bits.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else of_bits.view(values.dtype)
    np.testing.assert_array_equal(as_float.astype(np.float64), want)
    for magnitude in (0.0, 1.0, 3.14159, 65504.0):
        rounded = to_bfloat16(np.array([magnitude], np.float32)) if dtype == "bfloat16" else None
        want_bits = int(rounded[0]) if rounded is not None else int(np.array(magnitude, f.DTYPES[dtype]).view(width))
        assert magnitude_bits(magnitude, dtype) == want_bits


def test_an_unfinished_store_is_checked_as_far_as_it_was_written(make_store):
    made = make_store(200, windows=range(2))
    report = verify_store(made.path)
    assert [(p.array, p.rows) for p in report.problems] == [("commits/rows/valid", (128, 200))]
    assert "128 of 200 rows are committed. Run the same `thresher harvest` again" in report.problems[0].what
    (made.path / f.chunk_file(CLS, 1, 2)).write_bytes(b"")
    assert _problems(made.path)[0] == (CLS, 1, (64, 128))


def test_one_missing_record_in_a_window_is_a_problem_of_its_chunk(make_store):
    made = make_store(200)
    for name in (CLS, f.ROW_VALID, f.THUMBS, f.ROW_IMAGE):
        path = made.path / f.record_file(name, 0)
        kept = path.read_bytes()
        path.unlink()
        (problem,) = verify_store(made.path).problems
        assert (problem.array, problem.chunk) == (name, 0)
        assert "commit record is missing" in problem.what
        path.write_bytes(kept)


def test_a_store_that_was_about_to_be_replaced_says_how_to_keep_it(make_store):
    made = make_store(20)
    (made.path / f.CREATING).touch()
    (problem,) = verify_store(made.path).problems
    assert problem.array == f.CREATING
    assert "delete this file" in problem.what
    (made.path / f.GROUP_JSON).unlink()
    with pytest.raises(UnfinishedStoreError):
        verify_store(made.path)


def test_thumbnails_are_named_with_the_rows_whose_pictures_they_are(make_store):
    made = make_store(100, tokens=3, rows_per_chunk=16)
    for name in (*f.thumbs_documents(2), *f.thumbs_chunks(2).values()):
        path = made.path / name
        kept = path.read_bytes()
        path.write_bytes(kept[:-1])
        (problem,) = verify_store(made.path).problems
        assert str(problem).startswith("thumbs, window 2, rows 96 to 143: ")
        assert name in problem.what
        path.write_bytes(kept)


def test_verify_lists_strangers_and_temporary_files_without_reading_them(make_store):
    made = make_store(20)
    (made.path / "layers" / ".1.tmp").write_bytes(b"half a chunk")
    (made.path / "parts/1/rows").mkdir(parents=True)
    (made.path / "parts/1/zarr.json").write_bytes(b"an addition that is not finished")
    (made.path / "parts/1/rows/zarr.json").write_bytes(b"")
    report = verify_store(made.path)
    assert report.leftovers == ["layers/.1.tmp", "parts/1/"]
    assert report.problems == []


def test_a_file_that_cannot_be_read_is_a_problem_and_not_the_end(make_store):
    made = make_store(200)
    path = made.path / f.chunk_file(CLS, 1, 2)
    path.unlink()
    path.mkdir()
    (problem,) = verify_store(made.path).problems
    assert (problem.array, problem.chunk) == (CLS, 1)


def test_the_report_does_not_depend_on_the_threads(make_store):
    made = make_store(2000, rows_per_chunk=16)
    for chunk in range(0, 125, 3):
        (made.path / f.chunk_file(CLS, chunk, 2)).write_bytes(b"")
    one, many = verify_store(made.path, threads=1), verify_store(made.path, threads=7)
    assert one == many
    assert [p.chunk for p in one.problems] == list(range(0, 125, 3))
    assert json.dumps([p.what for p in one.problems])


def test_a_store_in_a_bucket_is_checked(make_store):
    place = open_objects(f"memory://{uuid.uuid4()}/in.zarr")
    made = make_store(200, place=place, tokens=3, invalid=(7,))
    report = verify_store(place)
    assert (report.problems, report.leftovers) == ([], [])
    assert report == verify_store(make_store(200, tokens=3, invalid=(7,)).path)
    name = f.chunk_file(made.spec.order and CLS, 4, 2)
    place.write(name, place.read(name)[:-1])
    place.delete([f.chunk_file(f.ROW_IMAGE, 0, 1)])
    assert [(p.array, p.chunk) for p in verify_store(place.url).problems] == [(CLS, 4), (f.ROW_IMAGE, 0)]


def test_progress_is_told_chunk_by_chunk_with_the_damage_so_far(make_store):
    made = make_store(300, rows_per_chunk=64)
    (made.path / f.chunk_file(CLS, 3, 2)).unlink()
    told = []

    class Listener(Reporter):
        @contextmanager
        def task(self, name, total, unit, *, done=0):
            told.append((name, total, unit, done))
            yield SimpleNamespace(advance=lambda n, **fields: told.append((n, fields)))

    report = verify_store(made.path, Listener(), threads=1)
    assert told[0] == ("verify", report.n_chunks, "chunks", 0)
    assert sum(n for n, _ in told[1:]) == report.n_chunks
    damaged = [fields["damaged"] for _, fields in told[1:]]
    assert damaged == sorted(damaged)
    assert damaged[-1] == 1 == len(report.problems)


def test_no_more_is_begun_than_the_threads_can_take():
    begun: list[int] = []
    for nth, number in enumerate(run_ahead((lambda i=i: begun.append(i) or i for i in range(50)), 3)):
        assert number == nth
        assert max(begun) <= nth + 2 * 3


def test_what_is_no_store_is_said_to_be_none(tmp_path):
    with pytest.raises(StoreError, match="does not exist"):
        verify_store(tmp_path / "nowhere")
    with pytest.raises(StoreError, match=r"holds no zarr\.json"):
        verify_store(tmp_path)
