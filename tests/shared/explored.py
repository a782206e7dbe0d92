"""Runs to explore, of any size: a store with pictures, an SAE with planted features, its codes and statistics."""

import colorsys
import json
import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from PIL import Image
from thresher.analysis.encode import encode
from thresher.analysis.naming.names_file import COLUMNS, NAMES_TSV
from thresher.analysis.options import EncodeOptions, StatsOptions
from thresher.analysis.stats import stats
from thresher.analysis.visualising.visualisations_file import COLUMNS as VISUALISATIONS_COLUMNS
from thresher.analysis.visualising.visualisations_file import FOLDER, VISUALISATIONS_TSV
from thresher.store.format import Site
from thresher.store.layout import StoreSpec, keys_sha256
from thresher.store.loading import plan_loading
from thresher.store.provenance import Provenance
from thresher.store.reader import open_store
from thresher.store.writer import create_store
from thresher.train.configuration import describe_store
from thresher.train.models import ReluSae
from thresher.train.options import TrainOptions
from thresher.train.run_dir import create_run

HOSTILE_LABELS = (
    "<script>alert(1)</script>",
    "\"quoted\" & 'single'",
    "‮right to left‬ עברית",
    "two\nlines\tand a tab",
    "{{ 7 * 7 }}{% raw %}</title>",
)
"""Names that break a page which does not escape them; the rest are `class 5` and so on."""
HOSTILE_KEYS = (
    b"<img src=x onerror=alert(1)>.png",
    b"a \"quoted\" name & 'more'.jpg",
    "\u202egnp.‮עברית.png".encode(),
    b"two\nlines.png",
    b"not utf-8 \xff\xfe.png",
    b"../../etc/passwd",
)
"""Keys of the first images; the rest are `pictures/6.png` and so on."""
HOSTILE_WORDS = "<img src=x onerror=alert(1)> \u202eword\x07 \x1b[31m {{ 7 * 7 }} 'quoted'"
"""A name, method, alternative or reason that breaks a page which does not escape it."""
QUICK = StatsOptions(figures=False, overwrite=True, min_labelled=3, null_draws=20, samples=8)


@dataclass(frozen=True)
class Explored:
    """A made run, and which of its features are what."""

    path: Path
    store_path: Path
    sae: ReluSae
    ultra_low: np.ndarray
    """Features that fire weakly on the same few rows: the ultra-low-density cluster."""
    dead: np.ndarray
    """Features that never fire."""


def make_explored_run(
    folder: Path,
    *,
    n_features: int = 96,
    n_images: int = 240,
    d_in: int = 24,
    n_labels: int = 7,
    tokens: int = 1,
    unreadable: tuple[int, ...] = (17,),
    unlabelled: tuple[int, ...] = (3, 4),
    is_labelled: bool = True,
    thumbnails: bool = True,
    picture_px: int = 32,
    name: str = "run",
    seed: int = 0,
    options: StatsOptions | None = QUICK,
) -> Explored:
    """A finished run in `folder/NAME` on `folder/store.zarr`, which is made where it is not there.

    A row is its label's direction and those of two of twelve attributes, with noise. Feature j < `n_labels` finds label
    j, the next twelve find an attribute, the last twentieth is dead, a quarter before it is the ULD cluster, others are
    between two of these.

    Parameters
    ----------
    tokens
        Rows an image; above 1 they are patch tokens.
    unreadable, unlabelled
        Places in the row order of images that could not be read; images without a label.
    is_labelled
        Whether there are labels and their names at all.
    picture_px
        Side of the thumbnails; of 64 they take 1.5 kB.
    seed
        Of the SAE. The store is the same for all, so that runs on it can be compared.
    options
        Of the statistics; None leaves codes and statistics out.
    """
    store_path, path = folder / "store.zarr", folder / name
    directions = _directions(d_in, n_labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)  # need not outlive a power cut
        if not store_path.exists():
            pictures = [picture(number, picture_px) if thumbnails else None for number in range(max(64, n_labels))]
            _make_store(
                store_path, directions, n_images, n_labels, tokens, unreadable, unlabelled, is_labelled, pictures
            )
        sae, ultra_low, dead = _make_sae(directions, n_features, n_labels, seed)
        store = open_store(store_path)
        config = {
            "options": TrainOptions().to_json(),
            "site": store.sites[0].path,
            "layer": store.sites[0].layer,
            "d_in": d_in,
            "d_sae": n_features,
            "steps": 40,
            "passes": 1.0,
            "store": describe_store(store, path),
            "loading": plan_loading([store.activations(store.sites[0])], 64).to_json(),
        }
        create_run(path, config, overwrite=False)
        (path / "metrics.jsonl").write_text("".join(json.dumps(_metrics(step)) + "\n" for step in range(10, 41, 10)))
        sae.save(path / "sae.safetensors")
        if options is not None:
            encode(path, EncodeOptions(device="cpu"))
            stats(path, options)
    return Explored(path, store_path, sae, ultra_low, dead)


