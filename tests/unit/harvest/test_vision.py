import json
import shutil
import socket
import warnings

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from thresher.harvest.vision import load_clip, load_tower, weights_sha256
from thresher.harvest.weights import resolve_model


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise OSError("network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


def test_a_model_folder_loads_as_open_clip_loads_it(tiny_model):
    theirs, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tiny_model}")
    tower = load_tower(str(tiny_model))
    assert tower.pretrained == str(tiny_model / "open_clip_model.safetensors")
    assert (tower.n_layers, tower.width) == (3, 32)
    for (name, ours), (their_name, value) in zip(
        tower.visual.state_dict().items(), theirs.visual.state_dict().items(), strict=True
    ):
        assert name == their_name
        assert torch.equal(ours, value)


@pytest.mark.parametrize("size", [(40, 36), (32, 32), (33, 90), (200, 31)])
def test_preprocessing_is_open_clips_own_bit_for_bit(tiny_model, pictures, size):
    _, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tiny_model}")
    tower = load_tower(str(tiny_model))
    batch = [pictures.picture(seed, size) for seed in range(3)]
    pixels = torch.from_numpy(np.stack([tower.pixels(picture) for picture in batch]))
    expected = torch.stack([preprocess(picture) for picture in batch])
    assert torch.equal(tower.normalise(pixels), expected)
    assert torch.equal(torch.stack([tower.preprocess(picture) for picture in batch]), expected)


def test_the_configs_own_mean_and_std_are_used(tiny_model):
    tower = load_tower(str(tiny_model))
    assert tower.preprocessing["mean"] == [0.3, 0.4, 0.5]
    grey = torch.full((1, 32, 32, 3), 51, dtype=torch.uint8)  # 51 / 255 = 0.2
    got = tower.normalise(grey)[0, :, 0, 0]
    assert torch.allclose(got, torch.tensor([-0.1 / 0.2, -0.2 / 0.25, -0.3 / 0.3]))


def test_the_configs_preprocessing_holds_with_a_checkpoint_from_elsewhere(tiny_model, models, tmp_path):
    bare = models.write("bare", weights=False)
    checkpoint = shutil.copy(tiny_model / "open_clip_model.safetensors", tmp_path / "weights.safetensors")
    tower = load_tower(str(bare / "open_clip_config.json"), str(checkpoint))
    assert tower.preprocessing["std"] == [0.2, 0.25, 0.3]
    assert tower.weights_sha256 == load_tower(str(tiny_model)).weights_sha256


def test_a_torch_checkpoint_loads_like_safetensors(tiny_model, models, tmp_path):
    state = load_file(tiny_model / "open_clip_model.safetensors")
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "w.pt")
    tower = load_tower(str(tiny_model), str(tmp_path / "w.pt"))
    assert tower.weights_sha256 == load_tower(str(tiny_model)).weights_sha256


