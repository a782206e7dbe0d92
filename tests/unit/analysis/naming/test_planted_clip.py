"""The planted model is what it says: its directions, words, features and pictures belong together."""

import numpy as np
import pytest
import torch
from planted_clip import TEMPLATE_WORDS, WORDS, Planted, make_planted_run
from thresher.analysis.features import open_features
from thresher.harvest.captions import _tokenizer, embed_templates
from thresher.harvest.vision import load_clip, tower_of
from thresher.store.reader import open_store


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return make_planted_run(tmp_path_factory.mktemp("planted"), with_stats=False, lens_misleads=True)


def test_a_feature_fires_on_exactly_the_pictures_that_hold_its_concept(planted: Planted) -> None:
    features = open_features(planted.path)
    for concept in planted.concepts.tolist():
        rows, _ = features.feature(concept)
        assert sorted(rows.tolist()) == np.flatnonzero(planted.holds[:, concept]).tolist()
    fires = [len(features.feature(f)[0]) / len(planted.holds) for f in (*planted.decoys, planted.always, *planted.dead)]
    assert all(0.2 < share < 0.5 for share in fires[:4])
    assert fires[4:] == [1, 0, 0]


def test_the_word_of_a_concept_points_to_its_direction_and_no_other(planted: Planted) -> None:
    clip = load_clip(str(planted.model_path))
    tokenizer = _tokenizer(clip.source)
    assert all(len(tokenizer.encode(word)) == 1 for word in WORDS + TEMPLATE_WORDS)
    others = ["quartz", "zebra", "violin", "mud", "lamp", "hexagon"]
    text = embed_templates(clip, [*WORDS, *others], "simple").numpy()
    cosines = (text - text.mean(axis=0)) @ planted.truth.embedding.T
    assert cosines.argmax(axis=0).tolist() == list(range(len(WORDS)))
    assert np.abs(text[: len(WORDS)] @ planted.truth.embedding.T - 0.38 * np.eye(len(WORDS))).max() < 0.02


def test_block_2_takes_a_direction_of_the_stream_to_its_concept_though_the_lens_misleads(planted: Planted) -> None:
    clip = load_clip(str(planted.model_path))
    visual = tower_of(clip).visual
    stream = torch.from_numpy(planted.truth.base * 4).repeat(1, 17, 1)
    rerun, skipped = [], []
    with torch.no_grad():
        for direction in (np.zeros_like(planted.truth.base), *planted.truth.stream):
            pushed = stream.clone()
            pushed[:, 0] += 2 * torch.from_numpy(direction)
            for found, x in ((rerun, visual.transformer.resblocks[2](pushed)), (skipped, pushed)):
                e = visual.ln_post(x[:, 0]) @ visual.proj
                found.append((e / e.norm()).numpy()[0])
    for found, shift in ((rerun, 0), (skipped, 1)):
        effect = (np.array(found[1:]) - found[0]) @ planted.truth.embedding.T  # (K, K)
        assert effect.argmax(axis=1).tolist() == np.roll(range(len(WORDS)), -shift).tolist()


def test_a_picture_lays_concepts_into_the_class_token_by_the_share_they_cover(planted: Planted) -> None:
    store = open_store(planted.store_path)
    x = store.activations(store.sites[0]).read(0, store.n_rows).astype(np.float64)
    shares = x @ planted.truth.stream.T
    held = shares[planted.holds]
    assert held.min() > 8 * 2 / 16 * 0.7 * 0.9
    assert held.max() < 8 * 4 / 16 * 1.1
    assert np.abs(shares[~planted.holds]).max() < 0.25
