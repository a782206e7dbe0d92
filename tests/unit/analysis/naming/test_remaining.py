"""Blocks run again for changed tokens alone, held against the whole tower with hooks: another route by other code."""

import numpy as np
import open_clip
import pytest
import torch
from ablation_by_splicing import activations, by_splicing, compare, every_change
from open_clip.transformer import QuickGELU
from random_towers import D_SAE, LAYERS, WIDTH, NoisePictures, random_sae, random_tower, tower_with
from thresher.analysis.naming.effects import mean_effects
from thresher.harvest.continuation import embed_images
from thresher.harvest.sites import at_site, site_width
from thresher.harvest.vision import load_tower
from thresher.store.format import SITES, Site
from thresher.train.models import BatchTopKSae, GatedSae, JumpReluSae, MatryoshkaSae, ReluSae, TopKSae

KINDS_OF_TOWER = {
    "class token": {},
    "layer scale": {"ls_init_value": 0.5},
    "no ln_pre, quick gelu": {"no_ln_pre": True, "act_layer": QuickGELU},
    "mean of patches": {"pool_type": "avg"},
    "mean of patches before ln_post": {"pool_type": "avg", "final_ln_after_pool": True},
    "attentional pool": {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2},
    "its own blocks": {
        "block_type": "custom",
        "qk_norm": True,
        "scale_heads": True,
        "scale_attn_inner": True,
        "scale_attn": True,
        "scale_fc": True,
    },
}


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("kind_of_tower", KINDS_OF_TOWER)
def test_ablation_is_that_of_the_whole_tower_in_every_kind_of_tower(kind_of_tower, layer):
    tower = random_tower(**KINDS_OF_TOWER[kind_of_tower])
    site = Site(layer, token="all" if layer == LAYERS - 1 and "pool_type" in KINDS_OF_TOWER[kind_of_tower] else "cls")
    compare(tower, random_sae(WIDTH), site)


@pytest.mark.parametrize("token", ["cls", "patch", "all"])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize(("layer", "kind"), [(0, "ablate"), (2, "add")])
def test_every_site_and_token_is_changed_as_in_the_whole_tower(layer, site, token, kind):
    is_seen = layer < LAYERS - 1 or token != "patch" or site == "resid_pre"  # else: the next test
    tower, place = random_tower(ls_init_value=0.7, pool_type="tok" if is_seen else "avg"), Site(layer, site, token)
    compare(tower, random_sae(site_width(tower.visual, place)), place, kind)


def test_what_the_embedding_does_not_see_has_no_effect_at_all():
    tower, site = random_tower(), Site(LAYERS - 1, token="patch")
    pictures, sae = NoisePictures(tower), random_sae(WIDTH)
    changes = every_change(activations(tower, sae, site, tower.normalise(pictures.all)))
    found = mean_effects(tower, sae, site, pictures, changes, "ablate", n=D_SAE)
    assert (found[np.unique(changes.line)] == 0).all()
    np.testing.assert_allclose(
        by_splicing(tower, sae, site, tower.normalise(pictures.all), changes, "ablate")[np.unique(changes.line)],
        0,
        atol=2e-6,
    )


def test_a_change_of_the_patches_mean_is_the_same_change_of_every_patch():
    tower, site = random_tower(pool_type="avg"), Site(1, token="mean")
    pictures, sae = NoisePictures(tower), random_sae(WIDTH)
    images = tower.normalise(pictures.all)
    f = activations(tower, sae, site, images)
    changes = every_change(f)
    found = mean_effects(tower, sae, site, pictures, changes, "ablate", n=D_SAE)
    original = embed_images(tower, images)
    for feature in np.unique(changes.feature)[:6]:
        taken = f[:, 0, feature, None] * (sae.W_dec[feature] * sae.output_scale)  # (n, d)

        def put(x, taken=taken):
            return torch.cat([x[:, :1], x[:, 1:] - taken[:, None]], dim=1)

        handle = at_site(tower.blocks[1], "resid_post", put)
        fires = f[:, 0, feature] > 0
        expected = (original - embed_images(tower, images))[fires].double().mean(dim=0)
        handle.remove()
        np.testing.assert_allclose(found[feature], expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("variant", "settings"),
    [
        (TopKSae, {"k": 4}),
        (BatchTopKSae, {"k": 4, "threshold": torch.tensor([0.4])}),
        (MatryoshkaSae, {"k": 4, "threshold": torch.tensor([0.4]), "prefixes": [8, D_SAE]}),
        (JumpReluSae, {"log_threshold": torch.full((D_SAE,), -1.0)}),
        (GatedSae, {"r_mag": torch.full((D_SAE,), 0.2), "b_mag": torch.full((D_SAE,), 0.1)}),
        (ReluSae, {"layer_norm": True}),
        (ReluSae, {"constant_norm": True}),
    ],
)
@pytest.mark.parametrize("token", ["cls", "all"])
def test_every_variant_and_normalisation_of_an_sae_is_ablated_as_by_splicing(variant, settings, token):
    compare(random_tower(), random_sae(WIDTH, variant=variant, **settings), Site(1, token=token))


@pytest.mark.parametrize("kind", ["ablate", "add"])
@pytest.mark.parametrize(("reads", "writes"), [((0, "resid_pre"), (1, "mlp_out")), ((1, "mlp_act"), (2, "attn_out"))])
def test_a_transcoders_features_are_changed_where_it_writes(reads, writes, kind):
    tower, site, target = random_tower(), Site(*reads), Site(*writes)
    sae = random_sae(site_width(tower.visual, site), d_out=WIDTH)
    compare(tower, sae, site, kind, target)


@pytest.mark.parametrize("layer", [2, 4, 5])
def test_the_quickstart_towers_ablations_are_those_of_its_whole_forward_pass(layer):
    compare(load_tower("quickstart"), random_sae(192), Site(layer), tolerance=1e-6)


@pytest.mark.parametrize("kind_of_tower", ["layer scale", "its own blocks"])
def test_a_tower_in_bf16_gives_nearly_the_same(kind_of_tower):
    tower, sae = random_tower(**KINDS_OF_TOWER[kind_of_tower]), random_sae(WIDTH)
    pictures = NoisePictures(tower)
    for layer in range(LAYERS):
        changes = every_change(activations(tower, sae, Site(layer), tower.normalise(pictures.all)))
        exact, rounded = (
            mean_effects(each, sae, Site(layer), pictures, changes, "ablate", n=D_SAE)
            for each in (tower, tower.at_precision("bf16"))
        )
        assert np.nanmax(np.abs(exact - rounded)) < 0.05 * np.nanmax(np.abs(exact))


def test_older_towers_with_the_tokens_first_are_run_too():
    tower, sae = random_tower(), random_sae(WIDTH)
    weights = tower.visual.transformer.state_dict()
    tower.visual.transformer = open_clip.transformer.Transformer(WIDTH, LAYERS, 2, 4, batch_first=False)
    tower.visual.transformer.load_state_dict(weights)
    for layer in range(LAYERS):
        compare(tower_with(tower.visual), sae, Site(layer))
