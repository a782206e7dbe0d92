"""On a tower with planted truth each direction finds the word that it can: those that skip a block are misled by it."""

from contextlib import ExitStack

import numpy as np
import pytest
from planted_clip import WORDS, make_planted_run
from thresher.analysis.features import open_features
from thresher.analysis.naming.directions import (
    data_directions,
    dncbm_directions,
    lens_directions,
    post_directions,
)
from thresher.analysis.naming.effects import Changes, mean_effects
from thresher.analysis.naming.pictures import RowPictures
from thresher.analysis.naming.sparse import sparse_combinations
from thresher.harvest.captions import embed_templates
from thresher.harvest.vision import load_clip, tower_of
from thresher.store.format import Site
from thresher.store.reader import open_store

SITE = Site(1)  # one block is left to run, which the lens skips
CONCEPTS = np.arange(len(WORDS))


class Opened:
    """The planted run, its tower, and the words of its concepts."""

    def __init__(self, folder, stack):
        self.planted = make_planted_run(folder, n_images=100, layer=SITE.layer, lens_misleads=True, with_stats=False)
        self.store, self.features = open_store(self.planted.store_path), open_features(self.planted.path)
        clip = load_clip(str(self.planted.model_path))
        self.tower = tower_of(clip)
        self.pictures = stack.enter_context(RowPictures(self.planted.path, self.store, self.tower, workers=0))
        (self.planted.path / "naming").mkdir(exist_ok=True)
        text = embed_templates(clip, WORDS, "simple").numpy()
        centred = text - text.mean(axis=0)
        self.words = centred / np.linalg.norm(centred, axis=1, keepdims=True)
        x = self.store.activations(SITE).read(0, self.store.n_rows)
        self.mean = x.mean(axis=0)

    def changes(self, features):
        """Each feature on every row that it fires on."""
        found = [self.features.feature(int(f)) for f in features]
        line = np.repeat(np.arange(len(features)), [len(rows) for rows, _ in found])
        rows, values = (np.concatenate(each) for each in zip(*found, strict=True))
        return Changes(line, np.asarray(features)[line], rows, values)

    def nearest(self, directions, *, centred=True):
        directions = directions - (0 if centred else directions.mean(axis=0))
        return (directions @ self.words.T).argmax(axis=1).tolist()


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    with ExitStack() as stack:
        yield Opened(tmp_path_factory.mktemp("planted"), stack)


def effects(opened, changes, n, kind="ablate", **settings):
    return mean_effects(opened.tower, opened.planted.sae, SITE, opened.pictures, changes, kind, n=n, **settings)


def test_ablation_finds_the_words_though_a_block_misleads_the_lens(opened):
    found = effects(opened, opened.changes(CONCEPTS), len(CONCEPTS))
    assert opened.nearest(found) == CONCEPTS.tolist()
    kept = effects(opened, opened.changes(CONCEPTS), len(CONCEPTS), renormalised=False)
    assert opened.nearest(kept) == CONCEPTS.tolist()


def test_adding_features_to_pictures_without_them_finds_the_words(opened):
    without = [np.flatnonzero(~opened.planted.holds[:, c])[:20] for c in CONCEPTS]
    line = np.repeat(CONCEPTS, 20)
    changes = Changes(line, line, np.concatenate(without), np.full(len(line), 2, np.float32))
    found = effects(opened, changes, len(CONCEPTS), "add")
    assert opened.nearest(found) == CONCEPTS.tolist()


def test_the_data_finds_the_words_and_what_skips_the_block_finds_the_next_ones(opened):
    planted, tower = opened.planted, opened.tower
    each = opened.changes(CONCEPTS)
    embeddings = opened.pictures.embeddings(np.arange(opened.store.n_rows))
    indptr = np.searchsorted(each.line, np.arange(len(CONCEPTS) + 1))
    data = data_directions(embeddings, embeddings.mean(axis=0), indptr, each.row, each.activation)
    assert opened.nearest(data) == CONCEPTS.tolist()
    strength = np.full(len(CONCEPTS), 3, np.float32)
    next_ones = np.roll(CONCEPTS, -1).tolist()
    assert opened.nearest(lens_directions(tower, planted.sae, SITE, CONCEPTS, strength, opened.mean)) == next_ones
    for find in (post_directions, dncbm_directions):
        assert opened.nearest(find(tower, planted.sae, SITE, CONCEPTS), centred=False) == next_ones


def test_ablating_what_no_word_knows_changes_embeddings_hardly(opened):
    concepts = effects(opened, opened.changes(CONCEPTS), len(CONCEPTS))
    decoys = effects(opened, opened.changes(opened.planted.decoys), len(opened.planted.decoys))
    sizes = [np.linalg.norm(each, axis=1) for each in (concepts, decoys)]
    assert sizes[1].max() < 0.1 * sizes[0].min()


def test_a_pair_of_concepts_is_named_by_both_words(opened):
    found = effects(opened, opened.changes(CONCEPTS), len(CONCEPTS))
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    pairs = np.array([[0, 3], [2, 5], [6, 1]])
    combined = sparse_combinations(2 * unit[pairs[:, 0]] + unit[pairs[:, 1]], opened.words, n_phrases=2)
    assert combined.phrase.tolist() == pairs.tolist()
