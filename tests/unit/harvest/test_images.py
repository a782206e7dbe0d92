import gzip
import os
import pickle

import numpy as np
import pytest
from thresher.harvest.images import Keys, open_images


def test_keys_are_the_list_they_were_made_of():
    names = [b"a", b"", b"b\xff\n c", b"d" * 300]
    keys = Keys(names)
    assert list(keys) == names
    assert keys[1:3] == names[1:3]
    assert keys[-1] == names[-1]
    with pytest.raises(IndexError):
        keys[4]


def test_class_folders_give_sorted_labels_and_wordnet_names(tmp_path, pictures):
    images = open_images(pictures.class_folders(tmp_path / "set", n_per_class=2))
    assert [key.decode() for key in images.keys] == [
        "n01440764/0.png",
        "n01440764/1.png",
        "n01443537/0.png",
        "n01443537/1.png",
        "zebra/0.png",
        "zebra/1.png",
    ]
    assert images.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert images.label_names == ["tench", "goldfish", "zebra"]
    assert images.read(3) == pictures.encoded(101)


def test_an_empty_class_folder_keeps_its_class_number(tmp_path, pictures):
    root = pictures.class_folders(tmp_path / "set", n_per_class=1)
    (root / "n01440764" / "0.png").unlink()
    images = open_images(root)
    assert images.labels.tolist() == [1, 2]
    assert images.label_names == ["tench", "goldfish", "zebra"]


def test_classes_stand_in_the_order_of_folders_not_of_paths(tmp_path, pictures):
    # as whole paths, "a-b/0.png" sorts before "a/0.png"
    images = open_images(pictures.class_folders(tmp_path / "set", n_per_class=1, classes=("a", "a-b")))
    assert list(images.keys) == [b"a/0.png", b"a-b/0.png"]
    assert images.label_names == ["a", "a-b"]


def test_pictures_deeper_in_a_class_folder_belong_to_it(tmp_path, pictures):
    root = pictures.class_folders(tmp_path / "set", n_per_class=1)
    (root / "zebra" / "more").mkdir()
    (root / "zebra" / "more" / "x.jpg").write_bytes(pictures.encoded(suffix="jpg"))
    (root / "zebra" / "more" / "loop").symlink_to(root / "zebra")
    images = open_images(root)
    assert images.keys[-1] == b"zebra/more/x.jpg"
    assert images.labels.tolist() == [0, 1, 2, 2]


def test_a_flat_folder_has_no_labels(tmp_path, pictures):
    for i in range(3):
        (tmp_path / f"{i}.PNG").write_bytes(pictures.encoded(i))
    images = open_images(tmp_path)
    assert images.labels.tolist() == [-1, -1, -1]
    assert images.label_names is None


def test_other_files_are_ignored_and_counted(tmp_path, pictures):
    (tmp_path / "a.png").write_bytes(pictures.encoded())
    (tmp_path / "._a.png").write_bytes(b"resource fork")
    (tmp_path / "notes.md").write_text("hello")
    images = open_images(tmp_path)
    assert images.n_images == 1
    assert "2 files" in images.notes[0]


def test_names_with_spaces_newlines_and_bytes_that_are_no_utf8_work(tmp_path, pictures):
    names = [b"a b.png", b"new\nline.png", b"not-\xff-utf8.png", "ünï.png".encode()]
    folder = os.path.join(os.fsencode(tmp_path), b"cl\xe9")
    os.mkdir(folder)
    for i, name in enumerate(names):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(pictures.encoded(i))
    images = open_images(tmp_path)
    assert list(images.keys) == [b"cl\xe9/" + name for name in sorted(names)]
    assert [images.read(i) for i in range(4)] == [pictures.encoded(names.index(name)) for name in sorted(names)]
    assert images.label_names == ["cl�"]


def test_a_link_to_itself_is_an_image_that_cannot_be_read(tmp_path, pictures):
    (tmp_path / "a.png").write_bytes(pictures.encoded())
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "link.png").symlink_to("a.png")
    images = open_images(tmp_path)
    assert list(images.keys) == [b"a.png", b"link.png", b"loop.png"]
    assert images.read(1) == pictures.encoded()
    with pytest.raises(OSError, match="symbolic links"):
        images.read(2)


@pytest.mark.parametrize("source", ["folder", "csv"])
def test_a_named_pipe_is_not_waited_for(tmp_path, source):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "list.csv").write_text("path,label\npipe.jpg,1\n")
    images = open_images(tmp_path if source == "folder" else tmp_path / "list.csv")
    with pytest.raises(OSError, match="not a file"):
        images.read(0)


def test_a_zero_byte_in_a_path_is_an_unreadable_image(tmp_path, pictures):
    (tmp_path / "a.png").write_bytes(pictures.encoded())
    (tmp_path / "list.csv").write_bytes(b"path,label\na.png,1\na\0.png,1\n")
    images = open_images(tmp_path / "list.csv")
    assert images.read(0) == pictures.encoded()
    with pytest.raises(OSError, match="zero byte"):
        images.read(1)


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no images"):
        open_images(tmp_path)


