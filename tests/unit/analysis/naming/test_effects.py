"""Effects of features on embeddings, held against the whole tower with hooks: another route through other code."""

from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU
from random_towers import D_SAE, LAYERS, WIDTH, NoisePictures, random_sae, random_tower, tower_with
from thresher.analysis.naming.effects import Changes, mean_effects, needs_images
from thresher.harvest.continuation import embed_images
from thresher.harvest.sites import at_site, capture, site_width, tokens_per_image
from thresher.harvest.splice import splice
from thresher.harvest.vision import load_tower
from thresher.store.errors import StoreError
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


class NoPictures:
    def pixels(self, rows):
        raise AssertionError("no image is needed")


def activations(tower, sae, site, images):
    """`(n, T, d_sae)`: what the SAE makes of the images' vectors."""
    x = capture(tower, images, [site])[site]
    x = x if x.ndim == 3 else x[:, None]
    return sae.encode(x.flatten(0, 1)).view(*x.shape[:2], -1)


def every_change(f):
    """Every feature that fires anywhere, on every image where it does: lines are features."""
    row, feature = torch.nonzero((f > 0).any(dim=1), as_tuple=True)
    amounts = f[row, :, feature]
    return Changes(feature.numpy(), feature.numpy(), row.numpy(), amounts.numpy())


def by_splicing(tower, sae, site, images, changes, kind, target=None):
    """The same by the whole tower, one feature at a time, float64 sums."""
    original = embed_images(tower, images).double()
    found = np.full((D_SAE, original.shape[1]), np.nan)
    for feature in np.unique(changes.feature):
        its = changes.feature == feature

        def edit(f, feature=int(feature), its=its):
            new = f.clone()
            if kind == "ablate":
                new[..., feature] = 0
            else:
                amount = torch.zeros(len(images), *changes.activation.shape[1:])
                amount[changes.row[its]] = torch.from_numpy(changes.activation[its])
                new[..., feature] += amount[:, 0] if new.ndim == 2 else amount
            return new

        edited = embed_images(tower, images, splice(tower, sae, site, target=target, keep_error=True, edit=edit))
        rows = changes.row[its]
        difference = original[rows] - edited.double()[rows]
        found[feature] = (difference if kind == "ablate" else -difference).mean(dim=0).numpy()
    return found


def compare(tower, sae, site, kind="ablate", target=None, least=1e-3, tolerance=2e-6):
    pictures = NoisePictures(tower)
    images = tower.normalise(pictures.all)
    changes = every_change(activations(tower, sae, site, images))
    found = mean_effects(tower, sae, site, pictures, changes, kind, n=D_SAE, target=target)
    expected = by_splicing(tower, sae, site, images, changes, kind, target)
    assert found.dtype == np.float32
    assert np.nanmax(np.abs(expected)) > least
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("kind_of_tower", KINDS_OF_TOWER)
def test_ablation_is_that_of_the_whole_tower_in_every_kind_of_tower(kind_of_tower, layer):
    tower = random_tower(**KINDS_OF_TOWER[kind_of_tower])
    site = Site(layer, token="all" if layer == LAYERS - 1 and "pool_type" in KINDS_OF_TOWER[kind_of_tower] else "cls")
    compare(tower, random_sae(WIDTH), site)


@pytest.mark.parametrize("kind", ["ablate", "add"])
@pytest.mark.parametrize("token", ["cls", "patch", "all"])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("layer", [0, 2])
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


def test_older_towers_with_the_tokens_first_are_run_too():
    tower, sae = random_tower(), random_sae(WIDTH)
    weights = tower.visual.transformer.state_dict()
    tower.visual.transformer = open_clip.transformer.Transformer(WIDTH, LAYERS, 2, 4, batch_first=False)
    tower.visual.transformer.load_state_dict(weights)
    for layer in range(LAYERS):
        compare(tower_with(tower.visual), sae, Site(layer))


@pytest.mark.parametrize("layer", [1, 2])
def test_without_bringing_it_to_length_1_the_changed_embedding_keeps_the_others_units(layer):
    tower, sae, site = random_tower(), random_sae(WIDTH), Site(layer)
    pictures = NoisePictures(tower)
    images = tower.normalise(pictures.all)
    changes = every_change(activations(tower, sae, site, images))
    stored = Stored(capture(tower, images, [site])[site]) if layer == 2 else None
    read = changes.row != 3
    changes = Changes(*(v[read] for v in (changes.line, changes.feature, changes.row, changes.activation)))
    found = mean_effects(tower, sae, site, pictures, changes, "ablate", n=D_SAE, stored=stored, renormalised=False)
    original = tower.visual(images).double()
    for feature in np.unique(changes.feature)[:5]:
        rows = changes.row[changes.feature == feature]
        with splice(tower, sae, site, keep_error=True, edit=lambda f, k=int(feature): f * (torch.arange(D_SAE) != k)):
            ablated = tower.visual(images).double()
        expected = ((original - ablated) / original.norm(dim=1, keepdim=True))[rows].mean(dim=0)
        np.testing.assert_allclose(found[feature], expected, rtol=0, atol=2e-6)


