import numpy as np
import pytest
import torch
from open_clip.transformer import VisionTransformer
from thresher.analysis.output_directions import attention_directions, mlp_directions, outputs_of_site
from thresher.store.format import Site
from torch import nn

D, HEADS = 24, 3


def tower(**options):
    """A vision transformer whose every parameter is random, layer norms and layer scales included."""
    torch.manual_seed(0)
    base = {"image_size": 16, "patch_size": 8, "width": D, "layers": 3, "heads": HEADS, "mlp_ratio": 2.0}
    visual = VisionTransformer(**base, **options)
    with torch.no_grad():
        for parameter in visual.parameters():
            parameter.normal_(std=0.5)
    return visual.eval()


TOWERS = {
    "plain": {},
    "layer scale": {"ls_init_value": 0.1},
    "custom": {"block_type": "custom", "scale_attn": True, "scale_attn_inner": True, "scale_fc": True},
}


@pytest.fixture(params=list(TOWERS))
def visual(request):
    try:
        return tower(**TOWERS[request.param])
    except TypeError as error:
        pytest.skip(f"this open_clip has no such tower: {error}")


def test_an_mlp_direction_is_how_its_output_moves_with_the_neuron(visual):
    block = visual.transformer.resblocks[1]

    def written(activations):
        return block.ls_2(block.mlp.c_proj(activations))

    activations = torch.randn(2 * D)
    moves = torch.autograd.functional.jacobian(written, activations).double().numpy().T  # (m, d)
    expected = moves / np.linalg.norm(moves, axis=1, keepdims=True)
    np.testing.assert_allclose(mlp_directions(block).numpy(), expected, atol=1e-5)