def test_random_weights_follow_the_seed_and_leave_the_callers_generator_alone(tiny_model):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    digests = [load_tower(str(tiny_model), "none", seed=seed).weights_sha256 for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert digests[0] == digests[1] != digests[2]


def test_the_digest_sees_names_shapes_dtypes_and_every_bit():
    def linear(**changes):
        torch.manual_seed(0)
        layer = torch.nn.Linear(4, 6, bias=False)
        layer.weight.data[2, 3] += changes.get("add", 0.0)
        return layer.to(changes.get("dtype", torch.float32))

    base = weights_sha256(linear())
    assert weights_sha256(linear()) == base
    reshaped = linear()
    reshaped.weight.data = reshaped.weight.data.reshape(6 * 4 // 3, 3)
    others = [linear(add=1e-7), linear(dtype=torch.float64), reshaped, torch.nn.Sequential(linear())]
    assert len({base, *map(weights_sha256, others)}) == 5


def test_quickgelu_weights_in_a_gelu_model_are_refused_and_the_right_model_named():
    with pytest.raises(
        ValueError, match="openai's weights were trained with QuickGELU and ViT-L-14 computes GELU"
    ) as e:
        resolve_model("ViT-L-14", "openai")
    assert "--model ViT-L-14-quickgelu" in str(e.value)
    assert "--allow-activation-mismatch" in str(e.value)


def test_the_override_lets_the_mismatch_pass_this_check():
    with pytest.raises(ConnectionError):  # it goes on to the download, which this machine may not do
        resolve_model("ViT-L-14", "openai", allow_activation_mismatch=True)


def test_a_checkpoint_beside_its_config_must_agree_with_the_models_activation(models):
    theirs = models.write("theirs", quick_gelu=True)
    ours = models.write("ours", weights=False)
    checkpoint = str(theirs / "open_clip_model.safetensors")
    with pytest.raises(ValueError, match=r'computes GELU: set "quick_gelu" to true'):
        load_tower(str(ours), checkpoint)
    assert not load_tower(str(ours), checkpoint, allow_activation_mismatch=True).quick_gelu


@pytest.mark.parametrize(
    "place",
    [
        "ViT-L-14-336px.pt",
        "vit_large_patch14_clip_336.openai.safetensors",
        "models--timm--vit_large_patch14_clip_336.openai/snapshots/0a1b/open_clip_model.safetensors",
    ],
)
def test_a_checkpoint_is_recognised_by_its_published_name(tmp_path, place):
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="--model ViT-L-14-336-quickgelu"):
        resolve_model("ViT-L-14-336", str(path))
    assert resolve_model("ViT-L-14-336-quickgelu", str(path)).quick_gelu


def test_a_checkpoint_that_says_nothing_is_taken_with_a_note(tmp_path):
    (tmp_path / "mine.pt").write_bytes(b"")
    source = resolve_model("ViT-B-32", str(tmp_path / "mine.pt"))
    assert "does not say how it was trained" in source.notes[0]


def test_an_unknown_model_is_answered_with_close_names():
    with pytest.raises(ValueError, match=r"no model 'vit-l14'\. Close names: ViT-L-14"):
        load_tower("vit-l14", "openai")


def test_an_unknown_tag_is_answered_with_the_models_tags():
    with pytest.raises(ValueError, match=r"its tags are: openai, .*That tag belongs to ViT-L-14"):
        load_tower("ViT-L-14-quickgelu", "laion2b_s32b_b82k")


@pytest.mark.parametrize(("model", "kind"), [("RN50", "a ResNet"), ("ViT-B-16-SigLIP", "timm's vit_base")])
def test_a_tower_that_is_no_plain_transformer_is_refused(model, kind):
    with pytest.raises(ValueError, match=kind):
        load_tower(model, "none")


def test_weights_that_cannot_be_fetched_say_how_to_bring_them():
    with pytest.raises(
        ConnectionError, match=r"vit_large_patch14_clip_224\.openai and pass the file's path as --pretrained"
    ):
        load_tower("ViT-L-14-quickgelu", "openai")


def test_a_hub_model_that_cannot_be_fetched_says_how_to_bring_it():
    with pytest.raises(ConnectionError, match="give that folder as --model"):
        load_tower("hf-hub:someone/some-clip")


def test_weights_of_another_image_size_are_not_resized_in_silence(tiny_model, models):
    vision = {"image_size": 64, "layers": 3, "width": 32, "patch_size": 16, "head_width": 16}
    other = models.write("larger", weights=False, vision_cfg=vision)
    with pytest.raises(ValueError, match=r"positional_embedding is \[5, 32\], the model's is \[17, 32\]"):
        load_tower(str(other), str(tiny_model / "open_clip_model.safetensors"))


def test_a_checkpoint_of_another_width_is_refused_in_one_line(tiny_model, models):
    other = models.write("other", weights=False, embed_dim=24)
    with pytest.raises(
        ValueError, match=r"2 of another shape \(first: text_projection is \[16, 16\], the model's is"
    ) as e:
        load_tower(str(other), str(tiny_model / "open_clip_model.safetensors"))
    assert "\n" not in str(e.value)


def test_missing_and_unexpected_tensors_are_counted(tiny_model, tmp_path):
    state = load_file(tiny_model / "open_clip_model.safetensors")
    state["extra.weight"] = torch.zeros(1)
    del state["visual.proj"], state["ln_final.bias"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(
        ValueError, match=r"2 tensors missing \(first: .*; 1 tensors unexpected \(first: extra.weight\)"
    ):
        load_tower(str(tiny_model), str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("text", [b"these are no weights" * 10, b"hello", b""])
def test_a_file_that_is_no_checkpoint_is_refused(tiny_model, tmp_path, name, text):
    (tmp_path / name).write_bytes(text)
    with pytest.raises(ValueError, match=r"is no checkpoint that can be read \([A-Za-z].* .*\)"):
        load_tower(str(tiny_model), str(tmp_path / name))


def test_a_torchscript_archive_is_not_executed(tiny_model, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; OpenAI's files are still of this form
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "ViT.pt"))
    with pytest.raises(ValueError, match="TorchScript archive"):
        load_tower(str(tiny_model), str(tmp_path / "ViT.pt"))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "no open_clip model config"),
        ('{"vision_cfg": {}}', "it has no embed_dim, text_cfg"),
        ("[]", "no open_clip"),
    ],
)
def test_a_config_that_is_none_is_refused(tmp_path, document, message):
    (tmp_path / "open_clip_config.json").write_text(document)
    with pytest.raises(ValueError, match=message):
        load_tower(str(tmp_path))


