"""Annotations beside the run and names of features: kept, shared by several writers, bounded, never lost."""

import json
import multiprocessing
import shutil
import threading
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from thresher.analysis.explorer import annotations as module
from thresher.analysis.explorer.annotations import Annotations, Conflict
from thresher.analysis.explorer.app import make_app
from thresher.analysis.explorer.page import BadQuery, Unavailable
from thresher.analysis.explorer.several import Explorer
from thresher.analysis.naming.names_file import Name, read_names


def test_what_is_said_is_read_back_and_nothing_is_written_before(tmp_path: Path) -> None:
    said = Annotations(tmp_path)
    assert (said.tags(3), said.note(3), said.is_sensitive(3), said.sensitive) == ([], "", False, frozenset())
    assert list(tmp_path.iterdir()) == []
    said.change(3, tags=["Dogs ", "a  b, cats", "dogs"], note=" first\r\nsecond\x00\x1b[1m ", sensitive=True)
    other = Annotations(tmp_path)
    assert other.tags(3) == ["a b", "cats", "dogs"]
    assert other.note(3) == "first\nsecond [1m"
    assert other.sensitive == {3}
    other.change(3, sensitive=False)
    assert said.is_sensitive(3) is False
    assert said.tags(3) == ["a b", "cats", "dogs"]


def test_what_is_empty_is_not_kept(tmp_path: Path) -> None:
    said = Annotations(tmp_path)
    said.change(7, tags=["x"])
    said.change(7, tags=[])
    assert json.loads(said.path.read_text()) == {"format": "thresher-annotations", "format_version": 1, "features": {}}


def test_tags_are_counted_the_most_used_first(tmp_path: Path) -> None:
    said = Annotations(tmp_path)
    for feature, tags in ((1, ["b", "a"]), (2, ["b"]), (3, ["c"])):
        said.change(feature, tags=tags)
    assert list(said.known_tags().items()) == [("b", 2), ("a", 1), ("c", 1)]


def test_several_tabs_do_not_undo_each_others_changes(tmp_path: Path) -> None:
    tabs = [Annotations(tmp_path) for _ in range(4)]

    def write(number: int) -> None:
        for i in range(5):
            tabs[number].change(10 * number + i, tags=[f"tab {number}"])
            tabs[number].change(999, tags=[f"{number}-{i}", *tabs[number].tags(999)][:1])

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(Annotations(tmp_path).features) == {10 * number + i for number in range(4) for i in range(5)} | {999}


def _write_some(path: str, first: int) -> None:
    said = Annotations(path)
    for feature in range(first, first + 10):
        said.change(feature, note=str(feature))


def test_several_servers_do_not_undo_each_others_changes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_some, args=(str(tmp_path), first)) for first in (0, 100)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    assert list(Annotations(tmp_path).features) == [*range(10), *range(100, 110)]


def test_a_note_that_was_changed_elsewhere_is_not_written_over(tmp_path: Path) -> None:
    said = Annotations(tmp_path)
    said.change(1, note="mine")
    Annotations(tmp_path).change(1, note="theirs", note_before="mine")
    with pytest.raises(Conflict, match="changed elsewhere"):
        said.change(1, note="mine again", note_before="mine")
    assert said.note(1) == "theirs"
    said.change(1, note="theirs", note_before="mine")  # the same change twice, as a page sends it that is left


