"""What the probe says against the plain tower run whole, with hooks of torch's own."""

import numpy as np
import pytest
import torch
from planted_clip import GRID
from thresher.analysis.features import open_features
from thresher.analysis.visualising.probe import FeatureProbe, open_probe
from thresher.harvest.vision import load_clip
from thresher.store.errors import StoreError
from thresher.store.format import Site
from thresher.train.models import BatchTopKSae, GatedSae, JumpReluSae, ReluSae, TopKSae

LAYER = 1


def images(n=3, seed=0):
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def stream_of(planted, pictures):
    """The residual stream `(n, t, d)` after the block, in float64, by the whole tower of open_clip."""
    visual = load_clip(str(planted.model_path)).model.visual.double()
    found = []
    handle = visual.transformer.resblocks[LAYER].register_forward_hook(lambda _m, _a, out: found.append(out))
    visual((pictures.double() - 0.5) / 0.5)
    handle.remove()
    return found[0]


def test_preactivations_and_their_gradients_are_those_of_the_whole_tower(planted, probed):
    features = torch.tensor([0, 5, 13])  # the last is dead, its pre-activation -1e4
    shown = images().requires_grad_()
    found = probed.probe.preactivations(shown, features)
    found.sum().backward()
    exact = images().double().requires_grad_()
    sae = planted.sae
    row = stream_of(planted, exact)[:, 0] - sae.b_dec.double()
    expected = (row * sae.encoder.double()[features]).sum(1) + sae.b_enc.double()[features]
    expected.sum().backward()
    np.testing.assert_allclose(found.detach().numpy(), expected.detach().numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(shown.grad.numpy(), exact.grad.numpy(), atol=1e-5)
    assert (shown.grad.abs().amax((1, 2, 3)) > 0).all()  # also where the feature is off
    assert not any(p.requires_grad or p.grad is not None for p in probed.probe.differentiable.visual.parameters())


def test_no_block_after_the_site_runs(probed):
    ran = []
    blocks = probed.probe.differentiable.blocks
    handles = [b.register_forward_hook(lambda _m, _a, _o, i=i: ran.append(i)) for i, b in enumerate(blocks)]
    probed.probe.preactivations(images(1), torch.tensor([0]))
    for handle in handles:
        handle.remove()
    assert max(ran) == LAYER


def test_activations_of_the_run_s_own_images_are_those_that_were_encoded(planted, probed):
    from thresher.harvest.recorded import recorded_images

    rows = np.arange(8)
    stored = open_features(planted.path)
    indptr, index, value = stored.rows(0, 8)
    expected = np.zeros((8, stored.d_sae), np.float32)
    expected[np.repeat(rows, np.diff(indptr)), index] = value
    with recorded_images(probed.store.provenance) as opened:
        import io

        from PIL import Image

        pictures = [
            Image.open(io.BytesIO(opened.read(int(i)))).convert("RGB") for i in probed.store.images(0, 8).tolist()
        ]
    found = probed.probe.activations(np.stack([probed.probe.view(each) for each in pictures]))
    np.testing.assert_allclose(found, expected, atol=2e-3)


def variants(planted):
    w = [each.clone() for each in (planted.sae.encoder, planted.sae.b_enc, planted.sae.decoder, planted.sae.b_dec)]
    like = torch.linspace(-0.5, 0.5, planted.sae.d_sae)
    scaled = {
        "input_mean": torch.linspace(-1, 1, planted.sae.d_in),
        "input_scale": torch.full((planted.sae.d_in,), 2.0),
    }
    yield ReluSae(*w, **scaled)
    yield ReluSae(*w, layer_norm=True)
    yield ReluSae(*w, constant_norm=True, centres_input=False)
    yield TopKSae(*w, k=3)
    yield BatchTopKSae(*w, k=3, threshold=torch.tensor([0.7]))
    yield JumpReluSae(*w, log_threshold=like)
    yield GatedSae(*w, r_mag=like, b_mag=like)


def test_every_variant_s_preactivation_is_what_its_activation_is_made_of(planted, probed):
    with torch.no_grad():
        rows = stream_of(planted, images(1)).float()[:, 0]
    for sae in variants(planted):
        probe = probed.probe.with_sae(sae)
        features = torch.arange(sae.d_sae)
        with torch.no_grad():
            pre = torch.stack([probe.preactivations(images(1), features[f : f + 1]) for f in range(sae.d_sae)], 1)
        expected = sae.centred(sae.scale(rows)) @ sae.encoder.T + sae.b_enc
        torch.testing.assert_close(pre, expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(sae.select(pre.clone()), sae.encode(rows), rtol=2e-3, atol=2e-3)


def test_of_several_tokens_the_mean_or_the_patch_in_the_centre_is_taken(planted, probed):
    sae = planted.sae
    with torch.no_grad():
        tokens = stream_of(planted, images(2)).float()
    features = torch.tensor([0, 3])

    def pre(rows):
        return ((rows - sae.b_dec) * sae.encoder[features]).sum(1) + sae.b_enc[features]

    centre = GRID // 2 * GRID + GRID // 2
    for site, first in ((Site(LAYER, "resid_post", "patch"), 1), (Site(LAYER, "resid_post", "all"), 0)):
        for pooling, expected in (("mean", tokens[:, first:].mean(1)), ("centre", tokens[:, 1 + centre])):
            probe = FeatureProbe(
                probed.probe.exact, probed.probe.differentiable, sae, site, probed.probe.largest, 32, pooling
            )
            with torch.no_grad():
                torch.testing.assert_close(
                    probe.preactivations(images(2), features), pre(expected), rtol=1e-3, atol=1e-3
                )
        pixels = (images(2) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        with torch.no_grad():
            each = stream_of(planted, torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255).float()[:, first:]
        largest = sae.encode(each.flatten(0, 1)).view(2, -1, sae.d_sae).amax(1)
        np.testing.assert_allclose(probe.activations(pixels), largest.numpy(), atol=2e-3)


def test_a_run_that_is_not_whole_is_refused_in_one_line(run_path, tmp_path):
    (run_path / "stats.json").unlink()
    with pytest.raises(StoreError, match="run `thresher stats` first"):
        open_probe(run_path, "cpu")


def test_another_sae_than_was_encoded_is_refused(planted, run_path):
    sae = planted.sae
    ReluSae(sae.encoder[:9], sae.b_enc[:9], sae.decoder[:9], sae.b_dec).save(run_path / "sae.safetensors")
    with pytest.raises(StoreError, match="encoded by other weights"):
        open_probe(run_path, "cpu")
