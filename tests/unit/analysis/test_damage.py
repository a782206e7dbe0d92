import json
import shutil

import numpy as np
import pytest
import zarr
from thresher.analysis.describe import describe
from thresher.analysis.encode import encode
from thresher.analysis.features import open_features
from thresher.analysis.options import EncodeOptions, StatsOptions
from thresher.analysis.stats import dense_statistics, stats
from thresher.store.errors import DamagedStoreError, StoreError
from thresher.train.run_dir import open_run, read_metrics


@pytest.fixture
def encoded(make_store, make_run):
    run = make_run(make_store().path)
    encode(run.path)
    return run.path


@pytest.mark.parametrize("name", ["indptr", "index", "value", "rows/split", "rows/label"])
def test_a_flipped_bit_in_the_features_is_damage_named_with_its_array(encoded, name):
    path = encoded / "features.zarr" / name / "c/0"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedStoreError, match=f"damaged: {name} .*--overwrite"):
        stats(encoded, StatsOptions(figures=False))
    assert not (encoded / "stats.json").exists()


@pytest.mark.parametrize("name", ["indptr", "index", "value", "rows/split", "rows/label"])
def test_a_chunk_of_the_features_that_is_gone_is_damage_and_not_zeros(encoded, name):
    (encoded / "features.zarr" / name / "c/0").unlink()
    with pytest.raises(DamagedStoreError, match=f"chunk 0 of {name} is gone"):
        stats(encoded, StatsOptions(figures=False))


def test_chunks_of_zeros_are_written_like_others(make_store, make_run):
    run = make_run(make_store(n_labels=1).path)  # every label is 0, zarr's fill value
    encode(run.path)
    features = open_features(run.path)
    assert not features.row_numbers("label", 0, 300).any()


@pytest.mark.parametrize("lost", ["indptr", "sections", "rows"])
def test_an_array_of_the_features_that_is_gone_is_damage(encoded, lost):
    shutil.rmtree(encoded / "features.zarr" / lost)
    with pytest.raises(DamagedStoreError, match=lost):
        stats(encoded, StatsOptions(figures=False))


def test_metadata_of_the_features_that_is_no_json_is_damage(encoded):
    (encoded / "features.zarr/zarr.json").write_text("{")
    with pytest.raises(DamagedStoreError, match=r"zarr\.json cannot be read"):
        open_features(encoded)


@pytest.mark.parametrize("field", ["options", "site", "d_in", "d_sae", "store"])
def test_a_configuration_without_one_of_its_fields_is_damage_that_names_it(encoded, field):
    config = json.loads((encoded / "config.json").read_text())
    del config[field]
    (encoded / "config.json").write_text(json.dumps(config))
    for use in (open_run, describe, lambda path: encode(path, EncodeOptions(overwrite=True)), stats):
        with pytest.raises(DamagedStoreError, match=f"{field}.* is None"):
            use(encoded)


def test_a_last_line_of_the_metrics_that_was_cut_is_left_out_and_another_is_damage(tmp_path):
    path = tmp_path / "metrics.jsonl"
    line = b'{"step": 1, "split": "train"}\n'
    assert read_metrics(path) == []
    path.write_bytes(line + b'{"step": 2, "spl')
    assert [record["step"] for record in read_metrics(path)] == [1]
    for bad in (b"\xff\xfe\n", b"[1]\n", b"{}\n", b"{\n"):
        path.write_bytes(line + bad + line)
        with pytest.raises(DamagedStoreError, match="line 2"):
            read_metrics(path)


@pytest.mark.parametrize("text", ["{", "[1]", "\udcff"])
def test_statistics_that_are_no_json_are_damage_that_info_names(encoded, text):
    (encoded / "stats.json").write_text(text, errors="surrogateescape")
    with pytest.raises(DamagedStoreError, match=r"stats\.json is damaged"):
        describe(encoded)


def test_statistics_stopped_before_their_figures_are_begun_again_by_the_same_command(make_store, make_run, monkeypatch):
    run = make_run(make_store(thumbnails=False).path).path
    encode(run)

    def stop(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("thresher.analysis.figures.draw_figures", stop)
        with pytest.raises(KeyboardInterrupt):
            stats(run)
    assert not (run / "stats.json").exists()
    assert stats(run).figures


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.full(4, 2**31), "class numbers end"),
        (np.array([None] * 4), "not a .npy file"),
        (b"hello", "not a .npy file"),
        (b"", "not a .npy file"),
        ({"a": np.arange(4)}, "archive"),
    ],
)
def test_labels_that_are_no_integers_a_row_are_refused_without_advice_to_unpickle(tmp_path, labels, says):
    zarr.create_array(str(tmp_path / "m.zarr"), data=np.ones((4, 3), np.float32))
    path = tmp_path / "labels.npy"
    if isinstance(labels, bytes):
        path.write_bytes(labels)
    elif isinstance(labels, dict):
        with open(path, "wb") as file:
            np.savez(file, **labels)
    else:
        np.save(path, labels, allow_pickle=True)
    with pytest.raises(StoreError, match=says) as caught:
        dense_statistics(tmp_path / "m.zarr", tmp_path / "out", StatsOptions(labels=str(path), figures=False))
    assert "allow_pickle" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_matrix_without_features_is_refused(tmp_path):
    zarr.create_array(str(tmp_path / "m.zarr"), shape=(4, 0), chunks=(4, 1), dtype="float32")
    with pytest.raises(StoreError, match="holds no features"):
        dense_statistics(tmp_path / "m.zarr", tmp_path / "out", StatsOptions(figures=False))


@pytest.mark.parametrize("place", ["file", "matrix"])
def test_statistics_of_a_matrix_go_neither_over_a_file_nor_into_a_matrix(tmp_path, place):
    zarr.create_array(str(tmp_path / "m.zarr"), data=np.ones((4, 3), np.float32))
    out = tmp_path / ("m.zarr" if place == "matrix" else "a file")
    if place == "file":
        out.write_text("mine")
    with pytest.raises(StoreError, match="name another OUT"):
        dense_statistics(tmp_path / "m.zarr", out, StatsOptions(figures=False))
