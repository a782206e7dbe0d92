import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import thresher
import torch
from thresher.train.run_dir import open_run

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def test_every_public_name_is_on_its_page_or_a_type():
    page = PAGE.read_text()
    types = {
        "ActivationStore",
        "Classes",
        "Evaluation",
        "FidelityResult",
        "NameResult",
        "Run",
        "SparseAutoencoder",
        "StoredStatistics",
        "Tower",
        "TrainResult",
        "VisualiseResult",
        "__version__",
    }
    for name in set(thresher.__all__) - types:
        assert f"thresher.{name}" in page, name


def test_names_load_what_they_need_and_no_more():
    code = (
        "import sys, thresher; print('numpy' in sys.modules);"
        "thresher.Site, thresher.TrainOptions, thresher.open_store;"
        "print('torch' in sys.modules); print([name for name in thresher.__all__ if getattr(thresher, name) is None])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "False", "[]"], done.stderr


def test_an_sae_is_trained_and_used_without_the_command_line(make_store, tmp_path):
    rows = np.random.default_rng(0).standard_normal((400, 12))
    made = make_store(400, 12, rows=rows, dtype="float32")
    given = {"k": 3, "expansion": 2, "batch_size": 32, "device": "cpu", "checkpoint_every": 5}
    result = thresher.train_sae(made.path, tmp_path / "run", rows=640, **given)
    assert (result.steps, result.d_in, result.d_sae, result.spliced) == (20, 12, 24, None)
    sae, store = thresher.load_sae(tmp_path / "run"), thresher.open_store(made.path)
    x = store.activations().tensor(store.activations().read_positions(*store.split("heldout")))
    f = sae.encode(x)
    assert int((f > 0).sum(1).max()) <= 3
    mse = float((sae.decode(f, x) - x).square().mean())
    assert result.held_out.mse == pytest.approx(mse, rel=1e-5)
    assert torch.equal(sae(x), sae.decode(f, x))
    assert thresher.open_run(tmp_path / "run").options.rows == 640


def test_a_run_is_resumed_with_its_own_options(make_store, tmp_path):
    made = make_store(400, 12, dtype="float32")
    given = {"k": 3, "expansion": 2, "batch_size": 32, "device": "cpu", "rows": 640}
    thresher.train_sae(made.path, tmp_path / "run", **given)
    assert thresher.train_sae(made.path, tmp_path / "run", resume=True).was_finished
    with pytest.raises(ValueError, match="--loader-memory"):
        thresher.train_sae(made.path, tmp_path / "run", resume=True, loader_memory=-1)
    assert open_run(tmp_path / "run").is_finished


def test_an_option_that_there_is_none_of_or_that_does_not_fit_is_named(make_store, tmp_path):
    made = make_store(300, 12)
    with pytest.raises(TypeError, match="expantion"):
        thresher.train_sae(made.path, tmp_path / "run", expantion=2)
    with pytest.raises(ValueError, match=r"--l1 .* is for variant relu"):
        thresher.train_sae(made.path, tmp_path / "run", l1=1e-3)
    assert not (tmp_path / "run").exists()
