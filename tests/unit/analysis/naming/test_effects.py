"""Mean effects of changes: what they are the mean of, where they are read from, and what does not fit."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ablation_by_splicing import activations, by_splicing, every_change
from random_towers import D_SAE, LAYERS, WIDTH, NoisePictures, random_sae, random_tower, tower_with
from thresher.analysis.naming.effects import Changes, mean_effects, needs_images
from thresher.harvest.sites import capture, tokens_per_image
from thresher.harvest.splice import splice
from thresher.store.errors import StoreError
from thresher.store.format import Site


class NoPictures:
    def pixels(self, rows):
        raise AssertionError("no image is needed")


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


def test_hundreds_of_changes_of_one_image_take_turns(monkeypatch):
    tower, sae = random_tower(), random_sae(WIDTH)
    line, row = np.arange(200), np.repeat([0, 3], [199, 1])
    changes = Changes(line, line % D_SAE, row, np.linspace(0.1, 3, 200, dtype=np.float32))
    turns = mean_effects(tower, sae, Site(1), NoisePictures(tower), changes, "add", n=200)
    monkeypatch.setattr("thresher.analysis.naming.remaining._QUERIES_OF_AN_IMAGE", 200)
    at_once = mean_effects(tower, sae, Site(1), NoisePictures(tower), changes, "add", n=200)
    np.testing.assert_allclose(turns, at_once, rtol=0, atol=5e-7)
    assert np.abs(turns).max(axis=1).min() > 1e-4


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
