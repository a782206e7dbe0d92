import numpy as np
import open_clip
import pytest
import torch
from scipy.special import erf, expit
from thresher.harvest.sites import capture, relative_errors, resolve_sites, tokens_per_image, vector_width
from thresher.harvest.vision import Tower, load_tower
from thresher.store.format import SITES, TOKENS, Site


@pytest.fixture(scope="module")
def tower(tiny_model):
    return load_tower(str(tiny_model))


@pytest.fixture(scope="module")
def batch():
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def by_hand(visual, images, layer):
    """What a hook written by hand sees in a forward pass of the whole tower."""
    seen = []
    handle = visual.transformer.resblocks[layer].register_forward_hook(lambda _m, _a, out: seen.append(out))
    with torch.inference_mode():
        visual(images)
    handle.remove()
    return seen[0][:, 0]


def test_every_layer_equals_a_hook_written_by_hand(tower, batch):
    for layer in range(3):
        site = Site(layer)
        assert torch.equal(capture(tower, batch, [site])[site], by_hand(tower.visual, batch, layer))


def test_several_layers_come_from_one_pass(tower, batch):
    runs = []
    handle = tower.blocks[0].register_forward_hook(lambda *_: runs.append(1))
    rows = capture(tower, batch, [Site(2), Site(0)])
    handle.remove()
    assert len(runs) == 1
    for site, got in rows.items():
        assert torch.equal(got, by_hand(tower.visual, batch, site.layer))


def test_blocks_after_the_last_layer_do_not_run(tower, batch):
    ran = []
    handles = [
        block.register_forward_hook(lambda *_, number=i: ran.append(number)) for i, block in enumerate(tower.blocks)
    ]
    handles.append(tower.visual.ln_post.register_forward_hook(lambda *_: ran.append("ln_post")))
    capture(tower, batch, [Site(1)])
    for handle in handles:
        handle.remove()
    assert ran == [0, 1]


def test_no_hook_is_left_behind(tower, batch):
    capture(tower, batch, [Site(1)])
    with torch.inference_mode():
        assert tower.visual(batch).shape == (5, 16)


def test_rows_do_not_keep_the_other_tokens_alive(tower, batch):
    rows = capture(tower, batch, [Site(1)])[Site(1)]
    assert rows.untyped_storage().nbytes() == 5 * 32 * 4


def test_a_block_that_returns_a_tuple_gives_its_first_element(tower, batch, monkeypatch):
    expected = by_hand(tower.visual, batch, 1)
    block = tower.blocks[1]
    monkeypatch.setattr(block, "forward", lambda x, forward=block.forward, **kw: (forward(x, **kw), "attention"))
    assert torch.equal(capture(tower, batch, [Site(1)])[Site(1)], expected)


def test_a_sequence_first_tower_gives_the_same_rows(tower, batch):
    transformer = open_clip.transformer.Transformer(32, 3, 2, batch_first=False)
    transformer.load_state_dict(tower.visual.transformer.state_dict())
    expected = capture(tower, batch, [Site(1)])[Site(1)]
    kept, tower.visual.transformer = tower.visual.transformer, transformer.eval()
    try:
        got = capture(tower, batch, [Site(1)])[Site(1)]
    finally:
        tower.visual.transformer = kept
    assert torch.allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_rows_equal_hugging_faces_hidden_states(models, batch, activation):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    folder = models.write(activation, quick_gelu=activation == "quick_gelu")
    tower = load_tower(str(folder))
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
        hidden_act=activation,
    )
    theirs = CLIPVisionModel(config).eval()
    converted = to_hugging_face(tower.visual.state_dict())
    own = theirs.state_dict()
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in own) else ""
    wanted = {name for name in own if not name.endswith("position_ids")}
    assert wanted == {prefix + name for name in converted}
    theirs.load_state_dict({prefix + name: value for name, value in converted.items()}, strict=False)
    with torch.inference_mode():
        states = theirs(pixel_values=batch, output_hidden_states=True).hidden_states
    rows = capture(tower, batch, [Site(0), Site(1), Site(2)])
    for site, got in rows.items():
        # float16's half unit in the last place, relative to the largest coordinate
        tolerance = 2.0**-11 * float(got.abs().max())
        assert (got - states[site.layer + 1][:, 0]).abs().max() < tolerance / 50
        if site.layer:
            assert (got - states[site.layer][:, 0]).abs().max() > 100 * tolerance  # the layer before is another vector


