"""Directions of features, held against their formulae in numpy float64."""

import numpy as np
import pytest
import torch
from random_towers import D_SAE, EMBEDDING, HIDDEN, WIDTH, NoisePictures, random_sae, random_tower
from thresher.analysis.naming.directions import (
    data_directions,
    dncbm_directions,
    lens_directions,
    mean_stream,
    post_directions,
)
from thresher.harvest.sites import at_site
from thresher.store.format import Site
from thresher.train.models import TopKSae

FEATURES = np.array([7, 0, 11, 3])


def weights_of(module):
    return {name: tensor.double().numpy() for name, tensor in module.state_dict().items()}


def layer_norm(x, w, name):
    centred = x - x.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    return centred / deviation * w[f"{name}.weight"] + w[f"{name}.bias"]


def head(tower, x):
    """ln_post and the projection, float64."""
    w = weights_of(tower.visual)
    return layer_norm(x, w, "ln_post") @ w["proj"]


def decoder(sae):
    return sae.W_dec.double().numpy()[FEATURES] * sae.output_scale.double().numpy()


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


MEAN = np.random.default_rng(0).standard_normal(WIDTH).astype(np.float32)
AMOUNTS = np.array([0.5, 3.0, 1.0, 7.0], np.float32)


@pytest.mark.parametrize("settings", [{}, {"pool_type": "avg"}, {"pool_type": "avg", "final_ln_after_pool": True}])
@pytest.mark.parametrize("site", [Site(0), Site(1, "resid_pre"), Site(1, "mlp_out"), Site(1, "attn_out")])
def test_the_lens_is_the_heads_change_of_the_mean(site, settings):
    tower, sae = random_tower(**settings), random_sae(WIDTH)
    found = lens_directions(tower, sae, site, FEATURES, AMOUNTS, MEAN)
    expected = head(tower, MEAN + AMOUNTS[:, None] * decoder(sae)) - head(tower, MEAN)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_lens_goes_through_an_attentional_pool():
    tower, sae = random_tower(attentional_pool=True, attn_pooler_queries=4, attn_pooler_heads=2), random_sae(WIDTH)
    found = lens_directions(tower, sae, Site(2), FEATURES, AMOUNTS, MEAN)
    w = weights_of(tower.visual)

    def pooled(x):  # of equal tokens attention gives the value of one, whatever the query
        value = layer_norm(x, w, "attn_pool.ln_k") @ w["attn_pool.attn.v_proj_weight"].T
        value = value + w["attn_pool.attn.in_proj_bias"][2 * EMBEDDING :]
        out = value @ w["attn_pool.attn.out_proj.weight"].T + w["attn_pool.attn.out_proj.bias"]
        return layer_norm(out, w, "ln_post") @ w["proj"]

    expected = pooled(MEAN + AMOUNTS[:, None] * decoder(sae)) - pooled(MEAN)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_the_lens_takes_neurons_through_the_mlps_output():
    tower, sae, site = random_tower(ls_init_value=0.6), random_sae(HIDDEN), Site(2, "mlp_act")
    found = lens_directions(tower, sae, site, FEATURES, AMOUNTS, MEAN)
    w = weights_of(tower.blocks[2])
    written = decoder(sae) @ w["mlp.c_proj.weight"].T * w["ls_2.gamma"]
    np.testing.assert_allclose(found, head(tower, MEAN + AMOUNTS[:, None] * written) - head(tower, MEAN), atol=1e-5)


def test_the_lens_of_a_transcoder_takes_the_vectors_that_it_writes():
    tower, sae = random_tower(), random_sae(HIDDEN, d_out=WIDTH)
    found = lens_directions(tower, sae, Site(0, "mlp_act"), FEATURES, AMOUNTS, MEAN, target=Site(2, "mlp_out"))
    expected = head(tower, MEAN + AMOUNTS[:, None] * decoder(sae)) - head(tower, MEAN)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_rows_that_the_sae_normalises_are_scaled_back_by_the_means_norm():
    tower, sae = random_tower(), random_sae(WIDTH, constant_norm=True)
    found = lens_directions(tower, sae, Site(2), FEATURES, AMOUNTS, MEAN)
    size = np.linalg.norm(MEAN.astype(np.float64)) / np.sqrt(WIDTH)
    expected = head(tower, MEAN + AMOUNTS[:, None] * decoder(sae) * size) - head(tower, MEAN)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_feature_that_never_fired_has_no_lens():
    amounts = AMOUNTS.copy()
    amounts[1] = np.nan
    found = lens_directions(random_tower(), random_sae(WIDTH), Site(2), FEATURES, amounts, MEAN)
    assert np.isnan(found).all(axis=1).tolist() == [False, True, False, False]


def test_directions_in_pieces_and_of_no_features(monkeypatch):
    tower, sae = random_tower(), random_sae(WIDTH)
    whole = lens_directions(tower, sae, Site(2), FEATURES, AMOUNTS, MEAN)
    monkeypatch.setattr("thresher.analysis.naming.directions._VECTORS_AT_ONCE", 3)
    np.testing.assert_allclose(lens_directions(tower, sae, Site(2), FEATURES, AMOUNTS, MEAN), whole, atol=1e-6)
    none = np.zeros(0, np.int64)
    assert lens_directions(tower, sae, Site(2), none, np.zeros(0), MEAN).shape == (0, EMBEDDING)
    assert post_directions(tower, sae, Site(2), none).shape == (0, EMBEDDING)


