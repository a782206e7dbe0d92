"""`docs/python.md`, run from its first line to its last where a quickstart has been run (a shorter one)."""

import io
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import thresher
import torch
from PIL import Image
from thresher.analysis.encode import encode
from thresher.analysis.options import StatsOptions
from thresher.analysis.stats import stats
from thresher.harvest.options import HarvestOptions
from thresher.harvest.run import harvest

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def after(tmp_path_factory):
    """The variables that the page leaves behind."""
    folder = tmp_path_factory.mktemp("python")
    place = folder / "thresher-quickstart"
    options = HarvestOptions(model="quickstart", layer=(4,), limit=1500, batch_size=128, device="cpu", workers=0)
    harvest(options, "quickstart", str(place / "emoji.zarr"))
    small = {"k": 16, "expansion": 8, "rows": 102_400, "warmup": 20, "device": "cpu"}
    thresher.train_sae(place / "emoji.zarr", place / "run", **small)
    encode(place / "run")
    stats(place / "run", StatsOptions(figures=False))
    names, wants = {}, pytest.MonkeyPatch()
    wants.chdir(folder)
    try:
        for number, block in enumerate(BLOCKS, 1):
            exec(compile(block, f"{PAGE.name}, block {number}", "exec"), names)
    finally:
        wants.undo()
    return SimpleNamespace(**{name: value for name, value in names.items() if not name.startswith("__")})


def test_rows_are_encoded_and_decoded(after):
    assert (after.x.shape, after.f.shape, after.x_hat.shape) == ((256, 192), (256, 1536), (256, 192))
    by_hand = torch.relu((after.sae.scale(after.x) - after.sae.b_dec) @ after.sae.W_enc + after.sae.b_enc)
    kept = after.f > 0
    assert torch.allclose(after.f[kept], by_hand[kept], atol=1e-4)
    assert kept.sum(1).max() <= 16
    assert 0 < float(after.error.mean()) < 1


def test_the_pictures_are_those_of_the_feature(after):
    positions = after.f[:, after.feature].topk(8).indices.numpy()
    assert np.array_equal(after.store.positions_of(after.rows), positions)
    assert len(after.names) == len(after.pictures) == 8
    assert set(after.names) <= set(after.store.label_names)


def test_splicing_and_ablating_change_the_embeddings(after):
    assert after.before.shape == after.after.shape == after.ablated.shape == (8, 128)
    difference = (after.after - after.before).norm(dim=1) / after.before.norm(dim=1)
    assert 0.01 < float(difference.mean()) < 1.5
    # the pictures are those on which the feature is strongest, and nothing else was changed
    moved = (after.ablated - after.before).norm(dim=1) / after.before.norm(dim=1)
    assert float(moved.min()) > 1e-4
    with torch.no_grad(), thresher.splice(after.tower, after.sae, after.run.site, keep_error=True):
        assert torch.allclose(after.tower.visual(after.images), after.before, atol=1e-4)


def test_statistics_are_read_back_with_their_details(after):
    assert after.density.shape == after.entropy.shape == after.knows_labels.shape == (1536,)
    assert after.statistics.n_active[after.strong] > 0
    assert len(after.top_labels) == 20
    assert 0 < after.knows_labels.mean() < 1
    values = after.middle.value
    assert len(values) == 8
    assert after.statistics.top_value[after.strong, 0] >= values[0] >= values[-1] > 0
    assert after.of_labels.count.sum() == after.statistics.n_active[after.strong]  # every picture has a label
    assert after.of_labels.sum.sum() == pytest.approx(after.statistics.sum[after.strong])
    assert 0 < len(after.partners.feature) <= 32
    assert after.strong not in after.partners.feature
    unit = after.sae.W_dec / after.sae.W_dec.norm(dim=1, keepdim=True)
    assert after.cosines[0] == pytest.approx(float(unit[after.strong] @ unit[after.alike[0]]), abs=1e-5)


def test_a_feature_shows_itself_with_the_same_numbers(after):
    statistics = after.statistics
    assert after.seen.density == statistics.n_active[after.strong] / statistics.n_rows
    assert list(after.seen.top_rows) == [row for row in statistics.top_row[after.strong] if row >= 0]
    assert after.seen.top_labels == after.top_labels
    assert len(after.firing_rows) == len(after.activations) == statistics.n_active[after.strong]
    assert after.seen._repr_html_().count("data:image/webp;base64,") == 16 + 1  # the one made for it


def test_a_name_and_pictures_made_from_python_are_those_of_the_feature(after):
    assert after.named.n_features == after.made.n_made == 1
    seen, status = after.seen, after.seen.naming.status
    assert {status: 1} == {
        key: n for key in ("named", "unnamed", "untested") if (n := getattr(after.named, f"n_{key}"))
    }
    assert bool(seen.name) == (status == "named")
    assert 0 <= seen.naming.auroc <= 1
    assert after.made.checked.n_passed == (seen.visualisation.verdict == "passed")
    with Image.open(io.BytesIO(after.picture)) as picture:
        assert picture.size == (96, 96)  # one and a half of the tower's 64 pixels


def test_zero_shot_accuracy_is_between_guessing_and_the_models_own(after):
    found = after.found
    assert found.n_images == 300
    assert 1 / found.n_captions < found.sae.top1 < found.original.top1
    assert found.original.loss < found.sae.loss < found.zero.loss
    assert 0 < found.loss_recovered < 1


def test_the_evaluation_and_the_classes_are_those_of_the_commands(after):
    assert after.evaluation["n_images"] == 300
    for way in ("original", "sae"):
        assert after.accuracy[way]["top1"] == pytest.approx(getattr(after.found, way).top1, abs=0.05)
    differences = [each["difference"] for each in after.damaged]
    assert differences == sorted(differences)
    assert sum(each["n"] for each in after.damaged) == 300
    assert after.family.names[after.family.label] == "family"
    assert len(after.family.structures) <= 1
    for a, b, n_shared, expected in after.together:
        assert "family" in (a, b)
        assert n_shared > 0 < expected


def test_training_from_python_makes_runs(after):
    assert after.result.steps == 100
    assert 0 < after.result.held_out.explained_variance < 1
    assert list(after.held_out.index) == [1, 2, 4, 8, 16, 32, 50, 100]  # the spliced loss falls early
    last = after.held_out.iloc[-1]
    assert last["contrastive_loss"] == after.spliced["contrastive_loss"]
    assert last["n_images"] == 300
    assert len(after.loader) == 1485 // 512
    assert after.batch.x.shape == (512, 192)


def test_the_commands_metrics_say_the_same(after):
    record = after.metrics[after.metrics["split"] == "train"].iloc[-1]
    assert record["step"] == 100
