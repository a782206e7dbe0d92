"""Pictures optimised on a tower whose concepts are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from planted_clip import GRID, PATCH, WORDS, Planted, _patterns
from thresher.analysis.visualising import optimise as module
from thresher.analysis.visualising.optimise import Start, crops_of, optimise, pictures_at_once
from thresher.analysis.visualising.options import VisualiseOptions
from thresher.analysis.visualising.parametrise import total_variation
from thresher.analysis.visualising.spectrum import ImageSpectrum, image_spectrum
from thresher.train.models import ReluSae

STEPS = {"maco": 120, "fourier": 40}
OPTIONS = VisualiseOptions(crops=2, smoothness=0.01)
FAST = replace(OPTIONS, method="fourier", lr=0.05)

COLOURED = (0, 1)
"""Concepts that are an even colour: found wherever a crop lies. The others stand in step with the patches."""


@pytest.fixture(scope="module")
def spectrum(probed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("spectrum")
    return image_spectrum(folder, probed.store, probed.probe.exact, (48, 48), workers=0)


@pytest.fixture
def in_place(monkeypatch):
    """Crops are the whole picture."""
    monkeypatch.setattr(module, "SIDES_FIRST", (1.0, 1.0))
    monkeypatch.setattr(module, "SIDES_LAST", (1.0, 1.0))
    monkeypatch.setattr(module, "JITTER", 0.0)


def concepts_of(pixels):
    """How much of each concept's pattern the patches of a picture hold, on average: `(K,)`."""
    patches = (pixels / 255 - 0.5).reshape(GRID, PATCH, GRID, PATCH, 3).transpose(0, 2, 1, 3, 4)
    patterns = _patterns()[: len(WORDS)]
    return np.einsum("ijyxc,kyxc->k", patches, patterns / (patterns**2).sum((1, 2, 3), keepdims=True)) / GRID**2


def seen(probed, pictures):
    return np.stack([probed.probe.view(Image.fromarray(each)) for each in pictures])


@pytest.mark.parametrize("method", ["maco", "fourier"])
def test_with_the_patches_in_place_every_feature_s_picture_holds_its_concept(probed, tmp_path, in_place, method):
    spectrum = image_spectrum(tmp_path, probed.store, probed.probe.exact, (32, 32), workers=0)
    starts = [Start(feature, 0) for feature in range(len(WORDS))]
    options = replace(FAST if method == "fourier" else OPTIONS, steps=STEPS[method])
    pictures = seen(probed, optimise(probed.probe, starts, spectrum, (32, 32), options))
    activations = np.delete(probed.probe.activations(pictures), Planted.always, axis=1)
    for feature in range(len(WORDS)):
        held = concepts_of(pictures[feature])
        if method == "fourier":
            assert activations[feature].argmax() == feature
            assert activations[feature, feature] > 2 * probed.probe.largest[feature]
            assert held[feature] > 2 * np.abs(np.delete(held, feature)).max()
        else:  # the spectrum, that of pictures with every concept, leaves less room; random phases hold 0.00 to 0.02
            assert held[feature] > 0.03
            assert activations[feature, feature] > 0.2 * probed.probe.largest[feature]


@pytest.mark.parametrize("method", ["maco", "fourier"])
def test_the_picture_of_a_colour_has_it_although_crops_move(probed, spectrum, method):
    starts = [Start(feature, 0) for feature in COLOURED]
    options = replace(OPTIONS, method=method, steps=40)
    before = seen(probed, optimise(probed.probe, starts, spectrum, (48, 48), replace(options, steps=1)))
    after = seen(probed, optimise(probed.probe, starts, spectrum, (48, 48), options))
    for feature in COLOURED:
        assert concepts_of(after[feature]).argmax() == feature
        begun, made = (probed.probe.activations(each)[feature, feature] for each in (before, after))
        # not by how much it rises: a spectrum bounds where it ends, and a picture may begin high by chance
        assert made > max(0.4 * probed.probe.largest[feature], 1.5 * begun)


def test_a_picture_depends_neither_on_those_beside_it_nor_on_how_many_crops_pass_together(probed, spectrum):
    options = replace(OPTIONS, steps=3, crops=3)
    starts = [Start(0, 0), Start(0, 1), Start(5, 0)]
    together = optimise(probed.probe, starts, spectrum, (48, 48), options)
    for start, picture in zip(starts, together, strict=True):
        alone = optimise(probed.probe, [start], spectrum, (48, 48), replace(options, batch_size=2))[0]
        assert np.abs(alone.astype(int) - picture).max() <= 1
    assert np.abs(together[0].astype(int) - together[1]).max() > 50  # another seed, another picture


