"""Harvests killed outright at ten random moments end, after as many resumptions, with an unbroken harvest's bytes."""

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


def start(source: Path, store: Path) -> subprocess.Popen:
    command = ["harvest", "images", store, "--model", "model.json", "--pretrained", "none", "--layer", "2", "--layer"]
    command += ["3", "--rows-per-chunk", ROWS_PER_CHUNK, "--batch-size", "16", "--workers", "1"]
    with open(store.with_suffix(".log"), "a") as log:
        return subprocess.Popen([THRESHER, *map(str, command)], cwd=source, stderr=log, stdout=log)


def committed(store: Path) -> set[str]:
    names = [{p.name for p in store.glob(f"commits/{array}/*.json")} for array in ARRAYS]
    return set.intersection(*names)


ARRAYS = ("layers/2/resid_post/cls", "layers/3/resid_post/cls", "rows/valid", "thumbs")


def test_ten_kills_at_random_moments_leave_no_trace(source, tmp_path):
    whole, broken = tmp_path / "whole.zarr", tmp_path / "broken.zarr"
    assert start(source, whole).wait(timeout=300) == 0, whole.with_suffix(".log").read_text()
    n_chunks = -(-N_IMAGES // ROWS_PER_CHUNK)
    assert n_chunks >= 20
    moments = random.Random(0)
    kills = 0
    while kills < 10:
        before = len(committed(broken))
        process = start(source, broken)
        wanted = before + moments.randint(0, 3)
        deadline = time.monotonic() + 120
        while len(committed(broken)) < max(1, wanted) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.05))
        assert process.poll() is None, f"the harvest ended after {kills} kills"
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        written = {p.parent.name for p in broken.glob("layers/2/resid_post/cls/c/*/0")}
        done = {name.removesuffix(".json") for name in committed(broken)}
        assert len(written - done) <= 1  # what is computed again: at most the chunk in hand
    n_left = N_IMAGES - len(committed(broken)) * ROWS_PER_CHUNK
    assert n_left > 0
    last = start(source, broken)
    assert last.wait(timeout=300) == 0, broken.with_suffix(".log").read_text()
    assert f" {n_left:,} harvested" in broken.with_suffix(".log").read_text().splitlines()[-7:].__str__()
    names = sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(broken) for p in broken.rglob("*") if p.is_file())
    for name in names:
        assert (whole / name).read_bytes() == (broken / name).read_bytes(), name
