"""Several runs in one table, with a cluster that was planted in one of them."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from thresher.analysis.beside import compare_runs
from thresher.analysis.encode import encode
from thresher.analysis.options import StatsOptions
from thresher.analysis.stats import stats
from thresher.cli import main
from thresher.store.errors import StoreError
from thresher.train.models import ReluSae

N_PLANTED = 60


def _counted(run):
    encode(run.path)
    stats(run.path, StatsOptions(figures=False, min_labelled=1))
    return run


@pytest.fixture
def planted(make_store, make_run):
    """A run of 120 features, of which the first 60 are weak, rare and point nearly the same way."""
    run = make_run(make_store(n=400, d=16).path, 120, name="x7")
    weights = {name: tensor.clone() for name, tensor in run.sae.tensors().items()}
    generator = torch.Generator().manual_seed(1)
    one = torch.randn(16, generator=generator)
    near = one + 0.3 * torch.randn(N_PLANTED, 16, generator=generator)
    encoder = weights["W_enc"].T.contiguous()
    encoder[:N_PLANTED] = 0.004 * near
    b_enc = weights["b_enc"]
    b_enc[:N_PLANTED] = -0.012
    run.sae = ReluSae(encoder, b_enc, weights["W_dec"], weights["b_dec"])
    run.sae.save(run.path / "sae.safetensors")
    return _counted(run)


def test_a_planted_cluster_is_told_with_its_shares_its_coherence_and_its_part_of_the_largest_l0(planted, dense):
    (found,) = compare_runs([planted.path])
    f = dense(planted)["f"]
    is_weak = (np.arange(120) < N_PLANTED) & (f > 0).any(axis=0)
    assert found.n_uld == is_weak.sum()
    assert found.uld_of_firings == pytest.approx((f[:, is_weak] > 0).sum() / (f > 0).sum(), rel=1e-3)
    assert found.uld_of_mass == pytest.approx(f[:, is_weak].sum() / f.sum(), rel=1e-3)
    l0 = (f > 0).sum(axis=1)
    row = json.loads((planted.path / "stats.json").read_text())["max_l0_row"]
    assert found.max_l0 == l0.max() == l0[row]
    assert found.uld_of_max_l0 == pytest.approx((f[row, is_weak] > 0).sum() / l0[row])
    assert found.coherence > 0.8 > 3 * found.coherence_chance > 0
    assert abs(found.coherence_rest) < 0.1
    assert found.l0 == pytest.approx(l0.mean(), abs=0.01)


def test_runs_of_several_expansions_stand_side_by_side_by_size(planted, make_run, capsys):
    small = _counted(make_run(planted.store_path, 32, name="x2"))
    runs = compare_runs([planted.path, small.path, planted.path])
    assert [run.name for run in runs] == ["x2", "x7"]
    assert [run.expansion for run in runs] == [2, 7.5]
    assert (runs[0].n_uld, np.isnan(runs[0].coherence)) == (0, True)
    for run in runs:
        s = json.loads((run.path / "stats.json").read_text())
        assert (run.explained_variance, run.n_dead, run.max_l0) == (
            s["explained_variance"],
            s["n_dead"],
            s["l0"]["max"],
        )
        assert run.held_out_explained_variance == s["quality"]["heldout"]["explained_variance"]
    shown = CliRunner().invoke(main, ["compare", str(small.path), str(planted.path)]).output
    header, *lines = shown.splitlines()
    assert header.split() == ["x2", "x7"]
    cells = {line[:30].strip(): line[30:].split() for line in lines}
    assert cells["ULD features"][0] == "none"
    assert cells["features"] == ["32", "120"]
    document = json.loads(CliRunner().invoke(main, ["compare", str(small.path), "--json"]).output)
    assert document["runs"][0]["d_sae"] == 32
    assert document["runs"][0]["coherence"] is None


def test_runs_of_one_name_are_told_apart_by_their_folders(make_store, make_run, tmp_path):
    store = make_store(n=120).path
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        _counted(make_run(store, name=f"{folder}/run"))
    assert [run.name for run in compare_runs([tmp_path / "a/run", tmp_path / "b/run"])] == ["a/run", "b/run"]


def test_a_run_without_statistics_is_told_what_to_do(make_store, make_run):
    run = make_run(make_store(n=100).path)
    with pytest.raises(StoreError, match="run `thresher stats` first"):
        compare_runs([run.path])
