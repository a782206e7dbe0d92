"""MLP neurons: the list in every order, a page each, and what is said where nothing is stored."""

import json

import numpy as np
import pytest
import zarr
from explored import make_explored_run
from starlette.testclient import TestClient
from thresher.analysis.explorer.app import make_app
from thresher.analysis.explorer.page import NotHere, Query, Unavailable
from thresher.analysis.explorer.pages.neurons import A_PAGE, index, view, view_list
from thresher.analysis.explorer.runs import ExploredRun
from thresher.analysis.explorer.several import Explorer

N, K = 120, 20


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A run whose alignment was written by hand, and the arrays in it."""
    path = make_explored_run(tmp_path_factory.mktemp("neurons")).path
    summary = json.loads((path / "stats.json").read_text())
    rng = np.random.default_rng(0)
    arrays = {
        "n_active": rng.integers(0, 239, N).astype(np.uint64),
        "max": rng.random(N).astype(np.float32),
        "mean_top": rng.random(N).astype(np.float32),
        "n_pos": np.full(N, K, np.uint16),
        "label_entropy": np.where(rng.random(N) < 0.2, np.nan, rng.random(N)).astype(np.float32),
        "n_labelled": np.full(N, K, np.uint16),
        "top_row": rng.integers(0, 239, (N, K)).astype(np.int64),
        "top_value": -np.sort(-rng.random((N, K)).astype(np.float32), axis=1),
        "top_label": rng.integers(-1, 7, (N, K)).astype(np.int32),
    }
    arrays["top_row"][3, 2:] = -1
    arrays["top_value"][3, 2:] = 0
    cosine = rng.uniform(-1, 1, (N, 32)).astype(np.float32)
    cosine = np.take_along_axis(cosine, np.argsort(-np.abs(cosine), axis=1), 1)
    cosine[7, 4:] = np.nan
    feature = rng.integers(0, 96, (N, 32)).astype(np.int32)
    feature[7, 4:] = -1
    group = zarr.open_group(str(path / "alignment.zarr"), mode="w", zarr_format=3)
    for name, values in arrays.items():
        group.create_array(f"neurons/mlp_act/{name}", data=values)
    group.create_array("encoder/of_vector/feature", data=feature)
    group.create_array("encoder/of_vector/cosine", data=cosine)
    known = {"format": "thresher-alignment", "format_version": 1}
    group.attrs.update(known)
    entropies = {name: 0.5 for name in ("median_features", "median_neurons")}
    document = known | {
        "sae_sha256": summary["sae_sha256"],
        "store_fingerprint": summary["store_fingerprint"],
        "sides": {"encoder": {"main": {"chance": {"isotropic": {"absolute": {"0.99": 0.31}}}}}},
        "neurons": {
            "mlp_act": {
                "layer": 1,
                "store": "neurons.zarr",
                "n_neurons": N,
                "k": K,
                "n_rows": 239,
                "label_entropy": entropies | {"share_neurons_selective": 0.1, "share_features_selective": 0.9},
            }
        },
    }
    (path / "alignment.json").write_text(json.dumps(document))
    return path, arrays, feature, cosine


@pytest.fixture(scope="module")
def run(stored):
    return ExploredRun(stored[0])


@pytest.fixture(scope="module")
def client(stored):
    with TestClient(make_app(Explorer([stored[0]])), base_url="http://127.0.0.1") as client:
        yield client


@pytest.mark.parametrize("sort", ["cosine", "entropy", "density", "max", "id"])
def test_the_list_is_in_the_order_that_is_asked_for(run, stored, sort):
    _, arrays, _, cosine = stored
    key = {
        "cosine": lambda i: -abs(float(cosine[i, 0])),
        "entropy": lambda i: (bool(np.isnan(arrays["label_entropy"][i])), float(arrays["label_entropy"][i])),
        "density": lambda i: -int(arrays["n_active"][i]),
        "max": lambda i: -float(arrays["max"][i]),
        "id": lambda i: i,
    }[sort]
    expected = sorted(range(N), key=lambda i: (key(i), i))
    if sort == "entropy":  # what is undefined last, by number
        defined = np.isfinite(arrays["label_entropy"])
        expected = [i for i in expected if defined[i]] + np.flatnonzero(~defined).tolist()
    found = [
        row.id
        for page in range(-(-N // A_PAGE))
        for row in view_list(run, Query(values={"sort": sort, "page": str(page)})).rows
    ]
    assert found == expected


def test_a_neuron_shows_its_images_labels_and_nearest_features(run, stored):
    _, arrays, feature, cosine = stored
    found = view(run, Query({"neuron": 5}))
    assert [picture.row for picture in found.firings] == arrays["top_row"][5, :16].tolist()
    assert found.density == arrays["n_active"][5] / 239
    assert [each.feature for each in found.aligned] == feature[5, :16].tolist()
    np.testing.assert_allclose([each.cosine for each in found.aligned], cosine[5, :16])
    sums: dict[int, float] = {}
    for label, value in zip(arrays["top_label"][5].tolist(), arrays["top_value"][5].tolist(), strict=True):
        if label >= 0:
            sums[label] = sums.get(label, 0) + value
    shares = {label: total / sum(sums.values()) for label, total in sums.items()}
    assert {label: share for label, _, _, share in found.labels} == pytest.approx(shares)
    assert [share for *_, share in found.labels] == sorted(shares.values(), reverse=True)
    assert found.chance == 0.31


def test_unfilled_images_and_features_are_left_out(run):
    assert len(view(run, Query({"neuron": 3})).firings) == 2
    assert len(view(run, Query({"neuron": 7})).aligned) == 4


def test_the_columns_for_scripts_are_those_of_the_list(run, stored):
    found = index(run, Query())
    np.testing.assert_array_equal(found["cosine"], stored[3][:, 0])
    np.testing.assert_array_equal(found["rows"], stored[1]["top_row"][:, :4])


def test_a_neuron_that_is_none_is_not_here(run, client):
    with pytest.raises(NotHere, match="Neuron 120 is not one of the 120, 0 to 119"):
        view(run, Query({"neuron": N}))
    assert client.get(f"/neurons/{N}").status_code == 404


def test_the_pages_and_their_twins_are_answered(client):
    for path in ("/neurons", "/neurons?sort=entropy&page=1", "/neurons/5", "/neurons/3"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert "<script>alert" not in answer.text
    assert client.get("/neurons.json").json()["n_units"] == N
    assert client.get("/neurons/5.json").json()["id"] == 5
    assert client.get("/neurons?sort=size").status_code == 400


def test_without_stored_neurons_the_page_says_which_command_makes_them(explored):
    run = explored.runs[0]
    assert "thresher align run --project" in view_list(run, Query()).how
    with pytest.raises(Unavailable, match="--neurons STORE"):
        view(run, Query({"neuron": 0}))


def test_an_alignment_of_another_sae_is_not_shown(stored, tmp_path):
    path = make_explored_run(tmp_path, seed=3).path
    (path / "alignment.zarr").symlink_to(stored[0] / "alignment.zarr")
    (path / "alignment.json").write_text((stored[0] / "alignment.json").read_text())
    with pytest.raises(Unavailable, match=r"another SAE or store \(sae_sha256 differs\)"):
        view_list(ExploredRun(path), Query())
