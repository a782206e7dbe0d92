import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import thresher
from thresher.cli import main

ROOT = Path(__file__).parents[2]
NOT_INSTALLED = ("tests", "docs", "build", "dist", ".venv", "harvest/quickstart/make")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this tree, built from a copy so that nothing is left in it."""
    tree, out = tmp_path_factory.mktemp("tree") / "thresher", tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", "tests", ".*_cache")
    shutil.copytree(ROOT, tree, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(tree)]
    subprocess.run(command, check=True, timeout=300)
    return next(out.glob("thresher-*.whl"))


def test_the_wheel_holds_every_source_and_data_file_of_the_tree(wheel):
    held = {
        name.removeprefix("thresher/") for name in zipfile.ZipFile(wheel).namelist() if name.startswith("thresher/")
    }
    tree = set()
    for folder, _, names in os.walk(ROOT):
        place = Path(folder).relative_to(ROOT).as_posix()
        if any(part.startswith(".") or part == "__pycache__" for part in Path(place).parts if part != "."):
            continue
        if any(place == skipped or place.startswith(f"{skipped}/") for skipped in NOT_INSTALLED):
            continue
        tree |= {name if place == "." else f"{place}/{name}" for name in names}
    tree = {
        name
        for name in tree
        if name.endswith(".py")
        or name in ("py.typed", "store/FORMAT.md")
        or name.startswith(("harvest/quickstart/", "analysis/explorer/templates/", "analysis/explorer/static/"))
    }
    tree |= {"harvest/wordnet.tsv.gz", "harvest/WORDNET-LICENSE"}
    missing = {name for name in tree - held if name != "harvest/make_wordnet_table.py"}
    assert missing == set()


def test_the_wheel_carries_the_licences(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)


def test_every_dependency_has_its_reason_and_is_imported_somewhere():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    text = (ROOT / "setup.cfg").read_text()
    block = text.split("install_requires =")[1].split("[options.extras_require]")[0]
    imports = {"open_clip_torch": "open_clip", "pillow": "PIL", "google-crc32c": "google_crc32c"}
    sources = "\n".join(
        path.read_text()
        for room in (".", "store", "harvest", "train", "train/models", "analysis")
        for path in (ROOT / room).glob("*.py")
    )
    for line in block.splitlines():
        name = re.match(r"\s+([a-z][\w-]*)", line)
        if name is None:
            continue
        module = imports.get(name[1], name[1].replace("-", "_"))
        assert re.search(rf"(import|from) {module}\b", sources), f"{name[1]} is required but never imported"
    lines = [line for line in block.splitlines() if line.strip()]
    assert all(lines[i - 1].strip().startswith("#") for i, line in enumerate(lines) if not line.strip().startswith("#"))


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in sorted(main.commands))])
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys\nfrom thresher.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'zarr', 'dask', 'open_clip', 'numpy', 'matplotlib', 'PIL'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "heavy: []", done.stderr


def test_importing_the_package_imports_no_torch_and_the_api_is_there():
    code = (
        "import sys, thresher; print('torch' in sys.modules, thresher.open_store.__name__, thresher.load_sae.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "open_store", "load_sae"], done.stderr
    assert set(thresher.__all__) <= set(dir(thresher))
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = thresher.nothing_such


def test_the_arrows_between_the_rooms_point_one_way():
    allowed = {
        "store": set(),
        "harvest": {"store"},
        "train": {"store"},
        "analysis": {"store", "train", "harvest"},
    }
    for room, targets in allowed.items():
        for path in (ROOT / room).rglob("*.py"):
            if "quickstart/make" in path.as_posix():
                continue
            depth = len(path.relative_to(ROOT).parts) - 1
            for dots, target in re.findall(r"^\s*from (\.+)(\w*)", path.read_text(), re.M):
                if len(dots) == depth + 1 and target in allowed:
                    assert target in targets | {room}, f"{path.relative_to(ROOT)} imports {target}"
                assert target != "cli", f"{path.relative_to(ROOT)} imports cli"


def test_no_file_unpickles():
    for room in ("store", "harvest", "train", "analysis"):
        for path in (ROOT / room).rglob("*.py"):
            text = path.read_text()
            assert not re.search(r"pickle\.loads?\b|allow_pickle=True|weights_only=False", text), path
