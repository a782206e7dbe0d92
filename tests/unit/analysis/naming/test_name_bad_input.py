"""`name` on what is damaged between two calls, and options beyond what numbers can hold."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted_clip import WORDS, Planted, make_planted_run
from thresher.analysis.naming import name as naming
from thresher.analysis.naming.calibration_options import CalibrationOptions
from thresher.analysis.naming.name import name
from thresher.analysis.naming.options import NameOptions
from thresher.store.errors import StoreError
from thresher.store.reader import open_store

HERE: dict[str, Any] = {"templates": "none", "device": "cpu", "workers": 0, "features": "0-4"}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return make_planted_run(tmp_path_factory.mktemp("planted"), with_stats=False)


@pytest.fixture
def words(tmp_path: Path) -> str:
    path = tmp_path / "words.txt"
    path.write_text("".join(f"{word}\n" for word in (*WORDS, "dog", "tree")))
    return str(path)


@pytest.fixture
def run(planted: Planted) -> Iterator[Path]:
    yield planted.path
    for file in ("names.tsv", "embeddings.npy", "embeddings.json"):
        (planted.path / file).unlink(missing_ok=True)
    shutil.rmtree(planted.path / "naming", ignore_errors=True)


def test_damaged_texts_and_images_are_embedded_anew(run: Path, words: str) -> None:
    name(run, NameOptions(vocab=words, **HERE))
    expected = (run / "names.tsv").read_bytes()
    kept = sorted((run / "naming").glob("*.npy"))
    assert {path.name.partition("-")[0] for path in kept} == {"images", "texts"}
    for path in kept:
        whole = path.read_bytes()
        vectors = np.load(path, mmap_mode="r")
        one = int(np.flatnonzero(vectors.any(axis=1))[0])
        at = len(whole) - vectors.nbytes + one * vectors[0].nbytes
        for damaged in (b"", whole[:-8], whole[:at] + b"\x7f\x7f" * 8 + whole[at + 16 :]):
            path.write_bytes(damaged)
            name(run, NameOptions(vocab=words, overwrite=True, **HERE))
            assert (run / "names.tsv").read_bytes() == expected
        path.unlink()
        path.mkdir()
        name(run, NameOptions(vocab=words, overwrite=True, **HERE))
        assert (run / "names.tsv").read_bytes() == expected


def test_a_full_disk_is_an_error_that_the_same_call_goes_on_after(
    run: Path, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)  # a page of mapped memory would end the process instead
        with pytest.raises(OSError, match="No space left"):
            name(run, NameOptions(vocab=words, **HERE))
    assert name(run, NameOptions(vocab=words, **HERE)).n_features == 5


@pytest.mark.parametrize("damage", ["", "[{}]", "{", "[[1]]", "[" * 100_000])
def test_a_damaged_block_of_a_killed_naming_is_named_anew(
    run: Path, words: str, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    options = NameOptions(vocab=words, **HERE)
    name(run, options)
    expected = (run / "names.tsv").read_bytes()
    (run / "names.tsv").unlink()
    with monkeypatch.context() as patched:
        patched.setattr(naming, "_write", _killed)
        with pytest.raises(KeyboardInterrupt):
            name(run, options)
    (block,) = (run / "naming" / ".names.tmp").glob("block-*.json")
    assert [line["feature"] for line in json.loads(block.read_text())] == [0, 1, 2, 3, 4]
    block.write_text(damage)
    assert name(run, options).n_kept == 0
    assert (run / "names.tsv").read_bytes() == expected


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_damaged_embeddings_of_embed_are_told(run: Path, planted: Planted, words: str) -> None:
    (run / "embeddings.json").write_text(json.dumps({"store_fingerprint": open_store(planted.store_path).fingerprint}))
    np.save(run / "embeddings.npy", np.eye(3, 4, dtype=np.float32))
    with pytest.raises(StoreError, match=r"embeddings\.npy is damaged: make it again with `thresher embed"):
        name(run, NameOptions(vocab=words, **HERE))


@pytest.mark.parametrize(
    ("given", "said"),
    [({"seed": 1 << 80}, "below 2"), ({"min_z": float("nan")}, "min_z must be"), ({"min_z": float("inf")}, "min_z")],
)
def test_numbers_beyond_all_sense_are_told(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        NameOptions(**given)


def test_columns_are_not_given_beside_the_tables_own() -> None:
    with pytest.raises(ValueError, match="quickstart has its own"):
        CalibrationOptions(calibrate="quickstart", group="photographer")
