"""The quickstart on few pictures and few steps: what it leaves, what it skips, what it refuses."""

import csv
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from thresher.analysis.explorer.page import Query
from thresher.analysis.explorer.pages.neurons import view, view_list
from thresher.analysis.explorer.runs import ExploredRun
from thresher.analysis.known_attributes import SAE
from thresher.analysis.quickstart import QuickstartOptions, QuickstartResult, format_result, quickstart
from thresher.harvest.rewrite import load_recorded_clip
from thresher.store.errors import StoreError
from thresher.store.reader import open_store
from thresher.train.models import load_sae

LIMIT, ROWS = 700, 4096


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> QuickstartResult:
    folder = tmp_path_factory.mktemp("quickstart") / "made here"
    return quickstart(QuickstartOptions(folder=folder, limit=LIMIT, rows=ROWS))


def test_the_chain_leaves_both_towers_stores_runs_figures_and_the_table(made: QuickstartResult) -> None:
    for part in ("", "untrained"):
        assert open_store(made.folder / part / "emoji.zarr").n_rows == LIMIT
        for name in ("sae.safetensors", "features.zarr", "stats.json", "stats.zarr"):
            assert (made.folder / part / "run" / name).exists()
    assert [path.name for path in made.figures[:2]] == ["overview_random.png", "overview_attributes.png"]
    for path in made.figures:
        with Image.open(path) as picture:
            picture.load()
    assert {"scatter.png", "density.png", "label_entropy.png"} <= {path.name for path in made.figures}


def test_the_untrained_tower_has_the_same_shape_the_same_pictures_in_the_same_order_and_other_weights(
    made: QuickstartResult,
) -> None:
    trained, untrained = (open_store(made.folder / part / "emoji.zarr") for part in ("", "untrained"))
    assert trained.keys(np.arange(LIMIT)) == untrained.keys(np.arange(LIMIT))
    assert trained.provenance.width == untrained.provenance.width
    assert trained.provenance.weights_sha256 != untrained.provenance.weights_sha256
    assert untrained.provenance.pretrained == "none"


def test_the_table_holds_the_sae_and_its_three_controls_over_the_same_attributes(made: QuickstartResult) -> None:
    assert [counts.name for counts in made.attributes] == [
        SAE,
        "SAE on an untrained tower",
        "random dictionary, same sparsity",
        "the tower's neurons, both signs",
    ]
    assert len({counts.n_attributes for counts in made.attributes}) == 1
    assert made.attributes[0].n_attributes > 5
    with open(made.attributes_path, newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) == made.attributes[0].n_attributes
    f1 = [float(row["f1"]) for row in rows]
    assert f1 == sorted(f1, reverse=True)
    assert sum(value >= 0.5 for value in f1) == made.attributes[0].f1_at_least_05


def test_a_line_of_the_table_follows_from_the_stored_weights_and_the_pictures_json(made: QuickstartResult) -> None:
    """The feature's activations anew from the weights, F1 counted anew on the emoji it was not chosen on."""
    from thresher.analysis.attributes import split_groups
    from thresher.harvest.images import open_images

    store, sae = open_store(made.store_path), load_sae(made.run_path)
    activations = store.activations()
    codes = sae.encode(activations.tensor(activations.read(0, LIMIT)).float()).numpy()
    with open_images("quickstart") as images:
        place = {key.decode(): i for i, key in enumerate(images.keys)}
        said = [images.metadata(place[key]) for key in store.keys(np.arange(LIMIT))]
    is_scored = ~split_groups([s["emoji"] for s in said], 0)
    of_groups = [known for known in made.best if known.kind in ("group", "tone", "vendor")]
    assert of_groups
    for known in of_groups:
        field = {"group": "group", "tone": "tone", "vendor": "vendor"}[known.kind]
        has = np.array([str(s[field]) == known.value for s in said])
        assert has.sum() == known.n_pictures
        predicted = codes[:, known.feature] > known.threshold
        hits = (predicted & has)[is_scored].sum()
        assert known.f1 == pytest.approx(2 * hits / (predicted[is_scored].sum() + has[is_scored].sum()))