def to_hugging_face(state):
    """open_clip's names of a vision transformer's tensors to Hugging Face's."""
    out = {
        "embeddings.class_embedding": state["class_embedding"],
        "embeddings.position_embedding.weight": state["positional_embedding"],
        "embeddings.patch_embedding.weight": state["conv1.weight"],
    }
    for kind in ("weight", "bias"):
        out[f"pre_layrnorm.{kind}"] = state[f"ln_pre.{kind}"]
        out[f"post_layernorm.{kind}"] = state[f"ln_post.{kind}"]
        for i in range(3):
            ours, theirs = f"transformer.resblocks.{i}.", f"encoder.layers.{i}."
            for name, part in zip("qkv", state[f"{ours}attn.in_proj_{kind}"].chunk(3), strict=True):
                out[f"{theirs}self_attn.{name}_proj.{kind}"] = part
            for theirs_name, ours_name in (
                ("self_attn.out_proj", "attn.out_proj"),
                ("layer_norm1", "ln_1"),
                ("layer_norm2", "ln_2"),
                ("mlp.fc1", "mlp.c_fc"),
                ("mlp.fc2", "mlp.c_proj"),
            ):
                out[f"{theirs}{theirs_name}.{kind}"] = state[f"{ours}{ours_name}.{kind}"]
    return out


def test_layers_are_sorted_and_negative_ones_resolved(tower):
    assert resolve_sites(tower, (-1, 0)) == (Site(0), Site(2))


@pytest.mark.parametrize("layer", [3, -4, 22])
def test_a_layer_out_of_range_names_the_range(tower, layer):
    with pytest.raises(ValueError, match=rf"layer {layer} is out of range: .* has layers 0 to 2 \(0-based\)"):
        resolve_sites(tower, (layer,))


def test_one_layer_named_twice_is_refused(tower):
    with pytest.raises(ValueError, match="one layer twice"):
        resolve_sites(tower, (2, -1))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_faster_precision_is_near_fp32_but_not_equal(tower, batch, precision):
    exact = capture(tower, batch, [Site(2)])[Site(2)]
    rows = capture(tower.at_precision(precision), batch, [Site(2)])[Site(2)]
    assert rows.dtype == torch.float32
    errors = relative_errors(rows, exact)
    unit = {"bf16": 2.0**-8, "fp16": 2.0**-11}[precision]
    assert 0 < float(errors.max()) < 8 * unit


def test_the_relative_error_is_the_norm_of_the_difference_over_the_norm():
    assert relative_errors(torch.tensor([[3.0, 4.5]]), torch.tensor([[3.0, 4.0]])).tolist() == [0.1]


# ---- other sites and tokens, against the tower computed in float64 numpy ------------------------------------------


