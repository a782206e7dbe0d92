import json

import numpy as np
import pytest
from thresher.harvest.labels import class_name, labels_from_words, read_label_names, unnamed_note

NO_LABELS = np.zeros(0, np.int32)


@pytest.mark.parametrize(
    ("wnid", "name"),
    [
        ("n01440764", "tench"),  # first class of ImageNet-1k
        ("n15075141", "toilet paper"),  # its last
        ("n02012849", "crane bird"),  # two cranes, told apart by open_clip's curated names
        ("n03126707", "construction crane"),
        ("n00001740", "entity"),  # WordNet's first noun, not in ImageNet-1k
        ("n02084071", "dog"),
    ],
)
def test_a_wordnet_id_becomes_its_noun(wnid, name):
    assert class_name(wnid) == name


def test_the_thousand_names_are_open_clips_in_its_order():
    from open_clip import IMAGENET_CLASSNAMES
    from thresher.harvest.labels import _wordnet

    names = set(_wordnet().values())
    assert not set(IMAGENET_CLASSNAMES) - names
    assert len(_wordnet()) == 82_115  # noun synsets of WordNet 3.0, its wnstats(7)


def test_a_folder_that_is_no_wordnet_id_keeps_its_name():
    assert class_name("golden retriever") == "golden retriever"


def test_ids_outside_wordnet_are_told_to_the_user():
    assert "n99999999" in unnamed_note(["tench", "n99999999"])
    assert unnamed_note(["tench"]) is None


def test_numbers_are_labels_themselves():
    labels, classes = labels_from_words(["3", "", "0", "-1"])
    assert labels.tolist() == [3, -1, 0, -1]
    assert classes is None


def test_words_become_ranks_in_sorted_order():
    labels, classes = labels_from_words(["zebra", "ant", "", "zebra", "7"])
    assert classes == ["7", "ant", "zebra"]
    assert labels.tolist() == [2, 1, -1, 2, 0]


def test_a_label_below_minus_one_is_refused():
    with pytest.raises(ValueError, match="label -2"):
        labels_from_words(["-2"])


@pytest.mark.parametrize(
    ("file_name", "text"),
    [
        ("names.txt", "cat\ndog\n"),
        ("names.tsv", "b\tdog\na\tcat\n"),
        ("names.json", json.dumps(["cat", "dog"])),
        ("names.json", json.dumps({"a": "cat", "b": "dog"})),
        ("names.json", json.dumps({"0": ["a", "cat"], "1": ["b", "dog"]})),
    ],
)
def test_a_file_names_the_classes(tmp_path, file_name, text):
    path = tmp_path / file_name
    path.write_text(text)
    assert read_label_names(path, ["a", "b"], NO_LABELS) == ["cat", "dog"]


def test_numbers_are_named_by_lines(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("cat\ndog\nemu\n")
    assert read_label_names(path, None, np.array([1, -1], np.int32)) == ["cat", "dog", "emu"]


@pytest.mark.parametrize(
    ("file_name", "text", "message"),
    [
        ("names.txt", "cat\n", "names 1 classes and the images have 2"),
        ("names.txt", "\n", "holds no names"),
        ("names.tsv", "a\tcat\n", "no name for 1 of 2 classes .first: 'b'"),
        ("names.json", "{", "JSON list"),
        ("names.json", '{"a": 3}', "JSON list"),
    ],
)
def test_a_file_that_does_not_name_them_all_is_refused(tmp_path, file_name, text, message):
    path = tmp_path / file_name
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_label_names(path, ["a", "b"], NO_LABELS)
