"""Files of names and pictures as others hand them over: damaged, replaced by a pipe or a folder, cut short."""

import contextlib
import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from thresher.analysis.naming.kept_rows import are_whole, kept_rows
from thresher.analysis.naming.names_file import NAMES_TSV, Name, read_name_lines, write_names
from thresher.analysis.report_names import names_section
from thresher.analysis.report_pictures import pictures_section
from thresher.analysis.visualising.checks import RULES, Checks
from thresher.analysis.visualising.pictures import MadePicture, as_webp, read_made, read_picture, write_made
from thresher.analysis.visualising.stored_agreement import _read_embeddings, write_embeddings
from thresher.analysis.visualising.visualisations_file import (
    FOLDER,
    Visualisation,
    read_checks,
    read_nulls,
    read_visualisations,
    write_visualisations,
)
from thresher.analysis.whole_file import npy_header, read_json, read_whole
from thresher.store.errors import StoreError

D_SAE, E = 20, 4


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with names and pictures of two features."""
    folder = tmp_path / FOLDER
    folder.mkdir()
    write_names(tmp_path, {1: Name("red heart", 0.9, "data"), 3: Name("cat", 0.7, "data", auroc=0.8)})
    numbers = {name: 1 if name in ("rank", "l0") else 0.5 for name in Checks.__dataclass_fields__}
    lines = [
        Visualisation(
            feature=each,
            picture=f"{each}.webp",
            parametrisation="maco",
            seed=0,
            checks=Checks(**numbers),
            verdict="passed",
        )
        for each in (1, 3)
    ]
    write_visualisations(folder / "visualisations.tsv", lines)
    write_visualisations(folder / "nulls.tsv", lines, ["noise", "noise"])
    kind = {"kind": "pictures", "n": 2, "n_passed": 2, "medians": {"rank": 1.0}, "why_failed": {}, "words": "made"}
    checks = {"rules": RULES, "input_size": [32, 32], "blur_px": 0.14, "kinds": [kind]}
    (folder / "checks.json").write_text(json.dumps({"format": "thresher-visualisation-checks", **checks}))
    write_made(
        folder,
        [
            MadePicture(feature=each, seed=0, activations={0: 1.0, 1: 0.5}, parametrisation="maco", from_row=None)
            for each in (1, 3)
        ],
    )
    (folder / "1.webp").write_bytes(as_webp(np.zeros((32, 32, 3), np.uint8)))
    write_embeddings(tmp_path, np.array([1, 3]), np.eye(2, E, dtype=np.float32))
    return tmp_path


READERS: dict[str, Callable[[Path], object]] = {
    NAMES_TSV: lambda run: read_name_lines(run, D_SAE),
    f"{FOLDER}/visualisations.tsv": lambda run: read_visualisations(run, D_SAE),
    f"{FOLDER}/nulls.tsv": read_nulls,
    f"{FOLDER}/checks.json": read_checks,
    f"{FOLDER}/pictures.json": lambda run: read_made(run / FOLDER),
    f"{FOLDER}/1.webp": lambda run: read_picture(run / FOLDER / "1.webp"),
    f"{FOLDER}/embeddings.safetensors": lambda run: _read_embeddings(run, D_SAE, E),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_or_a_folder_in_the_place_of_a_file_is_not_waited_for(
    run: Path, name: str, make: Callable[[Path], None]
) -> None:
    (run / name).unlink()
    make(run / name)
    if name.endswith(("pictures.json", "webp")):
        with pytest.raises((StoreError, OSError), match=name.rpartition("/")[2]):
            READERS[name](run)
        return
    found = READERS[name](run)
    if name.endswith(("names.tsv", "visualisations.tsv")):
        assert isinstance(found, tuple)
        assert found[0] == {}
        assert re.search(r"cannot be read \((it is no file|Is a directory)\)", found[1])
    else:
        assert found in (None, {}) or (isinstance(found, tuple) and not len(found[0]))


_ODD = [b"null", b"-1", b"1e400", b"NaN", b"[]", b"{}", b'""', b"9" * 30, b"Infinity", b"\0", b"\t" * 5, b"\n", b"\xff"]


def _damaged(data: bytes, rng: random.Random) -> bytes:
    how, at = rng.randrange(5), rng.randrange(len(data))
    if how == 0:
        return data[:at]
    if how == 1:
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if how == 2:
        return data[:at] + rng.choice(_ODD) + data[at:]
    if how == 3:
        return data[:at] + data[rng.randrange(at, len(data)) :]
    words = list(re.finditer(rb'-?\d+\.?\d*|"[^"]*"|\[|\{', data))
    word = rng.choice(words) if words else re.match(b"", data)
    assert word is not None
    return data[: word.start()] + rng.choice(_ODD) + data[word.end() :]


@pytest.mark.parametrize("name", READERS)
def test_random_damage_gives_what_can_be_read_or_one_error(run: Path, name: str) -> None:
    data, rng = (run / name).read_bytes(), random.Random(0)
    for _ in range(150):
        (run / name).write_bytes(_damaged(data, rng))
        with contextlib.suppress(StoreError):
            found = READERS[name](run)
            assert found is None or isinstance(found, dict | tuple | Image.Image)


def test_a_file_nested_without_end_is_no_json(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("[" * 200_000)
    with pytest.raises(ValueError, match=r"x\.json is nested too deeply"):
        read_json(path)
    with pytest.raises(OSError, match="larger than 0 MiB"):
        read_whole(path, 1000)


@pytest.mark.parametrize("kinds", ["null", "[{}]", "[1]", '[{"kind": "x", "n": 0, "n_passed": 0, "medians": {}}]'])
def test_a_report_of_a_summary_that_makes_no_sense_says_so(run: Path, kinds: str) -> None:
    path = run / FOLDER / "checks.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "kinds": json.loads(kinds)}))
    stored = SimpleNamespace(
        details=SimpleNamespace(has=lambda _: False),
        statistics=SimpleNamespace(top_row=np.full((D_SAE, 6), -1)),
        summary={"store_fingerprint": ""},
    )
    section = pictures_section(SimpleNamespace(path=run, d_sae=D_SAE), stored, None)
    assert "checks.json is gone or damaged" in section.text[0]
    assert not section.tables


@pytest.mark.parametrize("said", ["{}", '{"named": [1]}', '{"named": [], "winner": 3, "n_features": "x"}'])
def test_a_report_of_a_calibration_that_makes_no_sense_is_as_without_one(run: Path, said: str) -> None:
    (run / "naming").mkdir()
    document = {"format": "thresher-naming-calibration", **json.loads(said)}
    (run / "naming" / "calibration.json").write_text(json.dumps(document))
    section = names_section(SimpleNamespace(path=run, d_sae=D_SAE))
    assert "it has no calibration" in " ".join(section.text)
    assert len(section.tables) == 1


def test_a_lost_record_of_pictures_is_told_before_any_is_removed(run: Path) -> None:
    (run / FOLDER / "pictures.json").unlink()
    with pytest.raises(StoreError, match=r"pictures\.json is gone"):
        read_made(run / FOLDER)


def test_kept_vectors_are_the_files_own_or_none(tmp_path: Path) -> None:
    path, vectors = tmp_path / "x.npy", np.eye(5, 3, dtype=np.float32)
    np.save(path, vectors)
    data = path.read_bytes()
    assert data.startswith(npy_header((5, 3)))
    found = kept_rows(path, 5, "r")
    assert found is not None
    np.testing.assert_array_equal(found, vectors)
    assert are_whole(found).tolist() == [True, True, True, False, False]
    assert kept_rows(path, 4, "r") is None
    for damaged in (b"", data[:100], data[:-1], data + b"1234", b"PK" + data[2:], data.replace(b"f4", b"i4")):
        path.write_bytes(damaged)
        assert kept_rows(path, 5, "r") is None
    path.unlink()
    assert kept_rows(path, 5, "r") is None
    os.mkfifo(path)
    assert kept_rows(path, 5, "r+") is None