def norm(x, state, name):
    wide = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return wide * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(x, state, name):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def numpy_tower(visual, images, patch, heads, activation):
    """Every site of every block for every token, {(layer, site): (n, t, d) float64}, from the formulas of the paper."""
    state = {name: value.double().numpy() for name, value in visual.state_dict().items()}
    pixels = images.double().numpy()
    n, _, height, width = pixels.shape
    kernel = state["conv1.weight"].reshape(len(state["conv1.weight"]), -1)
    patches = [
        pixels[:, :, y : y + patch, x : x + patch].reshape(n, -1) @ kernel.T
        for y in range(0, height, patch)
        for x in range(0, width, patch)
    ]
    x = np.stack([np.broadcast_to(state["class_embedding"], (n, kernel.shape[0])), *patches], axis=1)
    x = norm(x + state["positional_embedding"], state, "ln_pre")
    found = {}
    for layer in range(len(visual.transformer.resblocks)):
        block = f"transformer.resblocks.{layer}"
        scales = [state.get(f"{block}.ls_{i}.gamma", 1.0) for i in (1, 2)]
        found[layer, "resid_pre"] = x
        qkv = norm(x, state, f"{block}.ln_1") @ state[f"{block}.attn.in_proj_weight"].T
        qkv = qkv + state[f"{block}.attn.in_proj_bias"]
        q, k, v = (part.reshape(n, -1, heads, part.shape[-1] // heads) for part in np.split(qkv, 3, axis=-1))
        scores = np.einsum("nqhc,nkhc->nhqk", q, k) / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = np.einsum("nhqk,nkhc->nqhc", weights, v).reshape(x.shape)
        found[layer, "attn_out"] = scales[0] * linear(mixed, state, f"{block}.attn.out_proj")
        x = x + found[layer, "attn_out"]
        found[layer, "mlp_act"] = activation(linear(norm(x, state, f"{block}.ln_2"), state, f"{block}.mlp.c_fc"))
        found[layer, "mlp_out"] = scales[1] * linear(found[layer, "mlp_act"], state, f"{block}.mlp.c_proj")
        x = x + found[layer, "mlp_out"]
        found[layer, "resid_post"] = x
    return found


def of_token(tokens, token):
    return {"cls": tokens[:, 0], "patch": tokens[:, 1:], "mean": tokens[:, 1:].mean(axis=1), "all": tokens}[token]


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


VISION = {"image_size": 32, "layers": 3, "width": 32, "patch_size": 8, "head_width": 16}
TOWERS = {
    "gelu": (gelu, {"vision_cfg": VISION}),
    "quick_gelu": (lambda x: x * expit(1.702 * x), {"vision_cfg": VISION, "quick_gelu": True}),
    "layer scale": (gelu, {"vision_cfg": VISION | {"ls_init_value": 0.3}}),
    "wide MLP": (gelu, {"vision_cfg": VISION | {"mlp_ratio": 6.0}}),
}


@pytest.mark.parametrize("name", TOWERS)
def test_every_site_and_token_equals_the_tower_in_float64(models, batch, name):
    activation, changes = TOWERS[name]
    tower = load_tower(str(models.write(name, **changes)))
    expected = numpy_tower(tower.visual, batch, 8, 2, activation)
    for token in TOKENS:
        sites = resolve_sites(tower, (0, 1, 2), SITES, token)
        assert len(sites) == 15
        rows = capture(tower, batch, sites)
        for site in sites:
            wanted = of_token(expected[site.layer, site.site], token)
            assert rows[site].shape == wanted.shape
            n_tokens, width = tokens_per_image(tower, token), vector_width(tower, site)
            assert wanted.shape in {(5, n_tokens, width), (5, width)}
            # sums of some hundred terms in float32; an untouched layer scale, one patch further or another norm differ
            # by a tenth of the scale and more
            np.testing.assert_allclose(rows[site].numpy(), wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


def test_what_attention_and_mlp_add_is_the_difference_of_the_streams(models, batch):
    tower = load_tower(str(models.write("scaled", vision_cfg=VISION | {"ls_init_value": 0.3})))
    rows = capture(tower, batch, resolve_sites(tower, (1,), SITES, "all"))
    at = {site.site: values.double() for site, values in rows.items()}
    torch.testing.assert_close(at["resid_post"] - at["resid_pre"], at["attn_out"] + at["mlp_out"], rtol=0, atol=2e-6)


def test_mlp_act_times_the_output_vectors_is_mlp_out(tower, batch):
    site = {name: Site(1, name, "all") for name in ("mlp_act", "mlp_out")}
    rows = capture(tower, batch, list(site.values()))
    with torch.inference_mode():
        expected = tower.blocks[1].mlp.c_proj(rows[site["mlp_act"]])
    torch.testing.assert_close(rows[site["mlp_out"]], expected)


def test_the_input_of_a_block_is_the_output_of_the_one_before(tower, batch):
    rows = capture(tower, batch, [Site(0, "resid_post", "all"), Site(1, "resid_pre", "all")])
    first, second = rows.values()
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    "changes", [{"scale_fc": True}, {"scale_attn": True}, {"qk_norm": True}, {"scale_heads": True, "scale_fc": True}]
)
def test_blocks_of_the_custom_kind_give_what_they_add(models, batch, changes):
    tower = load_tower(
        str(models.write("custom", vision_cfg=VISION | {"ls_init_value": 0.5, "block_type": "custom"} | changes))
    )
    assert type(tower.blocks[0]).__name__ == "CustomResidualAttentionBlock"
    rows = capture(tower, batch, resolve_sites(tower, (1,), SITES, "all"))
    at = {site.site: values for site, values in rows.items()}
    torch.testing.assert_close(at["resid_post"] - at["resid_pre"], at["attn_out"] + at["mlp_out"], rtol=0, atol=2e-6)
    block = tower.blocks[1]
    with torch.inference_mode():
        torch.testing.assert_close(at["mlp_out"], block.ls_2(block.mlp.c_proj(at["mlp_act"])))
        torch.testing.assert_close(at["attn_out"], block.ls_1(block.ln_attn(block.attn(block.ln_1(at["resid_pre"])))))


@pytest.mark.parametrize("token", TOKENS)
def test_a_sequence_first_tower_gives_every_site_alike(tower, batch, token):
    transformer = open_clip.transformer.Transformer(32, 3, 2, batch_first=False)
    transformer.load_state_dict(tower.visual.transformer.state_dict())
    sites = resolve_sites(tower, (1,), SITES, token)
    expected = capture(tower, batch, sites)
    kept, tower.visual.transformer = tower.visual.transformer, transformer.eval()
    try:
        got = capture(tower, batch, sites)
    finally:
        tower.visual.transformer = kept
    for site in sites:
        assert got[site].is_contiguous()
        torch.testing.assert_close(got[site], expected[site], rtol=0, atol=2e-6)


def test_hugging_faces_tower_gives_the_same_at_every_site(models, batch):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    tower = load_tower(str(models.write("hf")))
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
        hidden_act="gelu",
    )
    theirs = CLIPVisionModel(config).eval()
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in theirs.state_dict()) else ""
    converted = {prefix + name: value for name, value in to_hugging_face(tower.visual.state_dict()).items()}
    theirs.load_state_dict(converted, strict=False)
    layer = (theirs.vision_model if prefix else theirs).encoder.layers[1]
    seen = {}
    layer.register_forward_hook(lambda _m, _a, out: seen.update(resid_post=out[0] if isinstance(out, tuple) else out))
    layer.self_attn.register_forward_hook(lambda _m, _a, out: seen.update(attn_out=out[0]))
    layer.mlp.activation_fn.register_forward_hook(lambda _m, _a, out: seen.update(mlp_act=out))
    layer.mlp.register_forward_hook(lambda _m, _a, out: seen.update(mlp_out=out))
    with torch.inference_mode():
        seen["resid_pre"] = theirs(pixel_values=batch, output_hidden_states=True).hidden_states[1]
    rows = capture(tower, batch, resolve_sites(tower, (1,), SITES, "all"))
    for site, got in rows.items():
        torch.testing.assert_close(got, seen[site.site], rtol=0, atol=5e-6)


