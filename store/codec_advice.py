"""Which codec pays for a store: what each was measured to gain on activations of its kind."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CodecMeasurement:
    """What a codec does to chunks of activations."""

    ratio: float
    """Raw bytes over compressed bytes."""
    decode_gb_per_s: float
    """Raw gigabytes a second that one core decodes."""


MEASURED: dict[tuple[str, str], dict[str, CodecMeasurement]] = {
    ("float16", "resid_post"): {"zstd": CodecMeasurement(1.09, 1.4), "blosc-lz4": CodecMeasurement(1.00, 37.4)},
    ("float16", "resid_pre"): {"zstd": CodecMeasurement(1.09, 1.4), "blosc-lz4": CodecMeasurement(1.00, 37.4)},
    ("float16", "mlp_out"): {"zstd": CodecMeasurement(1.08, 1.4), "blosc-lz4": CodecMeasurement(1.00, 37.9)},
    ("float16", "attn_out"): {"zstd": CodecMeasurement(1.09, 1.4), "blosc-lz4": CodecMeasurement(1.00, 37.2)},
    ("float16", "mlp_act"): {"zstd": CodecMeasurement(1.11, 1.5), "blosc-lz4": CodecMeasurement(1.00, 42.6)},
    ("bfloat16", "resid_post"): {"zstd": CodecMeasurement(1.28, 1.4), "blosc-lz4": CodecMeasurement(1.11, 6.0)},
    ("bfloat16", "resid_pre"): {"zstd": CodecMeasurement(1.28, 1.4), "blosc-lz4": CodecMeasurement(1.12, 6.6)},
    ("bfloat16", "mlp_out"): {"zstd": CodecMeasurement(1.27, 1.4), "blosc-lz4": CodecMeasurement(1.11, 6.8)},
    ("bfloat16", "attn_out"): {"zstd": CodecMeasurement(1.28, 1.4), "blosc-lz4": CodecMeasurement(1.11, 6.8)},
    ("bfloat16", "mlp_act"): {"zstd": CodecMeasurement(1.30, 1.7), "blosc-lz4": CodecMeasurement(1.10, 6.0)},
    ("float32", "resid_post"): {"zstd": CodecMeasurement(1.08, 1.4), "blosc-lz4": CodecMeasurement(1.05, 10.2)},
    ("float32", "resid_pre"): {"zstd": CodecMeasurement(1.08, 1.4), "blosc-lz4": CodecMeasurement(1.05, 10.1)},
    ("float32", "mlp_out"): {"zstd": CodecMeasurement(1.08, 1.4), "blosc-lz4": CodecMeasurement(1.05, 10.2)},
    ("float32", "attn_out"): {"zstd": CodecMeasurement(1.08, 1.4), "blosc-lz4": CodecMeasurement(1.05, 10.3)},
    ("float32", "mlp_act"): {"zstd": CodecMeasurement(1.08, 1.5), "blosc-lz4": CodecMeasurement(1.05, 9.2)},
}
"""By dtype and site: chunks of 1,024 class tokens of the embedded tower's last block, a core of an AMD EPYC (Zen 4)."""

WORTH_SAVING = 0.05
"""Share of the bytes from which on a codec is advised for a bucket, where bytes are paid for and fetched."""


def codec_advice(dtype: str, site: str, codec: str, ratio: float, *, is_local: bool) -> str:
    """One line on the codec of an array.

    Parameters
    ----------
    dtype
        Logical dtype of the array.
    site
        One of `format.SITES`.
    codec
        That the array has.
    ratio
        Raw bytes over stored bytes, of the array's own chunks.
    is_local
        Whether the store lies on a disk: there rows without a codec are read from their place, as few as are wanted.
    """
    if codec != "none":
        told = f"{codec} saves {saved_share(ratio)} of the bytes"
        if is_local:
            return f"{told}; on a disk, rows without a codec are read faster, with nothing to decode"
        return told if 1 - 1 / ratio >= WORTH_SAVING else f"{told}: harvest with --codec none"
    best = max(MEASURED[dtype, site], key=lambda name: MEASURED[dtype, site][name].ratio)
    found = MEASURED[dtype, site][best]
    saving = f"{best} was measured to save {saved_share(found.ratio)} of {dtype} {site}"
    if is_local:
        return f"none, the best on a disk, where rows are then read with nothing to decode ({saving})"
    if 1 - 1 / found.ratio < WORTH_SAVING:
        return f"none, the best for such rows ({saving})"
    return f"none; {saving}, decoded at {found.decode_gb_per_s:.1f} GB/s a core: --codec {best} pays in a bucket"


def saved_share(ratio: float) -> str:
    """The share of the bytes that compression by `ratio` saves, in words."""
    return f"{max(0.0, 1 - 1 / ratio):.0%}".replace("%", " %")
