"""The coefficient of a sparsity penalty: its warm-up, and that it holds a target L0."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from thresher.train.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from thresher.train.initialise import new_sae
from thresher.train.l0 import L0Summary
from thresher.train.metrics import ReconstructionResult
from thresher.train.objective import Objective
from thresher.train.optimiser import AdamSettings, UnitNormAdam, learning_rate
from thresher.train.options import TrainOptions
from thresher.train.outcome import missed_target
from thresher.train.penalty import SparsityPenalty
from thresher.train.step import compute_step

D, F = 24, 96


def planted(n: int, seed: int) -> torch.Tensor:
    """Sums of about 5 of 64 directions, `(n, 24)`, of unit deviation."""
    directions = np.random.default_rng(0).standard_normal((64, D))
    rng = np.random.default_rng(seed)
    rows = (rng.exponential(1.0, (n, 64)) * (rng.random((n, 64)) < 0.08)) @ directions
    return torch.from_numpy(((rows - rows.mean(0)) / rows.std(0)).astype(np.float32))


def options_of(variant: str, **more: object) -> TrainOptions:
    return TrainOptions(variant=variant, expansion=F / D, warmup=20, batch_size=256, rows=256 * 900, lr=2e-3, **more)


def a_state(options: TrainOptions) -> TrainingState:
    sae = new_sae(options, D)
    adam = UnitNormAdam(sae, AdamSettings(unit_norm=not options.decoder_norm))
    return TrainingState(sae, adam, torch.zeros(F, dtype=torch.int64), SparsityPenalty(options))


def go_on(state: TrainingState, options: TrainOptions, stop: int, rows: torch.Tensor) -> list[float]:
    """Train to step `stop`; L0 of each batch."""
    objective = Objective(
        error=options.resolved_error, decoder_norm=options.decoder_norm, bandwidth=options.bandwidth, dead="none"
    )
    seen = []
    while state.step < stop:
        x = rows[torch.randint(len(rows), (256,), generator=torch.Generator().manual_seed(state.step))]
        result = compute_step(state.sae, x, None, replace(objective, sparsity=state.penalty.at(state.step)))
        state.adam.update(state.sae, result.gradients, learning_rate(state.step, options))
        state.penalty.observe(result.l0)
        state.step += 1
        seen.append(float(result.l0))
    return seen


@pytest.mark.parametrize(
    ("variant", "more", "target"),
    [
        ("relu", {}, 6.0),
        ("relu", {"decoder_norm": True}, 12.0),
        ("gated", {}, 12.0),
        ("jumprelu", {}, 4.0),
        ("jumprelu", {}, 6.0),
        ("jumprelu", {}, 24.0),
    ],
)
def test_a_target_l0_is_reached_and_held_on_rows_that_were_not_trained_on(variant, more, target):
    options = options_of(variant, target_l0=target, **more)
    state = a_state(options)
    seen = go_on(state, options, options.steps, planted(8000, 1))
    held_out = float((state.sae.encode(planted(4000, 2)) > 0).sum(1).double().mean())
    assert held_out == pytest.approx(target, rel=0.05)
    assert np.mean(seen[-50:]) == pytest.approx(target, rel=0.05)


def test_thresholds_that_are_too_high_come_down_to_a_target():
    low, high = (options_of("jumprelu", target_l0=target) for target in (4.0, 30.0))
    state, rows = a_state(low), planted(8000, 1)
    assert np.mean(go_on(state, low, 500, rows)[-50:]) < 5
    free = replace(low, target_l0=None, l0_penalty=0.0)
    unpenalised = a_state(free)
    for name, tensor in unpenalised.sae.tensors().items():
        tensor.copy_(state.sae.tensors()[name])
    unpenalised.step, state.penalty = state.step, SparsityPenalty(high)
    # No penalty at all leaves them too high; only one that is below 0 lowers them.
    assert np.mean(go_on(unpenalised, free, 900, rows)[-50:]) < 24
    assert np.mean(go_on(state, high, 900, rows)[-50:]) == pytest.approx(30, rel=0.1)


def test_the_rule_of_jumprelu_by_hand():
    penalty = SparsityPenalty(options_of("jumprelu", target_l0=10.0, l0_penalty=1e-3))
    penalty.observe(torch.tensor(20.0))
    multiplier = 1e-3 * (1 + 0.05 * math.log(2))
    assert float(penalty.at(1)) == pytest.approx(multiplier * (1 + 10 * math.log(2)), rel=1e-5)
    for _ in range(2000):
        penalty.observe(torch.tensor(5.0))
    assert float(penalty.at(2001)) < -1e-3  # it goes on falling while L0 is too low
    far = SparsityPenalty(options_of("jumprelu", target_l0=10.0, l0_penalty=1e-3))
    far.observe(torch.tensor(1000.0))
    assert float(far.at(1)) == pytest.approx(1e-3 * 1.002 * 11, rel=1e-5)


def test_a_coefficient_that_starts_at_zero_can_rise():
    penalty = SparsityPenalty(options_of("relu", target_l0=8.0, l1=0.0))
    penalty.observe(torch.tensor(80.0))
    assert 0 < float(penalty.at(0)) < 1e-7


@pytest.mark.parametrize("variant", ["gated", "jumprelu"])
def test_a_resumed_penalty_goes_on_bit_for_bit(variant, tmp_path):
    options, rows = options_of(variant, target_l0=8.0), planted(2000, 1)
    whole = a_state(options)
    go_on(whole, options, 60, rows)
    first, second = a_state(options), a_state(options)
    go_on(first, options, 30, rows)
    load_checkpoint(save_checkpoint(tmp_path, first), second, 1000)
    go_on(second, options, 60, rows)
    for name, tensor in whole.tensors().items():
        assert torch.equal(second.tensors()[name], tensor), name
    assert {"penalty.coefficient", "penalty.l0"} <= set(whole.tensors())
    assert ("penalty.multiplier" in whole.tensors()) == (variant == "jumprelu")


def test_the_rule_by_hand():
    options = options_of("relu", target_l0=10.0, l1=1e-3)
    penalty = SparsityPenalty(options)
    penalty.observe(torch.tensor(20.0))
    assert float(penalty.at(1)) == pytest.approx(1e-3 * 2**0.02, rel=1e-5)  # no change is known yet
    penalty.observe(torch.tensor(20.0))
    assert float(penalty.at(2)) == pytest.approx(1e-3 * 4**0.02, rel=1e-5)
    penalty.observe(torch.tensor(10.0))
    # The running mean, of memory 0.9: (0.081 + 0.09) x 20 + 0.1 x 10 over their weights.
    mean = (20 * (0.081 + 0.09) + 10 * 0.1) / (0.081 + 0.09 + 0.1)
    expected = 1e-3 * 4**0.02 * (mean / 10) ** 0.02 * (mean / 20) ** 2
    assert float(penalty.at(3)) == pytest.approx(expected, rel=1e-5)
    before = float(penalty.at(3))
    for _ in range(3):
        penalty.observe(torch.tensor(0.0))  # nothing is active: it falls, and stays a number
    assert 0 < float(penalty.at(6)) < before


def test_the_coefficient_warms_up_from_zero_whether_it_adapts_or_not():
    for target in (None, 10.0):
        penalty = SparsityPenalty(options_of("relu", l1=4e-3, sparsity_warmup=4, target_l0=target))
        assert [float(penalty.at(step)) for step in range(6)] == pytest.approx([0, 1e-3, 2e-3, 3e-3, 4e-3, 4e-3])


def test_a_given_coefficient_does_not_move():
    penalty = SparsityPenalty(options_of("relu", l1=4e-3))
    penalty.observe(torch.tensor(1000.0))
    assert penalty.at(1) == 4e-3
    assert penalty.tensors() == {}


def test_a_target_that_was_not_held_is_told(tmp_path):
    def held(l0: float) -> ReconstructionResult:
        summary = L0Summary(mean=l0, median=l0, p99=l0, max=40)
        return ReconstructionResult(100, 1.0, 1.0, 0.5, 0.5, 1.0, summary, summary)

    assert missed_target(tmp_path, None, held(5.0), math.nan) is None
    assert missed_target(tmp_path, 24.0, None, 24.0) is None
    assert missed_target(tmp_path, 24.0, held(26.0), 24.0) is None
    said = missed_target(tmp_path, 24.0, held(15.2), 15.0)
    assert said is not None
    assert "--target-l0 24 was not held, L0 is 15.2 on held-out rows" in said
    fitted = missed_target(tmp_path, 24.0, held(31.0), 24.3)
    assert fitted is not None
    assert "--target-l0 24 was held in training, where L0 is 24.3, but it is 31.0 on held-out rows" in fitted
