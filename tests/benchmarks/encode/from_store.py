"""Times `encode`, `stats` and `stats --from-store` on a store of its own, in a process of its own; prints JSON.

CPU seconds are of this process and of the worker processes that it started and has ended.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / name) for name in ("step", "store")]

from encoders import matmul  # noqa: E402
from make_thresher import SITE, keys_of, spec_of  # noqa: E402
from planted import Planted, planted  # noqa: E402
from worker import resident_bytes  # noqa: E402  (of `step`)

D_IN = 1024


def make_run(folder: Path, p: Planted, rows: int) -> Path:
    """A store of random rows and a run with the planted weights."""
    from thresher.store.loading import plan_loading
    from thresher.store.reader import open_store
    from thresher.store.writer import create_store
    from thresher.train.configuration import describe_store
    from thresher.train.models import ReluSae
    from thresher.train.options import TrainOptions
    from thresher.train.run_dir import create_run

    rng = np.random.default_rng(0)
    labels = (np.arange(rows) % 1000).astype(np.int32)
    path, run = folder / "rows.zarr", folder / "run"
    with create_store(path, spec_of(labels, "random"), keys=keys_of(rows), labels=labels) as writer:
        for number in list(writer.pending):
            start, stop = writer.window_images(number)
            window = writer.window(number)
            values = rng.standard_normal((stop - start, D_IN), np.float32)
            window.put(start, {SITE: values}, np.ones(stop - start, bool), [], None)
            window.commit()
    store = open_store(path)
    config = {
        "options": TrainOptions().to_json(),
        "site": SITE.path,
        "d_in": D_IN,
        "d_sae": len(p.encoder),
        "store": describe_store(store, run),
        "loading": plan_loading([store.activations(SITE)], 1024).to_json(),
    }
    create_run(run, config, overwrite=False)
    ReluSae(p.encoder, p.b_enc, p.decoder, torch.zeros(D_IN)).save(run / "sae.safetensors")
    return run


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """CPU seconds, of this process and those that it waited for, and wall seconds of a call."""
    before, start = os.times(), time.perf_counter()
    call()
    after = os.times()
    cpu = sum(getattr(after, n) - getattr(before, n) for n in ("user", "system", "children_user", "children_system"))
    return cpu, time.perf_counter() - start


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what")
    parser.add_argument("--d-sae", type=int, required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--l0", type=float, required=True)
    a = parser.parse_args()
    from thresher.analysis.encode import encode
    from thresher.analysis.options import EncodeOptions, StatsOptions
    from thresher.analysis.stats import stats

    folder = Path(tempfile.mkdtemp(prefix="thresher-bench-encode-"))
    try:
        p = planted(D_IN, a.d_sae, 4096, a.l0, 0)
        run = make_run(folder, p, a.rows)
        bare = matmul(p)
        n = max(1, min(4, a.rows // 4096))
        blocks = [p.x[: min(4096, a.rows)].half()] * n
        bare(blocks)
        held = resident_bytes("VmRSS")
        some = timed(lambda: bare(blocks))
        scale = a.rows / sum(map(len, blocks))
        shared = {"figures": False, "nearest": 0, "null_draws": 0}
        what = a.what.removesuffix(", with details")
        if what == a.what:
            shared |= {"cofiring": 0, "samples": 0}
        seconds = {"matmul": (some[0] * scale, some[1] * scale)}
        if what == "encode and stats":
            seconds["encode"] = timed(lambda: encode(run, EncodeOptions(device="cpu")))
            seconds["stats"] = timed(lambda: stats(run, StatsOptions(**shared)))
        else:
            workers = {"from store, 1 worker": 1, "from store, 2 workers": 2}.get(what)
            options = StatsOptions(**shared, from_store=True, device="cpu", workers=workers)
            seconds["stats"] = timed(lambda: stats(run, options))
        print(json.dumps({"seconds": seconds, "own_bytes": resident_bytes("VmHWM") - held}))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