def test_a_folder_without_pictures_is_an_error(tmp_path):
    (tmp_path / "readme.txt").write_text("no pictures here")
    with pytest.raises(ValueError, match=r"holds no images \(known: .*\.jpg"):
        open_images(tmp_path)


def test_a_source_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_images(tmp_path / "nowhere")


def test_a_file_of_no_known_kind_is_an_error(tmp_path):
    (tmp_path / "list.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="no image source"):
        open_images(tmp_path / "list.parquet")


def test_several_folders_are_an_error_that_says_what_to_give(tmp_path, pictures):
    for name in ("a", "b"):
        pictures.class_folders(tmp_path / name, n_per_class=1)
    with pytest.raises(ValueError, match="a is a folder: of folders IMAGES takes one"):
        open_images([tmp_path / "a", tmp_path / "b"])


def test_a_remote_source_is_an_error():
    with pytest.raises(ValueError, match="local disks"):
        open_images("s3://bucket/part-000.tar")


def test_label_names_of_a_file_take_the_place_of_wordnet(tmp_path, pictures):
    root = pictures.class_folders(tmp_path / "set", n_per_class=1)
    names = tmp_path / "names.tsv"
    names.write_text("n01440764\tdoctor fish\nn01443537\tCarassius\nzebra\tstriped horse\n")
    assert open_images(root, label_names=names).label_names == ["doctor fish", "Carassius", "striped horse"]


def test_taking_images_keeps_their_keys_labels_and_bytes(tmp_path, pictures):
    images = open_images(pictures.class_folders(tmp_path / "set"))
    taken = images.take(np.array([5, 2]))
    assert list(taken.keys) == [images.keys[5], images.keys[2]]
    assert taken.labels.tolist() == [1, 0]
    assert taken.read(0) == images.read(5)
    assert taken.label_names == images.label_names


# ---- CSV


def test_a_csv_names_images_labels_and_captions(tmp_path, pictures):
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "a, b.png").write_bytes(pictures.encoded(1))
    (tmp_path / "c.png").write_bytes(pictures.encoded(2))
    table = tmp_path / "set.csv"
    table.write_text(f'path,label,caption\n"pics/a, b.png",dog,a dog\n{tmp_path}/c.png,,\n')
    images = open_images(table)
    assert images.labels.tolist() == [0, -1]
    assert images.label_names == ["dog"]
    assert [images.read(0), images.read(1)] == [pictures.encoded(1), pictures.encoded(2)]
    assert [images.caption(0), images.caption(1)] == ["a dog", None]


def test_a_csv_with_bytes_that_are_no_utf8_finds_its_files(tmp_path, pictures):
    with open(os.path.join(os.fsencode(tmp_path), b"\xff.png"), "wb") as file:
        file.write(pictures.encoded(3))
    table = tmp_path / "set.csv"
    table.write_bytes(b"\xef\xbb\xbfpath,label\n\xff.png,4\n")
    images = open_images(table)
    assert images.read(0) == pictures.encoded(3)
    assert images.labels.tolist() == [4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,class\na.png,1\n", "no column path and no column label; its first line names: file, class"),
        ("path,lable\na.png,1\n", "no column label; its first line names: path, lable"),
        ("", "its first line names: none"),
        ("path,label\na.png\n", "line 2"),
        ("path,label\nmissing.png,1\n", "not one of the first 1 files exists"),
        ("path,label\n", "holds no images"),
    ],
)
def test_a_csv_that_cannot_be_used_says_why(tmp_path, text, message):
    (tmp_path / "a.png").write_bytes(b"")
    table = tmp_path / "set.csv"
    table.write_text(text)
    with pytest.raises(ValueError, match=message):
        open_images(table)


def test_a_csv_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_images(tmp_path / "set.csv")


# ---- tars


def sample(pictures, key, seed, **sidecars):
    return {f"{key}.png": pictures.encoded(seed)} | {f"{key}.{suffix}": data for suffix, data in sidecars.items()}


def test_a_tar_gives_labels_and_captions_of_json_sidecars(tmp_path, pictures):
    path = pictures.tar(
        tmp_path / "set.tar",
        sample(pictures, "x/0", 0, json=b'{"label": "dog", "label_id": 2, "caption": "a dog", "tone": 3}')
        | sample(pictures, "x/1", 1, json=b'{"label": "ant", "label_id": 0}', txt=b" an ant \n"),
    )
    with open_images(path) as images:
        assert list(images.keys) == [b"x/0.png", b"x/1.png"]
        assert images.labels.tolist() == [2, 0]
        assert images.label_names == ["ant", "class 1", "dog"]
        assert [images.caption(0), images.caption(1)] == ["a dog", "an ant"]
        assert images.metadata(0)["tone"] == 3
        assert images.read(1) == pictures.encoded(1)


def test_a_tar_gives_class_numbers_of_cls_sidecars(tmp_path, pictures):
    path = pictures.tar(tmp_path / "set.tar", sample(pictures, "0", 0, cls=b"7\n") | sample(pictures, "1", 1, cls=b"3"))
    with open_images(str(path)) as images:
        assert images.labels.tolist() == [7, 3]
        assert images.label_names is None


