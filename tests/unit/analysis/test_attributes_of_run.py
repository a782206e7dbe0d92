"""`attributes RUN CSV`: a planted attribute is found, what does not match is told, what is refused."""

import csv
import json

import numpy as np
import pytest
from click.testing import CliRunner
from listener import Listener
from thresher.analysis.attribute_table import read_table
from thresher.analysis.attributes_options import AttributesOptions
from thresher.analysis.encode import encode
from thresher.analysis.known_attributes import SAE, attributes_of_run
from thresher.cli import main
from thresher.store.errors import StoreError
from thresher.store.format import Site
from thresher.store.reader import open_store

QUICK = AttributesOptions(resamples=40, min_rows=20)


@pytest.fixture
def planted(make_store, make_run, dense, tmp_path):
    """A run, and a table in which `planted` is where feature 6 is above 0.5, `coin` is chance."""
    made = make_store(n=400, invalid=(11,))
    run = make_run(made.path)
    encode(run.path)
    f = dense(run)["f"][:, 6]
    rng = np.random.default_rng(0)
    lines = [["key", "planted", "coin", "kind", "who"]]
    for row in np.flatnonzero(np.isfinite(f)):
        image = int(made.row_image[row])
        kind = f"<b>{image % 3}</b>"
        lines.append([made.keys[image].decode(), bool(f[row] > 0.5), bool(rng.random() < 0.5), kind, image // 2])
    lines += [[f"gone {i}.jpg", True, True, "x", i] for i in range(7)]
    path = tmp_path / "table.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(lines)
    return run, path


def test_the_planted_attribute_is_known_by_its_feature_and_chance_by_none(planted):
    run, path = planted
    heard = Listener()
    known = attributes_of_run(run.path, read_table(path, group="who"), QUICK, heard)
    best = known.best()
    assert (best[0].kind, best[0].value, best[0].feature) == ("planted", "true", 6)
    assert best[0].f1 == pytest.approx(1, abs=0.03)
    assert best[0].threshold == pytest.approx(0.5, abs=0.2)
    assert best[0].p_adjusted < 1e-3
    assert best[0].f1_interval[0] > 0.9
    coin = next(each for each in best if each.kind == "coin")
    assert coin.p_adjusted > 0.05
    assert heard.warned == [
        "7 keys of table.csv have no encoded row and are left out: 'gone 0.jpg', 'gone 1.jpg', 'gone 2.jpg', "
        "'gone 3.jpg', 'gone 4.jpg' and 2 more"
    ]
    sae, *others = known.counts()
    assert sae.name == SAE
    assert all(other.mean_f1 < sae.mean_f1 for other in others)
    assert all(other.behind_sae_interval[0] <= other.behind_sae <= other.behind_sae_interval[1] for other in others)


def test_the_files_hold_what_was_scored(planted):
    run, path = planted
    known = attributes_of_run(run.path, read_table(path, group="who"), QUICK)
    document = json.loads((run.path / "attributes.json").read_text())
    assert (document["n_listed"], document["n_in_store"], document["n_images"]) == (406, 399, 399)
    assert document["group_column"] == "who"
    assert "Benjamini and Yekutieli" in document["correction"]
    with open(run.path / "attributes.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [row["kind"] for row in rows] == [each["kind"] for each in document["attributes"]]
    for row, of_json, known_one in zip(rows, document["attributes"], known.best(), strict=True):
        assert float(row["f1"]) == pytest.approx(of_json["f1"], rel=1e-5)
        assert of_json["f1"] == known_one.f1
        assert float(row["f1_random"]) == pytest.approx(of_json["f1_of"]["random"], rel=1e-5)
    with pytest.raises(StoreError, match="--overwrite"):
        attributes_of_run(run.path, read_table(path), QUICK)


def test_an_untrained_run_and_a_store_of_neurons_stand_beside_and_only_shared_images_count(
    planted, make_store, make_run
):
    run, path = planted
    other = make_run(make_store(n=300, name="other.zarr", seed=9).path, name="other", seed=4)
    encode(other.path)
    neurons = make_store(n=400, d=12, name="neurons.zarr", sites=(Site(1, "mlp_act"),), seed=3)
    options = AttributesOptions(
        resamples=20, min_rows=20, untrained=other.path, neurons=str(neurons.path), group="who", overwrite=True
    )
    heard = Listener()
    known = attributes_of_run(run.path, read_table(path, group="who"), options, heard)
    assert [each.name for each in known.counts()] == [
        SAE,
        "SAE on an untrained tower",
        "random dictionary, same sparsity",
        "the tower's neurons, both signs",
        "the block's MLP neurons, both signs",
    ]
    assert [each.n_features for each in known.counts()] == [24, 24, 24, 16, 24]
    shared = {image for image in range(300)}
    n_shared = sum(int(image) in shared for image in _images_read(run))
    assert known.about["n_images"] == n_shared
    assert "are left out because SAE on an untrained tower" in heard.warned[1]


def _images_read(run):
    store = open_store(run.store_path)
    return store.images(0, store.n_rows)[store.valid(0, store.n_rows)]


def test_a_sample_of_the_images_is_drawn_by_the_seed(planted):
    run, path = planted
    table = read_table(path, group="who")

    def scored(seed):
        options = AttributesOptions(resamples=5, min_rows=10, rows=200, seed=seed, overwrite=True)
        return attributes_of_run(run.path, table, options)

    one, again, other = scored(1), scored(1), scored(2)
    assert one.about["n_images"] == 200
    assert json.dumps(one.to_json()) == json.dumps(again.to_json())
    assert (one.attributes.has.sum(0) != other.attributes.has.sum(0)).any()


def test_keys_of_another_store_and_values_of_too_few_images_are_refused(planted, tmp_path):
    run, path = planted
    strange = tmp_path / "strange.csv"
    strange.write_text("key,a\nelsewhere.jpg,red\n")
    with pytest.raises(StoreError, match=r"none of the 1 keys of strange\.csv .* keys there are like 'class"):
        attributes_of_run(run.path, read_table(strange), QUICK)
    with pytest.raises(ValueError, match=r"no value in table\.csv is of at least 390"):
        attributes_of_run(run.path, read_table(path), AttributesOptions(min_rows=390))


def test_the_command_prints_the_table_and_its_json(planted):
    run, path = planted
    shown = CliRunner().invoke(main, ["attributes", str(run.path), str(path), "--min-rows", "20", "--resamples", "20"])
    assert shown.exit_code == 0, shown.output
    assert "random dictionary, same sparsity" in shown.output
    assert "planted true" in shown.output
    again = ["attributes", str(run.path), str(path), "--min-rows", "20", "--json", "--quiet", "--overwrite"]
    document = json.loads(CliRunner().invoke(main, again).stdout)
    assert document["attributes"][0]["feature"] == 6
    missing = CliRunner().invoke(main, ["attributes", str(run.path), str(path.with_name("no.csv"))])
    assert missing.exit_code == 1
    assert "no.csv" in missing.output