def test_a_feature_on_hundreds_of_lines_of_one_image_is_the_same_on_each():
    tower, sae = random_tower(), random_sae(WIDTH)
    amounts = np.linspace(0.1, 3, 300, dtype=np.float32)
    row = np.repeat([0, 3], [299, 1])
    changes = Changes(np.arange(300), np.full(300, 7), row, amounts)
    together = mean_effects(tower, sae, Site(1), NoisePictures(tower), changes, "add", n=300)
    for k in (0, 150, 298, 299):
        one = Changes(np.zeros(1, np.int64), np.array([7]), row[k : k + 1], amounts[k : k + 1])
        alone = mean_effects(tower, sae, Site(1), NoisePictures(tower), one, "add", n=1)
        np.testing.assert_allclose(together[k], alone[0], rtol=0, atol=5e-7)


def test_changes_are_split_when_they_do_not_fit_in_memory(monkeypatch):
    tower, sae, site = random_tower(), random_sae(WIDTH), Site(0, token="all")
    pictures = NoisePictures(tower)
    changes = every_change(activations(tower, sae, site, tower.normalise(pictures.all)))
    whole = mean_effects(tower, sae, site, pictures, changes, "ablate", n=D_SAE)
    monkeypatch.setattr("thresher.analysis.naming.effects._CHANGES_AT_ONCE", 3)
    monkeypatch.setattr("thresher.analysis.naming.remaining._STREAM_BYTES", 2 * 5 * WIDTH * 4)
    split = mean_effects(tower, sae, site, pictures, changes, "ablate", n=D_SAE)
    np.testing.assert_allclose(split, whole, rtol=0, atol=5e-7)
    assert len({len(asked) for asked in pictures.asked}) == 1  # each image once a call


def test_no_change_is_exactly_no_effect():
    tower, sae = random_tower(), random_sae(WIDTH)
    changes = Changes(np.zeros(4, np.int64), np.arange(4), np.arange(4), np.zeros(4, np.float32))
    for layer in range(LAYERS):
        found = mean_effects(tower, sae, Site(layer), NoisePictures(tower), changes, "ablate", n=1)
        np.testing.assert_allclose(found, 0, atol=1e-7)


def test_a_line_is_the_mean_over_its_changes_whatever_their_order_and_empty_lines_are_undefined():
    tower, sae = random_tower(), random_sae(WIDTH)
    line, feature, row = np.array([2, 0, 2, 0]), np.array([5, 6, 7, 6]), np.array([4, 1, 0, 1])
    amount = np.array([1.0, 0.5, 2.0, 0.5], np.float32)
    found = mean_effects(tower, sae, Site(1), NoisePictures(tower), Changes(line, feature, row, amount), "ablate", n=3)
    each = [
        mean_effects(
            tower,
            sae,
            Site(1),
            NoisePictures(tower),
            Changes(np.zeros(1, np.int64), *(v[k : k + 1] for v in (feature, row, amount))),
            "ablate",
            n=1,
        )[0]
        for k in range(4)
    ]
    np.testing.assert_allclose(found[2], (each[0] + each[2]) / 2, rtol=0, atol=5e-7)
    np.testing.assert_allclose(found[0], each[1], rtol=0, atol=5e-7)
    assert np.isnan(found[1]).all()


def test_images_that_cannot_be_read_are_left_out_of_the_mean():
    tower, sae = random_tower(), random_sae(WIDTH)
    line, row = np.array([0, 0, 1]), np.array([1, 2, 2])
    changes = Changes(line, np.array([5, 5, 5]), row, np.ones(3, np.float32))
    found = mean_effects(tower, sae, Site(0), NoisePictures(tower, unreadable=[2]), changes, "ablate", n=2)
    one = Changes(line[:1], np.array([5]), row[:1], np.ones(1, np.float32))
    np.testing.assert_allclose(
        found[0], mean_effects(tower, sae, Site(0), NoisePictures(tower), one, "ablate", n=1)[0], rtol=0, atol=5e-7
    )
    assert np.isnan(found[1]).all()
    with pytest.raises(ValueError, match="none of the images that features are changed on can be read"):
        mean_effects(tower, sae, Site(0), NoisePictures(tower, unreadable=[1]), one, "ablate", n=1)


