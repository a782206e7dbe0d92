"""CSV files of attributes: kinds of columns, keys, what is refused, and the rows of a store that they match."""

from pathlib import Path

import numpy as np
import pytest
from thresher.analysis.attribute_table import emoji_table, lines_of_rows, read_table
from thresher.store.reader import open_store


def _file(folder: Path, text: str | bytes, name: str = "table.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_columns_are_true_or_false_one_value_or_several(tmp_path: Path) -> None:
    text = (
        "\ufeffkey,is outdoor,animal,tags,who\na.jpg,yes,cat,red|small| red,ann\nb.jpg,No,,,ann\nc.jpg,,dog,blue,bob\n"
    )
    table = read_table(_file(tmp_path, text), group="who")
    assert table.keys == ["a.jpg", "b.jpg", "c.jpg"]
    assert table.values == [
        {"is outdoor": ("true",), "animal": ("cat",), "tags": ("red", "small")},
        {"is outdoor": (), "animal": (), "tags": ()},
        {"is outdoor": (), "animal": ("dog",), "tags": ("blue",)},
    ]
    assert (table.groups, table.source) == (["ann", "ann", "bob"], "table.csv")


def test_the_key_column_is_named_or_key_or_path_or_the_first(tmp_path: Path) -> None:
    text = "colour,path,key\nred,p.jpg,k.jpg\n"
    assert read_table(_file(tmp_path, text)).keys == ["k.jpg"]
    assert read_table(_file(tmp_path, text), key="path").keys == ["p.jpg"]
    assert read_table(_file(tmp_path, "image,colour\ni.jpg,red\n")).keys == ["i.jpg"]
    assert read_table(_file(tmp_path, "image\tcolour\ni.jpg\tred;blue\n", "t.tsv"), separator=";").values == [
        {"colour": ("red", "blue")}
    ]


def test_names_with_any_bytes_quotes_and_short_lines_are_read(tmp_path: Path) -> None:
    table = read_table(_file(tmp_path, b'key,a,b\n"x, \xff.jpg","<b>",\ny.jpg\n'))
    assert table.keys[0].encode("utf-8", "surrogateescape") == b"x, \xff.jpg"
    assert table.values == [{"a": ("<b>",), "b": ()}, {"a": (), "b": ()}]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "is empty"),
        ("key,a\n", {}, "no line below"),
        ("key\nx\n", {}, "no column of attributes"),
        ("key,a,a\nx,1,2\n", {}, "two columns 'a'"),
        ("key,a\nx,1,2\n", {}, "3 cells at line 2"),
        ("key,a\nx,1\nx,2\n", {}, "the key 'x' twice"),
        ("key,a\nx,1\n", {"group": "who"}, "no group column 'who'"),
        ("key,a\nx,1\n", {"key": "file"}, "no key column 'file'"),
        ('key,a\nx,"1\n', {}, "no CSV file at line"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(tmp_path, text, options, message):
    with pytest.raises(ValueError, match=message):
        read_table(_file(tmp_path, text), **options)


def test_rows_find_their_line_by_key_whatever_the_order_of_store_and_table(make_store):
    made = make_store(n=150, invalid=(3,))
    keys = [key.decode() for key in made.keys]
    listed = ["nowhere.jpg", *reversed(keys[:60])]
    lines = lines_of_rows(open_store(made.path), listed)
    for row, line in enumerate(lines.tolist()):
        image = int(made.row_image[row])
        assert (line == -1) if image >= 60 else (listed[line] == keys[image])


def test_the_embedded_pictures_have_their_emoji_as_group() -> None:
    table = emoji_table()
    assert len(table.keys) == len(table.values) == len(table.groups or []) == 20_001
    assert set(table.values[0]) == {"subgroup", "group", "tone", "vendor", "word"}
    assert len(np.unique(np.array(table.groups))) < 5000
