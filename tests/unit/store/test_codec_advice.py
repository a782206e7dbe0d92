"""The advice on codecs: complete, and true of rows like those it speaks of."""

import numpy as np
import pytest
from thresher.store import codec_advice as advice
from thresher.store.codec import ChunkCodec
from thresher.store.codec_advice import MEASURED, CodecMeasurement
from thresher.store.format import CODECS, DTYPES, SITES
from thresher.store.writer import to_bfloat16


def test_every_dtype_site_and_codec_was_measured():
    assert set(MEASURED) == {(dtype, site) for dtype in DTYPES for site in SITES}
    assert all(set(codecs) == set(CODECS) - {"none"} for codecs in MEASURED.values())


@pytest.mark.parametrize(("dtype", "site"), MEASURED)
def test_what_was_measured_holds_for_normal_rows_of_the_same_dtype(dtype, site):
    rows = np.random.default_rng(0).standard_normal((1024, 192)).astype(np.float32)
    rows = to_bfloat16(rows) if dtype == "bfloat16" else rows.astype(dtype)
    for codec, measured in MEASURED[dtype, site].items():
        assert rows.nbytes / len(ChunkCodec(codec).encode(rows)) == pytest.approx(measured.ratio, rel=0.05)


def test_a_codec_is_advised_in_a_bucket_and_not_on_a_disk():
    on_disk = advice.codec_advice("bfloat16", "resid_post", "none", 1.0, is_local=True)
    in_bucket = advice.codec_advice("bfloat16", "resid_post", "none", 1.0, is_local=False)
    assert "none, the best on a disk" in on_disk
    assert "save 22 %" in on_disk  # 1 - 1 / 1.28
    assert "--codec" not in on_disk
    assert "--codec zstd pays in a bucket" in in_bucket
    assert "1.4 GB/s" in in_bucket


def test_where_no_codec_saves_enough_none_is_advised_in_a_bucket_too(monkeypatch):
    small = {("float16", "resid_post"): {"zstd": CodecMeasurement(1.05, 1.0)}}
    monkeypatch.setattr(advice, "MEASURED", small)
    assert "none, the best" in advice.codec_advice("float16", "resid_post", "none", 1.0, is_local=False)


def test_what_a_store_s_own_codec_saves_is_told_from_its_own_chunks():
    assert advice.codec_advice("float16", "mlp_act", "zstd", 2.0, is_local=False) == "zstd saves 50 % of the bytes"
    assert "without a codec are read faster" in advice.codec_advice("float16", "mlp_act", "zstd", 2.0, is_local=True)
    useless = advice.codec_advice("float16", "resid_post", "blosc-lz4", 0.9999, is_local=False)
    assert useless == "blosc-lz4 saves 0 % of the bytes: harvest with --codec none"
