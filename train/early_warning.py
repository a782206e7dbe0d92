"""Foretells dead features from where the encoder's first input lies."""

from torch import Tensor

from ..store.survey import OFF_CENTRE, Moments


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
