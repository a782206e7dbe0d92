"""Harvests of several tokens, sites and number formats."""

import os

import numpy as np
import pytest
import torch
from listener import Listener
from PIL import Image
from thresher.harvest import announce, forward
from thresher.harvest.images import open_images
from thresher.harvest.options import HarvestOptions
from thresher.harvest.run import harvest
from thresher.harvest.sites import capture, resolve_sites
from thresher.harvest.vision import load_tower
from thresher.store.errors import StoreError
from thresher.store.format import SITES, Site
from thresher.store.reader import open_store

VISION = {"image_size": 32, "layers": 3, "width": 32, "patch_size": 8, "head_width": 16}  # 16 patches


@pytest.fixture
def model(models):
    return models.write("patches", vision_cfg=VISION)


@pytest.fixture
def options(model):
    def make(**changes):
        defaults = {"model": str(model), "layer": (1,), "workers": 0, "batch_size": 3, "rows_per_chunk": 5}
        return HarvestOptions(**(defaults | {"device": "cpu"} | changes))

    return make


@pytest.fixture
def folder(tmp_path, pictures):
    return pictures.class_folders(tmp_path / "set", n_per_class=4)  # 12 images: windows of 5, 5 and 2


def each_alone(model, source, sites):
    """Each image alone through open_clip's own preprocessing: {site: (n, T, width)} in source order."""
    tower = load_tower(str(model))
    rows = {site: [] for site in sites}
    with open_images(source) as images:
        for key in images.keys:
            with Image.open(os.path.join(os.fsencode(source), key)) as picture:
                image = tower.preprocess(picture.convert("RGB"))[None]
            for site, values in capture(tower, image, sites).items():
                rows[site].append(values.reshape(-1, values.shape[-1]).numpy())
    return {site: np.stack(values) for site, values in rows.items()}


@pytest.mark.parametrize("order", ["random", "source"])
@pytest.mark.parametrize(("token", "n_tokens", "first"), [("patch", 16, 1), ("all", 17, 0), ("mean", 1, 0)])
def test_each_row_is_its_images_token(model, options, folder, tmp_path, token, n_tokens, first, order):
    chosen = options(site=SITES, layer=(0, 2), token=token, order=order, dtype="float32", workers=1)
    result = harvest(chosen, folder, tmp_path / "s.zarr")
    store = open_store(tmp_path / "s.zarr")
    sites = resolve_sites(load_tower(str(model)), (0, 2), SITES, token)
    assert store.sites == sites
    assert (result.n_rows, result.n_harvested, store.tokens_per_image) == (12 * n_tokens, 12, n_tokens)
    n = store.n_rows
    images, tokens = store.images(0, n), store.tokens(0, n).astype(int)
    pairs = set(zip(images.tolist(), tokens.tolist(), strict=True))
    assert pairs == {(i, first + t) for i in range(12) for t in range(n_tokens)}
    if n_tokens > 1:
        in_order = all(images[k] <= images[k + 1] for k in range(n - 1))
        assert in_order == (order == "source")
    expected = each_alone(model, folder, sites)
    for site in sites:
        assert store.activations(site).d_in == (128 if site.site == "mlp_act" else 32)
        got = store.activations(site).read(0, n)
        np.testing.assert_allclose(got, expected[site][images, tokens - first], atol=5e-6)


def test_several_sites_and_layers_come_from_one_pass(options, folder, tmp_path, monkeypatch):
    passes = []
    real = forward.capture
    monkeypatch.setattr(forward, "capture", lambda *a: passes.append(len(a[1])) or real(*a))
    harvest(options(site=("mlp_act", "attn_out"), layer=(0, 1), token="patch"), folder, tmp_path / "s.zarr")
    assert sorted(passes[-5:]) == sorted([3, 2, 3, 2, 2])  # batches that never straddle a window


def test_an_unreadable_image_has_a_row_of_nan_for_each_token(options, folder, tmp_path):
    (folder / "zebra" / "1.png").write_bytes(b"a text file")
    result = harvest(options(token="patch"), folder, tmp_path / "s.zarr")
    assert (result.n_rows, result.n_valid) == (12 * 16, 11 * 16)
    store = open_store(tmp_path / "s.zarr")
    rows = np.flatnonzero(np.isnan(store.activations().read(0, store.n_rows)).any(axis=1))
    assert set(store.keys(rows)) == {"zebra/1.png"}
    assert sorted(store.tokens(0, store.n_rows)[rows].tolist()) == list(range(1, 17))
    assert [bad.key for bad in result.unreadable] == ["zebra/1.png"]