def test_plain_mlp_directions_are_the_unit_columns_of_the_state_dict():
    state = tower().state_dict()
    columns = state["transformer.resblocks.1.mlp.c_proj.weight"].double().numpy().T
    found = mlp_directions(tower().transformer.resblocks[1]).numpy()
    np.testing.assert_allclose(found, columns / np.linalg.norm(columns, axis=1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("name", ["plain", "layer scale"])
def test_a_heads_directions_are_the_singular_vectors_of_what_it_writes(name):
    visual = tower(**TOWERS[name])
    block = visual.transformer.resblocks[2]
    found = attention_directions(block).double().numpy().reshape(HEADS, D // HEADS, D)
    for head in range(HEADS):
        # the head alone, on one token, which attends to itself: attn_out moves as its W_O W_V says
        alone = tower(**TOWERS[name]).transformer.resblocks[2]
        with torch.no_grad():
            keep = torch.zeros(D)
            keep[head * D // HEADS : (head + 1) * D // HEADS] = 1
            alone.attn.in_proj_weight[2 * D :] *= keep[:, None]

        def written(x, alone=alone):
            return alone.ls_1(alone.attention(alone.ln_1(x[None, None])))[0, 0]

        # a layer norm's Jacobian, so many different points: their columns span what the head writes
        jacobian = torch.cat([torch.autograd.functional.jacobian(written, torch.randn(D)) for _ in range(4)], dim=1)
        u, singular, _ = np.linalg.svd(jacobian.double().numpy(), full_matrices=False)
        rank = D // HEADS
        assert singular[rank] < 1e-4 * singular[0]
        overlap = np.linalg.svd(found[head] @ u[:, :rank])[1]
        np.testing.assert_allclose(overlap, 1, atol=1e-4)  # the same subspace
        # and within it, of the product itself
        gain = block.ln_1.weight.detach().double().numpy()
        reads = block.attn.in_proj_weight[2 * D :].detach().double().numpy()[head * rank : (head + 1) * rank] * gain
        reads = reads - reads.mean(axis=1, keepdims=True)
        writes = block.attn.out_proj.weight.detach().double().numpy()[:, head * rank : (head + 1) * rank]
        if name == "layer scale":
            writes = block.ls_1.gamma.detach().double().numpy()[:, None] * writes
        left = np.linalg.svd(writes @ reads)[0][:, :rank]
        np.testing.assert_allclose(np.abs((found[head] * left.T).sum(axis=1)), 1, atol=1e-5)


def test_a_heads_directions_do_not_depend_on_the_basis_between_reading_and_writing():
    visual, turned = tower(), tower()
    block, other = visual.transformer.resblocks[0], turned.transformer.resblocks[0]
    w = D // HEADS
    turn = torch.linalg.qr(torch.randn(w, w))[0]
    with torch.no_grad():
        for head in range(HEADS):
            rows = slice(2 * D + head * w, 2 * D + (head + 1) * w)
            other.attn.in_proj_weight[rows] = turn @ other.attn.in_proj_weight[rows]
            columns = slice(head * w, (head + 1) * w)
            other.attn.out_proj.weight[:, columns] = other.attn.out_proj.weight[:, columns] @ turn.T
    cosine = (attention_directions(block) * attention_directions(other)).sum(dim=1).abs()
    np.testing.assert_allclose(cosine.numpy(), 1, atol=1e-4)


def test_normed_attention_writes_what_the_norms_let_through():
    try:
        block = tower(**TOWERS["custom"]).transformer.resblocks[1]
    except TypeError as error:
        pytest.skip(f"this open_clip has no such tower: {error}")
    found = attention_directions(block).double()
    # `ln_attn` divides by its gain what has mean 0: undone, every direction has mean 0
    undone = found / block.ln_attn.weight.detach().double()
    np.testing.assert_allclose(undone.mean(dim=1).numpy(), 0, atol=1e-4)
    np.testing.assert_allclose(found.norm(dim=1).numpy()[: D // HEADS - 1], 1, atol=1e-6)


def test_a_neuron_without_weights_has_no_direction():
    block = tower().transformer.resblocks[0]
    with torch.no_grad():
        block.mlp.c_proj.weight[:, 5] = 0
        block.attn.out_proj.weight[:, :8] = 0
    assert (mlp_directions(block)[5] == 0).all()
    assert torch.isfinite(mlp_directions(block)).all()
    lengths = attention_directions(block).norm(dim=1)
    np.testing.assert_allclose(lengths.numpy(), [0] * 8 + [1] * 16, atol=1e-6)


@pytest.mark.parametrize(
    ("site", "main", "others"),
    [
        ("resid_post", "mlp 1", ["mlp 0", "attention 0", "attention 1"]),
        ("resid_pre", "mlp 0", ["attention 0"]),
        ("mlp_out", "mlp 1", ["mlp 0", "attention 0", "attention 1"]),
        ("attn_out", "attention 1", ["mlp 0", "attention 0"]),
        ("mlp_act", "mlp 1", []),
    ],
)
def test_a_site_meets_what_has_been_written_by_then(site, main, others):
    found = outputs_of_site(tower(), Site(1, site, "patch"))
    assert found.main.name == main
    assert [each.name for each in found.others] == others
    assert found.main.has_sign == main.startswith("mlp")


def test_the_neurons_of_hidden_activations_are_their_coordinates():
    vectors = outputs_of_site(tower(), Site(2, "mlp_act", "cls")).main.unit_vectors()
    assert torch.equal(vectors, torch.eye(2 * D))


def test_nothing_has_been_written_before_the_first_block():
    with pytest.raises(ValueError, match=r"layer 0 \(0-based\) resid_pre cls: no block has written there"):
        outputs_of_site(tower(), Site(0, "resid_pre", "cls"))


def test_a_block_of_another_kind_is_named():
    visual = tower()
    visual.transformer.resblocks[1].mlp = nn.Sequential(nn.Linear(D, D))
    with pytest.raises(ValueError, match="block 1 is a ResidualAttentionBlock whose output vectors are not known"):
        outputs_of_site(visual, Site(2, "resid_post", "cls"))
