"""The spectrum of images against numpy in float64, and its cache."""

import json

import numpy as np
import pytest
from thresher.analysis.visualising.spectrum import SPECTRUM_JSON, SPECTRUM_NPY, image_spectrum, measured
from thresher.progress import Reporter


def batches(images, size=3):
    return lambda: (images[start : start + size] for start in range(0, len(images), size))


def test_the_spectrum_is_the_mean_magnitude_of_decorrelated_logits():
    images = np.random.default_rng(0).integers(0, 256, (7, 6, 8, 3), dtype=np.uint8)
    found = measured(batches(images), Reporter(), 7)
    p = np.clip(images.astype(np.float64) / 255, 0.02, 0.98)
    logits = np.log(p / (1 - p))
    flat = logits.reshape(-1, 3)
    np.testing.assert_allclose(found.colours.mean, flat.mean(0), atol=1e-5)
    covariance = np.cov(flat.T, bias=True)
    np.testing.assert_allclose(found.colours.mixing @ found.colours.mixing, covariance, rtol=1e-4, atol=1e-5)
    u = np.einsum("cd,nhwd->nchw", np.linalg.inv(found.colours.mixing.astype(np.float64)), logits - flat.mean(0))
    np.testing.assert_allclose(found.magnitude, np.abs(np.fft.rfft2(u)).mean(0), rtol=1e-3, atol=1e-3)
    assert found.n_images == 7
    down, right = np.diff(images / 255, axis=1)[:, :, :-1], np.diff(images / 255, axis=2)[:, :-1]
    assert found.variation == pytest.approx(6 * np.hypot(down, right).mean(), rel=1e-4)  # 6 is the shorter side
    np.testing.assert_allclose(np.cov(u.transpose(1, 0, 2, 3).reshape(3, -1), bias=True), np.eye(3), atol=1e-4)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_images_of_one_grey_have_a_spectrum(value):
    found = measured(batches(np.full((2, 4, 4, 3), value, np.uint8)), Reporter(), 2)
    assert np.isfinite(found.magnitude).all()
    assert np.isfinite(np.linalg.inv(found.colours.mixing)).all()


@pytest.fixture
def store(planted):
    from thresher.store.reader import open_store

    return open_store(planted.store_path)


def test_a_kept_spectrum_is_read_until_the_size_or_the_store_is_another(planted, store, probed, tmp_path):
    tower = probed.probe.exact
    first = image_spectrum(tmp_path, store, tower, (48, 48), workers=0)
    assert first.magnitude.shape == (3, 48, 25)
    assert first.n_images == store.n_rows
    gone = planted.pictures.rename(planted.pictures.with_name("moved"))
    try:
        again = image_spectrum(tmp_path, store, tower, (48, 48), workers=0)
        assert np.array_equal(again.magnitude, first.magnitude)
        assert np.array_equal(again.colours.mixing, first.colours.mixing)
        assert again.variation == first.variation
        with pytest.raises(FileNotFoundError):
            image_spectrum(tmp_path, store, tower, (40, 40), workers=0)
        other = image_spectrum(tmp_path, store, tower, (40, 40), images=gone, workers=0)
        assert other.magnitude.shape == (3, 40, 21)
    finally:
        gone.rename(planted.pictures)


@pytest.mark.parametrize("name", [SPECTRUM_NPY, SPECTRUM_JSON])
def test_a_damaged_cache_is_made_anew(store, probed, tmp_path, name):
    first = image_spectrum(tmp_path, store, probed.probe.exact, (32, 32), workers=0)
    (tmp_path / name).write_bytes(b"rubbish")
    again = image_spectrum(tmp_path, store, probed.probe.exact, (32, 32), workers=0)
    assert np.array_equal(again.magnitude, first.magnitude)
    assert json.loads((tmp_path / SPECTRUM_JSON).read_text())["n_images"] == first.n_images
