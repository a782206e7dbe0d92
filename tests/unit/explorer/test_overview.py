"""The overview shows the numbers of stats.json, evaluate.json and metrics.jsonl, and where every feature lies."""

import json
import math
import shutil

import numpy as np
import pytest
from explored import make_explored_run
from starlette.testclient import TestClient
from thresher.analysis.explorer.app import make_app
from thresher.analysis.explorer.page import Query, Unavailable
from thresher.analysis.explorer.pages import overview as module
from thresher.analysis.explorer.pages.overview import card, curves, thinned, view
from thresher.analysis.explorer.pages.overview_tiles import tiles_of_evaluation
from thresher.analysis.explorer.runs import ExploredRun
from thresher.analysis.explorer.several import Explorer
from thresher.analysis.options import StatsOptions
from thresher.analysis.stats import stats

EVALUATION = {
    "n_images": 201,
    "n_classes": 98,
    "contrastive": {
        "repeats_captions": False,
        "batch_size": 58,
        "n_images_in_batches": 58,
        "ln_batch_size": math.log(58),
        "ways": {
            "original": {"loss": 3.25, "loss_interval_images": [2.5, 4.0]},
            "sae": {"loss": 3.75, "loss_interval_images": None},
            "zero": {"loss": 7.25, "loss_interval_images": [None, None]},
        },
        "loss_recovered": 0.875,
        "loss_recovered_interval_images": [0.75, 0.9375],
    },
    "zero_shot": {
        "original": {"top1": 0.375, "top5": 0.75},
        "sae": {"top1": 0.25, "top1_interval": [0.125, 0.5], "top5": 0.625, "top5_interval": None},
    },
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run without labels, without an ULD cluster, without thumbnails: all the overview can lack of statistics."""
    folder = tmp_path_factory.mktemp("plain")
    return make_explored_run(folder, n_features=16, n_images=80, is_labelled=False, thumbnails=False)


@pytest.fixture
def copy(made, tmp_path):
    """A copy of the run of this folder, to write into."""
    return shutil.copytree(made.path, tmp_path / "run")


def page_of(path):
    with TestClient(make_app(Explorer([path])), base_url="http://127.0.0.1") as client:
        return client.get("/")


# Numbers


def test_every_tile_has_the_number_of_stats_json(run, made):
    s = json.loads((made.path / "stats.json").read_text())
    tiles = {tile.name: tile for tile in view(run, Query()).statistics}
    interval = s["intervals"]["splits"][s["split"]]
    for name, field in (
        ("Explained variance", "explained_variance"),
        ("Explained energy", "explained_energy"),
        ("Normalised MSE", "normalized_mse"),
        ("L1", "l1"),
    ):
        assert tiles[name].value == s[field]
        assert tiles[name].interval == tuple(interval[field])
        assert tiles[name].more == {"held out": s["quality"]["heldout"][field]}
        assert tiles[name].definition
    l0 = tiles["L0, mean"]
    assert (l0.value, *l0.more.values()) == tuple(s["l0"][name] for name in ("mean", "median", "p99", "max"))
    assert (tiles["Dead features"].value, tiles["Dead features"].more["of"]) == (s["n_dead"], s["d_sae"])


def test_every_tile_has_the_number_of_evaluate_json():
    found = {tile.name: (tile.value, tile.interval, tile.more) for tile in tiles_of_evaluation(EVALUATION)}
    assert found == {
        "Loss, original": (3.25, (2.5, 4.0), {}),
        "Loss, SAE spliced in": (3.75, None, {}),
        "Loss, zeros at the site": (7.25, None, {}),
        "Loss recovered": (0.875, (0.75, 0.9375), {}),
        "Zero-shot top-1, SAE": (0.25, (0.125, 0.5), {"original": 0.375}),
        "Zero-shot top-5, SAE": (0.625, None, {"original": 0.75}),
    }


def test_an_evaluation_made_while_the_run_is_explored_is_shown_as_it_is_then(copy):
    run = ExploredRun(copy)
    assert view(run, Query()).evaluation == []
    assert view(run, Query()).evaluate_command == "thresher evaluate run IMAGES"
    (copy / "evaluate.json").write_text(json.dumps(EVALUATION))
    assert view(run, Query()).evaluation[0].value == 3.25
    changed = EVALUATION | {"contrastive": EVALUATION["contrastive"] | {"loss_recovered": 0.5, "more": "of it"}}
    (copy / "evaluate.json").write_text(json.dumps(changed))
    assert {tile.name: tile.value for tile in view(run, Query()).evaluation}["Loss recovered"] == 0.5


@pytest.mark.parametrize("text", ["{", "{}", '{"contrastive": 3}'])
def test_a_damaged_evaluation_is_told_in_one_line(copy, text):
    (copy / "evaluate.json").write_text(text)
    with pytest.raises(Unavailable, match=r"evaluate\.json is damaged .*run"):
        view(ExploredRun(copy), Query())


def test_definitions_and_intervals_are_on_the_page(client, made):
    s = json.loads((made.path / "stats.json").read_text())
    text = client.get("/").text
    assert "1 - SSE / SST over the whole split" in text
    assert "thresher evaluate run IMAGES" in text
    twin = client.get("/index.json").json()
    assert twin["statistics"][0]["value"] == s["explained_variance"]
    assert twin["statistics"][0]["interval"] == s["intervals"]["splits"]["all"]["explained_variance"]


# Histograms


def test_the_density_histogram_counts_each_alive_feature_once(run):
    found = view(run, Query()).density
    n = run.summary["n_rows"]
    densities = [math.log10(int(each) / n) for each in run.stored.statistics.n_active if each]
    counts = [0] * len(found.counts)
    for density in densities:
        place = max(i for i, edge in enumerate(found.edges) if edge <= density)
        counts[min(place, len(counts) - 1)] += 1
    assert found.counts == counts
    assert sum(counts) == len(densities) == run.d_sae - found.n_left_out
    assert found.edges[0] <= min(densities)
    assert found.edges[-1] >= max(densities)
    np.testing.assert_allclose(np.diff(found.edges), 0.2)


def test_the_entropy_histogram_counts_each_defined_entropy_once(run):
    found = view(run, Query())
    entropy = run.stored.statistics.label_entropy.astype(np.float64)
    defined = entropy[~np.isnan(entropy)]
    width = math.log(20) / 30
    counts = np.bincount(np.minimum((defined / width).astype(int), 29), minlength=30)
    assert found.entropy.counts == counts.tolist()
    assert found.entropy.n_left_out == np.isnan(entropy).sum() == run.summary["n_entropy_undefined"]
    assert found.n_entropy_undefined == sum(
        math.isnan(e) and n > 0 for e, n in zip(entropy, run.stored.statistics.n_active, strict=True)
    )


def test_one_density_and_none_have_edges_too():
    assert module._decade_edges(np.array([-2.0])).tolist() == [-2.0, -1.8]
    assert module._decade_edges(np.array([-0.05])).tolist() == [-0.2, 0.0]
    assert len(module._decade_edges(np.array([]))) == 6


# The scatter


def test_the_points_are_three_columns_of_little_endian_float32(client, run):
    answer = client.get("/points.bin")
    of = run.stored.statistics
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["cache-control"] == "no-cache"
    assert len(answer.content) == 12 * run.d_sae
    density, mean_top, entropy = np.frombuffer(answer.content, "<f4").reshape(3, run.d_sae)
    alive = of.n_active > 0
    np.testing.assert_allclose(density[alive], np.log10(of.n_active[alive] / run.summary["n_rows"]), rtol=1e-6)
    np.testing.assert_allclose(mean_top[alive], np.log10(of.mean_top[alive].astype(np.float64)), rtol=2e-6, atol=1e-7)
    assert np.isnan(density[~alive]).all()
    assert np.isnan(mean_top[~alive]).all()
    assert not np.isnan(density[alive]).any()
    np.testing.assert_array_equal(entropy, of.label_entropy)


def test_a_card_has_the_four_rows_on_which_the_feature_is_largest(client, run):
    of = run.stored.statistics
    found = client.get("/card/0.json").json()
    assert found["feature"] == 0
    assert [each["row"] for each in found["top"]] == of.top_row[0, :4].tolist()
    assert [each["value"] for each in found["top"]] == of.top_value[0, :4].tolist()
    assert [each["name"] for each in found["top"]] == [run.label_name(label) for label in of.top_label[0, :4]]
    assert found["is_sensitive"] is False


def test_a_card_of_a_dead_feature_has_no_picture_and_of_none_is_not_found(client, made):
    assert client.get(f"/card/{made.dead[0]}.json").json()["top"] == []
    answer = client.get("/card/96.json")
    assert answer.status_code == 404
    assert "Feature 96 is not one of the 96" in answer.json()["error"]


def test_a_card_has_the_name_and_the_sensitive_mark_of_its_feature(copy):
    (copy / "names.tsv").write_text("feature\tname\tscore\tmethod\n3\t<b>cats</b>\t0.5\tlens\n")
    features = {"3": {"sensitive": True}}
    (copy / "annotations.json").write_text(
        json.dumps({"format": "thresher-annotations", "format_version": 1, "features": features})
    )
    found = card(ExploredRun(copy), Query({"feature": 3}))
    assert (found["name"], found["is_sensitive"]) == ("<b>cats</b>", True)


# Training curves


def test_the_curves_have_the_steps_of_metrics_jsonl(client, made):
    lines = [json.loads(line) for line in (made.path / "metrics.jsonl").read_text().splitlines()]
    found = client.get("/curves.json").json()
    assert found["loss"] == {"batch": {"x": [line["rows"] for line in lines], "y": [line["loss"] for line in lines]}}
    assert found["n_dead"]["batch"]["y"] == [line["n_dead"] for line in lines]


def test_held_out_steps_are_a_curve_of_their_own_and_null_is_a_gap(copy):
    records = [
        {"step": 1, "rows": 64, "split": "train", "loss": None, "l0": 3.5, "explained_variance": 0.1, "n_dead": 0},
        {"step": 2, "rows": 128, "split": "heldout", "l0": {"mean": 4.5}, "explained_variance": 0.25},
        {"step": 3, "split": "heldout", "explained_variance": 0.5},  # not at known rows: no place on the axis
    ]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert curves(ExploredRun(copy), Query()) == {
        "loss": {"batch": {"x": [64], "y": [None]}},
        "l0": {"batch": {"x": [64], "y": [3.5]}, "heldout": {"x": [128], "y": [4.5]}},
        "explained_variance": {"batch": {"x": [64], "y": [0.1]}, "heldout": {"x": [128], "y": [0.25]}},
        "n_dead": {"batch": {"x": [64], "y": [0]}},
    }


@pytest.mark.parametrize("n", [0, 1, 399, 400, 401, 10_007])
def test_long_curves_are_thinned_evenly_with_both_ends(n):
    found = [record["step"] for record in thinned([{"step": step} for step in range(n)])]
    assert len(found) == min(n, 400)
    assert found == sorted(set(found))
    if n:
        assert (found[0], found[-1]) == (0, n - 1)
        assert max(np.diff(found), default=1) <= math.ceil((n - 1) / 399) + 1


def test_a_run_without_metrics_says_so(copy):
    (copy / "metrics.jsonl").unlink()
    assert "The run holds no metrics.jsonl: there are no curves." in page_of(copy).text
    with pytest.raises(Unavailable, match=r"no metrics\.jsonl"):
        curves(ExploredRun(copy), Query())


def test_an_imported_run_says_that_its_training_is_not_known(copy):
    (copy / "metrics.jsonl").unlink()
    config = json.loads((copy / "config.json").read_text())
    for name in ("options", "loading", "steps", "passes"):
        del config[name]
    config["imported"] = {"format": "saelens", "source": "/home/someone/sae"}
    (copy / "config.json").write_text(json.dumps(config))
    text = page_of(copy).text
    assert "This SAE was imported (saelens): its training is not known." in text
    assert "/home/someone" not in text


def test_damaged_metrics_are_told_in_one_line(copy):
    (copy / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "split": "train"}\n')
    with pytest.raises(Unavailable, match=r"damaged at line 1"):
        curves(ExploredRun(copy), Query())


# What a run may lack


def test_the_cluster_is_shown_with_its_threshold(run):
    found, uld = view(run, Query()), run.summary["uld"]
    numbers = {number.name: number.value for number in found.cluster}
    assert numbers["ULD cluster"] == f"{uld['n_features']} features"
    assert float(numbers["Threshold"]) == pytest.approx(uld["threshold"], rel=1e-3)
    assert numbers["Share of firings"] == f"{100 * uld['share_of_firings']:.1f} %"
    assert found.log10_threshold == math.log10(uld["threshold"])


def test_without_a_cluster_the_page_says_why(plain):
    run = ExploredRun(plain.path)
    assert run.summary["uld"] is None
    found = view(run, Query())
    assert (found.cluster, found.log10_threshold) == (None, None)
    assert "15 alive features are too few to part" in page_of(plain.path).text


def test_without_labels_every_entropy_is_undefined(plain):
    run = ExploredRun(plain.path)
    found = view(run, Query())
    assert found.n_entropy_undefined == 16 - found.n_dead
    assert sum(found.entropy.counts) == 0
    assert "Label entropy is undefined for 15 of those shown" in page_of(plain.path).text


def test_without_thumbnails_a_card_shows_none(plain):
    run = ExploredRun(plain.path)
    feature = int(run.shown[0])
    assert card(run, Query({"feature": feature}))["top"] == []


def test_statistics_from_the_store_have_an_overview_with_pictures(tmp_path):
    made = make_explored_run(tmp_path, n_features=32, n_images=80, options=None)
    stats(made.path, StatsOptions(from_store=True, figures=False, min_labelled=3, null_draws=20))
    with TestClient(make_app(Explorer([made.path])), base_url="http://127.0.0.1") as client:
        assert "Explained variance" in client.get("/").text
        row = client.get("/card/0.json").json()["top"][0]["row"]
        assert client.get(f"/t/{row}").headers["content-type"] == "image/webp"
