"""Virtual environments of the peers, each made once."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

PIP_TIMEOUT_S = 1800


@dataclass(frozen=True)
class Environment:
    """One virtual environment."""

    name: str
    requirements: tuple[str, ...]
    python: tuple[str, ...] = ("python3.11", "python3.12", "python3.13", "python3")
    """Interpreters that its packages run on; the first that is found is taken."""


def python_of(environment: Environment, folder: Path, interpreters: dict[str, str]) -> tuple[str | None, str]:
    """The interpreter of an environment, made where it is not there yet.

    Parameters
    ----------
    environment
        Which.
    folder
        Of all environments.
    interpreters
        Where to find interpreters that are not on PATH, by name.

    Returns
    -------
    python, reason
        Path of the interpreter, or None and why there is none.
    """
    target = folder / environment.name
    python, record = target / "bin" / "python", target / "requirements.json"
    wanted = json.dumps(environment.requirements)
    if record.exists() and record.read_text() == wanted:
        return str(python), ""
    found = [interpreters.get(name) or shutil.which(name) for name in environment.python]
    base = next((path for path in found if path), None)
    if base is None:
        return None, f"needs one of {', '.join(environment.python)}; none is on PATH"
    shutil.rmtree(target, ignore_errors=True)
    for command in ([base, "-m", "venv", target], [python, "-m", "pip", "install", "-q", *environment.requirements]):
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=PIP_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            return None, f"not installed within {PIP_TIMEOUT_S} s"
        if run.returncode:
            lines = [line for line in run.stderr.splitlines() if line.strip() and not line.startswith("[notice]")]
            return None, f"not installed on {Path(base).name}: {lines[-1] if lines else 'no message'}"
    record.write_text(wanted)
    return str(python), ""


def versions(python: str, packages: tuple[str, ...]) -> str:
    """Versions of some packages in an environment, for the table's foot."""
    program = (
        "import sys, importlib.metadata as m;"
        "print('Python ' + sys.version.split()[0], *[p + ' ' + m.version(p) for p in sys.argv[1:]], sep=', ')"
    )
    return subprocess.run([python, "-c", program, *packages], capture_output=True, text=True, check=True).stdout.strip()
