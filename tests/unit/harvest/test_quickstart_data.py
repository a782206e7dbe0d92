"""The embedded pictures and model: whole, licensed, loadable without a network."""

import hashlib
import importlib.util
import io
import json
import re
import socket
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import open_clip
import pytest
import thresher.harvest
import torch
from PIL import Image
from thresher.harvest.images import open_images

FOLDER = Path(thresher.harvest.__file__).parent / "quickstart"
MODEL = FOLDER / "model"


@pytest.fixture(scope="module")
def images():
    with open_images("quickstart") as opened:
        yield opened


@pytest.fixture(scope="module")
def said(images):
    return [images.metadata(i) for i in range(images.n_images)]


def test_the_embedded_files_take_less_than_30_megabytes():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 30e6


def test_there_are_20001_pictures_of_98_subgroups_each_under_its_own_key(images, said):
    assert images.n_images == 20_001
    assert len(set(images.keys)) == 20_001
    assert images.label_names is not None
    assert len(images.label_names) == 98
    assert len({s["group"] for s in said}) == 9
    assert [images.label_names[label] for label in images.labels] == [s["label"] for s in said]


def test_each_picture_says_its_caption_label_group_tone_vendor_emoji_and_split(images, said):
    for s in said:
        assert set(s) == {"caption", "label", "label_id", "group", "tone", "emoji", "vendor", "split"}
        assert s["caption"]
        assert s["tone"] in range(6)
        assert s["split"] in ("train", "style-holdout", "concept-holdout")
    for key, s in zip(images.keys, said, strict=True):
        vendor, _, code = key.decode().rpartition("/")[2].removesuffix(".webp").partition("-")
        assert vendor == s["vendor"]
        assert code.split("-")[0] == s["emoji"].split("-")[0]


def test_no_emoji_of_the_concept_hold_out_is_in_another_split(said):
    split_of = {}
    for s in said:
        split_of.setdefault(s["emoji"], set()).add(s["split"])
    held_out = [e for e, splits in split_of.items() if "concept-holdout" in splits]
    assert len(held_out) == 95  # 5 % of 1,899
    assert all(split_of[e] == {"concept-holdout"} for e in held_out)
    assert {s["vendor"] for s in said if s["split"] == "style-holdout"} == {"twemoji"}


def test_a_sample_of_pictures_decodes_to_64_pixels_on_white(images):
    for i in np.random.default_rng(0).choice(images.n_images, 300, replace=False).tolist():
        picture = Image.open(io.BytesIO(images.read(i)))
        assert (picture.format, picture.size, picture.mode) == ("WEBP", (64, 64), "RGB")
        pixels = np.asarray(picture)
        assert (pixels != 255).any()


def test_no_two_pictures_of_a_vendor_are_the_same(images, said):
    digests = Counter((s["vendor"], hashlib.sha256(images.read(i)).digest()) for i, s in enumerate(said))
    # One pair is drawn differently and equal only once it is laid on white and compressed.
    assert len(said) - len(digests) <= 5


def test_every_vendor_has_its_line_in_the_licences_and_every_named_licence_its_text(said):
    text = (FOLDER / "LICENSES.md").read_text()
    for vendor in {s["vendor"] for s in said}:
        assert f"| `{vendor}-` |" in text
    named = set(re.findall(r"`([\w.-]+\.txt)`", text))
    present = {path.name for path in (FOLDER / "licenses").iterdir()}
    assert named == present


@pytest.mark.parametrize(
    ("name", "first", "last", "n_words"),
    [
        ("Apache-2.0.txt", "Apache License", "limitations under the License.", 1581),
        (
            "CC-BY-4.0.txt",
            "Attribution 4.0 International",
            "Creative Commons may be contacted at creativecommons.org.",
            2573,
        ),
        ("Unicode-3.0.txt", "UNICODE LICENSE V3", "authorization of the copyright holder.", 320),
    ],
)
def test_a_licence_text_is_whole(name, first, last, n_words):
    text = (FOLDER / "licenses" / name).read_text()
    assert text.strip().startswith(first)
    assert text.strip().endswith(last)
    assert len(text.split()) == n_words