def test_a_config_with_an_unknown_setting_is_refused(models):
    folder = models.write("odd", weights=False, vision_cfg={"image_size": 32, "wings": 2})
    with pytest.raises(ValueError, match=r"cannot build .*wings"):
        load_tower(str(folder), "none")


@pytest.mark.parametrize(
    ("model", "pretrained", "message"),
    [
        ("/nowhere/model", None, "does not exist"),
        ("tiny", "/nowhere/w.pt", "is no file"),
        ("tiny", "openai", "tags go with open_clip's model names"),
        ("empty", None, "holds no checkpoint"),
        ("ViT-B-32", "/nowhere/w.pt", "checkpoint /nowhere/w.pt does not exist"),
    ],
)
def test_paths_that_lead_nowhere_are_named(models, model, pretrained, message):
    if model == "tiny":
        model = str(models.write("tiny"))
    if model == "empty":
        model = str(models.write("empty", weights=False))
    with pytest.raises(FileNotFoundError, match=message):
        load_tower(model, pretrained)


def test_several_checkpoints_in_a_folder_must_be_chosen_from(models):
    folder = models.write()
    (folder / "open_clip_model.safetensors").rename(folder / "a.safetensors")
    (folder / "b.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"several checkpoints \(a\.safetensors, b\.pt\)"):
        load_tower(str(folder))


def test_a_config_file_alone_wants_weights_named(models, tmp_path):
    path = tmp_path / "my_model.json"
    path.write_text(json.dumps(json.loads((models.write() / "open_clip_config.json").read_text())["model_cfg"]))
    with pytest.raises(ValueError, match="a config without weights"):
        load_tower(str(path))
    assert load_tower(str(path), "none").n_layers == 3


def test_loading_leaves_the_root_logger_alone(tiny_model, caplog):
    import logging

    handlers = list(logging.getLogger().handlers)
    load_tower(str(tiny_model), "none")
    assert logging.getLogger().handlers == handlers
    assert not caplog.records
    assert logging.root.manager.disable == 0


def test_the_whole_model_has_its_text_tower(tiny_model):
    clip = load_clip(str(tiny_model))
    with torch.inference_mode():
        assert clip.model.encode_text(torch.zeros(2, 8, dtype=torch.long)).shape == (2, 16)