def give_meaning(run_path: Path, n_features: int, words: str = "striped flag") -> None:
    """Names, pictures, verdicts and agreement of a made run's features, as `name` and `visualise` write them.

    Of ten features 0 to 3 are named `words` and the number, by falling score, 4 and 5 unnamed, 6 untested; 7 to 9 have
    no line. Features 0 (passed, three seeds) and 1 (failed), and so on by tens, have pictures; the even ones an
    agreement, equal to their number in percent of all.
    """
    lines = ["\t".join(COLUMNS)]
    for feature in range(n_features):
        kind = feature % 10
        auroc, z = (0.99 - feature / 1000, 4.5) if kind < 4 else (0.6, 1.25)
        numbers = [auroc, auroc - 0.1, z, 99, 2.5, 20, 50, 0.001, 0.004 if kind < 4 else 0.2]
        if kind < 6:
            name, status = f"{words} {feature}", "named" if kind < 4 else "unnamed"
            cells = [feature, name, (auroc + 0.99) / 2, "causal", status, *numbers, f"{words} or so; second best"]
            lines.append("\t".join(map(str, cells)))
        elif kind == 6:
            lines.append("\t".join([str(feature), "", "", "causal", "untested", *[""] * 10]))
    (run_path / NAMES_TSV).write_text("\n".join(lines) + "\n")
    folder = run_path / FOLDER
    folder.mkdir()
    for feature in range(0, n_features, 10):
        for file in (f"{feature}", f"{feature}-1", f"{feature}-2", f"{feature + 1}"):
            (folder / f"{file}.webp").write_bytes(picture(feature))
    checks = [3.5, 1.25, 99.5, 2, 0.25, 31, 0.95, 0.85, 0.75, 0.5, 97.5]
    made: list[list[object]] = [list(VISUALISATIONS_COLUMNS)]
    for feature in range(0, n_features, 10):
        shared = [f"{feature}.webp", "maco", 0, *checks]
        made.append([feature, *shared, "passed", "", 0.7])
        made.append([feature + 1, f"{feature + 1}.webp", *shared[1:], "failed", f"{words} are larger on it", 0.7])
    text = "\n".join("\t".join(map(str, line)) for line in made)
    (folder / VISUALISATIONS_TSV).write_text(text + "\n")
    of_all = np.where(np.arange(n_features) % 2 == 0, 100 * np.arange(n_features) / n_features, np.nan)
    group = zarr.open_group(str(run_path / "stats.zarr"), mode="r+")
    for name in ("agreement_picture_images", "agreement_picture_name", "agreement_images_name", "agreement"):
        group.create_array(name, data=of_all.astype(np.float32))