def test_each_mit_text_has_its_own_copyright_holder():
    holders = {}
    for path in (FOLDER / "licenses").glob("MIT-*.txt"):
        text = path.read_text()
        assert "Permission is hereby granted, free of charge" in text
        assert text.rstrip().endswith("SOFTWARE.")
        holders[path.name] = re.search(r"Copyright \(c\) (.*)", text)[1]
    assert len(set(holders.values())) == len(holders) == 6


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


@pytest.mark.usefixtures("no_network")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_model_loads_without_a_network_and_names_pictures_far_above_chance(images, said):
    source = f"local-dir:{MODEL}"
    model, _, preprocess = open_clip.create_model_and_transforms(source)
    model.eval()
    tokenize = open_clip.get_tokenizer(source, bpe_path=str(MODEL / "bpe_4096.txt.gz"))
    chosen = [i for i, s in enumerate(said) if s["split"] == "style-holdout"][:200]
    pictures = [Image.open(io.BytesIO(images.read(i))).convert("RGB") for i in chosen]
    subgroups = sorted({s["label"] for s in said})
    with torch.inference_mode():
        image = model.encode_image(torch.stack([preprocess(picture) for picture in pictures]), normalize=True)
        text = model.encode_text(tokenize([subgroup.replace("-", " ") for subgroup in subgroups]), normalize=True)
    found = [subgroups[i] for i in (image @ text.T).argmax(1).tolist()]
    right = np.mean([f == said[i]["label"] for f, i in zip(found, chosen, strict=True)])
    assert 0.65 < right < 0.85  # .748 over all 567; three standard deviations of 200 are .09


def test_the_model_is_what_its_card_says():
    config = json.loads((MODEL / "open_clip_config.json").read_text())["model_cfg"]
    assert config["vision_cfg"] == {"image_size": 64, "layers": 6, "width": 192, "patch_size": 16, "head_width": 64}
    model = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(3.99e6, rel=0.002)


@pytest.fixture
def maker(monkeypatch):
    """Import one of the maintainer's scripts, which are not installed."""
    folder = Path(__file__).parents[3] / "harvest" / "quickstart" / "make"
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)

    def load(name):
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    yield load
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", "") and str(folder) in str(sys.modules[name].__file__):
            del sys.modules[name]


def test_the_pictures_splits_are_what_the_maker_s_script_draws(maker, images, said):
    clip_data = maker("clip_data")
    pictures = [
        clip_data.Picture(
            code="", base=s["emoji"].upper(), name="", group="", subgroup="", tags=(), tone=0, vendor=s["vendor"]
        )
        for s in said
    ]
    assert clip_data.split_pictures(pictures) == [s["split"] for s in said]


def test_the_tokenizer_s_merges_are_the_head_of_open_clip_s(maker, tmp_path):
    import gzip

    maker("clip_data").write_bpe(tmp_path / "bpe.txt.gz", 4096)
    assert gzip.decompress((tmp_path / "bpe.txt.gz").read_bytes()) == gzip.decompress(
        (MODEL / "bpe_4096.txt.gz").read_bytes()
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_folding_the_pixel_scaling_into_the_weights_changes_no_embedding(maker):
    export = maker("export_clip")
    config = json.loads((MODEL / "open_clip_config.json").read_text())
    vision, text = config["model_cfg"]["vision_cfg"], config["model_cfg"]["text_cfg"]
    torch.manual_seed(0)
    model = open_clip.CLIP(128, vision, text).double().eval()
    pixels = torch.rand(4, 3, 64, 64, dtype=torch.float64)
    mean, std = (
        torch.tensor(config["preprocess_cfg"][key], dtype=torch.float64).view(3, 1, 1) for key in ("mean", "std")
    )
    folded = export.fold_pixel_scaling({name: value.float() for name, value in model.state_dict().items()})
    with torch.inference_mode():
        wanted = model.encode_image((pixels - 0.5) / 0.5)
        model.load_state_dict({name: value.double() for name, value in folded.items()})
        got = model.encode_image((pixels - mean) / std)
    assert torch.allclose(got, wanted, atol=1e-5 * wanted.abs().max().item())