def test_two_names_for_one_label_are_an_error(tmp_path, pictures):
    path = pictures.tar(
        tmp_path / "set.tar",
        sample(pictures, "0", 0, json=b'{"label": "dog", "label_id": 2}')
        | sample(pictures, "1", 1, json=b'{"label": "cat", "label_id": 2}'),
    )
    with pytest.raises(ValueError, match="label_id 2 is called both 'dog' and 'cat'"):
        open_images(path)


@pytest.mark.parametrize("packed", [False, True])
def test_several_tars_are_one_set_and_their_names_are_in_the_keys(tmp_path, pictures, packed):
    suffix, mode = ("tar.gz", "w:gz") if packed else ("tar", "w")
    for i in (1, 0):
        pictures.tar(tmp_path / f"part-{i:03d}.{suffix}", sample(pictures, "same", i), mode)
    for source in (f"{tmp_path}/part-*.{suffix}", f"{tmp_path}/part-{{000..001}}.{suffix}", tmp_path):
        with open_images(source) as images:
            assert list(images.keys) == [b"part-000/same.png", b"part-001/same.png"]
            assert [images.read(0), images.read(1)] == [pictures.encoded(0), pictures.encoded(1)]


def test_unpacked_tars_are_removed_on_close(tmp_path, pictures, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    path = pictures.tar(tmp_path / "set.tgz", sample(pictures, "0", 0), "w:gz")
    images = open_images(path)
    assert list((tmp_path / "tmp").rglob("*.tar"))
    images.close()
    assert not list((tmp_path / "tmp").iterdir())


def test_a_tar_set_reads_in_another_process(tmp_path, pictures):
    with open_images(pictures.tar(tmp_path / "set.tar", sample(pictures, "0", 0))) as images:
        images.read(0)
        assert pickle.loads(pickle.dumps(images)).read(0) == pictures.encoded(0)


def test_names_in_a_tar_may_be_any_bytes(tmp_path, pictures):
    names = ["a b.png", "new\nline.png", b"not-\xff-utf8.png".decode("utf-8", "surrogateescape"), "d" * 200 + ".png"]
    path = pictures.tar(tmp_path / "set.tar", {name: pictures.encoded(i) for i, name in enumerate(names)})
    with open_images(path) as images:
        assert list(images.keys) == [name.encode("utf-8", "surrogateescape") for name in names]
        assert images.read(3) == pictures.encoded(3)


def test_a_second_view_of_a_sample_is_no_image_but_a_dotted_name_is(tmp_path, pictures):
    data = pictures.encoded()
    members = {"0.png": data, "0.seg.png": data, "1.5 apples.png": data, "2.txt": b"no image", "3.mp3": b"sound"}
    with open_images(pictures.tar(tmp_path / "set.tar", members)) as images:
        assert list(images.keys) == [b"0.png", b"1.5 apples.png"]
        assert "2 members" in images.notes[0]


def whole_tar(tmp_path, pictures, n=3):
    path = pictures.tar(tmp_path / "whole.tar", {f"{i}.png": pictures.encoded(i) for i in range(n)})
    return path.read_bytes()


@pytest.mark.parametrize("where", ["in the data", "in a header", "in the padding"])
def test_a_tar_cut_short_is_an_error_that_names_the_place(tmp_path, pictures, where):
    data = whole_tar(tmp_path, pictures)
    member = 512 + -(-len(pictures.encoded(0)) // 512) * 512
    cut = {"in the data": member + 512 + 700, "in a header": 2 * member + 100, "in the padding": 2 * member - 1}[where]
    path = tmp_path / "short.tar"
    path.write_bytes(data[:cut])
    with pytest.raises(
        ValueError, match=r"short\.tar is cut short or damaged at byte [\d,]+, after the member '1\.png'"
    ):
        open_images(path)


def test_a_tar_without_its_end_mark_is_read_with_a_note(tmp_path, pictures):
    data = whole_tar(tmp_path, pictures)
    member = 512 + -(-len(pictures.encoded(0)) // 512) * 512
    path = tmp_path / "noend.tar"
    path.write_bytes(data[: 2 * member])
    with open_images(path) as images:
        assert images.n_images == 2
        assert "no end mark after its last member '1.png'" in images.notes[0]


def test_a_packed_tar_cut_short_is_an_error(tmp_path, pictures):
    packed = gzip.compress(whole_tar(tmp_path, pictures))
    path = tmp_path / "short.tar.gz"
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(ValueError, match=r"short\.tar\.gz is cut short or damaged"):
        open_images(path)


def test_a_file_that_is_no_tar_is_an_error(tmp_path):
    path = tmp_path / "text.tar"
    path.write_text("this is not a tar\n" * 100)
    with pytest.raises(ValueError, match=r"text\.tar is cut short or damaged at byte 0"):
        open_images(path)


def test_a_pattern_that_matches_no_tar_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such tar"):
        open_images(f"{tmp_path}/part-*.tar")
