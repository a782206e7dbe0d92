"""The table of a sweep in training: all its numbers on 80 columns, as many lines as fit, plain where nobody watches."""

import io

import pytest
from rich.console import Console
from thresher import progress
from thresher.progress import ConsoleReporter


def rows(n):
    return [
        {"run": f"k={i},expansion=4", "step": 1200 * i, "loss": 0.5 / i, "l0": float(i), "ev": 1 / 3, "dead": 0}
        for i in range(1, n + 1)
    ]


def live(n, *, height, width=80, **changes):
    """What a terminal shows last of a task with `n` rows."""
    reporter = ConsoleReporter()
    stream = io.StringIO()
    reporter._console = Console(file=stream, force_terminal=True, width=width, height=height, color_system=None)
    with reporter.task("train", 1000, "rows") as task:
        task.advance(250)
        task.show_rows([{**row, **changes} for row in rows(n)])
    return [line.rstrip() for line in stream.getvalue().split("\x1b[2K")[-1].splitlines()]


def test_a_terminal_shows_a_line_for_each_row_below_the_bar():
    shown = live(3, height=24)
    assert "train" in shown[0]
    assert "25%" in shown[0]
    assert [line.split() for line in shown[1:4]] == [
        ["run", "step", "loss", "l0", "ev", "dead"],
        ["k=1,expansion=4", "1,200", "0.5", "1", "0.3333", "0"],
        ["k=2,expansion=4", "2,400", "0.25", "2", "0.3333", "0"],
    ]
    assert max(map(len, shown)) <= 80


@pytest.mark.parametrize("n", [1, 20, 21, 22, 40])
def test_a_terminal_shows_as_many_lines_as_it_has_and_counts_the_others(n):
    shown = live(n, height=24)
    lines = [line for line in shown if line.lstrip().startswith("k=")]
    others = [line.strip() for line in shown if "more" in line]
    assert len(lines) == (n if n <= 21 else 20)
    assert others == ([f"and {n - 20} more"] if n > 21 else [])
    assert 1 + 1 + len(lines) + len(others) <= 23


def test_a_long_name_is_cut_and_no_number():
    shown = live(2, height=24, run="variant=matryoshka,target_l0=30," * 4)
    assert shown[2].strip().startswith("variant=matryoshka")
    assert "…" in shown[2]
    assert shown[2].split()[1:] == ["1,200", "0.5", "1", "0.3333", "0"]
    assert max(map(len, shown)) <= 80


def test_a_terminal_of_few_lines_still_shows_the_bar():
    assert any("25%" in line for line in live(9, height=3))


def test_elsewhere_every_ten_seconds_a_line_and_the_rows_below_it(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    reporter = ConsoleReporter()
    stream = io.StringIO()
    reporter._console = Console(file=stream, width=80, soft_wrap=True)
    with reporter.task("train", 1000, "rows") as task:
        for _ in range(4):
            now[0] += 5
            task.show_rows([*rows(2), {"run": "k=3", "step": "stopped"}])
            task.advance(250)
    assert stream.getvalue().splitlines() == [
        "train: 500 of 1,000 rows, 50 rows/s, 10 s left",
        "  run                 step  loss  l0      ev  dead",
        "  k=1,expansion=4    1,200   0.5   1  0.3333     0",
        "  k=2,expansion=4    2,400  0.25   2  0.3333     0",
        "  k=3              stopped",
        "train: 1,000 of 1,000 rows, 50 rows/s, 0 s left",
        "  run                 step  loss  l0      ev  dead",
        "  k=1,expansion=4    1,200   0.5   1  0.3333     0",
        "  k=2,expansion=4    2,400  0.25   2  0.3333     0",
        "  k=3              stopped",
        "train: 1,000 of 1,000 rows, 50 rows/s, done",
        "  run                 step  loss  l0      ev  dead",
        "  k=1,expansion=4    1,200   0.5   1  0.3333     0",
        "  k=2,expansion=4    2,400  0.25   2  0.3333     0",
        "  k=3              stopped",
    ]


def test_control_characters_of_a_name_do_not_reach_the_terminal():
    assert not any("\x1b]" in line for line in live(1, height=24, run="a\x1b]0;b"))


def test_quiet_hides_progress_and_keeps_warnings(capfd):
    reporter = ConsoleReporter(quiet=True)
    reporter.say("where it is")
    with reporter.task("train", 10, "rows") as task:
        task.advance(10)
    reporter.warn("features die")
    assert capfd.readouterr().err == "warning: features die\n"