def test_the_text_has_every_number_of_the_table_aligned_and_the_next_commands(made: QuickstartResult) -> None:
    text = format_result(made)
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("Known attributes"))
    table = lines[start + 1 : start + 6]
    assert len({len(line) for line in table}) == 1
    for counts, line in zip(made.attributes, table[1:], strict=True):
        assert line.strip().startswith(counts.name)
        assert line.split()[-4:] == [
            str(counts.f1_at_least_05),
            str(counts.f1_at_least_07),
            f"{counts.mean_f1:.3f}",
            str(counts.precision_at_least_09),
        ]
    assert str(made.figures[0]) in text
    for command in (*made.next_commands, *(f"thresher {each} {made.run_path}" for each in ("explore", "name"))):
        assert command in text
    json.dumps(asdict(made), default=str)


def test_the_explorer_s_pages_of_neurons_work_on_it(made: QuickstartResult) -> None:
    found = view_list(ExploredRun(made.run_path), Query())
    assert found.n_units == 4 * made.d_in  # of the MLP of the embedded tower
    assert found.rows[0].firings


@pytest.mark.parametrize("neuron", [0, 5, 767])
def test_the_numbers_on_a_neuron_s_page_follow_from_the_stored_rows(made: QuickstartResult, neuron: int) -> None:
    """In float64: the row less the mean row, on the neuron's unit output vector."""
    store = open_store(made.store_path)
    positions = store.positions_of(np.arange(store.n_rows))
    x = store.activations().read(0, store.n_rows).astype(np.float64)[positions]
    mlp = load_recorded_clip(store.provenance).model.visual.transformer.resblocks[5].mlp
    output = mlp.c_proj.weight.detach().double().numpy()[:, neuron]
    projection = (x - x.mean(axis=0)) @ (output / np.linalg.norm(output))
    found = view(ExploredRun(made.run_path), Query({"neuron": neuron}))
    assert found.n_rows == store.n_rows
    assert found.density == pytest.approx((projection > 0).mean(), abs=2 / store.n_rows)  # of those that are nearly 0
    order = np.argsort(-projection)[: found.k]
    assert found.max == pytest.approx(projection[order[0]], rel=1e-4)
    assert found.mean_top == pytest.approx(projection[order].mean(), rel=1e-4)
    shown = [each.row for each in found.firings]
    np.testing.assert_allclose(projection[shown], projection[order[: len(shown)]], rtol=1e-3)
    weights = projection[order] / projection[order].sum()
    labels = np.array([store.labels(row, row + 1)[0] for row in order.tolist()])
    shares = np.array([weights[labels == label].sum() for label in np.unique(labels)])
    assert found.label_entropy == pytest.approx(-(shares * np.log(shares)).sum(), abs=1e-3)


def modified(folder: Path) -> dict[str, int]:
    """Time of the last change of what the stages made; locks, figures and the scores are written each time."""
    kept = [p for p in folder.rglob("*") if (p.is_file() and ".zarr" in str(p)) or p.name == "sae.safetensors"]
    return {str(p): p.stat().st_mtime_ns for p in kept if "lock" not in p.name}


def test_a_finished_quickstart_is_not_done_again_and_a_lost_stage_alone_is(made: QuickstartResult) -> None:
    options = QuickstartOptions(folder=made.folder, limit=LIMIT, rows=ROWS)
    before = modified(made.folder)
    (made.run_path / "stats.json").unlink()  # as if the first quickstart had been killed before it was written
    again = quickstart(options)
    done_before = {stage.name: stage.was_done for stage in again.stages}
    assert [name for name, was_done in done_before.items() if not was_done] == [
        "stats",
        "align",
        "known attributes",
        "overview sheets",
    ]
    after = modified(made.folder)
    anew = ("stats.zarr", "alignment.zarr")
    assert {k: v for k, v in after.items() if not any(each in k for each in anew)} == {
        k: v for k, v in before.items() if not any(each in k for each in anew)
    }
    assert again.attributes == made.attributes
    assert again.sae == made.sae


def test_other_settings_in_the_same_folder_are_refused_by_name_and_nothing_is_touched(made: QuickstartResult) -> None:
    before = modified(made.folder)
    with pytest.raises(StoreError, match=r"seed = 0, this one has 1.*--overwrite"):
        quickstart(QuickstartOptions(folder=made.folder, limit=LIMIT, rows=ROWS, seed=1))
    assert modified(made.folder) == before


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match="name another DIR"):
        quickstart(QuickstartOptions(folder=tmp_path, overwrite=True))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match="is a file"):
        quickstart(QuickstartOptions(folder=tmp_path / "file"))
