"""The neurons on the page of a feature, of a small tower of open_clip with random weights."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient
from thresher.analysis.align_options import AlignOptions
from thresher.analysis.alignment import align
from thresher.analysis.encode import encode
from thresher.analysis.explorer.app import make_app
from thresher.analysis.explorer.page import Query
from thresher.analysis.explorer.pages.feature_alignment import cosines_answer, encoder_direction, stored_neurons
from thresher.analysis.explorer.runs import ExploredRun
from thresher.analysis.explorer.several import Explorer
from thresher.analysis.explorer.tower import _loaded
from thresher.analysis.options import EncodeOptions, StatsOptions
from thresher.analysis.stats import stats
from thresher.harvest.options import HarvestOptions
from thresher.harvest.run import harvest
from thresher.harvest.vision import load_tower
from thresher.store.loading import plan_loading
from thresher.store.reader import open_store
from thresher.train.configuration import describe_store
from thresher.train.models import ReluSae
from thresher.train.options import TrainOptions
from thresher.train.run_dir import create_run

D, LAYER, F = 32, 1, 24
MODEL = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": 32,
        "layers": 3,
        "width": D,
        "patch_size": 16,
        "head_width": 16,
        "ls_init_value": 0.5,
    },
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The path of an aligned run, its SAE and its tower."""
    root = tmp_path_factory.mktemp("neurons")
    (root / "model.json").write_text(json.dumps({"model_cfg": MODEL}))
    draw = np.random.default_rng(0)
    (root / "images").mkdir()
    for i in range(40):
        Image.fromarray(draw.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(root / "images" / f"{i}.png")
    options = HarvestOptions(
        model=str(root / "model.json"), pretrained="none", layer=(LAYER,), batch_size=16, device="cpu", workers=0
    )
    harvest(options, str(root / "images"), str(root / "store.zarr"))
    store, path = open_store(root / "store.zarr"), root / "run"
    config = {
        "options": TrainOptions().to_json(),
        "site": store.sites[0].path,
        "d_in": D,
        "d_sae": F,
        "store": describe_store(store, path),
        "loading": plan_loading([store.activations(store.sites[0])], 64).to_json(),
    }
    create_run(path, config, overwrite=False)
    torch.manual_seed(0)
    encoder = torch.randn(F, D)
    encoder[5] = 0
    sae = ReluSae(encoder, torch.zeros(F), torch.randn(F, D), torch.zeros(D), input_scale=torch.rand(D) + 0.5)
    sae.save(path / "sae.safetensors")
    encode(path, EncodeOptions(device="cpu"))
    stats(path, StatsOptions(figures=False, null_draws=20))
    align(path, AlignOptions(device="cpu", figures=False, null_directions=400))
    return path, sae, load_tower(str(root / "model.json"), "none")


@pytest.fixture(scope="module")
def cosines(made):
    """`(F, m)` float64: of every feature with every neuron, by hand."""
    _, sae, tower = made
    block = tower.visual.transformer.resblocks[LAYER]
    writes = (block.ls_2.gamma[:, None] * block.mlp.c_proj.weight).detach().double().numpy().T  # (m, d)
    reads = (sae.W_enc.double() / sae.input_scale.double()[:, None]).numpy().T  # (F, d)
    writes /= np.linalg.norm(writes, axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        reads /= np.linalg.norm(reads, axis=1, keepdims=True)
    return reads @ writes.T


@pytest.fixture
def run(made):
    return ExploredRun(made[0])


def test_every_neurons_cosine_is_that_of_the_encoder_with_its_output_vector(run, cosines):
    for feature in (0, 7, F - 1):
        found = cosines_answer(run, Query({"feature": feature}))["cosines"]
        assert found == pytest.approx(cosines[feature], abs=6e-5)  # four digits are sent


def test_the_stored_neurons_are_the_largest_signed_and_absolute(run, cosines):
    for feature in (0, 7, F - 1):
        found = stored_neurons(run, feature)
        assert (found.kind, found.layer, found.n_vectors, found.has_sign) == ("mlp", LAYER, 4 * D, True)
        by_size = np.argsort(-np.abs(cosines[feature]))[:10]
        assert [each.id for each in found.top_absolute] == by_size.tolist()
        assert [each.cosine for each in found.top_absolute] == pytest.approx(cosines[feature][by_size], abs=1e-5)
        by_sign = np.argsort(-cosines[feature])[:10]
        assert [each.id for each in found.top_signed] == by_sign.tolist()
        assert [each.cosine for each in found.top_signed] == pytest.approx(cosines[feature][by_sign], abs=1e-5)


def test_chance_is_that_of_random_directions_with_these_neurons(run, made, cosines):
    _, _, tower = made
    block = tower.visual.transformer.resblocks[LAYER]
    writes = (block.ls_2.gamma[:, None] * block.mlp.c_proj.weight).detach().double().numpy().T
    writes /= np.linalg.norm(writes, axis=1, keepdims=True)
    draws = np.random.default_rng(0).standard_normal((20_000, D))
    draws /= np.linalg.norm(draws, axis=1, keepdims=True)
    largest = (draws @ writes.T).max(axis=1)
    isotropic, _covariance = stored_neurons(run, 3).chance
    assert isotropic.low == pytest.approx(np.quantile(largest, 0.01), abs=0.03)
    assert isotropic.high == isotropic.level == pytest.approx(np.quantile(largest, 0.99), abs=0.03)
    for each in stored_neurons(run, 3).chance:
        assert each.above == (cosines[3] > each.level).sum()
        assert 0 < each.p <= each.q <= 1


def test_a_vector_of_zeros_has_no_neurons(run):
    found = stored_neurons(run, 5)
    assert found.top_absolute == found.top_signed == []
    answer = cosines_answer(run, Query({"feature": 5}))
    assert answer["cosines"] is None
    assert "points nowhere" in answer["missing"]


def test_the_page_shows_them(made):
    client = TestClient(make_app(Explorer([made[0]])), base_url="http://127.0.0.1")
    html = client.get("/f/0").text
    assert f"the {4 * D} neurons of the MLP of block {LAYER} (0-based)" in html
    assert len(client.get("/f/0/alignment.json").json()["cosines"]) == 4 * D
    assert client.get("/f/5/alignment.json").json()["cosines"] is None
    assert client.get(f"/f/{F}/alignment.json").status_code == 404
    assert client.get("/f/5").status_code == 200


def test_layer_norm_takes_the_direction_of_the_mean_away(made, tmp_path):
    path = shutil.copytree(made[0], tmp_path / "run")
    sae = made[1]
    ReluSae(sae.encoder, sae.b_enc, sae.decoder, sae.b_dec, input_scale=sae.input_scale, layer_norm=True).save(
        path / "sae.safetensors"
    )
    found = encoder_direction(ExploredRun(path), 2)
    whole = sae.W_enc[:, 2].double().numpy() / sae.input_scale.double().numpy()
    assert found == pytest.approx(whole - whole.mean())
    assert found.sum() == pytest.approx(0, abs=1e-9)


def test_an_alignment_of_other_weights_is_not_shown(made, tmp_path):
    path = shutil.copytree(made[0], tmp_path / "run")
    document = json.loads((path / "alignment.json").read_text())
    (path / "alignment.json").write_text(json.dumps(document | {"sae_sha256": "0" * 64}))
    run = ExploredRun(path)
    assert stored_neurons(run, 0) is None
    assert stored_neurons(run, 1) is None
    assert [note for note in run.notes if "other weights" in note] == run.notes


def test_without_its_tower_the_stored_neurons_stay(made, tmp_path):
    path = shutil.copytree(made[0], tmp_path / "run")
    moved = made[0].parent / "model.json"
    moved.rename(moved.with_suffix(".away"))
    _loaded.cache_clear()  # other runs of the store may have loaded it
    try:
        client = TestClient(make_app(Explorer([path])), base_url="http://127.0.0.1")
        answer = client.get("/f/0/alignment.json")
        assert answer.status_code == 200  # a browser would log a failure, and the page has something to show
        assert "tower is not available" in answer.json()["missing"]
        assert "neuron " in client.get("/f/0").text
    finally:
        moved.with_suffix(".away").rename(moved)
