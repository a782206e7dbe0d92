"""`embed`, against each picture embedded by itself, and what `stats` makes of the embeddings."""

import json
from itertools import combinations

import numpy as np
import open_clip
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from thresher.analysis import embed as embed_
from thresher.analysis.embed import embed, embeddings_of
from thresher.analysis.embed_options import EmbedOptions
from thresher.analysis.encode import encode
from thresher.analysis.features import open_features
from thresher.analysis.train_sae import train_sae
from thresher.cli import main
from thresher.harvest.options import HarvestOptions
from thresher.harvest.run import harvest
from thresher.harvest.vision import load_clip, load_tower
from thresher.harvest.weights import EMBEDDED
from thresher.store.errors import StoreError
from thresher.store.reader import open_store

OPTIONS = EmbedOptions(device="cpu", workers=0, batch_size=16)
BROKEN = "a/05.png"


@pytest.fixture
def made(tmp_path):
    """A run on 24 pictures of two classes, one of them unreadable."""
    draw = np.random.default_rng(0)
    for i in range(24):
        path = tmp_path / "pictures" / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(path)
    (tmp_path / "pictures" / BROKEN.replace("05", "04")).write_bytes(b"no picture")
    options = HarvestOptions(
        model=EMBEDDED, layer=(3,), batch_size=8, rows_per_chunk=8, device="cpu", workers=0, thumbnails="off"
    )
    harvest(options, str(tmp_path / "pictures"), str(tmp_path / "s.zarr"))
    run = tmp_path / "run"
    train_sae(tmp_path / "s.zarr", run, k=4, expansion=2, batch_size=8, rows=160, warmup=2, device="cpu")
    encode(run)
    return run


def by_hand(run):
    """The embedding of each row's picture in float64, one at a time; NaN where it cannot be read."""
    clip, preprocess = load_clip(EMBEDDED), load_tower(EMBEDDED).preprocess
    assert isinstance(clip.model, open_clip.CLIP)
    rows = []
    for key in open_store(run.parent / "s.zarr").keys(range(24)):
        try:
            picture = preprocess(Image.open(run.parent / "pictures" / key).convert("RGB"))
        except OSError:
            rows.append(np.full(128, np.nan))
            continue
        with torch.no_grad():
            row = clip.model.double().encode_image(picture[None].double())[0].numpy()
        rows.append(row / np.linalg.norm(row))
    return np.array(rows)


def test_each_row_holds_the_unit_embedding_of_its_own_image(made):
    result = embed(made, options=OPTIONS)
    found, wanted = np.load(made / "embeddings.npy"), by_hand(made)
    assert (result.n_rows, result.n_unreadable, result.dim) == (24, 1, 128)
    assert np.isnan(wanted).any(axis=1).sum() == 1
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    of = json.loads((made / "embeddings.json").read_text())
    assert of["store_fingerprint"] == open_store(made.parent / "s.zarr").fingerprint
    assert not (made / ".embeddings.tmp").exists()


def test_a_stopped_embed_goes_on_with_what_it_has(made, monkeypatch):
    monkeypatch.setattr(embed_, "_ROWS_A_PIECE", 8)
    whole = embed_._embedded
    asked = []

    def stops(tower, images, part, start, stop, options):
        asked.append(start)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return whole(tower, images, part, start, stop, options)

    monkeypatch.setattr(embed_, "_embedded", stops)
    with pytest.raises(KeyboardInterrupt):
        embed(made, options=OPTIONS)
    assert embeddings_of(made, open_features(made).info.store_fingerprint) is None
    result = embed(made, options=OPTIONS)
    assert asked == [0, 8, 8, 16]
    assert result.n_kept == 8
    np.testing.assert_allclose(np.load(made / "embeddings.npy"), by_hand(made), atol=2e-6)


def test_stats_scores_monosemanticity_by_the_embeddings_that_are_there(made):
    embed(made, options=OPTIONS)
    done = CliRunner().invoke(main, ["stats", str(made), "--no-figures", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    import zarr

    found = zarr.open_group(str(made / "stats.zarr"), mode="r")["monosemanticity"][:]
    rows, features = by_hand(made), open_features(made)
    for feature in range(features.d_sae):
        fired = [
            (row, value) for row, value in zip(*features.feature(feature), strict=True) if not np.isnan(rows[row, 0])
        ]
        above = sum(float(a) * float(b) * (rows[i] @ rows[j]) for (i, a), (j, b) in combinations(fired, 2))
        below = sum(float(a) * float(b) for (_, a), (_, b) in combinations(fired, 2))
        assert found[feature] == pytest.approx(above / below if below else np.nan, abs=1e-5, nan_ok=True)
    assert np.isfinite(found).sum() >= 4


def test_embeddings_are_not_replaced_unasked_and_not_taken_for_those_of_another_store(made):
    embed(made, options=OPTIONS)
    with pytest.raises(StoreError, match=r"embeddings.npy exists: give --overwrite"):
        embed(made, options=OPTIONS)
    assert embeddings_of(made, open_features(made).info.store_fingerprint) == made / "embeddings.npy"
    assert embeddings_of(made, "another") is None


def test_moved_images_can_be_named_and_others_are_refused(made, tmp_path):
    (tmp_path / "pictures").rename(tmp_path / "moved")
    assert "pictures" in CliRunner().invoke(main, ["embed", str(made), "--device", "cpu"]).output
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    (tmp_path / "others").mkdir()
    (tmp_path / "one.png").rename(tmp_path / "others" / "one.png")
    with pytest.raises(StoreError, match="holds other images than were harvested"):
        embed(made, str(tmp_path / "others"), OPTIONS)
    assert embed(made, str(tmp_path / "moved"), OPTIONS).n_rows == 24


def test_a_store_of_patches_is_refused_in_one_line(tmp_path, made):
    options = HarvestOptions(
        model=EMBEDDED, layer=(3,), token="patch", batch_size=8, device="cpu", workers=0, thumbnails="off"
    )
    harvest(options, str(tmp_path / "pictures"), str(tmp_path / "p.zarr"))
    train_sae(tmp_path / "p.zarr", tmp_path / "p", k=4, expansion=1, batch_size=64, rows=640, warmup=2, device="cpu")
    encode(tmp_path / "p")
    with pytest.raises(StoreError, match="rows an image, and an embedding is of an image as a whole"):
        embed(tmp_path / "p", options=OPTIONS)
