"""A small CLIP with planted truth: known concepts in pictures, in words, in directions of the stream, in features.

The model is open_clip's own, on disk as `load_clip` opens it (config, safetensors, byte-pair merges), its weights set
by hand. Shapes: d = 48 the width of the stream, e = 32 the length of an embedding, K = 8 concepts.

- Pictures are 4 x 4 patches of 8 px on grey; a concept is a pattern that stands on some patches. Patterns are
  orthogonal as pixels, and the patch embedding holds one filter each. Four more patterns are noise that no word knows.
- Block 0 averages the patches into the class token: from then on its stream is 4 g + sum_c a_c w_c + noise, `w_c` being
  the known directions and a_c 8 times the share of the picture that concept c covers.
- Block 1 does nothing of note. Block 2's MLP reads each w_c and writes v_c; the projection takes v_c, and w_c half as
  strongly, to the embedding direction t_c of concept c. With `lens_misleads` w_c goes to concept c + 1 instead, so that
  whoever skips block 2 finds the wrong word.
- The text tower averages its words. The word of concept c is t_c, words of templates are nothing, any other token is a
  random direction. Texts and pictures each have a mean of their own, as CLIP's do, so that centring matters.
"""

import gzip
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from thresher.analysis.encode import encode
from thresher.analysis.options import EncodeOptions, StatsOptions
from thresher.analysis.stats import stats
from thresher.harvest.options import HarvestOptions
from thresher.harvest.run import harvest
from thresher.store.loading import plan_loading
from thresher.store.reader import open_store
from thresher.train.configuration import describe_store
from thresher.train.models import ReluSae
from thresher.train.options import TrainOptions
from thresher.train.run_dir import create_run

WORDS = ("pink", "blue", "stripe", "bar", "check", "candy", "wave", "tile")
"""Of the concepts, in their order."""
TEMPLATE_WORDS = ("photo", "of", "the", "itap", "bad", "origami", "large", "in", "video", "game", "art", "small")
"""These and `a` mean nothing to the text tower."""
N_DECOYS, N_DEAD = 4, 2
WIDTH, EMBEDDING, LAYERS, CONTEXT = 48, 32, 3, 24
PATCH, GRID = 8, 4
_BASE = 4.0  # along g: larger than what varies, so that the layer norms are nearly linear
_FULL = 8.0  # a_c of a picture that concept c covers
_THRESHOLD = 0.35  # half of the least a_c of a picture that holds c: two patches at 0.7 of the full contrast


@dataclass(frozen=True)
class Truth:
    """The directions that were planted: orthonormal rows."""

    stream: NDArray[np.float32]
    """w_c, `(K, d)`: of the class token from block 0 on."""
    noise: NDArray[np.float32]
    """`(4, d)`: where patterns without a word go."""
    base: NDArray[np.float32]
    """g, `(d,)`."""
    embedding: NDArray[np.float32]
    """t_c, `(K, e)`."""


@dataclass(frozen=True)
class Planted:
    """A run on the planted model. Feature c < K is concept c; then decoys, one that always fires, and dead ones."""

    path: Path
    store_path: Path
    model_path: Path
    pictures: Path
    attributes: Path
    """A TSV of `key` and one column a concept, `yes` or `no`: the truth of every picture."""
    sae: ReluSae
    truth: Truth
    holds: NDArray[np.bool_]
    """`(n_rows, K)`: which concepts the picture of a row holds."""

    concepts = np.arange(len(WORDS))
    decoys = len(WORDS) + np.arange(N_DECOYS)
    """They find noise: their firing has nothing to do with any word, and ablating them changes no embedding."""
    always = len(WORDS) + N_DECOYS
    dead = always + 1 + np.arange(N_DEAD)