def test_a_picture_that_begins_with_an_image_stays_near_it(probed, spectrum):
    image = (np.add.outer(np.arange(48), np.arange(48))[..., None] * np.ones(3) * 2).astype(np.uint8)
    options = replace(OPTIONS, method="maco", steps=1, lr=1e-4)
    found = optimise(probed.probe, [Start(0, 0, image)], spectrum, (48, 48), options)[0]
    kept = np.clip(image, 0.02 * 255, 0.98 * 255)  # what the logit is taken of
    assert np.abs(found.astype(float) - kept).max() <= 3


def test_the_objective_rises_where_the_feature_begins_far_off(probed, spectrum):
    sae = probed.probe.sae
    far = sae.b_enc.index_fill(0, torch.tensor([0]), -5.0)  # no picture of the run excites it
    probe = probed.probe.with_sae(ReluSae(sae.encoder, far, sae.decoder, sae.b_dec))
    begun = optimise(probe, [Start(0, 0)], spectrum, (48, 48), replace(FAST, steps=1))
    made = optimise(probe, [Start(0, 0)], spectrum, (48, 48), replace(FAST, steps=40))
    assert probe.activations(seen(probed, begun))[0, 0] == 0
    assert probe.activations(seen(probed, made))[0, 0] > 0


def crops(images, progress, **given):
    options = VisualiseOptions(**{"noise": 0.0, "crops": 64, **given})
    return crops_of(images, [torch.Generator().manual_seed(0)], (32, 32), progress, options)


def test_crops_shrink_as_steps_go_by_and_never_leave_the_picture(monkeypatch):
    monkeypatch.setattr(module, "COLOUR", 0.0)
    ramp = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
    spans = {}
    for progress in (0.0, 1.0):
        found = crops(ramp, progress)
        assert found.shape == (64, 3, 32, 32)
        assert 0 <= found.min() <= found.max() <= 1
        spans[progress] = (found.amax((1, 2, 3)) - found.amin((1, 2, 3))).numpy()
    # the ramp runs from 0 to 1 over the picture: a crop of side s spans s, but for half a pixel at either end
    assert spans[0.0].min() > 0.8
    assert spans[0.0].max() <= 1
    assert 0.5 < spans[1.0].min() < 0.7
    assert 0.85 < spans[1.0].max() < 0.97


def test_noise_and_colour_have_the_sizes_asked_for(monkeypatch):
    even = torch.full((1, 3, 48, 48), 0.5)
    shift = crops(even, 0.5).mean((2, 3)) - 0.5
    assert 0.04 < shift.abs().max() <= module.COLOUR + 1e-6
    monkeypatch.setattr(module, "COLOUR", 0.0)
    assert crops(even, 0.5, noise=0.2).std() == pytest.approx(0.2, rel=0.02)


def test_a_batch_holds_as_many_pictures_as_their_crops_fill():
    assert [pictures_at_once(VisualiseOptions(batch_size=32, crops=crops)) for crops in (1, 4, 5, 32, 100)] == [
        32,
        8,
        6,
        1,
        1,
    ]


def test_an_all_grey_spectrum_makes_finite_pictures(probed, spectrum):
    none = ImageSpectrum(np.zeros_like(spectrum.magnitude), spectrum.colours, 2)
    found = optimise(probed.probe, [Start(0, 0)], none, (48, 48), replace(OPTIONS, steps=2))
    assert found.shape == (1, 48, 48, 3)
    assert np.ptp(found, axis=(1, 2)).max() == 0


def test_total_variation_is_the_mean_gradient_times_the_side():
    images = np.random.default_rng(0).uniform(size=(2, 3, 6, 8))
    expected = [
        min(6, 8) * np.mean([np.hypot(np.diff(c, axis=0)[:, :-1], np.diff(c, axis=1)[:-1]) for c in image])
        for image in images
    ]
    np.testing.assert_allclose(total_variation(torch.from_numpy(images)).numpy(), expected, rtol=1e-4)
    edge = torch.zeros(1, 3, 64, 64)
    edge[..., 32:] = 1  # one edge across: its length in sides, 1, at any size
    assert total_variation(edge).item() == pytest.approx(1, abs=0.1)
    assert total_variation(edge[:, :, ::2, ::2]).item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("method", ["maco", "fourier"])
def test_smoothness_takes_the_grain_out(probed, spectrum, method):
    options = replace(OPTIONS, method=method, steps=20)
    rough, smooth = (
        optimise(probed.probe, [Start(0, 0)], spectrum, (48, 48), replace(options, smoothness=weight))
        for weight in (0.0, 0.3)
    )
    variation = [total_variation(torch.from_numpy(each).permute(0, 3, 1, 2) / 255).item() for each in (rough, smooth)]
    assert variation[1] < 0.8 * variation[0]


def test_a_dead_feature_s_unit_is_the_usual_one(probed):
    units = module._units(probed.probe)
    largest = probed.probe.largest
    assert units[13] == pytest.approx(np.median(largest[largest > 0]))
    assert units[0] == largest[0]
    assert (module._units(probed.probe.with_sae(probed.probe.sae, np.zeros_like(largest))) == 1).all()
