"""The coherence of a decoder and the count of features that hardly fire, against float64 numpy and by hand."""

import numpy as np
import pytest
import thresher.train.coherence as coherence
import torch
from thresher.train.coherence import decoder_coherence
from thresher.train.evaluation import count_almost_dead


def largest_cosines(decoder):
    """Of each row to any other, in float64."""
    unit = decoder / np.linalg.norm(decoder, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    return cosines.max(1)


@pytest.mark.parametrize("d_sae", [2, 37, 512])
def test_up_to_512_features_it_is_the_mean_of_all(d_sae):
    decoder = np.random.default_rng(d_sae).standard_normal((d_sae, 16))
    assert decoder_coherence(torch.from_numpy(decoder)) == pytest.approx(largest_cosines(decoder).mean(), rel=1e-5)


def test_of_more_features_a_sample_is_held_against_all_in_any_blocks(monkeypatch):
    decoder = np.random.default_rng(0).standard_normal((3000, 8))
    drawn = np.random.default_rng(0).choice(3000, 512, replace=False)  # as the page of definitions says: a fixed seed
    expected = largest_cosines(decoder)[drawn].mean()
    for block in (7, 1000, 8192):
        monkeypatch.setattr(coherence, "_BLOCK", block)
        assert decoder_coherence(torch.from_numpy(decoder)) == pytest.approx(expected, rel=1e-5)


def test_directions_by_hand():
    eye = torch.eye(5)
    assert decoder_coherence(eye) == 0
    assert decoder_coherence(torch.cat([eye, 3 * eye])) == pytest.approx(1)  # each is there twice
    assert decoder_coherence(torch.tensor([[1.0, 0], [-1, 0]])) == pytest.approx(-1)
    assert decoder_coherence(torch.tensor([[1.0, 0], [1, 1], [0, 0]])) == pytest.approx(2 * 0.5**0.5 / 3)
    assert np.isnan(decoder_coherence(torch.ones(1, 4)))


def test_almost_dead_is_below_one_row_in_ten_thousand():
    n_active = torch.tensor([0, 1, 2, 3, 4, 30_000])
    assert count_almost_dead(n_active, 30_000) == 3  # 3 of 30,000 is 1 in 10,000, not below it
    assert count_almost_dead(n_active, 30_001) == 4
    assert count_almost_dead(n_active, 9_999) == 1
    assert count_almost_dead(n_active, 10_001) == 2
    assert count_almost_dead(n_active, 0) == 0
