"""Pictures as functions of their Fourier coefficients, which an optimiser moves.

A picture of colours p, each from 0 to 1, is u = W^-1 (logit(p) - m): its logits, less the mean m that images have,
decorrelated by the square root W of their covariance. U = rfft2(u), per channel.

- `maco`: U = S exp(i phi), with S fixed and the phases phi free (Fel et al. 2023, arXiv:2306.06805). S is the mean
  magnitude of the user's own images, so that every picture has the spectrum of an image: no high-frequency noise can
  be made to excite a feature. Or S is a start image's own.
- `fourier`: U = s(k) c, with complex c free and s(k) = 1 / max(|k|, 1 / size), as lucid's (Olah et al. 2017).

Shapes: n pictures, H x W pixels, K = W // 2 + 1 columns of half a spectrum.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_DARKEST = 0.02  # before the logit, which is infinite at 0 and 1; 5 of 255
_FIRST_SD = 0.01  # of plain coefficients before they are optimised: lucid's, a nearly even grey


@dataclass(frozen=True)
class Colours:
    """How the colours of images are spread, in logits.

    Parameters
    ----------
    mean
        `(3,)`.
    mixing
        `(3, 3)` W: the symmetric square root of their covariance.
    """

    mean: NDArray[np.float32]
    mixing: NDArray[np.float32]

    def decorrelate(self, images: Tensor) -> Tensor:
        """Logits `(n, 3, H, W)` that are decorrelated, u, of pictures from 0 to 1."""
        logits = images.clamp(_DARKEST, 1 - _DARKEST).logit()
        mean, mixing = self._on(images)
        return torch.einsum("cd,ndhw->nchw", torch.linalg.inv(mixing), logits - mean)

    def correlate(self, u: Tensor) -> Tensor:
        """Pictures from 0 to 1 of u; what `decorrelate` undoes, but for its clamping."""
        mean, mixing = self._on(u)
        return (torch.einsum("cd,ndhw->nchw", mixing, u) + mean).sigmoid()

    def _on(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean = torch.as_tensor(self.mean, dtype=like.dtype, device=like.device).view(3, 1, 1)
        return mean, torch.as_tensor(self.mixing, dtype=like.dtype, device=like.device)


class Pictures:
    """Some pictures, and the numbers that are optimised of each: `values`, of which none is two pictures'.

    Parameters
    ----------
    values
        `(n, 3, H, K)` phases of `maco`; `(n, 3, H, K, 2)` of `fourier`.
    magnitude
        `(3, H, K)` or `(n, 3, H, K)`: S, or s(k).
    width
        W.
    """

    def __init__(self, values: Tensor, magnitude: Tensor, width: int, colours: Colours) -> None:
        self.values = values.requires_grad_()
        self._magnitude, self._width, self._colours = magnitude, width, colours

    def spectrum(self) -> Tensor:
        """U `(n, 3, H, K)`: that of a real picture."""
        if self.values.ndim == 5:
            return torch.view_as_complex(self.values) * self._magnitude
        phase = _antisymmetric(self.values, self._width)
        return torch.polar(self._magnitude.expand_as(phase).contiguous(), phase) * _real_only(self.values, self._width)

    def images(self) -> Tensor:
        """Pictures `(n, 3, H, W)`, from 0 to 1."""
        height = self.values.shape[2]
        return self._colours.correlate(torch.fft.irfft2(self.spectrum(), s=(height, self._width)))


def make_pictures(
    method: str,
    size: tuple[int, int],
    spectrum: NDArray[np.float32],
    colours: Colours,
    generators: list[torch.Generator],
    starts: Tensor | None = None,
) -> Pictures:
    """Pictures to begin with: random ones, or given ones.

    Parameters
    ----------
    method
        `maco` or `fourier`.
    size
        H, W.
    spectrum
        `(3, H, K)`: the mean magnitude of images, for `maco` without starts.
    generators
        One a picture, on the device where they will be.
    starts
        `(n, 3, H, W)`, from 0 to 1: begin with these.
    """
    (height, width), device = size, generators[0].device
    shape = (3, height, width // 2 + 1)
    given = None if starts is None else torch.fft.rfft2(colours.decorrelate(starts.to(device)))
    if method == "fourier":
        scale = _decay(height, width).to(device)
        if given is None:
            drawn = [torch.randn(*shape, 2, generator=each, device=device) * _FIRST_SD for each in generators]
            return Pictures(torch.stack(drawn), scale, width, colours)
        return Pictures(torch.view_as_real(given / scale).contiguous(), scale, width, colours)
    if given is None:
        drawn = [(torch.rand(*shape, generator=each, device=device) * 2 - 1) * torch.pi for each in generators]
        return Pictures(torch.stack(drawn), torch.as_tensor(spectrum, device=device), width, colours)
    return Pictures(given.angle(), given.abs(), width, colours)


def total_variation(images: Tensor) -> Tensor:
    """Mean over pixels and colours of |grad p|, times the shorter side: `(n,)` of pictures `(n, 3, H, W)`."""
    down = images[:, :, 1:, :-1] - images[:, :, :-1, :-1]
    right = images[:, :, :-1, 1:] - images[:, :, :-1, :-1]
    # under the root, a 255th squared of nearly nothing: it has no derivative at 0
    lengths = (down.square() + right.square() + 1e-6).sqrt()
    return lengths.mean((1, 2, 3)) * min(images.shape[-2:])


def _decay(height: int, width: int) -> Tensor:
    """s(k) `(H, K)`, times the root of the number of pixels: pictures of every size then have one contrast."""
    y, x = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
    return (height * width) ** 0.5 / (x.square() + y.square()).sqrt().clamp(min=1 / max(height, width))


def _own_columns(width: int) -> list[int]:
    """Columns of half a spectrum that hold both a coefficient and its conjugate."""
    return [0] if width % 2 else [0, width // 2]


def _antisymmetric(phase: Tensor, width: int) -> Tensor:
    """Phases of a real picture: those of conjugates made each other's negative, where half a spectrum holds both."""
    phase = phase.clone()
    for column in _own_columns(width):
        whole = phase[..., column]  # (n, 3, H)
        mirrored = whole.flip(-1).roll(1, -1)
        phase[..., column] = (whole - mirrored) / 2
    return phase


def _real_only(values: Tensor, width: int) -> Tensor:
    """1, but for the coefficients that are their own conjugates, such as the mean: the cosine of their value.

    They are real and have no phase; so they lie between -S and S.
    """
    factor, height = torch.ones_like(values), values.shape[-2]
    for row in [0] if height % 2 else [0, height // 2]:
        for column in _own_columns(width):
            factor[..., row, column] = values[..., row, column].cos()
    return factor