def test_the_pass_ends_at_the_last_site_asked_for(tower, batch):
    ran = []
    block = tower.blocks[1]
    watched = {"ln_1": block.ln_1, "attn": block.attn, "c_fc": block.mlp.c_fc, "c_proj": block.mlp.c_proj}
    handles = [module.register_forward_hook(lambda *_, name=name: ran.append(name)) for name, module in watched.items()]
    expected = {
        "resid_pre": [],
        "attn_out": ["ln_1", "attn"],
        "mlp_act": ["ln_1", "attn", "c_fc"],
        "mlp_out": ["ln_1", "attn", "c_fc", "c_proj"],
    }
    for site, modules in expected.items():
        ran.clear()
        capture(tower, batch, [Site(1, site), Site(0, "resid_post")])
        assert ran == modules
    for handle in handles:
        handle.remove()


def test_mean_leaves_the_class_token_out(tower, batch):
    every, mean = Site(2, token="all"), Site(2, token="mean")
    rows = capture(tower, batch, [every, mean])
    torch.testing.assert_close(rows[mean], rows[every][:, 1:].mean(dim=1))
    assert not torch.allclose(rows[mean], rows[every].mean(dim=1))


def test_patches_keep_only_their_own_memory(tower, batch):
    rows = capture(tower, batch, [Site(1, token="patch")])[Site(1, token="patch")]
    assert rows.shape == (5, 4, 32)
    assert rows.untyped_storage().nbytes() == 5 * 4 * 32 * 4


