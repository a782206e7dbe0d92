"""What foretells dead features, and when `train` says so."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from thresher.progress import Reporter
from thresher.store.survey import OFF_CENTRE
from thresher.train.early_warning import off_centre, off_centre_warning
from thresher.train.initialise import decoder_bias
from thresher.train.loop import train
from thresher.train.options import TrainOptions

OPTIONS = TrainOptions(
    k=4, expansion=8, lr=3e-3, warmup=10, batch_size=64, rows=64 * 60, device="cpu", dead_after_rows=640,
    normalize="none", b_dec_init="zero",
)  # fmt: skip


class Warned(Reporter):
    def __init__(self):
        self.warnings = []

    def warn(self, text):
        self.warnings.append(text)


def test_the_distance_from_the_bias_in_deviations_is_numpys():
    rng = np.random.default_rng(0)
    z, bias = rng.standard_normal((300, 7)) * 3 + 5, rng.standard_normal(7)
    wanted = np.linalg.norm(z.mean(0) - bias) / np.sqrt(((z - z.mean(0)) ** 2).sum(1).mean())
    assert off_centre(torch.from_numpy(z), torch.from_numpy(bias)) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("kind", ["mean", "geometric-median"])
@pytest.mark.parametrize("shift", [0, 1e4])
def test_a_bias_at_the_mean_or_the_median_is_never_off_centre(kind, shift):
    rng = np.random.default_rng(1)
    z = torch.from_numpy(rng.standard_normal((400, 3)) ** 5 + shift)  # heavy tails part the two
    assert off_centre(z, decoder_bias(z, kind)) <= OFF_CENTRE
    assert off_centre_warning(z, decoder_bias(z, kind)) is None


@pytest.mark.parametrize(("ratio", "warns"), [(0.9, False), (1.1, True), (30, True)])
def test_the_threshold_is_a_mean_as_large_as_the_deviation(ratio, warns):
    z = torch.tensor([[1.0, 0], [-1, 0]], dtype=torch.float64) + torch.tensor([0, ratio])
    assert (off_centre_warning(z, torch.zeros(2)) is not None) == warns


@pytest.fixture
def store_around(make_store):
    """A factory of stores whose mean row is `ratio` times the rows' deviation."""

    def make(ratio):
        rng = np.random.default_rng(2)
        rows = rng.standard_normal((2000, 16))
        mean = np.full(16, ratio)  # its norm is ratio x 4, the deviation 4
        return make_store(2000, 16, rows=rows + mean, dtype="float32", rows_per_chunk=500, thumbnails=False).path

    return make


@pytest.mark.parametrize("normalize", ["none", "expected-norm"])
def test_training_far_from_the_mean_warns_with_the_remedy_and_the_remedy_saves_the_features(
    store_around, tmp_path, normalize
):
    store, options = store_around(4.0), replace(OPTIONS, normalize=normalize)
    reporter = Warned()
    result = train(options, store, tmp_path / "run", reporter)
    (warning,) = reporter.warnings
    assert "4.0 times" in warning
    assert "--normalize standardize" in warning
    assert "--b-dec-init mean" in warning
    assert warning in (tmp_path / "run/log.txt").read_text()
    assert result.n_dead > 0.3 * result.d_sae
    for i, remedy in enumerate(({"normalize": "standardize"}, {"b_dec_init": "mean"})):
        reporter = Warned()
        result = train(replace(options, **remedy), store, tmp_path / f"remedy {i}", reporter)
        assert reporter.warnings == []
        assert result.n_dead < 0.05 * result.d_sae


def test_training_near_the_mean_does_not_warn(store_around, tmp_path):
    reporter = Warned()
    train(OPTIONS, store_around(0.2), tmp_path / "run", reporter)
    assert reporter.warnings == []


def test_a_store_that_mixes_badly_is_told_with_what_it_would_take(make_store, tmp_path):
    store = make_store(6000, 16, order="source", rows_per_chunk=1000, thumbnails=False, codec="zstd").path
    reporter = Warned()
    train(
        replace(OPTIONS, rows=128, warmup=0, loader_memory=2e-5, b_dec_init="mean"), store, tmp_path / "run", reporter
    )
    (warning,) = reporter.warnings
    assert "order of their source" in warning
    assert "--loader-memory" in warning
    assert warning in (tmp_path / "run/log.txt").read_text()
