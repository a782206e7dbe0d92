"""A target L0 is held on real rows: the embedded pictures through the embedded tower."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from thresher.harvest.options import HarvestOptions
from thresher.harvest.run import harvest
from thresher.train.loop import train_together
from thresher.train.options import TrainOptions
from thresher.train.run_dir import open_run

LAST = 20  # steps that count


def harvested(folder: Path, limit: int) -> Path:
    options = HarvestOptions(model="quickstart", layer=(4,), limit=limit, batch_size=128, device="cpu", workers=0)
    harvest(replace(options, thumbnails="off"), "quickstart", str(folder / "emoji.zarr"))
    return folder / "emoji.zarr"


def held(store: Path, folder: Path, targets: dict[str, tuple[float, ...]], **more: object) -> dict[str, float]:
    """Mean L0 over the last steps of each variant and target, over the target."""
    base = TrainOptions(device="cpu", lr=1e-3, warmup=20, log_every=1, eval_every=0, checkpoint_every=0, **more)
    members = {
        folder / f"{variant}-{target:g}": replace(base, variant=variant, target_l0=target)
        for variant, several in targets.items()
        for target in several
    }
    train_together(members, store)
    shares = {}
    for path, options in members.items():
        seen = [record["l0"] for record in open_run(path).metrics() if record["split"] == "train"]
        target = options.target_l0
        assert target is not None
        shares[path.name] = float(np.mean(seen[-LAST:])) / target
    return shares


def test_a_target_l0_is_held_by_each_variant_with_a_penalty(tmp_path):
    store = harvested(tmp_path, 400)
    targets = {"relu": (24.0,), "gated": (24.0,), "jumprelu": (24.0,)}
    shares = held(store, tmp_path, targets, expansion=1, batch_size=96, rows=96 * 600)
    assert shares == pytest.approx(dict.fromkeys(shares, 1.0), rel=0.1)


@pytest.mark.faults
def test_targets_from_few_to_nearly_half_of_the_features_are_held(tmp_path):
    store = harvested(tmp_path, 3000)
    targets = {"relu": (16.0, 64.0, 200.0), "gated": (16.0, 64.0, 200.0), "jumprelu": (8.0, 24.0, 64.0, 300.0)}
    shares = held(store, tmp_path, targets, expansion=4, batch_size=512, rows=512 * 1200)
    assert shares == pytest.approx(dict.fromkeys(shares, 1.0), rel=0.1)
