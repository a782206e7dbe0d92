"""What stands in the place of the file of annotations may be anything."""

import json
import os
import shutil
import threading

import pytest
from thresher.analysis.explorer.annotations import Annotations
from thresher.analysis.explorer.page import Unavailable
from thresher.cli import main


@pytest.fixture
def within():
    """Call a function; it fails where that does not end in 5 s, as it must though a pipe is never written to."""

    def call(function, *arguments, **values):
        found = []

        def run():
            try:
                found.append(function(*arguments, **values))
            except Exception as error:
                found.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(5)
        assert found, "it hangs"
        return found[0]

    return call


def pipe(path):
    os.mkfifo(path)


def folder(path):
    path.mkdir()
    (path / "thesis.tex").write_text("years of work")


def nowhere(path):
    path.symlink_to(path)


@pytest.mark.parametrize(("make", "why"), [(pipe, "it is no file"), (folder, "it is no file")])
def test_what_is_no_file_is_told_left_alone_and_moved_aside_by_the_first_change(tmp_path, within, make, why):
    path = tmp_path / "annotations.json"
    make(path)
    annotations = Annotations(tmp_path)
    assert within(lambda: annotations.problem) == f"annotations.json cannot be read and is left alone: {why}."
    assert annotations.features == {}
    within(annotations.change, 3, note="mine")
    assert json.loads(path.read_text())["features"]["3"]["note"] == "mine"
    assert annotations.problem is None
    aside = tmp_path / "annotations.aside-1.json"
    assert aside.is_fifo() if make is pipe else (aside / "thesis.tex").read_text() == "years of work"


def test_a_link_that_leads_nowhere_is_told(tmp_path, within):
    nowhere(tmp_path / "annotations.json")
    annotations = Annotations(tmp_path)
    assert within(lambda: annotations.problem).startswith("annotations.json cannot be read (")


@pytest.mark.parametrize("make", [pipe, folder])
def test_what_is_no_lock_file_is_told_on_a_change(tmp_path, within, make):
    make(tmp_path / ".annotations.json.lock")
    annotations = Annotations(tmp_path)
    found = within(annotations.change, 3, note="mine")
    assert isinstance(found, Unavailable)
    assert "annotations.json cannot be written beside the run" in str(found)
    assert annotations.note(3) == ""


def test_the_explorer_says_at_its_start_that_annotations_cannot_be_read(run_path, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    shutil.copytree(run_path, run)
    pipe(run / "annotations.json")
    monkeypatch.setattr("uvicorn.Server.run", lambda *arguments, **values: None)
    main(["explore", str(run), "--no-browser", "--port", "0"], standalone_mode=False)
    assert "annotations.json cannot be read and is left alone: it is no file." in " ".join(
        capsys.readouterr().err.split()
    )