def make_planted_run(
    folder: Path,
    *,
    name: str = "run",
    n_images: int = 240,
    layer: int = 1,
    token: str = "cls",
    lens_misleads: bool = False,
    with_stats: bool = True,
    seed: int = 0,
) -> Planted:
    """Model, pictures, store, SAE, codes and statistics in a folder; what is there already is used again.

    Parameters
    ----------
    layer
        0-based, below 3: blocks left to run after the site are 2, 1 and 0.
    token
        `cls` or `all`; the features are the class token's either way.
    lens_misleads
        Whether the stream's own directions lead to the words of other concepts.
    seed
        Of the pictures and of the weights that mean nothing.
    """
    model_path, pictures = folder / "model", folder / "pictures"
    truth = write_planted_clip(model_path, lens_misleads=lens_misleads, seed=seed)
    holds_of = write_pictures(pictures, n_images, seed=seed)
    store_path, path = folder / f"{name}.zarr", folder / name
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)  # need not outlive a power cut
        options = HarvestOptions(
            model=str(model_path),
            layer=(layer,),
            token=token,
            precision="fp32",
            dtype="float32",
            workers=0,
            device="cpu",
        )
        harvest(options, str(pictures), str(store_path))
        store = open_store(store_path)
        sae = planted_dictionary(truth)
        activations = store.activations(store.sites[0])
        config = {
            "options": TrainOptions().to_json(),
            "site": store.sites[0].path,
            "layer": layer,
            "d_in": WIDTH,
            "d_sae": sae.d_sae,
            "store": describe_store(store, path),
            "loading": plan_loading([activations], 64).to_json(),
        }
        create_run(path, config, overwrite=False)
        sae.save(path / "sae.safetensors")
        encode(path, EncodeOptions(device="cpu"))
        if with_stats:
            stats(path, StatsOptions(figures=False, min_labelled=2, null_draws=5, samples=2))
    attributes = folder / "attributes.tsv"
    lines = [[key, *("yes" if held else "no" for held in holds_of[key])] for key in sorted(holds_of)]
    attributes.write_text("".join("\t".join(line) + "\n" for line in [["key", *WORDS], *lines]))
    holds = np.array([holds_of[key] for key in store.keys(np.arange(store.n_rows))])
    return Planted(path, store_path, model_path, pictures, attributes, sae, truth, holds)


def planted_dictionary(truth: Truth) -> ReluSae:
    """An SAE whose features are the planted directions; see `Planted` for their order."""
    mixed = np.random.default_rng(7).standard_normal((N_DECOYS, len(truth.noise))) @ truth.noise
    decoys = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
    directions = np.concatenate([truth.stream, decoys, truth.base[None], truth.noise[:N_DEAD]]).astype(np.float32)
    bias = np.full(len(directions), -_THRESHOLD, np.float32)
    bias[Planted.always], bias[Planted.dead] = 10.0, -1e4
    encoder = torch.from_numpy(directions)
    return ReluSae(encoder, torch.from_numpy(bias), encoder.clone(), torch.from_numpy(_BASE * truth.base))


def write_pictures(folder: Path, n_images: int, *, seed: int = 0) -> dict[str, NDArray[np.bool_]]:
    """PNG pictures in class folders (the first concept of a picture, or `nothing`); gives the concepts of each key.

    A picture holds each concept with probability 0.2, on two to four patches that no other concept takes, at 0.7 to 1
    of the full contrast; the four noise patterns lie over all patches, each of a strength of its own.
    """
    rng = np.random.default_rng([seed, 1])
    patterns = _patterns()
    found = {}
    for number in range(n_images):
        pixels = rng.normal(0, 0.02, (GRID, GRID, PATCH, PATCH, 3))
        pixels += np.tensordot(rng.uniform(-0.08, 0.08, 4), patterns[len(WORDS) :], 1)
        held = np.flatnonzero(rng.random(len(WORDS)) < 0.2)[:4]
        free = rng.permutation(GRID * GRID)
        for concept in held:
            taken, free = np.split(free, [rng.integers(2, 5)])
            strength = 0.4 * rng.uniform(0.7, 1, (len(taken), 1, 1, 1))
            pixels[taken // GRID, taken % GRID] += strength * patterns[concept]
        image = np.clip(255 * (0.5 + pixels.transpose(0, 2, 1, 3, 4).reshape(GRID * PATCH, GRID * PATCH, 3)), 0, 255)
        key = f"{WORDS[held[0]] if len(held) else 'nothing'}/{number:04}.png"
        found[key] = np.isin(np.arange(len(WORDS)), held)
        if not (folder / key).exists():
            (folder / key).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.round(image).astype(np.uint8)).save(folder / key)
    return found


