"""Repair without a tower: rows are made again from what the stores were made with."""

import os
import re

import numpy as np
import pytest
from made_harvest import CLS, FromMemory, bytes_below, flip
from thresher.store import files
from thresher.store import format as f
from thresher.store.errors import StoreError
from thresher.store.files import FolderLock
from thresher.store.format import Site
from thresher.store.objects import open_objects
from thresher.store.parts import add_part, merge_stores, next_part
from thresher.store.records import corrected_record, decode_record, encode_record
from thresher.store.repair import repair_store
from thresher.store.verify import verify_store

STORES = {
    "class tokens": {"n": 150, "sites": (Site(1), Site(2)), "invalid": (5, 70)},
    "patches": {"n": 40, "tokens": 3, "rows_per_chunk": 16, "invalid": (3,)},
    "compressed": {"n": 150, "codec": "zstd", "invalid": (5,)},
    "source order": {"n": 150, "order": "source", "dtype": "bfloat16"},
}


SPOILS = {
    "changed": lambda path: flip(path, path.stat().st_size // 2),
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.faults
@pytest.mark.parametrize("options", STORES.values(), ids=STORES)
@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
def test_every_file_that_is_damaged_is_restored_to_its_bytes(make_store, options, spoil):
    _repair_each(make_store(**options), spoil, lambda name: True)


@pytest.mark.parametrize(
    ("options", "spoil"), [("class tokens", "deleted"), ("patches", "emptied"), ("compressed", "changed")]
)
def test_files_of_each_kind_that_are_damaged_are_restored_to_their_bytes(make_store, options, spoil):
    seen = set()

    def is_first_of_its_kind(name: str) -> bool:
        kind = re.sub(r"\d+", "N", name)
        return kind not in seen and not seen.add(kind)

    _repair_each(make_store(**STORES[options]), SPOILS[spoil], is_first_of_its_kind)


def _repair_each(made, spoil, chosen) -> None:
    before = bytes_below(made.path)
    source = FromMemory([made])
    for name in filter(chosen, before):
        spoil(made.path / name)
        report = repair_store(made.path, source.harvest())
        assert report.problems == [], name
        assert report.repaired, name
        assert (made.path / name).read_bytes() == before[name], name
    assert bytes_below(made.path) == before
    assert verify_store(made.path).problems == []


@pytest.mark.parametrize("options", STORES.values(), ids=STORES)
def test_many_damages_at_once_are_repaired_and_only_damaged_windows_are_harvested(make_store, options):
    made = make_store(**options)
    before = bytes_below(made.path)
    rng = np.random.default_rng(0)
    source = FromMemory([made])
    t = made.spec.tokens_per_image
    for _ in range(2):
        names = [name for name in before if name != f.GROUP_JSON and rng.random() < 0.25]
        chunks = {
            int(name.split("/c/")[1].split("/")[0]) // t
            for name in names
            if name.startswith("layers/") and "/c/" in name
        }
        for name in names:
            flip(made.path / name, int(rng.integers(len(before[name]))))
        source.windows.clear()
        assert repair_store(made.path, source.harvest()).problems == []
        assert bytes_below(made.path) == before
        assert chunks <= set(source.windows)


@pytest.mark.parametrize(
    "name",
    [
        f.GROUP_JSON, f.METADATA_RECORD, f"{CLS}/zarr.json", "layers/zarr.json", "thumbs/0/blob/zarr.json",
        f.record_file(CLS, 0), f.record_file(f.ROW_VALID, 0), f.record_file(f.THUMBS, 1), f.record_file(f.ROW_LABEL, 0),
        f.chunk_file(f.ROW_IMAGE, 0, 1), f.chunk_file(f.ROW_VALID, 1, 1),
    ],
)  # fmt: skip
def test_what_the_store_itself_tells_needs_no_source(make_store, name):
    made = make_store(150, invalid=(70,))
    data = (made.path / name).read_bytes()
    for at in (0, len(data) // 2, len(data) - 1):
        flip(made.path / name, at)
        source = FromMemory([])
        assert repair_store(made.path, source.harvest()).problems == []
        assert (made.path / name).read_bytes() == data
        assert source.n_opened == 0


@pytest.mark.parametrize(
    ("names", "is_known"),
    [
        ((f.GROUP_JSON, f"{CLS}/zarr.json", f"{f.KEY_BLOB}/zarr.json"), True),
        ((f.METADATA_RECORD, f"{CLS}/zarr.json"), True),
        ((f.METADATA_RECORD, f"{f.KEY_BLOB}/zarr.json", "rows/zarr.json", f.record_file(CLS, 0)), True),
        ((f.METADATA_RECORD, f.GROUP_JSON), False),
    ],
)
def test_metadata_is_known_from_what_is_left_of_it_or_said_to_be_lost(make_store, names, is_known):
    made = make_store(150)
    before = bytes_below(made.path)
    for name in names:
        (made.path / name).write_bytes(b"\0" * 20)
    report = repair_store(made.path, FromMemory([made]).harvest())
    assert (report.problems == []) == is_known
    if is_known:
        assert bytes_below(made.path) == before
    else:
        assert "does not tell" in report.problems[0].what


def test_a_metadata_record_of_another_store_is_not_believed(make_store):
    made, other = make_store(150), make_store(100, name="other.zarr", seed=4)
    before = bytes_below(made.path)
    for name in (f.METADATA_RECORD, f.GROUP_JSON):
        (made.path / name).write_bytes((other.path / name).read_bytes())
        assert repair_store(made.path, FromMemory([]).harvest()).problems == []
        assert bytes_below(made.path) == before


def test_a_chunk_and_record_of_another_place_are_replaced(make_store):
    made, other = make_store(150), make_store(150, name="other.zarr", seed=4)
    before = bytes_below(made.path)
    for origin, chunk in ((made.path, 0), (other.path, 1)):
        for of in (lambda chunk: f.chunk_file(CLS, chunk, 2), lambda chunk: f.record_file(CLS, chunk)):
            (made.path / of(1)).write_bytes((origin / of(chunk)).read_bytes())
        report = repair_store(made.path, FromMemory([made]).harvest())
        assert report.problems == []
        assert bytes_below(made.path) == before


def test_the_report_says_what_was_restored_and_how(make_store):
    made = make_store(150)
    flip(made.path / f.chunk_file(CLS, 1, 2))
    flip(made.path / f.record_file(CLS, 0))
    flip(made.path / f.chunk_file(f.ROW_IMAGE, 0, 1))
    flip(made.path / f.chunk_file(f.KEY_BLOB, 0, 1))
    report = repair_store(made.path, FromMemory([made]).harvest())
    told = {(done.problem.array, done.problem.chunk): done.how for done in report.repaired}
    assert told == {
        (CLS, 1): "harvested again and restored bit for bit",
        (CLS, 0): "one byte of its commit record was put right",
        (f.ROW_IMAGE, 0): "made again from the row order",
        (f.KEY_BLOB, 0): "made again from the source",
    }
    assert str(report.repaired[0]).startswith(f"{CLS}, chunk 0, rows 0 to 63: its commit record is damaged")


def test_parts_are_repaired_where_they_are(make_store, tmp_path):
    a = make_store(100, name="a.zarr")
    place = next_part(open_objects(a.path))
    more = make_store(30, place=place.url, key_prefix="more ", seed=1)
    add_part(open_objects(a.path), place)
    b = make_store(60, name="b.zarr", key_prefix="b ", seed=2)
    merge_stores([str(a.path), str(b.path)], str(tmp_path / "all.zarr"))
    before = [bytes_below(path) for path in (a.path, b.path, tmp_path / "all.zarr")]
    flip(a.path / "parts/1" / f.chunk_file(CLS, 0, 2))
    flip(b.path / f.GROUP_JSON)
    flip(b.path / f.chunk_file(f.ROW_LABEL, 0, 1))
    flip(tmp_path / "all.zarr" / f.GROUP_JSON, 80)
    flip(tmp_path / "all.zarr" / f.METADATA_RECORD)
    for number in (1, 2, 3):
        flip(tmp_path / "all.zarr" / f.part_record_file(number), 20)
    report = repair_store(tmp_path / "all.zarr", FromMemory([a, b, more]).harvest())
    assert report.problems == []
    assert [bytes_below(path) for path in (a.path, b.path, tmp_path / "all.zarr")] == before
    assert {done.problem.part for done in report.repaired} == {None, "../a.zarr/parts/1", "../b.zarr"}


def test_lost_records_of_parts_are_made_again_where_the_parts_stand(make_store):
    made = make_store(100)
    for n in (30, 40):
        place = next_part(open_objects(made.path))
        make_store(n, place=place.url, key_prefix=f"{n} ", seed=n)
        add_part(open_objects(made.path), place)
    before = bytes_below(made.path)
    for numbers in ((1,), (2,), (1, 2)):
        for number in numbers:
            (made.path / f.part_record_file(number)).unlink()
        for _ in numbers:  # the last of several lost ones is seen when those before it are there
            report = repair_store(made.path, FromMemory([]).harvest())
        assert report.problems == []
        assert bytes_below(made.path) == before


def test_a_replacement_that_was_begun_and_killed_is_undone(make_store):
    made = make_store(100)
    before = bytes_below(made.path)
    (made.path / f.CREATING).touch()
    report = repair_store(made.path, FromMemory([]).harvest())
    assert [str(done) for done in report.repaired] == [
        "creating: a harvest began to replace this store and was killed; removed: the store is kept"
    ]
    assert bytes_below(made.path) == before


def test_a_store_that_another_process_writes_is_left_alone(make_store):
    made = make_store(100)
    flip(made.path / f.GROUP_JSON)
    before = bytes_below(made.path)
    held = FolderLock(made.path)
    with pytest.raises(StoreError, match="being written by another process"):
        repair_store(made.path, FromMemory([made]).harvest())
    held.close()
    assert bytes_below(made.path) == before


def test_a_store_in_a_bucket_is_repaired(make_store):
    place = open_objects("memory://of-repair/in.zarr")
    made = make_store(150, place=place, invalid=(3,))
    before = {name: place.read(name) for name, _ in place.walk()}
    place.delete([f.chunk_file(CLS, 1, 2), f.record_file(f.ROW_IMAGE, 0), f.GROUP_JSON])
    report = repair_store(place, FromMemory([made]).harvest())
    assert report.problems == []
    assert {name: place.read(name) for name, _ in place.walk()} == before


def test_an_unfinished_store_stays_so(make_store):
    made = make_store(200, windows=range(2))
    flip(made.path / f.chunk_file(CLS, 1, 2))
    source = FromMemory([made])
    report = repair_store(made.path, source.harvest())
    assert source.windows == [1]
    assert ["harvest did not finish" in problem.what for problem in report.problems] == [True]


class Cut(BaseException):
    """The end of a process."""


@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_a_repair_that_is_cut_short_at_any_write_is_finished_by_the_next(make_store, monkeypatch, noise):
    made = make_store(150, sites=(Site(1), Site(2)))
    whole = bytes_below(made.path)
    names = [f"{CLS}/zarr.json", f.METADATA_RECORD, f.record_file(f.THUMBS, 1), f.chunk_file(CLS, 0, 2)]
    names += [f.chunk_file(f.ROW_IMAGE, 0, 1), f.chunk_file(f.KEY_BLOB, 0, 1), f.record_file(Site(2).path, 2)]
    write, left = files._write_synced, 0

    def write_some(*arguments):
        nonlocal left
        left -= 1
        if left < 0:
            raise Cut
        write(*arguments)

    monkeypatch.setattr(files, "_write_synced", write_some)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # hundreds of them, which a busy disk takes seconds for
    n_cuts = 0
    for after in (0, 1, 2, 3, 5, 8, 11, 12, 13, 30):
        for name, data in whole.items():
            (made.path / name).write_bytes(data)
        for name in names:
            (made.path / name).write_bytes(b"")
        source, left = FromMemory([made], noise), after
        try:
            repair_store(made.path, source.harvest())
        except Cut:
            n_cuts += 1
        left = 1000
        assert repair_store(made.path, source.harvest()).problems == []
        assert verify_store(made.path).problems == []
        assert noise or bytes_below(made.path) == whole
    assert n_cuts >= 6


@pytest.mark.parametrize("seed", range(3))
def test_one_changed_byte_of_a_record_is_put_right_and_more_is_not_guessed(seed):
    rng = np.random.default_rng(seed)
    record = {"array": CLS, "chunk": 17, "crc32c": "0123abcd", "rows": [0, 64], "unreadable": [[3, "gone — déjà"]]}
    text = encode_record(record)
    for at in rng.integers(0, len(text), 12):
        spoilt = bytearray(text)
        spoilt[at] ^= int(rng.integers(1, 256))
        assert corrected_record(bytes(spoilt)) == text, at
        assert decode_record(text, "") == record
        spoilt[(at + 40) % len(text)] ^= 0x20
        assert corrected_record(bytes(spoilt)) is None
    assert corrected_record(b"") is None
    assert corrected_record(text[:-1]) is None
