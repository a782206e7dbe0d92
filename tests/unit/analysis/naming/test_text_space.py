"""Texts in CLIP's space, against numpy in float64."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from thresher.analysis.naming import text_space
from thresher.analysis.naming.text_space import TextSpace, centred_unit, load_text_space
from thresher.analysis.naming.vocabulary import Source, Vocabulary
from thresher.harvest.captions import _tokenizer
from thresher.harvest.vision import LoadedClip, load_clip


@pytest.fixture(scope="module")
def clip() -> LoadedClip:
    return load_clip("quickstart")


def _vocabulary(*phrases: str) -> Vocabulary:
    return Vocabulary(phrases, (Source("words", len(phrases), 0, 0, 0),))


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_templates_are_averaged_and_the_texts_own_mean_is_removed(
    clip: LoadedClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_space, "N_RANDOM", 3)
    words = ("cat", "red heart", "flag")
    space = load_text_space(tmp_path, clip, _vocabulary(*words), templates="simple")
    tokenize = _tokenizer(clip.source)
    with torch.no_grad():
        each = [
            _unit(
                clip.model.encode_text(tokenize([t(word) for t in open_clip.SIMPLE_IMAGENET_TEMPLATES]))
                .double()
                .numpy()
            )
            for word in words
        ]
    raw = _unit(np.stack([e.mean(axis=0) for e in each]))
    np.testing.assert_allclose(space.raw, raw, atol=2e-6)
    expected = _unit(raw - raw.mean(axis=0))
    np.testing.assert_allclose(space.unit(slice(None)), expected, atol=2e-5)
    np.testing.assert_allclose(np.sort(space.random, axis=0), np.sort(expected, axis=0), atol=2e-5)


def test_the_nearest_phrases_are_those_of_a_whole_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_space, "_PHRASES_AT_ONCE", 7)
    rng = np.random.default_rng(0)
    raw = _unit(rng.standard_normal((40, 6))).astype(np.float32)
    raw[33] = raw[4]  # equals: the first is first
    mean = raw.mean(axis=0)
    space = TextSpace(tuple(map(str, range(40))), raw, mean, raw, (), "none")
    directions = rng.standard_normal((5, 6)).astype(np.float32)
    directions[0] = raw[4] - mean
    for centred in (True, False):
        texts = _unit(raw.astype(np.float64) - mean) if centred else raw.astype(np.float64)
        cosines = _unit(directions.astype(np.float64)) @ texts.T
        expected = np.argsort(-cosines.astype(np.float32), axis=1, kind="stable")[:, :9]
        ids, found = space.nearest(directions, 9, centred=centred)
        np.testing.assert_allclose(found, np.take_along_axis(cosines, expected, 1), atol=1e-6)
        np.testing.assert_array_equal(ids[1:], expected[1:])
    assert space.nearest(directions, 9)[0][0, :2].tolist() == [4, 33]
    ids, found = space.nearest(np.zeros((1, 6), np.float32), 99)
    assert ids.shape == (1, 40)
    assert not found.any()


def test_a_vector_that_is_the_mean_has_no_direction() -> None:
    mean = np.ones(4, np.float32) / 2
    assert not centred_unit(mean[None] + np.float32(1e-8), mean).any()


def test_one_word_is_centred_together_with_bundled_nouns(clip: LoadedClip, tmp_path: Path) -> None:
    space = load_text_space(tmp_path, clip, _vocabulary("Dog"), templates="none")
    assert len(space.random) == len(space.random_phrases) == 1000
    assert space.random_phrases[0] == "Dog"
    assert "dog" not in space.random_phrases
    assert np.linalg.norm(space.unit(slice(None))) == pytest.approx(1)
    assert np.abs(np.mean(space.random, axis=0)).max() < 0.1


def test_embedding_goes_on_where_it_was_killed_and_is_done_once(
    clip: LoadedClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_space, "N_RANDOM", 2)
    monkeypatch.setattr(text_space, "_CAPTIONS_AT_ONCE", 2)
    words, embed, asked = _vocabulary("cat", "dog", "sun", "car", "red"), text_space.embed_captions, []

    def counted(clip: LoadedClip, captions: list[str], device: object) -> torch.Tensor:
        asked.extend(captions)
        if asked.count("car") == 1 and "car" in captions:
            raise KeyboardInterrupt
        return embed(clip, captions, device)  # type: ignore[arg-type]

    monkeypatch.setattr(text_space, "embed_captions", counted)
    with pytest.raises(KeyboardInterrupt):
        load_text_space(tmp_path, clip, words, templates="none")
    half = next((tmp_path / "naming").glob(".texts-*.tmp"))
    torn = np.lib.format.open_memmap(half, "r+")
    torn[1, 5:] = 0  # a row that the kill cut short
    torn.flush()
    asked.clear()
    asked.append("car")
    space = load_text_space(tmp_path, clip, words, templates="none")
    assert asked[1:] == ["dog", "sun", "car", "red"]
    np.testing.assert_allclose(space.raw, embed(clip, words.phrases).numpy(), atol=2e-6)
    asked.clear()
    load_text_space(tmp_path, clip, words, templates="none")
    assert asked == []
    assert os.listdir(tmp_path / "naming") == [half.name.removeprefix(".").removesuffix(".tmp")]


def test_a_model_without_a_text_tower_is_told(clip: LoadedClip, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="quickstart has no text tower"):
        load_text_space(tmp_path, replace(clip, model=torch.nn.Identity()), _vocabulary("cat"))
