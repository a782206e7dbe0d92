"""Harvests killed outright at random moments end, after as many resumptions, with an unbroken harvest's bytes."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.faults

THRESHER = Path(sys.executable).with_name("thresher")
N_IMAGES, ROWS_PER_CHUNK = 1600, 32


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A folder of class folders of small pictures, some unreadable, beside the config of a small tower."""
    folder = tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(0)
    for i in range(N_IMAGES):
        path = folder / "images" / f"class {i % 7}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(path)
        if i % 400 == 3:
            path.write_bytes(b"not a picture")
    vision = {"image_size": 32, "layers": 4, "width": 96, "head_width": 32, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    config = {"model_cfg": {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": {}}
    (folder / "model.json").write_text(json.dumps(config))
    return folder


def start(source: Path, store: Path, *options: object) -> subprocess.Popen:
    command = ["harvest", "images", store, "--model", "model.json", "--pretrained", "none"]
    command += ["--rows-per-chunk", ROWS_PER_CHUNK, "--batch-size", "16", "--workers", "1", *options]
    with open(store.with_suffix(".log"), "a") as log:
        return subprocess.Popen([THRESHER, *map(str, command)], cwd=source, stderr=log, stdout=log)


def committed(store: Path, arrays: tuple[str, ...], tokens: int) -> set[int]:
    """The windows of which every chunk is recorded in every array."""
    windows = set(range(-(-N_IMAGES // ROWS_PER_CHUNK)))
    for array in arrays:
        recorded = {int(p.stem) for p in store.glob(f"commits/{array}/*.json")}
        n = 1 if array == "thumbs" else tokens  # chunks a window
        windows = {w for w in windows if all(w * n + i in recorded for i in range(n))}
    return windows


CASES = {
    "cls": (10, 1, ("--layer", 2, "--layer", 3), ("layers/2/resid_post/cls", "layers/3/resid_post/cls")),
    "patch": (
        4,
        16,
        ("--layer", 3, "--token", "patch", "--site", "mlp_out", "--site", "resid_post"),
        ("layers/3/mlp_out/patch", "layers/3/resid_post/patch"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_kills_at_random_moments_leave_no_trace(source, tmp_path, case):
    n_kills, tokens, options, layers = CASES[case]
    arrays = (*layers, "rows/valid", "thumbs")
    whole, broken = tmp_path / "whole.zarr", tmp_path / "broken.zarr"
    assert start(source, whole, *options).wait(timeout=300) == 0, whole.with_suffix(".log").read_text()
    moments = random.Random(0)
    for kill in range(n_kills):
        before = len(committed(broken, arrays, tokens))
        process = start(source, broken, *options)
        wanted = before + moments.randint(0, 3)
        deadline = time.monotonic() + 120
        while len(committed(broken, arrays, tokens)) < max(1, wanted) and time.monotonic() < deadline:
            assert process.poll() is None, f"the harvest ended after {kill} kills"
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.05))
        assert process.poll() is None, f"the harvest ended after {kill} kills"
        process.send_signal(signal.SIGKILL)
        process.wait()
        written = {int(p.parent.name) // tokens for p in broken.glob(f"{layers[0]}/c/*/0")}
        done = committed(broken, arrays, tokens)
        assert len(written - done) <= 1  # what is computed again: at most the window in hand
    n_left = N_IMAGES - len(committed(broken, arrays, tokens)) * ROWS_PER_CHUNK
    assert n_left > 0
    last = start(source, broken, *options)
    assert last.wait(timeout=300) == 0, broken.with_suffix(".log").read_text()
    assert f" {n_left:,} harvested" in "".join(broken.with_suffix(".log").read_text().splitlines()[-9:])
    names = sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(broken) for p in broken.rglob("*") if p.is_file())
    for name in names:
        assert (whole / name).read_bytes() == (broken / name).read_bytes(), name
