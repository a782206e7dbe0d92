import os
import shutil

import pytest
from safetensors.torch import load_file, save_file
from thresher.harvest.options import HarvestOptions
from thresher.harvest.recorded import recorded_images
from thresher.harvest.rewrite import recompute_windows
from thresher.harvest.run import harvest
from thresher.progress import Reporter
from thresher.store.errors import StoreError
from thresher.store.layout import StoreSpec
from thresher.store.reader import open_store
from thresher.store.writer import resume_store

VISION = {"image_size": 32, "layers": 3, "width": 32, "patch_size": 8, "head_width": 16}


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
    root = pictures.class_folders(tmp_path / "set", n_per_class=4)
    (root / "zebra" / "1.png").write_bytes(b"a text file")
    return root


def spec_of(store):
    """What the store was made with, put together from what it says of itself."""
    opened = open_store(store)
    return StoreSpec(
        provenance=opened.provenance,
        sites={site: opened.activations(site).d_in for site in opened.sites},
        n_images=opened.n_images,
        tokens_per_image=opened.tokens_per_image,
        rows_per_chunk=opened.rows_per_chunk,
        dtype=opened.provenance.dtype,
        codec=opened.codec,
        thumbnail_px=opened.thumbnail_px,
        label_names=opened.label_names,
    )


def files_below(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def rewrite(store, spec, windows, source=None):
    with recorded_images(spec.provenance, source) as images, resume_store(store, spec) as writer:
        window = None
        for part in recompute_windows(spec, windows, images, device="cpu", workers=0):
            window = window or writer.window(part.window)
            part.put_into(window)
            if part.is_last:
                window.commit()
                window = None


CASES = {
    "cls": {},
    "patches of two sites": {"token": "patch", "site": ("resid_post", "mlp_act")},
    "bf16": {"precision": "bf16", "dtype": "bfloat16"},
    "a limit": {"limit": 11, "token": "mean"},
    "source order": {"order": "source", "limit": 11},
    "compressed": {"codec": "zstd", "thumbnails": "off"},
    "random weights": {"pretrained": "none", "seed": 4},
}


@pytest.mark.parametrize("case", CASES)
def test_windows_come_again_with_the_same_bytes(options, folder, tmp_path, case):
    store = tmp_path / "s.zarr"
    harvest(options(**CASES[case]), folder, store)
    whole, spec = files_below(store), spec_of(store)
    lost = [name for name in whole if name.startswith("layers/1/resid_post") and "/c/" in name]
    lost += [name for name in whole if name.startswith(("thumbs/0/", "thumbs/2/", "rows/valid/c/"))]
    for name in lost:
        (store / name).unlink()
    rewrite(store, spec, [0, 2])
    if spec.n_images == 12:
        rewrite(store, spec, [1])
    else:
        rewrite(store, spec, range(1, 3))
    assert files_below(store) == whole


def test_the_record_leads_to_images_and_model_from_any_folder(options, model, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = os.path.relpath(model, tmp_path)
    harvest(options(model=relative), "set", "s.zarr")
    whole, spec = files_below(tmp_path / "s.zarr"), spec_of(tmp_path / "s.zarr")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    rewrite(tmp_path / "s.zarr", spec, [0, 1, 2])
    assert files_below(tmp_path / "s.zarr") == whole


def test_images_that_moved_are_named_by_the_user(options, folder, tmp_path):
    harvest(options(), folder, tmp_path / "s.zarr")
    whole, spec = files_below(tmp_path / "s.zarr"), spec_of(tmp_path / "s.zarr")
    shutil.move(folder, tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match=r"set does not exist"):
        rewrite(tmp_path / "s.zarr", spec, [0])
    rewrite(tmp_path / "s.zarr", spec, [0], tmp_path / "moved")
    assert files_below(tmp_path / "s.zarr") == whole


def test_other_images_than_were_harvested_are_refused(options, folder, tmp_path, pictures):
    harvest(options(), folder, tmp_path / "s.zarr")
    (folder / "zebra" / "new.png").write_bytes(pictures.encoded(5))
    with pytest.raises(StoreError, match=r"set holds other images than were harvested \(13 against 12; keys_sha256 is"):
        rewrite(tmp_path / "s.zarr", spec_of(tmp_path / "s.zarr"), [0])


def test_a_store_that_does_not_know_its_source_asks_for_it(options, folder, tmp_path):
    from thresher.harvest.images import open_images

    with open_images(folder) as images:
        harvest(options(), images, tmp_path / "s.zarr")
    with pytest.raises(ValueError, match=r"does not record where its images are .*: name IMAGES"):
        rewrite(tmp_path / "s.zarr", spec_of(tmp_path / "s.zarr"), [0])


def test_a_model_with_other_weights_is_refused(options, model, folder, tmp_path):
    harvest(options(), folder, tmp_path / "s.zarr")
    state = load_file(model / "open_clip_model.safetensors")
    state["visual.ln_pre.bias"][0] += 1
    save_file(state, model / "open_clip_model.safetensors")
    with pytest.raises(StoreError, match="is not the model of this store any more: weights_sha256 is"):
        rewrite(tmp_path / "s.zarr", spec_of(tmp_path / "s.zarr"), [0])


def test_other_versions_of_packages_are_warned_of(options, folder, tmp_path, monkeypatch):
    from thresher.harvest import plan, rewrite

    with monkeypatch.context() as patch:
        versions = {**plan.package_versions(), "torch": "1.0"}
        patch.setattr(plan, "package_versions", lambda: versions)
        harvest(options(), folder, tmp_path / "s.zarr")
    warned = []

    class Listener(Reporter):
        def warn(self, text):
            warned.append(text)

    spec = spec_of(tmp_path / "s.zarr")
    with recorded_images(spec.provenance) as images:
        next(rewrite.recompute_windows(spec, [0], images, device="cpu", workers=0, reporter=Listener()))
    assert len(warned) == 1
    assert "may differ from the first time: torch 1.0 then, 2." in warned[0]


@pytest.mark.parametrize("pretrained", [None, "quickstart"])
def test_the_embedded_model_and_pictures_are_found_again(tmp_path, pretrained):
    options = HarvestOptions(
        model="quickstart", pretrained=pretrained, layer=(1,), limit=6, workers=0, rows_per_chunk=4, device="cpu"
    )
    harvest(options, "quickstart", tmp_path / "s.zarr")
    whole, spec = files_below(tmp_path / "s.zarr"), spec_of(tmp_path / "s.zarr")
    assert (spec.provenance.source, spec.provenance.pretrained) == (["quickstart"], "quickstart")
    rewrite(tmp_path / "s.zarr", spec, [1])
    assert files_below(tmp_path / "s.zarr") == whole