@pytest.mark.parametrize("token", ["cls", "patch", "mean"])
@pytest.mark.parametrize(("site", "place"), [("mlp_out", "resid_post"), ("resid_pre", "resid_pre")])
def test_the_mean_stream_is_that_of_the_images_that_can_be_read(site, place, token):
    tower, seen = random_tower(), []
    found = mean_stream(tower, Site(1, site, token), NoisePictures(tower, unreadable=[1]), np.array([0, 1, 3]))
    handle = at_site(tower.blocks[1], place, lambda x: seen.append(x.double().numpy()))
    tower.visual(tower.normalise(NoisePictures(tower).all[[0, 3]]))
    handle.remove()
    expected = seen[0][:, 0].mean(axis=0) if token == "cls" else seen[0][:, 1:].mean(axis=(0, 1))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(ValueError, match="none of the 1 images for the mean of the stream can be read"):
        mean_stream(tower, Site(1, site, token), NoisePictures(tower, unreadable=[1]), np.array([1]))


def test_the_data_direction_is_the_weighted_mean_less_the_mean_of_all():
    embeddings = unit(np.random.default_rng(1).standard_normal((5, 4))).astype(np.float32)
    embeddings[2] = np.nan  # could not be read
    mean = np.array([0.1, 0.2, 0.0, -0.1], np.float32)
    indptr, place = np.array([0, 2, 2, 5, 6]), np.array([0, 3, 4, 2, 1, 2])
    activation = np.array([1.0, 3.0, 2.0, 9.0, 6.0, 1.0], np.float32)
    found = data_directions(embeddings, mean, indptr, place, activation)
    np.testing.assert_allclose(found[0], 0.25 * embeddings[0] + 0.75 * embeddings[3] - mean, atol=1e-6)
    np.testing.assert_allclose(found[2], 0.25 * embeddings[4] + 0.75 * embeddings[1] - mean, atol=1e-6)
    assert np.isnan(found[[1, 3]]).all()  # fires on none, and on one that could not be read


def test_the_posts_direction_is_its_script_where_nothing_is_scaled():
    tower, draw = random_tower(), torch.Generator().manual_seed(0)
    weights = [torch.randn(*shape, generator=draw) for shape in ((D_SAE, WIDTH), (D_SAE,), (D_SAE, WIDTH), (WIDTH,))]
    found = post_directions(tower, TopKSae(*weights, k=3), Site(2), FEATURES)
    d = 13 * weights[2].double().numpy()[FEATURES] + weights[3].double().numpy()
    np.testing.assert_allclose(found, unit(head(tower, d)), atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"layer_norm": True}])
def test_the_posts_direction_undoes_the_saes_scaling(settings):
    tower, sae = random_tower(), random_sae(WIDTH, **settings)
    code = torch.zeros(len(FEATURES), D_SAE, dtype=torch.float64)
    code[range(len(FEATURES)), FEATURES] = 13
    row = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(9)).double() * 40 + 3  # any row's own scale
    decoded = sae.to(dtype=torch.float64).decode(code, row.expand(len(FEATURES), -1)).numpy()
    found = post_directions(tower, sae, Site(2), FEATURES)
    np.testing.assert_allclose(found, unit(head(tower, decoded)), atol=1e-5)


def test_discover_then_name_is_exact_for_an_sae_of_the_embeddings():
    sae = random_sae(EMBEDDING, input_mean=None, input_scale=None)
    words = unit(np.random.default_rng(2).standard_normal((30, EMBEDDING)))
    found = dncbm_directions(random_tower(), sae, None, FEATURES)
    w_dec = sae.W_dec.double().numpy()[FEATURES]
    cosines = [[w @ t / np.linalg.norm(w) for t in words] for w in w_dec]
    np.testing.assert_allclose(found @ words.T, cosines, atol=1e-6)
    with pytest.raises(ValueError, match="gives vectors of 32 and embeddings of random have 8: name the site"):
        dncbm_directions(random_tower(), random_sae(WIDTH), None, FEATURES)


def test_discover_then_name_takes_other_features_through_the_head_alone():
    tower, sae = random_tower(), random_sae(WIDTH)
    np.testing.assert_allclose(
        dncbm_directions(tower, sae, Site(1), FEATURES), unit(head(tower, decoder(sae))), atol=1e-6
    )


@pytest.mark.parametrize(
    ("settings", "site"), [({}, Site(2, token="patch")), ({}, Site(2, token="mean")), ({"pool_type": "avg"}, Site(2))]
)
def test_what_does_not_reach_the_embedding_is_refused(settings, site):
    tower, sae = random_tower(**settings), random_sae(WIDTH)
    for find in (
        lambda: lens_directions(tower, sae, site, FEATURES, AMOUNTS, MEAN),
        lambda: post_directions(tower, sae, site, FEATURES),
        lambda: dncbm_directions(tower, sae, site, FEATURES),
    ):
        with pytest.raises(ValueError, match="do not reach it: name them by the data"):
            find()


def test_what_does_not_fit_is_named():
    tower = random_tower()
    with pytest.raises(ValueError, match=r"mean of the stream has shape \(8,\); the stream's width is 32"):
        lens_directions(tower, random_sae(WIDTH), Site(2), FEATURES, AMOUNTS, np.zeros(8))
    neurons = Site(1, "mlp_act")
    with pytest.raises(ValueError, match="holds neurons, not the stream that the post's method reads"):
        post_directions(tower, random_sae(HIDDEN), neurons, FEATURES)
    with pytest.raises(ValueError, match="holds neurons, not the stream that Discover-then-Name reads"):
        dncbm_directions(tower, random_sae(HIDDEN), neurons, FEATURES)
    with pytest.raises(ValueError, match=r"a transcoder that reads .* name it as target"):
        lens_directions(tower, random_sae(HIDDEN, d_out=WIDTH), neurons, FEATURES, AMOUNTS, MEAN)