class Stored:
    """What an `ActivationArray` gives of a store whose row 3 could not be read."""

    def __init__(self, x):
        self.x, self.d_in, self.stored_dtype = x.numpy(), x.shape[1], np.dtype(np.float32)
        self.store = SimpleNamespace(
            url="a store", positions_of=lambda rows: np.where(rows == 3, -1, rows - (rows > 3))
        )

    def read_runs(self, starts, lengths, out):
        assert (lengths == 1).all()
        out[:] = np.delete(self.x, 3, axis=0)[starts]

    def tensor(self, rows):
        return torch.from_numpy(rows)


@pytest.mark.parametrize("settings", [{}, {"layer_norm": True}])
def test_behind_the_last_block_stored_vectors_do_without_images(settings):
    tower, sae, site = random_tower(), random_sae(WIDTH, **settings), Site(LAYERS - 1)
    pictures = NoisePictures(tower)
    images = tower.normalise(pictures.all)
    changes = every_change(activations(tower, sae, site, images))
    read = changes.row != 3
    changes = Changes(*(v[read] for v in (changes.line, changes.feature, changes.row, changes.activation)))
    stored = Stored(capture(tower, images, [site])[site])
    assert not needs_images(tower, site)
    found = mean_effects(tower, sae, site, None, changes, "ablate", n=D_SAE, stored=stored)
    np.testing.assert_allclose(found, by_splicing(tower, sae, site, images, changes, "ablate"), rtol=0, atol=2e-6)
    gone = Changes(np.zeros(1, np.int64), np.array([5]), np.array([3]), np.ones(1, np.float32))
    with pytest.raises(StoreError, match="have no vector: encode again"):
        mean_effects(tower, sae, site, NoPictures(), gone, "ablate", n=1, stored=stored)


@pytest.mark.parametrize("site", [Site(1), Site(2, "mlp_out"), Site(2, token="all"), Site(2, "resid_pre")])
def test_elsewhere_images_are_needed_and_asked_for(site):
    tower = random_tower()
    assert needs_images(tower, site)
    n_tokens = tokens_per_image(tower, site.token)
    none = Changes(*(np.zeros(0, np.int64) for _ in range(3)), np.zeros((0, n_tokens), np.float32))
    with pytest.raises(ValueError, match="name IMAGES"):
        mean_effects(tower, random_sae(WIDTH), site, None, none, "ablate", n=1)
    assert np.isnan(mean_effects(tower, random_sae(WIDTH), site, NoisePictures(tower), none, "ablate", n=2)).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "remove"}, "kind 'remove' is none of ablate, add"),
        ({"feature": np.array([D_SAE])}, f"features {D_SAE} to {D_SAE}, of 0 to {D_SAE - 1}"),
        ({"line": np.array([2])}, "lines 2 to 2, of 0 to 0"),
        ({"activation": np.array([np.nan], np.float32)}, "not a finite number"),
        ({"activation": np.ones((1, 5), np.float32)}, "activations of 5 tokens an image; the site has 1"),
        ({"row": np.array([0, 1])}, "need a line, a feature, a row and an activation each"),
        ({"site": Site(1, "mlp_act")}, "gives vectors of 32; those of layer 1 .* have 128"),
        ({"site": Site(7)}, "layer 7 is out of range"),
    ],
)
def test_what_does_not_fit_is_named(wrong, message):
    tower = random_tower()
    parts = {
        name: wrong.get(name, default)
        for name, default in (
            ("line", np.zeros(1, np.int64)),
            ("feature", np.array([5])),
            ("row", np.array([0])),
            ("activation", np.ones(1, np.float32)),
        )
    }
    with pytest.raises(ValueError, match=message):
        mean_effects(
            tower,
            random_sae(WIDTH),
            wrong.get("site", Site(1)),
            NoisePictures(tower),
            Changes(**parts),
            wrong.get("kind", "ablate"),
            n=1,
        )


def test_another_librarys_tower_is_refused_in_one_line():
    tower = tower_with(torch.nn.Linear(2, 2), "ViT of timm")
    none = Changes(*(np.zeros(0, np.int64) for _ in range(3)), np.zeros((0, 1), np.float32))
    with pytest.raises(ValueError, match=r"ViT of timm is a Linear, and features are followed .* open_clip's own"):
        mean_effects(tower, random_sae(WIDTH), Site(0), None, none, "ablate", n=1)
