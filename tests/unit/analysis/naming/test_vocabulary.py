"""Phrases of names: what is left out, counted and refused."""

from pathlib import Path

import pytest
from thresher.analysis.naming.vocabulary import class_names, load_vocabulary, nouns


def test_each_phrase_counts_once_for_the_first_source_that_has_it(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_bytes("\ufeffRed  fox\n\n \t\nred FOX\nzebra\r\na\x00b\n".encode() + b"x" * 201 + b"\n")
    found = load_vocabulary(
        ["labels", "captions"], file=words, labels=["sea_lion", "Zebra"], captions=["sea lion", "owl"]
    )
    assert found.phrases == ("Red fox", "zebra", "a b", "sea lion", "owl")
    counted = [(s.n_phrases, s.n_blank, s.n_repeated, s.n_too_long) for s in found.sources]
    assert counted == [(3, 2, 1, 1), (1, 0, 1, 0), (1, 0, 1, 0)]
    assert [found.source_of(i) for i in (0, 3, 4)] == [str(words), "labels", "captions"]
    assert found.sha256 != load_vocabulary([], file=words).sha256


def test_a_vocabulary_may_be_one_word_or_very_many(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("dog")
    assert load_vocabulary([], file=tmp_path / "one").phrases == ("dog",)
    (tmp_path / "many").write_text("\n".join(f"word {i % 150_000}" for i in range(200_000)))
    found = load_vocabulary([], file=tmp_path / "many")
    assert (len(found), found.sources[0].n_repeated) == (150_000, 50_000)


def test_a_file_that_is_no_text_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes("ok\ncafé\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin is not UTF-8 \(line 2\): save it as UTF-8 text"):
        load_vocabulary([], file=tmp_path / "latin")
    (tmp_path / "empty").write_text("\n\n")
    with pytest.raises(ValueError, match="empty\\) holds no phrase"):
        load_vocabulary([], file=tmp_path / "empty")


def test_bundled_nouns_are_words_and_class_names_are_imagenets() -> None:
    words = nouns()
    assert len(words) == len(set(words)) == 8041
    assert all(word.isascii() and word.islower() and word.isalpha() and len(word) > 2 for word in words)
    assert {"dog", "red", "tree", "guitar"} <= set(words)
    assert not {"are", "who", "chink", "nigger"} & set(words)
    assert len(class_names()) == 1000
