"""Foretells dead features from where the encoder's first input lies."""

from torch import Tensor

from ..store.survey import Moments

OFF_CENTRE = 1.0
"""Distance of the mean row from the decoder bias, in deviations, above which `train` warns.

Simon, Adams and Zou (arXiv 2605.31518): features whose direction opposes the mean start below zero on every row, and
few come back. Measured on the embedded tower's rows with their mean moved away (1,536 features, 500 steps of 1,024
rows, `--b-dec-init zero`), dead at the end:

    distance               0      0.5    0.75   1      2      3      4      8
    TopK, AuxK             0.2 %  0.1 %  0.3 %  1 %    34 %   66 %   83 %   96 %
    TopK without AuxK      0.1 %  4 %    14 %   30 %   67 %   85 %   91 %   96 %
    ReLU                   0      0.1 %  0.5 %  4 %    26 %   40 %   49 %   64 %

With the bias at the mean, or standardised rows, at most 0.3 % died at any distance.
"""


def off_centre(z: Tensor, b_dec: Tensor) -> float:
    """How many deviations the mean of the encoder's input z - b_dec lies from zero; see `Survey.mean_to_deviation`.

    Parameters
    ----------
    z
        `(n, d_in)`, scaled rows.
    b_dec
        `(d_in,)`.
    """
    moments = Moments(z.shape[1])
    moments.add((z - b_dec).cpu().numpy())
    return moments.survey().mean_to_deviation


def off_centre_warning(z: Tensor, b_dec: Tensor) -> str | None:
    """What to tell the user before training starts from `b_dec` on rows like `z`; None where all is well.

    A bias at the mean or at the geometric median never lies more than one deviation from the mean.
    """
    distance = off_centre(z, b_dec)
    if not distance > OFF_CENTRE:
        return None
    return (
        f"the mean of the rows lies {distance:.1f} times their deviation from where the decoder bias starts: features "
        "that point away from it start dead, and few come back. Centre the rows with --normalize standardize (the "
        "default), or start the bias at their mean with --b-dec-init mean."
    )
