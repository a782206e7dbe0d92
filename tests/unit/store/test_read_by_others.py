"""`docs/reading-stores.md`, run: what zarr, Dask, xarray and TensorStore read is what our reader reads, bit for bit."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorstore as ts
import thresher
from s3_on_loopback import s3_server
from thresher.store.errors import StoreError
from thresher.store.format import CODECS, Site
from thresher.store.objects import open_objects
from thresher.store.parts import add_part, merge_stores, next_part

PAGE = Path(__file__).parents[3] / "docs" / "reading-stores.md"
SITE = Site(22)


def sections() -> dict[str, str]:
    """The Python of each section of the page, its blocks one after the other."""
    pieces = re.split(r"^## (.+)$", PAGE.read_text(), flags=re.MULTILINE)
    code = {
        title: "\n".join(re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))
        for title, text in zip(pieces[1::2], pieces[2::2], strict=True)
    }
    return {title: text for title, text in code.items() if text}


def run_section(title):
    """The variables that a section's code leaves behind."""
    names = {}
    exec(compile(sections()[title], f"{PAGE.name}: {title}", "exec"), names)
    return SimpleNamespace(**{name: value for name, value in names.items() if not name.startswith("__")})


@pytest.fixture
def store_here(make_store, tmp_path, monkeypatch):
    """A factory of a store that stands in the current folder, opened by our reader; three images are unreadable."""
    monkeypatch.chdir(tmp_path)

    def make(name="imagenet-l22.zarr", **settings):
        settings = {"sites": (SITE,), "rows_per_chunk": 512, "invalid": (0, 700, 2099), "key_prefix": name} | settings
        made = make_store(2100, 12, name=name, **settings)
        return thresher.open_store(settings.get("place", made.path))

    return make


def same(found, ours):
    assert found.dtype == ours.dtype
    assert found.shape == ours.shape
    assert found.tobytes() == np.ascontiguousarray(ours).tobytes()


def stored(store):
    return store.activations().read(0, store.n_rows)


def test_every_section_with_code_is_run_here():
    source = Path(__file__).read_text()
    assert [title for title in sections() if f'("{title}")' not in source and f'["{title}"]' not in source] == []


@pytest.mark.parametrize("codec", CODECS)
def test_zarr_python_reads_the_bits_that_we_read(store_here, codec):
    store = store_here(codec=codec)
    page = run_section("zarr-python")
    same(page.first, store.activations().read(0, 1024))
    same(page.vectors[:], stored(store))


@pytest.mark.parametrize("codec", CODECS)
def test_dask_reads_the_bits_that_we_read(store_here, codec):
    store = store_here(codec=codec)
    page = run_section("Dask")
    same(page.vectors.compute(), stored(store))
    assert page.vectors.chunksize == (512, 12)
    readable = stored(store)[store.valid(0, store.n_rows)].astype(np.float64)
    np.testing.assert_allclose(page.mean, readable.mean(axis=0), rtol=1e-12)


@pytest.mark.parametrize("codec", CODECS)
def test_xarray_reads_the_bits_that_we_read(store_here, codec):
    store = store_here(codec=codec)
    page = run_section("xarray")
    same(page.vectors.values, stored(store))
    same(page.labels.values, store.labels(0, store.n_rows))
    same(page.with_label_3, stored(store)[store.labels(0, store.n_rows) == 3])
    assert page.vectors.dims == ("row", "coordinate")


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_tensorstore_reads_the_bits_that_we_read(store_here, codec, dtype):
    store = store_here(codec=codec, dtype=dtype)
    page = run_section("TensorStore")
    same(page.first, store.activations().read(0, 1024))
    same(page.vectors.read().result(), stored(store))


def test_labels_and_names_beside_the_rows_are_those_of_our_reader(store_here):
    store = store_here()
    page = run_section("Labels, images and names beside the rows")
    same(page.labels, store.labels(0, store.n_rows))
    assert page.image == store.images(17, 18)[0]
    assert page.key == store.keys([17])[0]
    assert page.name == store.label_names[store.labels(17, 18)[0]]


@pytest.mark.parametrize("codec", CODECS)
def test_bfloat16_comes_out_as_the_values_that_torch_sees(store_here, codec):
    store = store_here("bfloat16.zarr", dtype="bfloat16", codec=codec)
    page = run_section("bfloat16")
    array = store.activations()
    same(page.vectors[:], stored(store))
    same(page.first, array.tensor(array.read(0, 1024)).float().numpy())


def test_the_rows_of_unreadable_images_are_nan_and_marked(store_here):
    store = store_here()
    page = run_section("Rows of NaN")
    same(page.valid, store.valid(0, store.n_rows))
    assert (~page.valid).sum() == 3
    values = stored(store)
    assert (np.isnan(values).all(axis=1) == ~page.valid).all()
    assert (np.isnan(values).any(axis=1) == ~page.valid).all()
    np.testing.assert_allclose(page.mean, values[page.valid].astype(np.float64).mean(axis=0), rtol=1e-12)


def test_others_read_a_missing_chunk_as_nan_in_silence_and_we_do_not(store_here):
    store = store_here()
    ours = run_section("A chunk that is missing")
    same(ours.vectors, store.activations().read(0, 1024))
    (Path(store.url) / SITE.path / "c/1/0").unlink()
    for title in ("zarr-python", "TensorStore"):
        first = run_section(title).first
        same(first[:512], ours.vectors[:512])
        assert np.isnan(first[512:]).all()
    with pytest.raises(StoreError, match="missing, though it was committed"):
        run_section("A chunk that is missing")


@pytest.mark.parametrize("way", ["merged", "appended"])
def test_the_parts_of_a_store_are_read_one_by_one(store_here, way):
    if way == "merged":
        first, second = store_here("first.zarr"), store_here("second.zarr", seed=1)
        merge_stores(["first.zarr", "second.zarr"], "both.zarr")
    else:
        first = store_here("both.zarr")
        objects = open_objects("both.zarr")
        second = store_here("second", place=next_part(objects), seed=1)
        add_part(objects, second.objects)
    page = run_section("Stores of several parts")
    same(page.vectors.compute(), np.concatenate([stored(first), stored(second)]))
    same(page.vectors.compute(), stored(thresher.open_store("both.zarr")))


def test_a_store_in_a_bucket_is_read_like_one_on_disk(store_here, monkeypatch):
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        store = store_here(place="s3://bucket/imagenet-l22.zarr")
        # In a process of its own: zarr and Dask leave their connections open to its end.
        code = sections()["Stores in buckets"] + "import numpy\nnumpy.savez('read.npz', first=first, last=last)\n"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
        kvstore = {"driver": "s3", "bucket": "bucket", "path": f"imagenet-l22.zarr/{SITE.path}/"}
        kvstore |= {"endpoint": server.endpoint, "aws_region": "us-east-1"}
        by_tensorstore = ts.open({"driver": "zarr3", "kvstore": kvstore}, read=True).result().read().result()
        ours = stored(store)
    with np.load("read.npz") as read:
        same(read["first"], ours[:1024])
        same(read["last"], ours[-1024:])
    same(by_tensorstore, ours)
