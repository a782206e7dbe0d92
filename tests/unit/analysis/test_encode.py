"""Feature activations of a store, against dense float64 matrices."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import zarr
from thresher.analysis.encode import encode, encode_several
from thresher.analysis.encode_source import EncodeSource
from thresher.analysis.encoded_block import encode_block
from thresher.analysis.feature_writer import RECORD, FeatureWriter
from thresher.analysis.features import HELD_OUT, TRAIN, open_features
from thresher.analysis.options import EncodeOptions
from thresher.analysis.quality import SUMS, Quality, SectionSums
from thresher.store.errors import StoreError, UnfinishedStoreError
from thresher.store.files import FolderLock
from thresher.store.format import Site
from thresher.store.reader import open_store
from thresher.train.models import ReluSae


def _to_dense(features) -> np.ndarray:
    indptr, index, value = features.rows(0, features.n_rows)
    f = np.zeros((features.n_rows, features.d_sae))
    f[np.repeat(np.arange(features.n_rows), np.diff(indptr)), index] = value
    return f


def _by_feature_to_dense(features) -> np.ndarray:
    f = np.zeros((features.n_rows, features.d_sae))
    for k in range(features.d_sae):
        rows, value = features.feature(k)
        assert (np.diff(rows) > 0).all()
        f[rows, k] = value
    return f


@pytest.mark.parametrize("k", [None, 5])
@pytest.mark.parametrize("block_rows", [1, 37, 4096])
def test_stored_activations_equal_the_dense_encoder(make_store, make_run, dense, k, block_rows):
    run = make_run(make_store(n=300, invalid=(0, 5, 64, 299)).path, k=k)
    encode(run.path, EncodeOptions(block_rows=block_rows, tile_features=7))
    expected = dense(run)
    valid = np.isfinite(expected["x"]).all(axis=1)
    features = open_features(run.path)
    assert features.row_numbers("valid", 0, 300).tolist() == valid.tolist()
    np.testing.assert_allclose(_to_dense(features), np.where(valid[:, None], expected["f"], 0), atol=1e-5)
    np.testing.assert_array_equal(_by_feature_to_dense(features), _to_dense(features))
    error = ((expected["x_hat"] - expected["x"]) ** 2).sum(axis=1)
    norm = np.linalg.norm(expected["x"], axis=1)
    cosine = (expected["x"] * expected["x_hat"]).sum(axis=1) / norm / np.linalg.norm(expected["x_hat"], axis=1)
    np.testing.assert_allclose(features.row_numbers("sse", 0, 300), error, rtol=1e-5)
    np.testing.assert_allclose(features.row_numbers("x_norm", 0, 300), norm, rtol=1e-6)
    np.testing.assert_allclose(features.row_numbers("cosine", 0, 300), cosine, atol=1e-5)


def test_any_zarr_reader_finds_the_arrays_and_their_types(make_store, make_run):
    run = make_run(make_store().path)
    encode(run.path)
    group = zarr.open_group(str(run.path / "features.zarr"), mode="r")
    assert {name: str(group[name].dtype) for name in ("indptr", "index", "value")} == {
        "indptr": "uint64",
        "index": "uint32",
        "value": "float32",
    }
    assert group["indptr"].shape == (301,)
    assert group["by_feature/indptr"].shape == (25,)
    assert int(group["indptr"][-1]) == int(group["by_feature/indptr"][-1]) == group["index"].shape[0]
    assert group.attrs["complete"] is True


@pytest.mark.parametrize("order", ["random", "source"])
@pytest.mark.parametrize("split", ["train", "heldout", "all"])
def test_quality_of_each_split_equals_a_float64_reference(make_store, make_run, dense, order, split):
    run = make_run(make_store(n=300, invalid=(7, 8, 298), order=order).path)
    result = encode(run.path)
    store = open_store(run.store_path)
    rows = store.rows_of(np.arange(*store.split(split)))
    expected = dense(run)
    x, f, x_hat = (expected[name][rows] for name in ("x", "f", "x_hat"))
    error, norm = (x_hat - x) ** 2, np.linalg.norm(x, axis=1, keepdims=True)
    quality = result.quality[split]
    assert quality.n_rows == len(rows)
    assert quality.mse == pytest.approx(error.mean(), rel=1e-6)
    assert quality.normalized_mse == pytest.approx((error / norm).mean(), rel=1e-6)
    assert quality.explained_energy == pytest.approx((1 - error.sum(1) / norm[:, 0] ** 2).mean(), abs=1e-6)
    assert quality.l1 == pytest.approx(f.sum(1).mean(), rel=1e-6)
    sst = ((x - x.mean(0)) ** 2).sum()
    assert quality.explained_variance == pytest.approx(1 - error.sum() / sst, abs=1e-6)


def test_the_quality_does_not_depend_on_the_block_size(make_store, make_run):
    run = make_run(make_store().path)
    results = [encode(run.path, EncodeOptions(block_rows=n, overwrite=True)).quality for n in (1, 50, 4096)]
    for other in results[1:]:
        for split, quality in other.items():
            for name in ("mse", "normalized_mse", "explained_variance", "explained_energy", "l1"):
                assert getattr(quality, name) == pytest.approx(getattr(results[0][split], name), rel=1e-5)


@pytest.mark.parametrize("order", ["random", "source"])
def test_sections_hold_whole_images_and_the_held_out_rows_have_their_own(make_store, make_run, order):
    site = Site(1, token="patch")
    run = make_run(make_store(600, sites=(site,), tokens=3, order=order, invalid=(5,)).path)
    result = encode(run.path, EncodeOptions(block_rows=100))
    stored = open_features(result.features_path)
    split = stored.row_numbers("split", 0, 1800)
    sections = stored.sections
    x = open_store(run.store_path).activations(site).read(0, 1800).astype(np.float64)
    assert len(sections["n"]) > 200
    for code, start, stop, n, x_sum in zip(
        *(sections[name].tolist() for name in ("split", "row_start", "row_stop", "n", "x_sum")), strict=True
    ):
        assert (start % 3, stop % 3) == (0, 0)
        of = split[start:stop] == code
        assert of.sum() == n > 0
        np.testing.assert_allclose(x_sum, x[start:stop][of].sum(0), rtol=0, atol=1e-9)
    held_out = sections["split"] == HELD_OUT
    assert sections["n"][held_out].sum() == (split == HELD_OUT).sum()
    if order == "random":
        assert (sections["n"][held_out] == 3).all()  # an image each


@pytest.mark.parametrize("n", [1, 7])
def test_rows_that_are_all_alike_have_no_explained_variance(n):
    for seed in range(20):  # a difference of sums of squares is rounding noise for some rows and 0 for others
        row = np.random.default_rng(seed).standard_normal(8).astype(np.float32)
        x = np.tile(row, (n, 1))
        norm = np.sqrt(np.square(x, dtype=np.float64).sum(axis=1))
        sections = [SectionSums.zero(TRAIN, 0, n, 8), SectionSums.zero(TRAIN, n, 2 * n, 8)]
        for section in sections[: 1 if n == 1 else 2]:
            section.add(x, norm, norm, norm)
        kept = [section for section in sections if section.n]
        arrays = {
            "split": np.array([s.split for s in kept]),
            "n": np.array([s.n for s in kept]),
            "x_sum": np.array([s.x_sum for s in kept]),
            **{name: np.array([s.sums[i] for s in kept]) for i, name in enumerate(SUMS)},
        }
        quality = Quality.of_sections(arrays, (TRAIN,))
        assert quality is not None
        assert np.isnan(quality.explained_variance), seed


def test_explained_variance_is_exact_where_the_rows_are_far_from_the_origin(make_store, make_run, dense):
    rows = 3000 + np.random.default_rng(3).standard_normal((300, 8)) * 1e-3
    run = make_run(make_store(rows=rows, dtype="float32").path)
    result = encode(run.path, EncodeOptions(block_rows=64))
    x = dense(run)["x"]
    sst = ((x - x.mean(0)) ** 2).sum()
    quality = result.quality["all"]
    assert 1 - quality.explained_variance == pytest.approx(quality.mse * x.size / sst, rel=1e-9)


@pytest.mark.parametrize("order", ["random", "source"])
def test_a_split_and_a_number_of_rows_encode_those_rows_only(make_store, make_run, order):
    run = make_run(make_store(n=300, invalid=(10,), order=order).path)
    store = open_store(run.store_path)
    for options, positions in (
        (EncodeOptions(split="heldout"), range(*store.split("heldout"))),
        (EncodeOptions(split="train", rows=50), range(50)),
        (EncodeOptions(rows=1), range(1)),
    ):
        result = encode(run.path, replace(options, overwrite=True))
        features = open_features(run.path)
        valid = features.row_numbers("valid", 0, 300)
        assert np.flatnonzero(valid).tolist() == sorted(store.rows_of(np.array(positions)).tolist())
        assert result.n_rows == len(positions)
        assert not np.diff(features.rows(0, 300)[0])[~valid].any()


def test_labels_and_splits_lie_beside_the_rows(make_store, make_run):
    run = make_run(make_store(n=300, invalid=(10,), unlabelled=(3, 4)).path)
    encode(run.path)
    store, features = open_store(run.store_path), open_features(run.path)
    np.testing.assert_array_equal(features.row_numbers("label", 0, 300), store.labels(0, 300))
    split = features.row_numbers("split", 0, 300)
    held_out = store.rows_of(np.arange(*store.split("heldout")))
    assert np.flatnonzero(split == 2).tolist() == held_out.tolist()
    assert split[10] == 0
    assert (features.info.n_train, features.info.n_held_out, features.info.n_unreadable) == (296, 3, 1)


def test_another_store_of_the_same_site_is_encoded_but_has_no_training_rows(make_store, make_run):
    run = make_run(make_store().path)
    other = make_store(n=100, name="validation.zarr", seed=5)
    with pytest.raises(ValueError, match="split must be all"):
        encode(run.path, EncodeOptions(store=str(other.path), split="heldout"))
    result = encode(run.path, EncodeOptions(store=str(other.path)))
    assert result.n_rows == 100
    assert set(result.quality) == {"all"}
    with pytest.raises(StoreError, match="not the store that the SAE was trained on"):
        open_features(run.path).row_range("heldout")


def test_a_store_that_was_moved_is_asked_for_and_known_where_it_is(make_store, make_run, tmp_path):
    made = make_store()
    run = make_run(made.path)
    made.path.rename(tmp_path / "moved")
    with pytest.raises(StoreError, match=r"was trained on .*, where there is no store any more: .* with --store"):
        encode(run.path)
    assert set(encode(run.path, EncodeOptions(store=str(tmp_path / "moved"))).quality) == {"train", "heldout", "all"}


def test_a_store_that_was_replaced_is_refused_by_the_field_that_differs(make_store, make_run, tmp_path):
    first, second = make_store(), make_store(n=100, name="other.zarr", seed=5)
    run = make_run(first.path)
    first.path.rename(tmp_path / "moved")
    second.path.rename(first.path)
    with pytest.raises(StoreError, match=r"n_images is 300 there and 100 here\..*--store"):
        encode(run.path)


def test_a_store_of_another_width_is_refused_by_the_field(make_store, make_run):
    run = make_run(make_store().path)
    other = make_store(d=9, name="wide.zarr")
    with pytest.raises(StoreError, match="width is 8 there and 9 here"):
        encode(run.path, EncodeOptions(store=str(other.path)))


def test_features_past_the_limit_need_force(make_store, make_run):
    run = make_run(make_store().path)
    tight = EncodeOptions(size_limit_gb=1e-6)
    with pytest.raises(StoreError, match="--force"):
        encode(run.path, tight)
    assert not (run.path / "features.zarr").exists()
    result = encode(run.path, replace(tight, force=True))
    assert 1000 < result.written_bytes < result.predicted_bytes


def test_the_predicted_number_of_entries_is_close(make_store, make_run):
    run = make_run(make_store(n=3000).path)
    result = encode(run.path)
    last_chunks = 4 * 2**20  # chunks of index and value are written whole
    per_row = (result.predicted_bytes - last_chunks - 8 * 24) / 3000 - 26
    assert per_row / 16 == pytest.approx(result.mean_l0, rel=0.05)


def test_existing_features_are_kept_without_overwrite(make_store, make_run):
    run = make_run(make_store().path)
    encode(run.path)
    with pytest.raises(StoreError, match="--overwrite"):
        encode(run.path)
    encode(run.path, EncodeOptions(rows=5, overwrite=True))
    assert open_features(run.path).info.n_encoded == 5
    assert sorted(p.name for p in run.path.iterdir()) == ["config.json", "features.zarr", "sae.safetensors"]


def test_an_interrupted_encode_keeps_the_old_and_the_next_goes_on(make_store, make_run, monkeypatch):
    run = make_run(make_store().path)
    encode(run.path, EncodeOptions(rows=5))

    def stop(*_args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("thresher.analysis.feature_writer.write_by_feature", stop)
        with pytest.raises(KeyboardInterrupt, match=r"300 of 300 rows of .*run are kept: give the same command again"):
            encode(run.path, EncodeOptions(overwrite=True))
    assert open_features(run.path).info.n_encoded == 5
    names = [".features.zarr.tmp", "config.json", "features.zarr", "sae.safetensors"]
    assert sorted(p.name for p in run.path.iterdir()) == names
    monkeypatch.setattr("thresher.analysis.encode_source.encode_block", lambda *_, **__: pytest.fail("encoded again"))
    monkeypatch.setattr("thresher.analysis.encode.predict", lambda _: (100, 1000, 1.0))
    encode(run.path, EncodeOptions(overwrite=True))
    assert open_features(run.path).info.n_encoded == 300
    assert sorted(p.name for p in run.path.iterdir()) == names[1:]


def test_features_without_the_mark_of_completeness_are_refused(make_store, make_run):
    run = make_run(make_store().path)
    encode(run.path)
    group = zarr.open_group(str(run.path / "features.zarr"), mode="r+")
    group.attrs["complete"] = False
    with pytest.raises(UnfinishedStoreError, match="not written to the end"):
        open_features(run.path)


@pytest.mark.parametrize("make", ["nothing", "empty", "another group"])
def test_what_is_no_features_is_refused_in_one_line(tmp_path, make):
    path = tmp_path / "features.zarr"
    if make == "empty":
        path.mkdir()
    if make == "another group":
        zarr.open_group(str(path), mode="w")
    with pytest.raises(StoreError, match="feature activations"):
        open_features(tmp_path if make == "another group" else path)


def test_a_range_outside_the_rows_is_refused(make_store, make_run):
    run = make_run(make_store().path)
    encode(run.path)
    features = open_features(run.path)
    with pytest.raises(ValueError, match="not within the 300 rows"):
        features.rows(299, 301)
    with pytest.raises(ValueError, match="feature 24 is not one of the 24"):
        features.feature(24)


def test_a_run_without_weights_is_refused(make_store, make_run):
    run = make_run(make_store().path)
    (run.path / "sae.safetensors").unlink()
    with pytest.raises(StoreError, match="did not finish"):
        encode(run.path)


def test_what_a_killed_encode_left_is_not_taken_for_features_and_is_removed(make_store, make_run):
    run = make_run(make_store().path)
    encode(run.path, EncodeOptions(rows=5))
    (run.path / "features.zarr").rename(run.path / ".features.zarr.tmp")
    with pytest.raises(StoreError, match="run `thresher encode` first"):
        open_features(run.path)
    encode(run.path)
    assert open_features(run.path).info.n_encoded == 300
    assert not (run.path / ".features.zarr.tmp").exists()


def test_two_encodes_of_one_run_do_not_meet(make_store, make_run):
    run = make_run(make_store().path)
    lock = FolderLock(run.path)
    try:
        with pytest.raises(StoreError, match="written by another process"):
            encode(run.path)
    finally:
        lock.close()


def _arrays(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.mark.parametrize("stop_at", [1, 3, 7])
def test_an_encode_that_failed_midway_goes_on_and_ends_as_an_unbroken_one(make_store, make_run, monkeypatch, stop_at):
    path = make_store(n=700, invalid=(5, 64, 699)).path
    whole, broken = make_run(path, name="whole"), make_run(path, name="broken")
    options = EncodeOptions(block_rows=64, tile_features=7)
    encode(whole.path, options)
    encoded, real = [], encode_block

    def breaks(*given, **options):
        encoded.append(len(given[1].x))
        if len(encoded) - 2 == stop_at:  # the first two are of the forecast
            raise OSError("the machine goes down")
        return real(*given, **options)

    with monkeypatch.context() as patch:
        patch.setattr("thresher.analysis.encode_source.encode_block", breaks)
        with pytest.raises(OSError, match="goes down"):
            encode(broken.path, options)
        encoded[:] = [0] * 100
        result = encode(broken.path, options)
    assert sum(encoded[102:]) == 697 - sum([63, 63, 64, 64, 64, 64][: stop_at - 1])
    assert result.n_rows == 697
    assert _arrays(broken.path / "features.zarr") == _arrays(whole.path / "features.zarr")


def test_what_was_begun_with_other_options_is_not_gone_on_with(make_store, make_run, monkeypatch):
    run = make_run(make_store().path)
    with monkeypatch.context() as patch:
        patch.setattr("thresher.analysis.feature_writer.write_by_feature", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            encode(run.path, EncodeOptions(rows=50))
    encode(run.path, EncodeOptions(rows=60))
    assert open_features(run.path).info.n_encoded == 60


def test_a_damaged_record_means_to_begin_anew(make_store, make_run, monkeypatch):
    run = make_run(make_store().path)
    record = run.path / ".features.zarr.tmp" / RECORD

    def stop_at_the_end():
        with monkeypatch.context() as patch:
            patch.setattr("thresher.analysis.feature_writer.write_by_feature", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                encode(run.path)

    stop_at_the_end()
    for damage in (lambda b: b[:-100], lambda _: b"", lambda _: b"rubbish" * 100, lambda b: b[:999] + b"?" + b[1000:]):
        record.write_bytes(damage(record.read_bytes()))
        stop_at_the_end()
    record.write_bytes(record.read_bytes()[:-100])
    encode(run.path)
    assert open_features(run.path).info.n_encoded == 300


def test_several_runs_get_what_each_gets_alone_from_one_reading(make_store, make_run, monkeypatch):
    path = make_store(n=300, invalid=(7,)).path
    runs = [make_run(path, name="relu"), make_run(path, 40, name="topk", k=5, seed=1), make_run(path, name="broken")]
    alone = []
    for run in runs[:2]:
        encode(run.path, EncodeOptions(block_rows=64))
        alone.append(_arrays(run.path / "features.zarr"))
    (runs[2].path / "sae.safetensors").write_bytes(b"")
    read, real = [], EncodeSource.read
    monkeypatch.setattr(EncodeSource, "read", lambda self, rows: read.append(rows) or real(self, rows))
    result = encode_several([run.path for run in runs], EncodeOptions(block_rows=64, overwrite=True))
    assert sorted(read) == [(start, min(start + 64, 300)) for start in range(0, 300, 64)]
    assert [failure.run_path for failure in result.failures] == [runs[2].path]
    assert [each.features_path.parent for each in result.results] == [run.path for run in runs[:2]]
    assert [_arrays(run.path / "features.zarr") for run in runs[:2]] == alone


def test_one_of_several_that_fails_midway_stops_alone(make_store, make_run, monkeypatch):
    path = make_store(n=300).path
    runs = [make_run(path, name="fails"), make_run(path, 40, name="whole")]
    real = FeatureWriter.add

    def add(self, rows, *rest):
        if self._source.run_path.name == "fails" and rows.start == 128:
            raise OSError("no space")
        real(self, rows, *rest)

    monkeypatch.setattr(FeatureWriter, "add", add)
    result = encode_several([run.path for run in runs], EncodeOptions(block_rows=64))
    assert [(f.run_path.name, f.reason) for f in result.failures] == [("fails", "no space")]
    assert open_features(runs[1].path).info.n_encoded == 300
    monkeypatch.undo()
    again = encode_several([runs[0].path], EncodeOptions(block_rows=64))
    assert again.results[0].n_rows == 300


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_transcoder_is_measured_against_what_it_reconstructs(make_store, make_run, precision):
    sites = {Site(1): 8, Site(2, "mlp_out"): 6}
    run = make_run(make_store(n=200, widths=sites, invalid=(3,)).path)
    g = torch.Generator().manual_seed(0)
    encoder, decoder = torch.randn(24, 8, generator=g), torch.randn(24, 6, generator=g)
    sae = ReluSae(
        encoder, torch.full((24,), -2.0), decoder, torch.zeros(6), output_mean=torch.ones(6), centres_input=False
    )
    sae.save(run.path / "sae.safetensors")
    config = json.loads((run.path / "config.json").read_text())
    (run.path / "config.json").write_text(json.dumps({**config, "target_site": "layers/2/mlp_out/cls", "d_out": 6}))
    result = encode(run.path, EncodeOptions(precision=precision))
    store, features = open_store(run.store_path), open_features(run.path)
    x, y = (store.activations(site).read(0, 200).astype(np.float64) for site in sites)
    f = np.maximum(x @ encoder.double().numpy().T - 2, 0)
    error = ((f @ decoder.double().numpy() + 1 - y) ** 2).sum(1)
    np.testing.assert_allclose(features.row_numbers("sse", 0, 200), error, rtol=1e-5)
    valid = np.isfinite(y).all(1)
    sst = ((y[valid] - y[valid].mean(0)) ** 2).sum()
    assert result.quality["all"].explained_variance == pytest.approx(1 - error[valid].sum() / sst, rel=1e-5)
    assert features.info.target_site == "layers/2/mlp_out/cls"
    assert features.info.precision == precision


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("case", ["zeros", "one row", "all dead", "all fire", "ties"])
def test_borderline_rows_and_weights_equal_the_dense_encoder(make_store, make_run, dense, case, precision):
    rows = np.random.default_rng(0).standard_normal((70, 8))
    rows[[0, 33, 69]] = 0
    rows = {"one row": rows[:1], "ties": np.tile(rows[1], (70, 1))}.get(case, rows)
    run = make_run(make_store(rows=rows, n=len(rows), dtype="float32").path, k=5 if case == "ties" else None)
    run.sae.b_enc[:] = {"all dead": -1e4, "all fire": 1e3}.get(case, run.sae.b_enc)
    if case == "ties":
        run.sae.encoder[10:20] = run.sae.encoder[9]
        run.sae.b_enc[9:20] = run.sae.b_enc[9] + 3
    run.sae.save(run.path / "sae.safetensors")
    result = encode(run.path, EncodeOptions(block_rows=32, tile_features=7, precision=precision))
    features, expected = open_features(run.path), dense(run)
    f = expected["f"]
    if case == "ties":  # of equal features the lowest are kept: float64 numpy keeps every one that ties
        order = np.argsort(-f.round(9), axis=1, kind="stable")[:, :5]
        f = np.zeros_like(f)
        np.put_along_axis(f, order, np.take_along_axis(expected["f"], order, 1), 1)
    np.testing.assert_allclose(_to_dense(features), f, rtol=1e-5, atol=2e-5)
    np.testing.assert_array_equal(_by_feature_to_dense(features), _to_dense(features))
    assert result.nnz == (f > 0).sum()
    zero = np.linalg.norm(expected["x"], axis=1) == 0
    cosine = features.row_numbers("cosine", 0, len(rows))
    assert np.isnan(cosine[zero]).all()
    if case == "all dead":
        assert result.mean_l0 == 0