def test_the_tower_of_the_post_has_257_tokens_of_1024_and_4096_neurons(models):
    vision = {"image_size": 224, "layers": 2, "width": 1024, "patch_size": 14}  # ViT-L/14 with 2 of its 24 blocks
    tower = load_tower(str(models.write("large", weights=False, vision_cfg=vision)), "none")
    assert [tokens_per_image(tower, token) for token in ("cls", "patch", "mean", "all")] == [1, 256, 1, 257]
    stream, neurons = Site(0, "resid_post", "all"), Site(0, "mlp_act", "all")
    assert (vector_width(tower, stream), vector_width(tower, neurons)) == (1024, 4096)
    rows = capture(tower, torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)), [stream, neurons])
    assert rows[stream].shape == (1, 257, 1024)
    assert rows[neurons].shape == (1, 257, 4096)


def without_class_token(tower):
    """A tower as SigLIP has them: no class token, so position embeddings of the patches alone."""
    import copy

    visual = copy.deepcopy(tower.visual)
    visual.class_embedding = None

    def embeds(images):
        patches = visual.conv1(images).flatten(2).transpose(1, 2)  # (n, patches, d)
        return visual.ln_pre(patches + visual.positional_embedding[1:])

    visual._embeds = embeds
    return Tower(**{**tower.__dict__, "visual": visual})


@pytest.mark.parametrize("token", ["cls", "all"])
def test_a_tower_without_a_class_token_names_the_tokens_that_it_has(tower, token):
    with pytest.raises(ValueError, match=rf"has no class token, so no '{token}': read `patch` or `mean`"):
        resolve_sites(without_class_token(tower), (1,), ("resid_post",), token)


def test_the_patches_of_a_tower_without_a_class_token_are_all_of_its_tokens(tower, batch):
    bare = without_class_token(tower)
    patch, mean = Site(0, "resid_pre", "patch"), Site(0, "resid_pre", "mean")
    rows = capture(bare, batch, [patch, mean])
    with torch.inference_mode():
        expected = bare.visual._embeds(batch)
    assert torch.equal(rows[patch], expected)
    torch.testing.assert_close(rows[mean], expected.mean(dim=1))
    assert tokens_per_image(bare, "patch") == 4


def test_sites_come_in_one_order_whatever_the_order_asked_for(tower):
    wanted = (Site(0, "resid_post", "mean"), Site(0, "mlp_act", "mean"), Site(2, "resid_post", "mean"))
    assert resolve_sites(tower, (2, 0), ("mlp_act", "resid_post"), "mean") == (*wanted, Site(2, "mlp_act", "mean"))


@pytest.mark.parametrize(
    ("sites", "token", "message"),
    [
        (("resid_mid",), "cls", "site 'resid_mid' is none of resid_post"),
        (("resid_pre", "resid_pre"), "cls", "one site twice"),
        (("resid_pre",), "eot", "token 'eot' is none of cls"),
    ],
)
def test_an_unknown_site_or_token_is_named(tower, sites, token, message):
    with pytest.raises(ValueError, match=message):
        resolve_sites(tower, (1,), sites, token)
