"""Repairs killed outright end, after as many runs of the same command, with the bytes that the harvest wrote."""

import json
import random
import re
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
N_IMAGES, ROWS_PER_CHUNK, N_KILLS = 1200, 32, 6


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A folder of small pictures, some unreadable, beside the config of a small tower."""
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


def files_below(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_repairs_killed_at_random_moments_end_whole(source, tmp_path):
    store = tmp_path / "s.zarr"
    command = ["harvest", "images", store, "--model", "model.json", "--pretrained", "none", "--layer", 2, "--layer", 3]
    command += ["--rows-per-chunk", ROWS_PER_CHUNK, "--batch-size", 16, "--workers", 1, "--device", "cpu"]
    subprocess.run([THRESHER, *map(str, command)], cwd=source, check=True, capture_output=True, timeout=300)
    whole = files_below(store)
    moments = random.Random(0)
    wrong = [name for name in whole if re.match(r"layers/2/.*/c/|thumbs/\d*[02468]/blob/c/", name)]
    wrong += [name for name in whole if name.startswith("commits/layers/3/") and moments.random() < 0.5]
    wrong += ["zarr.json", "layers/3/resid_post/cls/zarr.json", "rows/image/c/0", "images/key_blob/c/0"]
    for name in wrong:
        data = bytearray(whole[name])
        for _ in range(2):  # two bytes, or the repair of a record would need no tower
            data[moments.randrange(len(data))] ^= 1 + moments.randrange(255)
        (store / name).write_bytes(data)

    def start() -> subprocess.Popen:
        with open(tmp_path / "repair.log", "a") as log:
            arguments = [THRESHER, "verify", store, "--repair", "--device", "cpu"]
            return subprocess.Popen(arguments, cwd=source, stdout=log, stderr=log)

    def n_wrong() -> int:
        return sum((store / name).read_bytes() != whole[name] for name in wrong)

    for kill in range(N_KILLS):
        before = n_wrong()
        assert before, f"all is repaired after {kill} kills"
        process = start()
        wanted = before - moments.randint(1, 12)
        deadline = time.monotonic() + 120
        while n_wrong() > wanted and time.monotonic() < deadline:
            assert process.poll() is None, f"the repair ended after {kill} kills"
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert n_wrong() < before
    assert n_wrong()
    assert start().wait(timeout=300) == 0, (tmp_path / "repair.log").read_text()
    left = {name: data for name, data in files_below(store).items() if not name.endswith(".tmp")}
    assert left == whole
    print(f"{N_KILLS} kills of a repair of {len(wrong)} damaged files: whole, byte for byte")
