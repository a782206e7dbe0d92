import open_clip
import pytest
import torch
from thresher.harvest.sites import capture, relative_errors, resolve_sites
from thresher.harvest.vision import load_tower
from thresher.store.format import Site


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
