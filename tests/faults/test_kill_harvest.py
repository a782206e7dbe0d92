"""A harvest that is killed at any moment goes on with the same command and ends with the same bytes."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

pytestmark = pytest.mark.faults

N_IMAGES, ROWS_PER_CHUNK = 640, 16
HARVEST = """
import sys
from thresher.harvest.options import HarvestOptions
from thresher.harvest.run import harvest
options = HarvestOptions(
    model=sys.argv[1], layer=(1,), device="cpu", workers=1, batch_size=8, rows_per_chunk=int(sys.argv[4])
)
print(harvest(options, sys.argv[2], sys.argv[3]).n_harvested)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> tuple[Path, Path]:
    """A tiny model and a folder of pictures."""
    root = tmp_path_factory.mktemp("source")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "patch_size": 16, "head_width": 16},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
    }
    model, images = root / "model", root / "images"
    model.mkdir()
    (model / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    save_file(open_clip.model.CLIP(**config).state_dict(), model / "open_clip_model.safetensors")
    rng = np.random.default_rng(0)
    for i in range(N_IMAGES):
        (images / f"class {i % 4}").mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"class {i % 4}" / f"{i}.png")
    (images / "class 0" / "0.png").write_text("a note named .png")
    return model, images


def command(source, store):
    return [sys.executable, "-c", HARVEST, *map(str, source), str(store), str(ROWS_PER_CHUNK)]


def committed(store):
    return len(list(store.glob("commits/thumbs/*.json")))


def files_below(path):
    """Names and bytes; the measured error and temporary names apart, a store holds nothing that may differ."""
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def test_ten_kills_at_random_moments_lose_at_most_the_chunks_in_hand(source, tmp_path):
    started = time.monotonic()
    subprocess.run(command(source, tmp_path / "whole.zarr"), check=True, capture_output=True)
    whole_s = time.monotonic() - started
    n_chunks = N_IMAGES // ROWS_PER_CHUNK
    chance = random.Random(4)
    store = tmp_path / "killed.zarr"
    kills = 0
    while kills < 10:
        before = committed(store)
        if before > n_chunks - 4:  # nearly done: begin another store, so that every kill falls into a running harvest
            store = tmp_path / f"killed-{kills}.zarr"
            before = 0
        process = subprocess.Popen(command(source, store), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        moment = before + chance.randrange(0, 5)  # at once, or after some more chunks
        deadline = time.monotonic() + 10 * whole_s + 60
        while committed(store) < moment and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(chance.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.returncode == -signal.SIGKILL, process.stderr.read().decode()
        process.stdout.close()
        process.stderr.close()
        kills += 1
    kept = committed(store)
    # the lock went with the process, though its decoding process may live a moment longer
    done = subprocess.run(command(source, store), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= (n_chunks - kept) * ROWS_PER_CHUNK
    assert files_below(store) == files_below(tmp_path / "whole.zarr")


def test_ctrl_c_leaves_a_store_that_goes_on(source, tmp_path):
    subprocess.run(command(source, tmp_path / "whole.zarr"), check=True, capture_output=True)
    store = tmp_path / "stopped.zarr"
    process = subprocess.Popen(
        command(source, store), stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    while committed(store) < 3 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert b"KeyboardInterrupt" in error
    assert 0 < committed(store) < N_IMAGES // ROWS_PER_CHUNK
    subprocess.run(command(source, store), check=True, capture_output=True)
    assert files_below(store) == files_below(tmp_path / "whole.zarr")