def _directions(d_in: int, n_labels: int) -> np.ndarray:
    """`(n_labels + 12, d_in)` unit vectors of labels and attributes; the last coordinate is the ULD cluster's own."""
    rng = np.random.default_rng(1)
    found = rng.standard_normal((n_labels + 12, d_in))
    found[:, -1] = 0
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def _make_sae(
    directions: np.ndarray, n_features: int, n_labels: int, seed: int
) -> tuple[ReluSae, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed + 2)
    d_in = directions.shape[1]
    encoder = directions[rng.integers(0, len(directions), (n_features, 2))].sum(axis=1)
    encoder += 0.1 * rng.standard_normal(encoder.shape)
    encoder /= np.linalg.norm(encoder, axis=1, keepdims=True)
    n_planted = min(len(directions), n_features // 2)
    encoder[:n_planted] = directions[:n_planted] + 0.02 * rng.standard_normal((n_planted, d_in)) * (seed > 0)
    encoder[:, -1] = 0
    n_dead, n_ultra_low = max(1, n_features // 20), n_features // 4
    dead = np.arange(n_features - n_dead, n_features)
    ultra_low = np.arange(n_features - n_dead - n_ultra_low, n_features - n_dead)
    bias = np.full(n_features, -1.8)
    bias[:n_labels] = -1.5
    encoder[ultra_low] = 0
    encoder[ultra_low, -1] = rng.uniform(0.5, 1.5, n_ultra_low)
    bias[ultra_low] = -1e-4
    bias[dead] = -1e4

    def tensor(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, np.float32))

    decoder = encoder / np.linalg.norm(encoder, axis=1, keepdims=True) * 0.9
    sae = ReluSae(tensor(encoder), tensor(bias), tensor(decoder), torch.zeros(d_in))
    return sae, ultra_low, dead


def _make_store(
    path: Path,
    directions: np.ndarray,
    n_images: int,
    n_labels: int,
    tokens: int,
    unreadable: tuple[int, ...],
    unlabelled: tuple[int, ...],
    is_labelled: bool,
    pictures: list[bytes | None],
) -> None:
    rng = np.random.default_rng(3)
    keys = [*HOSTILE_KEYS, *(b"pictures/%d.png" % i for i in range(len(HOSTILE_KEYS), n_images))][:n_images]
    kinds = np.arange(n_images) % n_labels
    labels = kinds.astype(np.int32) if is_labelled else np.full(n_images, -1, np.int32)
    labels[[image for image in unlabelled if image < n_images]] = -1
    names = [*HOSTILE_LABELS, *(f"class {i}" for i in range(len(HOSTILE_LABELS), n_labels))][:n_labels]
    d_in = directions.shape[1]
    spec = StoreSpec(
        provenance=Provenance(
            model="tiny",
            pretrained="none",
            weights_sha256="0" * 64,
            quick_gelu=False,
            n_layers=3,
            width=d_in,
            preprocessing={"size": 32},
            precision="fp32",
            dtype="float16",
            batch_size=16,
            image_source="made up",
            source=[],
            limit=None,
            n_images=n_images,
            keys_sha256=keys_sha256(keys, labels),
            row_order="random",
            seed=0,
        ),
        sites={Site(1) if tokens == 1 else Site(1, "resid_post", "patch"): d_in},
        n_images=n_images,
        tokens_per_image=tokens,
        rows_per_chunk=256,
        thumbnail_px=None if pictures[0] is None else 128,
        label_names=names if is_labelled else None,
    )
    order = spec.order()
    row_image = order.images(np.arange(n_images * tokens))
    n_rows = len(row_image)
    attributes = n_labels + rng.integers(0, 12, (n_rows, 2))
    x = 3 * directions[kinds[row_image]] + 2 * directions[attributes].sum(axis=1)
    x += 0.3 * rng.standard_normal(x.shape)
    x[:, -1] = 0
    few = rng.choice(n_rows, max(4, n_rows // 40), replace=False)
    x[few, -1] = 0.01 * rng.uniform(0.7, 1.3, len(few))
    valid = np.ones(n_images, bool)
    valid[[place for place in unreadable if place < n_images]] = False  # by place
    with create_store(path, spec, keys=keys, labels=labels) as writer:
        for number in range(writer.n_windows):
            window = writer.window(number)
            start, stop = writer.window_images(number)
            places = np.arange(start, stop)
            images, here = order.images_at(places), valid[start:stop]
            window.put(
                start,
                {site: x[order.rows_at(places)].astype(np.float32) for site in spec.sites},
                here,
                [(image, "cannot be read") for image in images[~here].tolist()],
                [
                    pictures[image % len(pictures)] if ok else None
                    for image, ok in zip(images.tolist(), here.tolist(), strict=True)
                ],
            )
            window.commit()


def picture(number: int, side: int = 32) -> bytes:
    """A small WebP picture in a colour of its own, noisy, brighter to the right."""
    red, green, blue = colorsys.hsv_to_rgb(number * 0.618 % 1, 0.6, 0.9)
    shade = np.linspace(0.6, 1, side)[None, :, None] * np.ones((side, 1, 1))
    noise = np.random.default_rng(number).uniform(0.8, 1, (side, side, 1))
    pixels = (255 * shade * noise * np.array([red, green, blue])).astype(np.uint8)
    saved = BytesIO()
    Image.fromarray(pixels).save(saved, "webp", quality=60)
    return saved.getvalue()


def _metrics(step: int) -> dict[str, object]:
    """A line of metrics.jsonl, as `train` writes them."""
    return {
        "step": step,
        "rows": step * 64,
        "split": "train",
        "n_rows": 64,
        "lr": 1e-3,
        "loss": 1 / step,
        "mse": 1 / step,
        "normalized_mse": 0.5 / step,
        "explained_variance": 1 - 1 / step,
        "sparsity": 10.0,
        "coefficient": 1e-3,
        "l0": 100 / step,
        "dead_loss": 0.0,
        "gradient_norm": 0.1,
        "n_dead": 4,
        "share_dead": 0.04,
        "rows_per_s": 1e4,
    }
