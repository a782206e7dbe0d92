"""SAEs go to every format and come back with the same function, their scaling folded into plain weights."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from thresher.store.errors import StoreError
from thresher.train.formats import FORMATS, Outgoing, PlainSae, read_foreign
from thresher.train.formats.origin import Origin
from thresher.train.models import (
    BatchTopKSae,
    GatedSae,
    JumpReluSae,
    MatryoshkaSae,
    ReluSae,
    TopKSae,
)

D, F = 6, 12
ORIGIN = Origin(model="ViT-L-14-quickgelu", pretrained="openai", layer=22, site="resid_post", token="cls", n_layers=24)


def made(variant: str, *, seed: int = 0, scaled: bool = True, **settings):
    """An SAE of random weights, with scaling constants and, unless `unit`, decoder rows of any norm."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return torch.tensor(rng.standard_normal(shape), dtype=torch.float32)

    scaling = {"input_mean": draw(D) * 2, "input_scale": draw(D).abs() + 0.5} if scaled else {}
    weights = (draw(F, D), draw(F) * 0.3, draw(F, D), draw(D) * 0.3)
    one = torch.full((1,), 0.7)
    extra = {
        "relu": {},
        "topk": {"k": 3},
        "batchtopk": {"k": 3, "threshold": one},
        "matryoshka": {"k": 3, "threshold": one, "prefixes": [4, F]},
        "jumprelu": {"log_threshold": draw(F) * 0.2},
        "gated": {"r_mag": draw(F) * 0.3, "b_mag": draw(F) * 0.3},
    }[variant]
    classes = (ReluSae, TopKSae, BatchTopKSae, MatryoshkaSae, JumpReluSae, GatedSae)
    cls = {each.variant: each for each in classes}[variant]
    return cls(*weights, **scaling, **extra, **settings)


def rows(n: int = 40, seed: int = 1) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).standard_normal((n, D)) * 2 + 1, dtype=torch.float32)


