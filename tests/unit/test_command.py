import signal
from dataclasses import dataclass

import click
import pytest
from click.testing import CliRunner
from thresher.cli import main
from thresher.command import GroupedCommand, StorePlace, edge, given, given_values, options_of, to_json
from thresher.options import option
from thresher.progress import printable
from thresher.store.errors import StoreError


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a made-up command."""

    layer: tuple[int, ...] = option("Layers.", default=(22,))
    name: str = option("A word.", default="a", choices=("a", "b"))
    limit: int | None = option("At most.", default=None)
    draw: bool = option("Draw.", default=True)
    force: bool = option("Force.", default=False)
    l1_coefficient: float = option("Weight.", default=0.5, flag="--l1")


def run(arguments):
    seen = {}

    @click.command()
    @options_of(Options)
    @click.pass_context
    @edge
    def command(context, **_):
        seen.update(given(context, Options))

    return CliRunner().invoke(command, arguments), seen


def test_only_what_the_user_gave_is_given_in_the_dataclass_s_types():
    result, seen = run([])
    assert (result.exit_code, seen) == (0, {})
    result, seen = run(
        ["--layer", "3", "--layer", "5", "--name", "b", "--limit", "7", "--no-draw", "--force", "--l1", "2"]
    )
    assert result.exit_code == 0
    assert seen == {
        "layer": (3, 5),
        "name": "b",
        "limit": 7,
        "draw": False,
        "force": True,
        "l1_coefficient": 2.0,
    }


def test_help_shows_the_dataclass_s_defaults_and_words():
    text = run(["--help"])[0].output
    for part in ("--l1", "0.5", "[a|b]", "--no-draw", "Layers.", "22"):
        assert part in text


@dataclass(frozen=True, kw_only=True)
class Several:
    """Options of a made-up command that each take several values."""

    k: int = option("Kept.", default=32, heading="Sparsity")
    kind: str | None = option("Kind.", default=None, choices=("a", "b"))
    caption: str = option("Text.", default="of a {}", is_text=True, heading="Images")
    rate: float = option("Rate.", default=0.5)
    force: bool = option("Force.", default=False)


def run_several(arguments):
    seen = {}

    @click.command(cls=GroupedCommand)
    @click.argument("place")
    @options_of(Several, several=True)
    @click.option("--json", is_flag=True, help="As JSON.")
    @click.pass_context
    @edge
    def command(context, **_):
        seen.update(given_values(context, Several))

    return CliRunner().invoke(command, arguments), seen


def test_several_values_come_with_commas_or_by_repetition_each_once_in_the_order_given():
    result, seen = run_several(["p"])
    assert (result.exit_code, seen) == (0, {})
    arguments = [
        "p",
        "--rate",
        "1e-3,2",
        "--k",
        "16, 32",
        "--k",
        "16,64",
        "--kind",
        "b",
        "--force",
        "--caption",
        "a, {}",
    ]
    result, seen = run_several(arguments)
    assert result.exit_code == 0
    assert seen == {"rate": (0.001, 2.0), "k": (16, 32, 64), "kind": ("b",), "force": (True,), "caption": ("a, {}",)}
    assert list(seen)[:2] == ["rate", "k"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--k", "16,x"], "Invalid value for '--k': 'x' is not a valid integer."),
        (["--k", "16,"], "Invalid value for '--k': '16,' holds an empty value."),
        (["--k", ""], "Invalid value for '--k': '' holds an empty value."),
        (["--kind", "a,c"], "Invalid value for '--kind': 'c' is not one of 'a', 'b'."),
    ],
)
def test_a_value_that_is_none_is_named_among_several(arguments, says):
    result, _ = run_several(["p", *arguments])
    assert result.exit_code == 2
    assert result.output.splitlines()[-1] == f"Error: {says}"


def test_help_groups_options_below_their_headings_with_their_defaults():
    lines = [line.strip() for line in run_several(["--help"])[0].output.splitlines()]
    order = [lines.index(heading) for heading in ("Sparsity:", "Images:", "Other:")]
    assert order == sorted(order)
    assert lines[order[0] + 1] == "--k INTEGER   Kept.  [default: 32]"
    assert lines[order[0] + 2] == "--kind [a|b]  Kind."
    assert lines[order[2] + 1].startswith("--json")
    assert not any(line.startswith("PLACE") for line in lines[order[0] :])


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (ValueError("layer 30 is out of range"), 2, "layer 30 is out of range"),
        (StoreError("no store"), 1, "no store"),
        (FileNotFoundError(2, "No such file or directory", b"/x/\xff.jpg"), 1, "No such file"),
        (OSError(28, "No space left on device", "/mnt/s"), 1, "/mnt/s: No space left on device: make room"),
        (FileNotFoundError("nowhere does not exist."), 1, "Error: nowhere does not exist.\n"),
        (StoreError("two\nlines\x1b[31m"), 1, "two lines\\x1b[31m"),
        (KeyboardInterrupt(), 1, "stopped by the user"),
        (MemoryError("x"), 1, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "out of memory"),
        (KeyError("oops"), 1, "this is a bug in thresher: KeyError"),
    ],
)
def test_every_error_is_one_line_and_a_status(error, status, text):
    @click.command()
    @edge
    def command():
        raise error

    result = CliRunner().invoke(command, [])
    assert result.exit_code == status
    last = result.output.splitlines()[-1]
    assert last.startswith("Error: ")
    assert text in last + "\n"
    assert "Traceback" not in result.output
    with_traceback = CliRunner().invoke(command, ["--debug"])
    assert "Traceback" in with_traceback.output


def test_a_current_directory_that_is_gone_is_said_to_be(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    result = CliRunner().invoke(main, ["info", "s.zarr"])
    assert result.output == "Error: the current directory does not exist any more: go to another.\n"
    assert result.exit_code == 1


def test_where_memory_runs_out_the_options_that_help_are_named(monkeypatch, tmp_path):
    def fail(*_, **__):
        raise MemoryError("Unable to allocate 36 GiB")

    monkeypatch.setattr("thresher.harvest.run.harvest", fail)
    result = CliRunner().invoke(main, ["harvest", "images", str(tmp_path / "s.zarr")])
    assert "out of memory: take a smaller --batch-size or --rows-per-chunk, or another --device." in result.output


def test_a_result_is_json_with_null_for_nan_and_text_for_paths(tmp_path):
    import json

    import numpy as np

    made = json.loads(to_json({"a": float("nan"), "p": tmp_path, "n": np.arange(2), "x": [np.float32(1)]}))
    assert made == {"a": None, "p": str(tmp_path), "n": [0, 1], "x": [1.0]}


def test_json_holds_any_name_and_no_number_that_json_lacks():
    import json
    import os

    name = os.fsdecode(b"bad\xff\x7f\x1b\nname\xc2\x85")
    text = to_json({"key": name, "x": float("inf"), "ü": "ü\u200d"})
    text.encode("utf-8")
    assert "ü\u200d" in text
    assert not any((ord(c) < 32 and c != "\n") or 126 < ord(c) < 160 for c in text)
    made = json.loads(text)
    assert (made["key"], made["x"]) == (name, None)
    assert os.fsencode(made["key"]) == b"bad\xff\x7f\x1b\nname\xc2\x85"


def test_what_is_printed_is_one_line_of_shown_characters():
    assert printable("a b\u200dü") == "a b\u200dü"
    assert printable("a\nb\x1b[31m\udcff\u2028") == "a\\nb\\x1b[31m\\udcff\\u2028"
    assert printable("a\nb\tc", keep="\n") == "a\nb\\tc"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "s.zarr", "s3://bucket/run"], "s3://bucket/run is a URL: it is a folder on this machine"),
        (["encode", "s3://bucket/run"], "is a URL"),
        (["stats", "m.zarr", "s3://bucket/out"], "is a URL"),
        (["harvest", "images", "s3:/bucket/x.zarr"], "is s3://bucket/x.zarr or ./s3:/bucket/x.zarr meant?"),
        (["harvest", "images", "memory://x.zarr"], "would be gone when this command ends"),
        (["merge", "a.zarr", "b.zarr", "memory://x.zarr"], "would be gone when this command ends"),
        (["harvest", "", "x.zarr"], "IMAGES...': it is empty"),
        (["harvest", "images", ""], "STORE': it is empty"),
        (["train", "s.zarr", ""], "RUN': it is empty"),
        (["info", ""], "it is empty"),
    ],
)
def test_a_place_that_would_be_another_than_is_meant_is_refused(arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert says in result.output
    assert not list(tmp_path.iterdir())


def test_a_windows_path_a_file_url_and_a_name_with_a_colon_are_places():
    @click.command()
    @click.argument("place", type=StorePlace())
    def command(place):
        click.echo(place)

    for place in ("s3://bucket/a b/ü.zarr", "file:///x/y", "a:b.zarr", "./s3:/bucket/x", "C:\\x", "layer:22/x.zarr"):
        assert CliRunner().invoke(command, [place]).output == f"{place}\n"


def test_sigterm_ends_a_command_as_ctrl_c_does():
    cleaned = []

    @click.command()
    @edge
    def command():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            cleaned.append(True)

    before = signal.getsignal(signal.SIGTERM)
    result = CliRunner().invoke(command, [])
    assert result.exit_code == 1
    assert result.output == "Error: stopped by SIGTERM.\n"
    assert cleaned
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_bug_is_told_where_no_log_can_be_written(monkeypatch):
    def no_place(**_):
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.mkstemp", no_place)

    @click.command()
    @edge
    def command():
        raise KeyError("oops")

    result = CliRunner().invoke(command, [])
    assert result.exit_code == 1
    assert result.output.startswith("Error: this is a bug in thresher: KeyError: 'oops' ")
    assert "--debug" in result.output


@pytest.mark.parametrize("command", ["", *main.commands])
def test_every_command_explains_itself_within_80_columns(command):
    result = CliRunner().invoke(main, [*command.split(), "--help"], terminal_width=80)
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert len(lines) > 5
    assert max(map(len, lines)) <= 80
    assert r"\b" not in result.output, "click's mark of lines that it must not join is printed"
    assert all(line.startswith("  Example: ") for line in lines if "Example: " in line)


def test_the_list_of_commands_cuts_no_sentence():
    result = CliRunner().invoke(main, ["--help"], terminal_width=80)
    assert "..." not in result.output.partition("Commands:")[2]
