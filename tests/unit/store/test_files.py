"""What is written is durable, in the order that a crash may cut anywhere."""

import os
from pathlib import Path

import pytest
from thresher.store.files import RecordedFiles, sync_folders, write_all_atomically


@pytest.fixture
def events(monkeypatch):
    """What was synced and named, in that order: ("sync", path) of a file or folder, ("name", path) of a file."""
    seen = []
    fsync, rename = os.fsync, os.replace

    def synced(descriptor):
        fsync(descriptor)
        seen.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}"))))

    def named(source, target):
        # The files of a window are nothing without its records, which come when they are durable.
        if not {"c", "thumbs"} & set(Path(target).parts):
            assert ("sync", Path(source)) in seen, f"{source} is given its name before its bytes are durable"
        rename(source, target)
        seen.append(("name", Path(target)))

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", named)
    return seen


@pytest.mark.parametrize("n", [1, 40, 300])
def test_files_are_synced_then_named_then_their_folders_synced(events, tmp_path, n):
    paths = [tmp_path / f"folder {i % 3}" / f"{i}" for i in range(n)]
    write_all_atomically({path: [b"a", bytes([i % 256])] for i, path in enumerate(paths)})
    for i, path in enumerate(paths):
        assert path.read_bytes() == b"a" + bytes([i % 256])
        after_the_name = events[events.index(("name", path)) :]
        assert ("sync", path.parent) in after_the_name
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("n", [1, 300])
def test_records_are_named_once_all_files_are_durable(events, tmp_path, n):
    files = {tmp_path / "c" / f"{i % 3}" / f"{i}": [b"a", bytes([i % 256])] for i in range(n)}
    records = {tmp_path / "records" / f"{i}.json": [b"{}"] for i in range(n)}
    waiting = tmp_path / "earlier"
    waiting.mkdir()
    left = RecordedFiles(files, records).finish([waiting])
    assert {path: path.read_bytes() for path in files} == {path: b"".join(parts) for path, parts in files.items()}
    first = min(events.index(("name", record)) for record in records)
    durable = {path for kind, path in events[:first] if kind == "sync"}
    assert set(files) | {path.parent for path in files} | {tmp_path / "c", waiting} <= durable
    assert left == {tmp_path / "records", tmp_path}
    sync_folders(left)
    assert [("sync", folder) in events[first:] for folder in left] == [True, True]
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_folders_that_hold_new_folders_are_synced_too(events, tmp_path):
    (tmp_path / "there").mkdir()
    write_all_atomically({tmp_path / "there/new/newer/file": [b"a"]})
    synced = {path for kind, path in events if kind == "sync"}
    assert {tmp_path / "there", tmp_path / "there/new", tmp_path / "there/new/newer"} <= synced
    assert tmp_path not in synced


def test_a_window_s_bytes_are_durable_before_any_of_its_records_is_there(make_store, events):
    made = make_store(200, rows_per_chunk=64, tokens=2)
    names = [path.relative_to(made.path) for kind, path in events if kind == "name" and made.path in path.parents]
    (site,) = made.spec.sites
    for window in range(4):
        chunks = [2 * window, 2 * window + 1] if window < 3 else [6]
        files = [Path(site.path, "c", str(chunk), "0") for chunk in chunks]
        files += [Path("rows/valid/c", str(chunk)) for chunk in chunks]
        files += [Path("thumbs", str(window), part, "c/0") for part in ("blob", "offset")]
        records = [Path("commits", site.path, f"{chunk}.json") for chunk in chunks]
        records += [Path("commits/rows/valid", f"{chunk}.json") for chunk in chunks]
        records += [Path("commits/thumbs", f"{window}.json")]
        first_record = min(names.index(record) for record in records)
        assert max(names.index(file) for file in files) < first_record
        at = events.index(("name", made.path / names[first_record]))
        durable = {path for kind, path in events[:at] if kind == "sync"}
        assert {(made.path / file).parent for file in files} | {made.path / file for file in files} <= durable
        after = {path for kind, path in events[at:] if kind == "sync"}
        assert {(made.path / record).parent for record in records} <= after