@pytest.mark.parametrize(
    "content",
    [
        b"{ damaged",
        b"[]",
        b"\xff\xfe\x00",
        b'{"format": "thresher-annotations", "format_version": 2, "features": {}}',
        b'{"format": "thresher-annotations", "format_version": 1, "features": {"-1": {}}}',
        b'{"format": "thresher-annotations", "format_version": 1, "features": {"1": {"tags": [3]}}}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_file_is_named_and_never_lost(tmp_path: Path, content: bytes) -> None:
    said = Annotations(tmp_path)
    said.path.write_bytes(content)
    assert said.features == {}
    assert (said.problem or "").startswith("annotations.json cannot be read and is left alone: ")
    assert said.path.read_bytes() == content
    said.change(1, tags=["new"])
    assert said.problem is None
    assert said.tags(1) == ["new"]
    assert (tmp_path / "annotations.aside-1.json").read_bytes() == content
    said.path.write_bytes(b"again")
    said.change(2, tags=["newer"])
    assert (tmp_path / "annotations.aside-1.json").read_bytes() == content
    assert (tmp_path / "annotations.aside-2.json").read_bytes() == b"again"


def test_a_change_that_is_refused_leaves_the_file_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = Annotations(tmp_path)
    said.change(1, tags=["x"])
    before = said.path.read_bytes()
    for change, complaint in (
        ({"tags": [f"t{i}" for i in range(21)]}, "at most 20 tags, not 21"),
        ({"tags": ["t" * 61]}, "at most 60 characters"),
        ({"tags": "text"}, "a list of strings"),
        ({"note": "n" * 4001}, "at most 4,000 characters, not 4,001"),
    ):
        with pytest.raises(BadQuery, match=complaint):
            said.change(2, **change)
    monkeypatch.setattr(module, "MOST_FEATURES", 1)
    with pytest.raises(BadQuery, match="at most 1 features"):
        said.change(2, tags=["y"])
    assert said.path.read_bytes() == before
    assert said.tags(2) == []


def test_where_nothing_can_be_written_one_line_says_so(tmp_path: Path) -> None:
    said = Annotations(tmp_path / "gone")
    with pytest.raises(Unavailable, match=r"annotations\.json cannot be written beside the run \(No such file"):
        said.change(1, tags=["x"])


def test_annotations_of_another_machine_are_added(tmp_path: Path) -> None:
    said = Annotations(tmp_path)
    said.change(1, tags=["a"], note="mine")
    said.change(2, sensitive=True)
    features = {"1": {"tags": ["b"], "note": "theirs", "sensitive": True}, "2": {"note": "n"}, "3": {"tags": ["c"]}}
    document = {"format": "thresher-annotations", "format_version": 1, "features": features}
    assert said.merge(document, d_sae=4) == 3
    assert said.merge(document, d_sae=4) == 3  # again changes nothing
    assert said.of(1) == module.Annotation(("a", "b"), "mine\ntheirs", True)
    assert said.of(2) == module.Annotation((), "n", True)
    assert said.tags(3) == ["c"]
    before = said.path.read_bytes()
    with pytest.raises(BadQuery, match="feature 3, and this run has 3"):
        said.merge(document, d_sae=3)
    assert said.path.read_bytes() == before


def test_what_is_said_of_another_sae_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    old = Annotations(tmp_path, "a" * 64)
    old.change(1, tags=["old"])
    document = old.to_json()
    assert document["sae_sha256"] == "a" * 64
    new = Annotations(tmp_path, "b" * 64)
    assert new.features == {}
    assert "it is of another SAE (aaaaaaaaaaaa)" in (new.problem or "")
    with pytest.raises(BadQuery, match="another SAE"):
        new.merge(document, d_sae=9)
    new.change(2, tags=["new"])
    assert new.problem is None
    assert json.loads((tmp_path / "annotations.aside-1.json").read_text()) == document
    del document["sae_sha256"]
    assert new.merge(document, d_sae=9) == 1  # which does not say
    assert new.tags(1) == ["old"]


def test_names_are_read_whatever_the_file_holds(tmp_path: Path) -> None:
    assert read_names(tmp_path, 10) == ({}, None)
    lines = [
        "feature\tname\tscore\tmethod\textra",
        "3\ta <b>dog</b>\t0.75\tlabels\tx",
        "1\tright \u202eto left\tnan\t",
        "2\t\t1\tempty name",
        "2\tsecond line of 2 stands\tbad",
        "3\tagain\t1\tm",
        "10\tbeyond\t1\tm",
        "-1\tnegative\t1\tm",
        "x\tno number",
        "",
        "4",
        f"5\t{'long ' * 100}\t1\tm\r",
    ]
    (tmp_path / "names.tsv").write_bytes("\n".join(lines).encode() + b"\n6\t\xff\xfe\t1\tm\n")
    names, problem = read_names(tmp_path, 10)
    assert names[3] == Name("a <b>dog</b>", 0.75, "labels")
    assert names[1] == Name("right to left", None, "")
    assert names[2] == Name("second line of 2 stands", None, "")
    assert len(names[5].name) == 200
    assert names[6].name == "��"
    assert list(names) == [1, 2, 3, 5, 6]
    assert problem == "4 lines of names.tsv are left out: they name no feature of this run, or one again."
    (tmp_path / "names.tsv").write_text("id\tword\n1\tdog\n")
    assert read_names(tmp_path, 10)[0] == {}
    assert "must name the columns feature and name" in (read_names(tmp_path, 10)[1] or "")


@pytest.fixture
def writable(run_path: Path, tmp_path: Path) -> TestClient:
    """A client of a copy of the made run."""
    shutil.copytree(run_path, tmp_path / "run")
    shutil.copytree(run_path.parent / "store.zarr", tmp_path / "store.zarr")
    return TestClient(make_app(Explorer([tmp_path / "run"])), base_url="http://127.0.0.1")


def test_changes_are_posted_listed_and_saved(writable: TestClient) -> None:
    with writable as client:
        answer = client.post("/annotations/5", json={"tags": ["<i>dog</i>"], "note": "</textarea><script>"})
        assert answer.json()["tags"] == ["<i>dog</i>"]
        assert client.post("/annotations/6", json={"sensitive": True}).json()["sensitive"] is True
        for path in ("/notes", "/f/5", "/features?ids=5"):
            text = client.get(path).text
            assert "<i>dog" not in text
            assert "</textarea><script>" not in text
        listed = client.get("/notes.json").json()
        assert [each["row"]["id"] for each in listed["noted"]] == [5, 6]
        assert 'class="thumbs sensitive" href="/f/6"' in client.get("/notes").text
        document = client.get("/annotations.json").json()
        assert document["features"]["5"] == {"tags": ["<i>dog</i>"], "note": "</textarea><script>"}
        client.post("/annotations/5", json={"tags": [], "note": ""})
        assert client.post("/annotations", json=document).json() == {"n_features": 2}
        assert client.get("/annotations.json").json() == document


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/annotations/99999", b'{"sensitive": true}', 404),
        ("/annotations/5", b"", 400),
        ("/annotations/5", b"[]", 400),
        ("/annotations/5", b"{}", 400),
        ("/annotations/5", b'{"tags": null, "other": 1}', 400),
        ("/annotations/5", b'{"note": 5}', 400),
        ("/annotations/5", b'{"sensitive": 1}', 400),
        ("/annotations/5", b'{"tags": {"a": 1}}', 400),
        ("/annotations", b"{}", 400),
        ("/annotations", b"[" * 100_000, 400),
    ],
)
def test_what_is_no_change_is_refused(client: TestClient, run_path: Path, path: str, body: bytes, status: int) -> None:
    answer = client.post(path, content=body)
    assert answer.status_code == status
    assert answer.json()["error"]
    assert not (run_path / "annotations.json").exists()


def test_a_page_of_another_origin_may_not_annotate(client: TestClient) -> None:
    for headers in ({"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}):
        assert client.post("/annotations/5", content=b'{"sensitive": true}', headers=headers).status_code == 403