def write_planted_clip(folder: Path, *, lens_misleads: bool = False, seed: int = 0) -> Truth:
    """The model as a folder that `load_clip` opens; gives the directions planted in it."""
    rng = np.random.default_rng([seed, 2])
    n = len(WORDS)
    names = {"filters": n + 4, "stream": n, "noise": 4, "written": n, "base": 1}
    parts = dict(zip(names, np.split(_orthonormal(rng, WIDTH), np.cumsum([*names.values()]))[:-1], strict=True))
    texts = _orthonormal(rng, EMBEDDING)  # of embeddings: K concepts, the pictures' mean, the texts' mean, the rest
    truth = Truth(*(a.astype(np.float32) for a in (parts["stream"], parts["noise"], parts["base"][0], texts[:n])))
    merges = _merges([*WORDS, *TEMPLATE_WORDS])
    weights = _vision_weights(rng, parts, texts, lens_misleads) | _text_weights(rng, texts, merges)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_cfg": {
            "embed_dim": EMBEDDING,
            "vision_cfg": {
                "image_size": GRID * PATCH,
                "layers": LAYERS,
                "width": WIDTH,
                "patch_size": PATCH,
                "head_width": 16,
                "no_ln_pre": True,
            },
            "text_cfg": {
                "context_length": CONTEXT,
                "vocab_size": 512 + len(merges) + 2,
                "width": EMBEDDING,
                "heads": 2,
                "layers": 1,
            },
        },
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with gzip.open(folder / f"bpe_{config['model_cfg']['text_cfg']['vocab_size']}.txt.gz", "wt") as file:  # type: ignore[index]
        file.write("\n".join(["#version: planted", *(" ".join(merge) for merge in merges)]))
    tensors = {key: torch.from_numpy(np.ascontiguousarray(value, np.float32)) for key, value in weights.items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    return truth


def _patterns() -> NDArray[np.float64]:
    """`(K + 4, 8, 8, 3)` in -1 to 1, orthogonal: products of square waves with colours; the last four are noise."""
    at = np.arange(PATCH)
    slow, fast = 1.0 - 2 * (at // 4), 1.0 - 2 * (at // 2 % 2)
    one = np.ones(PATCH)
    grey, pink, blue = np.array([1.0, 1, 1]), np.array([1.0, -1, 0]), np.array([-0.5, -0.5, 1])
    waves = {
        "flat": np.outer(one, one),
        "rows": np.outer(fast, one),
        "columns": np.outer(one, fast),
        "checks": np.outer(fast, fast),
        "quarters": np.outer(slow, slow),
    }
    concepts = [("flat", pink), ("flat", blue), ("rows", grey), ("columns", grey), ("checks", grey), ("rows", pink)]
    concepts += [("columns", blue), ("quarters", grey)]
    noise = [("flat", grey), ("quarters", pink), ("quarters", blue), ("checks", pink)]
    return np.array([waves[wave][:, :, None] * colour for wave, colour in concepts + noise])


def _orthonormal(rng: np.random.Generator, d: int) -> NDArray[np.float64]:
    """`(d - 1, d)` rows, orthogonal to all ones as well: a layer norm's centring leaves them as they are."""
    drawn = np.column_stack([np.ones(d), rng.standard_normal((d, d - 1))])
    return np.asarray(np.linalg.qr(drawn)[0].T[1:])


def _block(rng: np.random.Generator, prefix: str, d: int) -> dict[str, NDArray[np.float64]]:
    """A residual block of weights that hardly do anything, yet are not zero."""

    def small(*shape: int) -> NDArray[np.float64]:
        return 0.005 * rng.standard_normal(shape)

    made = {"attn.in_proj_weight": small(3 * d, d), "attn.in_proj_bias": small(3 * d)}
    made |= {"attn.out_proj.weight": small(d, d), "attn.out_proj.bias": small(d)}
    made |= {"mlp.c_fc.weight": small(4 * d, d), "mlp.c_fc.bias": small(4 * d)}
    made |= {"mlp.c_proj.weight": small(d, 4 * d), "mlp.c_proj.bias": small(d)}
    for norm in ("ln_1", "ln_2"):
        made |= {f"{norm}.weight": np.ones(d), f"{norm}.bias": np.zeros(d)}
    return {f"{prefix}.{name}": value for name, value in made.items()}


def _vision_weights(
    rng: np.random.Generator, parts: dict[str, NDArray[np.float64]], texts: NDArray[np.float64], lens_misleads: bool
) -> dict[str, NDArray[np.float64]]:
    n, d = len(WORDS), WIDTH
    weights = {}
    for layer in range(LAYERS):
        weights |= _block(rng, f"visual.transformer.resblocks.{layer}", d)
    patterns = _patterns() * 0.8  # of full contrast: 0.4 in pixels of 0 to 1, after division by 0.5
    filters = patterns / (patterns**2).sum(axis=(1, 2, 3), keepdims=True)  # (K + 4, 8, 8, 3): 1 on their own pattern
    weights["visual.conv1.weight"] = np.einsum("cd,cyxr->dryx", parts["filters"], filters)
    weights["visual.class_embedding"] = np.zeros(d)
    weights["visual.positional_embedding"] = np.tile(_BASE * parts["base"], (1 + GRID * GRID, 1))
    # block 0: every token adds the mean over all tokens of what they hold, taken from the filters to the stream
    first = "visual.transformer.resblocks.0.attn."
    weights[first + "in_proj_weight"][2 * d :] = np.eye(d)
    gain = _FULL * _BASE / np.sqrt(d) * (1 + GRID * GRID) / (GRID * GRID)  # ln_1 gives sqrt(d) / 4 times what it gets
    weights[first + "out_proj.weight"] += gain * np.concatenate([parts["stream"], parts["noise"]]).T @ parts["filters"]
    last = "visual.transformer.resblocks.2.mlp."
    weights[last + "c_fc.weight"][:n] = parts["stream"]
    weights[last + "c_proj.weight"][:, :n] = 1.5 * parts["written"].T
    weights |= {"visual.ln_post.weight": np.ones(d), "visual.ln_post.bias": np.zeros(d)}
    shown = np.roll(texts[:n], -1, axis=0) if lens_misleads else texts[:n]
    weights["visual.proj"] = parts["written"].T @ texts[:n] + 0.5 * parts["stream"].T @ shown
    weights["visual.proj"] += parts["base"].T @ texts[n : n + 1]
    return weights


def _text_weights(
    rng: np.random.Generator, texts: NDArray[np.float64], merges: list[tuple[str, str]]
) -> dict[str, NDArray[np.float64]]:
    n, d = len(WORDS), EMBEDDING
    first = "transformer.resblocks.0"
    weights = _block(rng, first, d)
    weights[f"{first}.attn.in_proj_weight"][2 * d :] = np.eye(d)
    weights[f"{first}.attn.out_proj.weight"] += np.eye(d)
    tokens = rng.standard_normal((512 + len(merges) + 2, d - 1)) @ texts  # any other token: a random direction
    made = ["".join(merge) for merge in merges]
    for number, word in enumerate(WORDS):
        tokens[512 + made.index(word + "</w>")] = texts[number]
    for word in TEMPLATE_WORDS:
        tokens[512 + made.index(word + "</w>")] = 0
    letters = [ord("a") - ord("!"), ord(".") - ord("!")]  # the vocabulary begins with the printable characters
    tokens[[256 + letter for letter in letters]] = 0  # the word `a` and a full stop
    tokens[-2], tokens[-1] = 0, texts[n + 1]  # start; end, whose stream becomes the embedding: the texts' mean
    weights |= {"token_embedding.weight": tokens, "positional_embedding": np.zeros((CONTEXT, d))}
    weights |= {"ln_final.weight": np.ones(d), "ln_final.bias": np.zeros(d), "text_projection": np.eye(d)}
    return weights | {"logit_scale": np.array(np.log(100.0))}


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges that make each word one token, letter by letter from its start."""
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        symbols = [*word[:-1], word[-1] + "</w>"]
        for i in range(1, len(symbols)):
            merges["".join(symbols[:i]), symbols[i]] = None
    return list(merges)