def by_formula(sae, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Activations and reconstruction from the definitions, in float64 numpy."""
    t = {name: tensor.double().numpy() for name, tensor in sae.tensors().items()}
    x = x.double().numpy()
    shift, size = np.zeros((len(x), 1)), np.ones((len(x), 1))
    if sae.layer_norm:
        shift, size = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True) + 1e-5
    if sae.constant_norm:
        size = np.linalg.norm(x, axis=1, keepdims=True) / D**0.5
    z = ((x - shift) / size - t["input_mean"]) / t["input_scale"]
    u = (z - t["b_dec"] if sae.centres_input else z) @ t["W_enc"]
    pre = u + t["b_enc"]
    if sae.variant == "relu":
        f = np.maximum(pre, 0)
    elif sae.variant == "topk":
        kth = np.sort(pre, axis=1)[:, -3][:, None]
        f = np.where((pre >= kth) & (pre > 0), pre, 0)
    elif sae.variant == "jumprelu":
        f = np.where(pre > np.exp(t["log_threshold"]), pre, 0)
    elif sae.variant == "gated":
        f = np.where(pre > 0, np.maximum(u * np.exp(t["r_mag"]) + t["b_mag"], 0), 0)
    else:
        f = np.where(pre > max(t["threshold"][0], 0), pre, 0)
    x_hat = (f @ t["W_dec"] + t["b_dec"]) * t.get("output_scale", t["input_scale"])
    return f, (x_hat + t.get("output_mean", t["input_mean"])) * size + shift


def outgoing(sae, **changes) -> Outgoing:
    return Outgoing(plain=PlainSae.of(sae), weights=b"", origin=ORIGIN, variant=sae.variant, **changes)


def write_out(written, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in written.files.items():
        (folder / name).write_bytes(content)
    return folder


def through(sae, name: str, folder: Path):
    """The SAE written in a format and read again, as a folder that says nothing of its format."""
    format_, foreign = read_foreign(write_out(FORMATS[name].write(outgoing(sae)), folder))
    assert format_.name == name
    return foreign


HOLDS = {
    "saelens": ("relu", "topk", "batchtopk", "matryoshka", "jumprelu", "gated"),
    "sparsify": ("topk",),
    "dictionary_learning": ("relu", "topk", "batchtopk", "matryoshka", "jumprelu", "gated"),
    "saev": ("relu", "topk", "batchtopk"),
    "prisma": ("relu", "topk", "gated"),
    "post": ("relu",),
}
UNIT = {("dictionary_learning", "relu"), ("post", "relu")}  # whose decoder rows get norm 1


@pytest.mark.parametrize(("name", "variant"), [(name, v) for name, variants in HOLDS.items() for v in variants])
@pytest.mark.parametrize("centres_input", [True, False])
def test_an_sae_that_went_through_a_format_computes_what_the_definitions_say_of_the_one_that_went_in(
    name, variant, centres_input, tmp_path
):
    sae, x = made(variant, centres_input=centres_input), rows()
    f, x_hat = by_formula(sae, x)
    foreign = through(sae, name, tmp_path / "out")
    assert foreign.sae.variant == variant
    # The constants are in the weights: nothing scales the input any more.
    assert foreign.sae.input_mean.eq(0).all()
    assert foreign.sae.input_scale.eq(1).all()
    norm = np.ones(F)
    if (name, variant) in UNIT:
        norm = np.linalg.norm(sae.W_dec.double().numpy() * sae.input_scale.double().numpy(), axis=1)
        np.testing.assert_allclose(np.linalg.norm(foreign.sae.W_dec.numpy(), axis=1), 1, rtol=1e-6)
    found = foreign.sae.encode(x)
    np.testing.assert_allclose(found.numpy(), f * norm, rtol=1e-5, atol=1e-5 * norm.max())
    np.testing.assert_allclose(foreign.sae.decode(found, x).numpy(), x_hat, rtol=1e-5, atol=1e-5)
    assert (f > 0).any()
    assert (f == 0).any()


@pytest.mark.parametrize("rows_by", ["layer_norm", "constant_norm"])
@pytest.mark.parametrize("name", ["saelens", "prisma"])
def test_a_norm_of_each_row_stays_a_norm_of_each_row(name, rows_by, tmp_path):
    sae, x = made("relu", **{rows_by: True}), rows()
    f, x_hat = by_formula(sae, x)
    foreign = through(sae, name, tmp_path / "out")
    assert getattr(foreign.sae, rows_by)
    np.testing.assert_allclose(foreign.sae.encode(x).numpy(), f, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(foreign.sae(x).numpy(), x_hat, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", ["relu", "jumprelu"])
def test_a_transcoder_keeps_the_scales_of_both_sites(variant, tmp_path):
    rng = np.random.default_rng(5)
    mean, scale = (torch.tensor(rng.uniform(0.5, 2, D), dtype=torch.float32) for _ in range(2))
    sae, x = made(variant, centres_input=False, output_mean=mean, output_scale=scale), rows()
    f, x_hat = by_formula(sae, x)
    foreign = through(sae, "saelens", tmp_path / "out")
    assert foreign.sae.is_transcoder
    np.testing.assert_allclose(foreign.sae.encode(x).numpy(), f, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(foreign.sae(x).numpy(), x_hat, rtol=1e-5, atol=1e-5)


def test_sparsify_holds_topk_transcoders(tmp_path):
    sae, x = made("topk", centres_input=False, output_mean=torch.ones(D), output_scale=torch.full((D,), 2.0)), rows()
    f, x_hat = by_formula(sae, x)
    foreign = through(sae, "sparsify", tmp_path / "out")
    assert foreign.config["transcode"] is True
    np.testing.assert_allclose(foreign.sae.encode(x).numpy(), f, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(foreign.sae(x).numpy(), x_hat, rtol=1e-5, atol=1e-5)


REFUSED = [
    *((name, v) for name, holds in HOLDS.items() for v in HOLDS["saelens"] if v not in holds),
    *((name, "layer_norm") for name in ("sparsify", "dictionary_learning", "saev", "post")),
    *((name, "transcoder") for name in ("dictionary_learning", "saev", "prisma", "post")),
]


@pytest.mark.parametrize(("name", "what"), REFUSED)
def test_what_a_format_cannot_express_is_refused_in_one_line(name, what):
    variant = "topk" if name in ("sparsify",) else "relu"
    if what == "layer_norm":
        sae = made(variant, layer_norm=True)
    elif what == "transcoder":
        sae = made("relu", centres_input=False, output_mean=torch.ones(D))
    else:
        sae = made(what)
    with pytest.raises(StoreError, match=rf"{name} cannot hold .*nothing was written\. Try --format"):
        FORMATS[name].write(outgoing(sae))


def test_a_prisma_sae_has_a_whole_expansion_factor():
    sae = ReluSae(torch.ones(13, 6), torch.zeros(13), torch.ones(13, 6), torch.zeros(6))
    with pytest.raises(StoreError, match="13 features of 6 inputs"):
        FORMATS["prisma"].write(outgoing(sae))


@pytest.mark.parametrize("name", ["saelens", "dictionary_learning", "prisma", "post"])
def test_where_the_inputs_are_read_comes_back(name, tmp_path):
    foreign = through(made("relu"), name, tmp_path / "out")
    assert foreign.origin == ORIGIN


def test_the_sparsity_of_saelens_is_the_logarithm_of_the_density(tmp_path):
    density = torch.tensor([0.0, 1e-4, 0.5, *[1.0] * 9], dtype=torch.float64)
    folder = write_out(FORMATS["saelens"].write(outgoing(made("relu"), density=density)), tmp_path / "out")
    expected = [-10, -4, np.log10(0.5), *[0] * 9]
    np.testing.assert_allclose(load_file(folder / "sparsity.safetensors")["sparsity"], expected, rtol=1e-6)


def test_a_threshold_of_zero_keeps_what_is_positive(tmp_path):
    sae = made("jumprelu", scaled=False)
    sae.log_threshold.fill_(-torch.inf)
    foreign = through(sae, "saelens", tmp_path / "out")
    x = rows()
    np.testing.assert_array_equal(foreign.sae.encode(x).numpy() > 0, made("relu", scaled=False).encode(x).numpy() > 0)


def theirs(folder: Path, name: str, cfg: dict, **weights) -> Path:
    folder.mkdir()
    (folder / "cfg.json").write_text(json.dumps(cfg))
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / name)
    return folder


def parts():
    sae = made("relu", scaled=False)
    return sae, {"W_enc": sae.W_enc, "b_enc": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}


V6 = {"architecture": "standard", "metadata": {"sae_lens_version": "6.18.0"}}


def test_saelens_scales_an_expected_norm_by_its_factor(tmp_path):
    sae, weights = parts()
    cfg = {**V6, "normalize_activations": "expected_average_only_in"}
    folder = theirs(tmp_path / "sae", "sae_weights.safetensors", cfg, **weights)
    with pytest.raises(StoreError, match=r"put activation_scaler\.json beside it"):
        read_foreign(folder)
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 0.25}')
    read = read_foreign(folder)[1].sae
    x = rows()
    f, x_hat = by_formula(sae, x * 0.25)  # what it was trained on
    np.testing.assert_allclose(read.encode(x).numpy(), f, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(read(x).numpy(), x_hat / 0.25, rtol=1e-5, atol=1e-4)


def test_saelens_topk_may_weigh_its_selection_by_decoder_norms(tmp_path):
    _, weights = parts()
    cfg = {**V6, "architecture": "topk", "k": 3, "rescale_acts_by_decoder_norm": True}
    read = read_foreign(theirs(tmp_path / "sae", "sae_weights.safetensors", cfg, **weights))[1].sae
    x = rows()
    t = {name: tensor.double().numpy() for name, tensor in weights.items()}
    norm = np.linalg.norm(t["W_dec"], axis=1)
    pre = ((x.double().numpy() - t["b_dec"]) @ t["W_enc"] + t["b_enc"]) * norm
    f = np.where((pre >= np.sort(pre, axis=1)[:, -3][:, None]) & (pre > 0), pre, 0)
    np.testing.assert_allclose(read.encode(x).numpy(), f, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(read(x).numpy(), (f / norm) @ t["W_dec"] + t["b_dec"], rtol=1e-4, atol=1e-4)


def test_folders_of_saelens_before_version_6_are_read(tmp_path):
    _, weights = parts()
    cfg = {
        "hook_point": "blocks.3.hook_resid_post",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 2},
        "normalize_activations": False,
        "model_name": "tiny",
    }
    weights["scaling_factor"] = torch.ones(F)
    foreign = read_foreign(theirs(tmp_path / "sae", "sae_weights.safetensors", cfg, **weights))[1]
    assert (foreign.sae.variant, foreign.sae.k) == ("topk", 2)
    assert (foreign.origin.layer, foreign.origin.site, foreign.origin.model) == (3, "resid_post", "tiny")


def test_the_post_s_layer_counts_from_the_last(tmp_path):
    out = replace(outgoing(made("relu")), origin=Origin(layer=-2))
    foreign = read_foreign(write_out(FORMATS["post"].write(out), tmp_path / "out"))[1]
    assert foreign.origin.layer == -2


def test_a_note_says_that_activations_grew_with_the_norm_of_the_decoder_s_rows():
    assert "norm 1" in FORMATS["post"].write(outgoing(made("relu"))).notes[0]
    unit = made("relu", scaled=False)
    unit.decoder.div_(unit.decoder.norm(dim=1, keepdim=True))
    assert FORMATS["post"].write(outgoing(unit)).notes == []
