"""Fourier pictures against numpy's own transforms."""

import numpy as np
import pytest
import torch
from thresher.analysis.visualising.parametrise import Colours, Pictures, make_pictures

COLOURS = Colours(
    np.array([0.5, -0.3, 0.1], np.float32),
    np.array([[1.0, 0.3, 0.1], [0.3, 0.8, 0.2], [0.1, 0.2, 0.6]], np.float32),
)
SIZES = [(8, 8), (9, 12), (12, 9), (7, 7), (1, 6)]


def generators(n):
    return [torch.Generator().manual_seed(seed) for seed in range(n)]


def decorrelated(images):
    """The definition, in float64: W^-1 (logit(p) - m)."""
    p = images.detach().double().numpy()
    return np.einsum(
        "cd,ndhw->nchw",
        np.linalg.inv(COLOURS.mixing.astype(np.float64)),
        np.log(p / (1 - p)) - COLOURS.mean.astype(np.float64)[:, None, None],
    )


def own_conjugates(height, width):
    return [(y, x) for y in ([0] if height % 2 else [0, height // 2]) for x in ([0] if width % 2 else [0, width // 2])]


@pytest.mark.parametrize("size", SIZES)
def test_a_maco_picture_has_the_given_magnitude_at_every_frequency(size):
    height, width = size
    magnitude = np.random.default_rng(0).uniform(0.1, 1, (3, height, width // 2 + 1)).astype(np.float32)
    # the magnitudes of a real picture are symmetric where half a spectrum holds both of a pair
    for x in [0] if width % 2 else [0, width // 2]:
        magnitude[:, :, x] = (magnitude[:, :, x] + np.roll(magnitude[:, ::-1, x], 1, 1)) / 2
    images = make_pictures("maco", size, magnitude, COLOURS, generators(2)).images()
    assert images.shape == (2, 3, height, width)
    found = np.abs(np.fft.rfft2(decorrelated(images)))
    free = np.ones((height, width // 2 + 1), bool)
    for place in own_conjugates(height, width):
        free[place] = False
        assert (found[:, :, *place] <= magnitude[:, *place] * (1 + 1e-4) + 1e-5).all()
    np.testing.assert_allclose(
        found[:, :, free], np.broadcast_to(magnitude[:, free], found[:, :, free].shape), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("method", ["maco", "fourier"])
@pytest.mark.parametrize("size", SIZES)
def test_a_picture_is_the_inverse_transform_of_its_spectrum_whose_lost_half_is_its_conjugate(method, size):
    pictures = make_pictures(method, size, np.ones((3, size[0], size[1] // 2 + 1), np.float32), COLOURS, generators(1))
    half = pictures.spectrum().detach().numpy().astype(np.complex128)
    expected = np.fft.irfft2(half, s=size)
    np.testing.assert_allclose(decorrelated(pictures.images()), expected, atol=2e-5)
    if method == "maco":  # nothing of it is lost: it is the transform of that picture
        np.testing.assert_allclose(np.fft.rfft2(expected), half, atol=1e-5)


@pytest.mark.parametrize("method", ["maco", "fourier"])
@pytest.mark.parametrize("size", [(8, 10), (9, 7)])
def test_pictures_begin_with_the_images_given(method, size):
    images = torch.from_numpy(np.random.default_rng(1).uniform(0.05, 0.95, (2, 3, *size)).astype(np.float32))
    begun = make_pictures(method, size, np.zeros((3, size[0], size[1] // 2 + 1)), COLOURS, generators(2), images)
    np.testing.assert_allclose(begun.images().detach().numpy(), images.numpy(), atol=1e-4)


def test_only_phases_move_in_maco():
    magnitude = np.random.default_rng(0).uniform(0.1, 1, (3, 6, 4)).astype(np.float32)
    pictures = make_pictures("maco", (6, 6), magnitude, COLOURS, generators(1))
    before = pictures.spectrum().detach().abs()
    optimiser = torch.optim.Adam([pictures.values], lr=0.1)
    for _ in range(5):
        optimiser.zero_grad()
        pictures.images()[:, 0].square().sum().backward()
        optimiser.step()
    free = np.ones((6, 4), bool)
    for place in own_conjugates(6, 6):
        free[place] = False
    after = pictures.spectrum().detach().abs()
    np.testing.assert_allclose(after.numpy()[:, :, free], before.numpy()[:, :, free], rtol=1e-5)


def test_a_plain_picture_s_coefficients_fall_with_frequency():
    pictures = make_pictures("fourier", (16, 16), np.zeros((3, 16, 9)), COLOURS, generators(1))
    with torch.no_grad():
        pictures.values[:] = torch.tensor([1.0, 0.0])
    found = pictures.spectrum()[0, 0].real.detach().numpy()
    fy, fx = np.meshgrid(np.fft.fftfreq(16), np.fft.rfftfreq(16), indexing="ij")
    expected = 16 / np.maximum(np.hypot(fy, fx), 1 / 16)  # sqrt(16 x 16) / max(|k|, 1 / 16)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_picture_s_gradient_is_that_of_finite_differences():
    magnitude = np.random.default_rng(0).uniform(0.1, 1, (3, 4, 3))
    colours = Colours(COLOURS.mean.astype(np.float64), COLOURS.mixing.astype(np.float64))

    def picture(values):
        return Pictures(values, torch.from_numpy(magnitude), 4, colours).images()

    values = torch.rand(1, 3, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 6
    assert torch.autograd.gradcheck(picture, values.requires_grad_())


def test_a_picture_does_not_depend_on_those_beside_it():
    magnitude = np.ones((3, 6, 4), np.float32)
    three = make_pictures("maco", (6, 6), magnitude, COLOURS, generators(3)).images()
    last = make_pictures("maco", (6, 6), magnitude, COLOURS, generators(3)[2:]).images()
    assert torch.equal(three[2:], last)


def test_pure_black_and_white_have_finite_logits():
    images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    again = COLOURS.correlate(COLOURS.decorrelate(images))
    np.testing.assert_allclose(again.numpy(), np.where(images.numpy() > 0, 0.98, 0.02), atol=1e-5)