def test_the_number_of_batches_at_a_time_changes_no_row(options, folder, tmp_path):
    before = torch.get_num_threads()
    try:
        for n in (1, 4):
            torch.set_num_threads(n)
            harvest(options(token="all", dtype="float32", workers=n // 4), folder, tmp_path / f"{n}.zarr")
    finally:
        torch.set_num_threads(before)
    one, four = (open_store(tmp_path / f"{n}.zarr").activations().read(0, 12 * 17) for n in (1, 4))
    np.testing.assert_array_equal(one, four)


def scaled(models, by):
    """A tower whose second block's MLP writes values of some thousand times the usual."""
    from safetensors.torch import load_file, save_file

    folder = models.write(f"scaled {by}", vision_cfg=VISION)
    state = load_file(folder / "open_clip_model.safetensors")
    state["visual.transformer.resblocks.1.mlp.c_proj.weight"] *= by
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


@pytest.mark.parametrize("token", ["cls", "patch"])
def test_values_beyond_float16_are_an_error_that_names_the_remedy(models, options, folder, tmp_path, token):
    model = scaled(models, 1e7)
    expected = each_alone(model, folder, [Site(1, token=token)])[Site(1, token=token)]
    assert np.abs(expected).max() > 65504  # float16's largest
    chosen = {"model": str(model), "token": token}
    with pytest.raises(StoreError, match=r"reaches .*, beyond float16's 65504\. Harvest with --dtype bfloat16 or --dt"):
        harvest(options(**chosen), folder, tmp_path / "s.zarr")
    for dtype, tolerance in (("bfloat16", 2.0**-8), ("float32", 1e-4)):
        harvest(options(dtype=dtype, **chosen), folder, tmp_path / f"{dtype}.zarr")
        store = open_store(tmp_path / f"{dtype}.zarr")
        array = store.activations()
        got = array.tensor(array.read(0, store.n_rows)).float().numpy()
        images, tokens = store.images(0, store.n_rows), store.tokens(0, store.n_rows).astype(int)
        wanted = expected[images, tokens - (token == "patch")]
        assert np.isfinite(got).all()
        np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance * np.abs(wanted).max())


def test_sites_that_fit_do_not_hide_one_that_does_not(models, options, folder, tmp_path):
    model = str(scaled(models, 1e7))
    fine = options(model=model, site=("resid_pre", "attn_out", "mlp_act"))
    assert harvest(fine, folder, tmp_path / "fine.zarr").n_valid == 12
    with pytest.raises(StoreError, match=r"layer 1 \(0-based\) mlp_out cls: the activation of row \d+ reaches"):
        harvest(options(model=model, site=("resid_pre", "mlp_out")), folder, tmp_path / "s.zarr")


def test_the_memory_of_a_large_window_is_told(options, folder, tmp_path, monkeypatch):
    quiet, told = Listener(), Listener()
    harvest(options(token="patch"), folder, tmp_path / "quiet.zarr", quiet)
    assert not any("of memory" in line for line in quiet.said)
    # Two windows, one of which is written: of images, tokens, width, bytes of float16.
    monkeypatch.setattr(announce, "_LARGE_WINDOW", 2 * 5 * 16 * 32 * 2 - 1)
    harvest(options(token="patch"), folder, tmp_path / "told.zarr", told)
    (line,) = [line for line in told.said if "of memory" in line]
    assert "5 images are written together, from 10.2 kB of memory" in line


def test_images_and_tokens_are_told_before_the_start(options, folder, tmp_path):
    listener = Listener()
    harvest(options(token="all", site=("mlp_act",)), folder, tmp_path / "s.zarr", listener)
    (line,) = [line for line in listener.said if "measured on one batch" in line]
    assert "204 rows (12 images of 17 tokens), float16: layer 1 (0-based) mlp_act all (128 wide)" in line


def test_a_stopped_harvest_of_patches_goes_on_and_ends_with_the_same_bytes(options, folder, tmp_path, monkeypatch):
    from thresher.store.writer import WindowWriter

    chosen = options(token="patch", site=("resid_post", "mlp_out"))
    harvest(chosen, folder, tmp_path / "whole.zarr")
    real = WindowWriter.write

    def interrupted(self, settle):
        if self.number:
            raise OSError(28, "No space left on device")
        return real(self, settle)

    with monkeypatch.context() as patch:
        patch.setattr(WindowWriter, "write", interrupted)
        with pytest.raises(OSError, match="No space left"):
            harvest(chosen, folder, tmp_path / "part.zarr")
    assert harvest(chosen, folder, tmp_path / "part.zarr").n_harvested == 7
    whole, part = (
        {p.relative_to(r): p.read_bytes() for p in r.rglob("*") if p.is_file()}
        for r in (tmp_path / "whole.zarr", tmp_path / "part.zarr")
    )
    assert whole == part


def test_the_precision_error_counts_every_token(options, folder, tmp_path):
    harvest(options(token="patch", precision="bf16"), folder, tmp_path / "s.zarr")
    error = open_store(tmp_path / "s.zarr").provenance.precision_error
    assert error["n_rows"] == 3 * 16
    assert 0 < error["mean"] <= error["max"] < 0.05
