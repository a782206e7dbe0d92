"""Every command in README and in the help texts is one that the command line takes; README's Python runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from thresher.cli import main

README = (Path(__file__).parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.S)


def commands_in(text: str) -> list[str]:
    """Each `thresher ...` of a text, up to the end of its line or to the next command on it."""
    names = "|".join(main.commands)
    return [part.strip() for part in re.findall(rf"thresher ((?:{names})\b[^\n`&]*)", text)]


SHELL = commands_in("\n".join(text for language, text in BLOCKS if language == "sh"))
INLINE = [part for part in commands_in(re.sub(r"```.*?```", "", README, flags=re.S)) if " " in part]
HELP = [part for command in main.commands.values() for part in commands_in(command.help or "")]


@pytest.mark.parametrize("line", sorted({*SHELL, *INLINE, *HELP}))
def test_the_command_line_takes_it(line):
    name, *arguments = shlex.split(line, comments=True)
    command = main.commands[name]
    try:
        context = command.make_context(name, list(arguments), parent=click.Context(main))
    except click.ClickException as error:
        pytest.fail(f"thresher {line}: {error.format_message()}")
    assert context.params


def test_the_two_commands_of_the_first_screen_are_there():
    first_screen = README[: README.index("## ")]
    assert "pip install '.[explorer]' && .venv/bin/thresher quickstart" in first_screen
    assert re.search(
        r"^python3 -m venv .venv && .venv/bin/pip install -e '.\[test\]' && .venv/bin/pytest$", first_screen, re.M
    )


def test_no_figure_of_readme_is_left_open():
    assert re.search(r"@\w+@|TODO|TBD|\?\?", README) is None


def test_every_file_that_readme_links_to_is_there():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target and (Path(__file__).parents[2] / "store").exists():
            assert (Path(__file__).parents[2] / target).exists(), target


def test_the_python_of_readme_runs(chain):
    folder, _ = chain
    encoding, batches = [text for language, text in BLOCKS if language == "python"]
    code = encoding.replace('"imagenet-l22.zarr"', '"emoji.zarr"').replace('"post"', '"run"')
    code += "\nassert x_hat.shape == x.shape == (256, 192), x_hat.shape\nassert f.shape == (256, sae.d_sae)\n"
    code += "print(float((x_hat - x).square().mean() / x.float().var()))\n"
    code += batches.replace("4096", "100")
    code += "\nassert (batch.epoch, state['epoch']) == (1, 2)"
    code += "\nassert (x.shape, labels.shape, rows.shape) == ((100, 192), (100,), (100,))\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert 0 < float(done.stdout) < 1
