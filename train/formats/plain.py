"""An SAE as other libraries hold it: all scaling folded into the weights, in the units of the activations.

Shapes: d_in inputs, d_out outputs, F features.

With m, s the mean and scale of the input and o, t those of the output, z = (x - m) / s and x_hat = t z_hat + o, so

    W_enc <- W_enc / s        W_dec <- t W_dec        b_dec <- t b_dec + o

Where b_dec is subtracted from the input (m = o, s = t) that is all: ((x - m) / s - b_dec) W_enc = (x - (s b_dec + m))
(W_enc / s). Where it is not, the mean goes into the encoder's bias: b_enc <- b_enc - m W_enc.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...store.errors import StoreError
from ..models import BatchTopKSae, GatedSae, JumpReluSae, MatryoshkaSae, ReluSae, SparseAutoencoder, TopKSae

VARIANTS: dict[str, type[SparseAutoencoder]] = {
    cls.variant: cls for cls in (ReluSae, TopKSae, BatchTopKSae, MatryoshkaSae, JumpReluSae, GatedSae)
}


class MisfitError(StoreError):
    """Weights that are no SAE together; whoever read them knows the file."""


@dataclass(frozen=True, kw_only=True)
class PlainSae:
    """f = select((x - b_dec) W_enc + b_enc), x_hat = f W_dec + b_dec, in float64.

    Parameters
    ----------
    variant
        As thresher names it.
    W_enc, b_enc, W_dec, b_dec
        `(d_in, F)`, `(F,)`, `(F, d_out)`, `(d_out,)`. `b_enc` of a gated SAE is its gate's bias.
    centres_input
        Whether `b_dec` is subtracted from the input.
    rows
        What is done to each row first, and undone last: `none`, `layer_norm`, `constant_norm_rescale`.
    is_transcoder
        Whether the output is another site's.
    k
        Features a row (topk), or as a mean (batchtopk, matryoshka).
    threshold
        `(F,)`, of batchtopk, matryoshka and jumprelu; 0 or more.
    prefixes
        Of matryoshka.
    r_mag, b_mag
        `(F,)`, of gated.
    """

    variant: str
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    centres_input: bool = True
    rows: str = "none"
    is_transcoder: bool = False
    k: int | None = None
    threshold: Tensor | None = None
    prefixes: tuple[int, ...] | None = None
    r_mag: Tensor | None = None
    b_mag: Tensor | None = None

    @classmethod
    def of(cls, sae: SparseAutoencoder) -> "PlainSae":
        """The weights of an SAE, its scaling folded into them."""
        tensors = {name: tensor.detach().cpu().double() for name, tensor in sae.tensors().items()}
        mean, scale = tensors["input_mean"], tensors["input_scale"]
        output_mean, output_scale = tensors.get("output_mean", mean), tensors.get("output_scale", scale)
        threshold = None
        if isinstance(sae, JumpReluSae):
            threshold = tensors["log_threshold"].exp()
        elif isinstance(sae, BatchTopKSae):  # Matryoshka too
            threshold = tensors["threshold"].clamp(min=0).expand(sae.d_sae).clone()
        plain = cls(
            variant=sae.variant,
            W_enc=tensors["W_enc"] / scale[:, None],
            b_enc=tensors["b_enc"],
            W_dec=tensors["W_dec"] * output_scale,
            b_dec=tensors["b_dec"] * output_scale + output_mean,
            centres_input=sae.centres_input,
            rows="layer_norm" if sae.layer_norm else "constant_norm_rescale" if sae.constant_norm else "none",
            is_transcoder=sae.is_transcoder,
            k=sae.k if isinstance(sae, (TopKSae, BatchTopKSae)) else None,
            threshold=threshold,
            prefixes=tuple(sae.prefixes) if isinstance(sae, MatryoshkaSae) else None,
            r_mag=tensors.get("r_mag"),
            b_mag=tensors.get("b_mag"),
        )
        return plain if sae.centres_input else plain._shifted(-(mean @ plain.W_enc))

    def to_sae(self) -> SparseAutoencoder:
        """The SAE of these weights, in float32; `MisfitError` where they do not fit together."""
        extra: dict[str, Any] = {"k": self.k} if self.k is not None else {}
        if self.threshold is not None:
            # Of a threshold of 0, which keeps what is above 0, the logarithm is -inf: its exponential is 0 again.
            extra |= (
                {"log_threshold": self.threshold.clamp(min=0).log().float()}
                if self.variant == "jumprelu"
                else {"threshold": self.threshold[:1].float(), "threshold_weight": torch.ones(1)}
            )
        if self.prefixes is not None:
            extra["prefixes"] = list(self.prefixes)
        if self.r_mag is not None and self.b_mag is not None:
            extra |= {"r_mag": self.r_mag.float(), "b_mag": self.b_mag.float()}
        if self.is_transcoder:
            extra |= {"output_mean": torch.zeros(len(self.b_dec)), "output_scale": torch.ones(len(self.b_dec))}
        try:
            return VARIANTS[self.variant](
                self.W_enc.T.float(),
                self.b_enc.float(),
                self.W_dec.float(),
                self.b_dec.float(),
                centres_input=self.centres_input,
                layer_norm=self.rows == "layer_norm",
                constant_norm=self.rows == "constant_norm_rescale",
                **extra,
            )
        except ValueError as error:
            raise MisfitError(f"the weights do not fit together: {error}.") from error

    def centred(self, centres_input: bool) -> "PlainSae":
        """The same SAE, with `b_dec` subtracted from its input or not; a transcoder's is not."""
        if centres_input == self.centres_input:
            return self
        if self.is_transcoder:
            raise StoreError("a transcoder's b_dec is of its output: it cannot be subtracted from its input.")
        sign = 1.0 if centres_input else -1.0
        return replace(self._shifted(sign * (self.b_dec @ self.W_enc)), centres_input=centres_input)

    def scaled_by(self, factor: Tensor) -> "PlainSae":
        """The same function with activations `factor` (F,) times as large."""
        names = ("b_enc", "threshold", "b_mag")  # r_mag stays: it multiplies what the encoder gives
        biases = {name: value * factor for name in names if (value := getattr(self, name)) is not None}
        return replace(self, W_enc=self.W_enc * factor, W_dec=self.W_dec / factor[:, None], **biases)

    def with_unit_rows(self) -> "PlainSae":
        """The same function with decoder rows of norm 1; a row of zeros stays.

        Not for TopK, whose selection, nor BatchTopK, whose one threshold, would change.
        """
        assert self.variant in ("relu", "jumprelu", "gated")
        norm = self.decoder_norm()
        return self.scaled_by(torch.where(norm > 0, norm, 1.0))

    def decoder_norm(self) -> Tensor:
        """Norm of each decoder row, `(F,)`."""
        return self.W_dec.norm(dim=1)

    @property
    def has_unit_rows(self) -> bool:
        """Whether decoder rows have norm 1, to float32 rounding; those of zeros are left out."""
        norm = self.decoder_norm()
        return bool(((norm - 1).abs() < 1e-4)[norm > 0].all())

    def _shifted(self, by: Tensor) -> "PlainSae":
        """Pre-activations `by` (F,) larger, of both paths where there are two."""
        if self.r_mag is None or self.b_mag is None:
            return replace(self, b_enc=self.b_enc + by)
        return replace(self, b_enc=self.b_enc + by, b_mag=self.b_mag + self.r_mag.exp() * by)
