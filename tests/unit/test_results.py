"""What the commands print of their results."""

from pathlib import Path

import pytest
from thresher import results
from thresher.harvest.run import HarvestResult
from thresher.store.format import Site
from thresher.store.part_check import Problem
from thresher.store.verify import VerifyReport, verify_store
from thresher.train.l0 import L0Summary
from thresher.train.metrics import ReconstructionResult
from thresher.train.outcome import TrainResult


def trained(**changes) -> TrainResult:
    fields = {
        "run_path": Path("run"),
        "site": Site(22),
        "d_in": 8,
        "d_sae": 64,
        "steps": 10,
        "rows": 10_000,
        "passes": 2.5,
        "n_dead": 3,
        "dead_after_rows": 4_000,
        "held_out": None,
        "seconds": 2.0,
        "rows_per_s": 5_000.0,
    }
    return TrainResult(**{**fields, **changes})


def test_dead_features_are_told_with_the_rows_they_were_silent_on():
    assert "Dead: 3 of 64 features did not fire on the last 4,000 training rows." in results.of_training(trained())


@pytest.mark.parametrize("rows", [3_000, 4_000])
def test_a_run_too_short_to_know_dead_features_says_so_and_not_zero(rows):
    text = results.of_training(trained(rows=rows, n_dead=0))
    assert "Dead: not known" in text
    assert "0 of 64" not in text


def test_what_is_undefined_is_said_to_be_so_and_no_number_is_longer_than_a_word():
    none = L0Summary(mean=0.0, median=0.0, p99=0.0, max=0)
    numbers = ReconstructionResult(5, 0.0, float("nan"), float("nan"), -2.5e47, 0.0, none, none)
    text = results.of_training(trained(held_out=numbers))
    assert "explained variance  undefined (of energy, uncentred: -2.5e+47)" in text
    assert "normalised by the row's norm: undefined" in text
    assert "nan" not in text


def harvested(**changes) -> HarvestResult:
    fields = {
        "store_path": "my store.zarr",
        "sites": ["layers/9/resid_post/cls"],
        "n_rows": 20,
        "n_valid": 19,
        "unreadable": [],
        "n_harvested": 20,
        "seconds": 2.0,
        "images_per_s": 10.0,
        "size_bytes": 5_000,
    }
    return HarvestResult(**{**fields, **changes})


def test_the_next_command_after_a_harvest_can_be_pasted():
    assert results.of_harvest(harvested()).splitlines()[-1] == "Next: thresher train 'my store.zarr' RUN"
    several = harvested(sites=["layers/9/resid_post/cls", "layers/10/resid_post/cls"])
    assert results.of_harvest(several).splitlines()[-1] == "Next: thresher train 'my store.zarr' RUN --layer 10"
    sites = harvested(sites=["layers/9/resid_post/patch", "layers/9/mlp_act/patch"])
    assert results.of_harvest(sites).splitlines()[-1] == "Next: thresher train 'my store.zarr' RUN --site resid_post"
    both = harvested(sites=[f"layers/{layer}/{site}/mean" for layer in (9, 10) for site in ("resid_pre", "mlp_out")])
    assert results.of_harvest(both).splitlines()[-1].endswith(" RUN --layer 10 --site resid_pre")


def test_a_damaged_store_is_told_with_the_command_that_repairs_it_until_that_was_given():
    report = VerifyReport(n_chunks=7, n_bytes=1000, problems=[Problem("rows/label", 0, (0, 9), "is missing")])
    told = results.of_damage("s3://b/my store.zarr", report, was_repaired=False)
    assert told.endswith(
        "is damaged: 1 problem; 7 chunks, 1 kB read. Next: thresher verify 's3://b/my store.zarr' --repair"
    )
    again = results.of_damage("a.zarr", report, was_repaired=True)
    assert again == "a.zarr is damaged: 1 problem; 7 chunks, 1 kB read."


def test_an_unfinished_store_is_not_told_to_be_repaired(make_store):
    path = make_store(130, windows=range(1)).path
    told = results.of_damage(str(path), verify_store(path), was_repaired=False)
    assert "is damaged: 1 problem; " in told
    assert "--repair" not in told
