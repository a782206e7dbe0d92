"""What the analysis says of statistics whose files are damaged, and of options that no computation can take."""

import shutil

import pytest
from thresher.analysis.align_options import AlignOptions
from thresher.analysis.attribute_table import read_table
from thresher.analysis.attributes_options import AttributesOptions
from thresher.analysis.encode import encode
from thresher.analysis.evaluate_options import EvaluateOptions
from thresher.analysis.features import open_features
from thresher.analysis.known_attributes import attributes_of_run
from thresher.analysis.options import StatsOptions
from thresher.analysis.scheduler import open_compute
from thresher.analysis.stats import stats
from thresher.analysis.stored_statistics import open_statistics
from thresher.store.errors import DamagedStoreError, StoreError


@pytest.fixture
def counted(make_store, make_run):
    run = make_run(make_store(n=100, thumbnails=False).path)
    encode(run.path)
    stats(run.path, StatsOptions(figures=False, null_draws=5))
    return run.path


def test_statistics_that_lack_a_file_or_hold_another_are_named_as_damaged(counted):
    document = counted / "stats.json"
    text = document.read_text()
    for damaged in ("[1]", "7", text.replace('"min_labelled"', '"min_labeled"')):
        document.write_text(damaged)
        with pytest.raises(DamagedStoreError, match="run `thresher stats --overwrite`"):
            open_statistics(counted)
    document.write_text(text)
    open_statistics(counted)
    chunk = next(path for path in (counted / "stats.zarr" / "n_active").rglob("*") if path.name.isdecimal())
    chunk.write_bytes(chunk.read_bytes()[:-5])
    with pytest.raises(DamagedStoreError, match="are damaged"):
        open_statistics(counted)
    shutil.rmtree(counted / "stats.zarr" / "n_active")
    with pytest.raises(DamagedStoreError, match="n_active"):
        open_statistics(counted)


@pytest.mark.parametrize("name", ["row_start", "row_stop", "sse"])
def test_features_that_lack_sums_of_rows_are_named_as_damaged(counted, name):
    shutil.rmtree(counted / "features.zarr" / "sections" / name)
    with pytest.raises(DamagedStoreError, match=f"sections/{name}"):
        _ = open_features(counted).sections


@pytest.mark.parametrize(
    ("kind", "kwargs"),
    [
        (StatsOptions, {"seed": -1}),
        (EvaluateOptions, {"seed": -1}),
        (AlignOptions, {"seed": -1}),
        (AlignOptions, {"covariance_rows": 1}),
    ],
)
def test_a_seed_below_0_and_one_row_of_covariance_are_refused_by_name(kind, kwargs):
    with pytest.raises(ValueError, match=f"{next(iter(kwargs))} must be"):
        kind(**kwargs)


def test_an_address_of_no_scheduler_is_told_what_one_is_like():
    with (
        pytest.raises(ValueError, match=r"hello is no address of one .*tcp://host:8786"),
        open_compute(scheduler="hello"),
    ):
        pass


def test_a_run_of_other_images_has_nothing_to_be_compared_on(make_store, make_run, tmp_path):
    runs = []
    for name, prefix in (("one", ""), ("two", "other ")):
        run = make_run(make_store(n=100, name=f"{name}.zarr", key_prefix=prefix).path, name=name)
        encode(run.path)
        runs.append(run.path)
    table = tmp_path / "table.csv"
    keys = [f"class {i % 5}/picture {i}.jpg" for i in range(100)]
    table.write_text("key,big\n" + "".join(f"{key},{i % 2 == 0}\n" for i, key in enumerate(keys)))
    with pytest.raises(StoreError, match=r"no image of table\.csv in common with .*two"):
        attributes_of_run(runs[0], read_table(table), AttributesOptions(untrained=runs[1]))
