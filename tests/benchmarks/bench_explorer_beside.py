"""The explorer beside the post's Streamlit app: time to the first grid of images, to the next feature, bytes moved.

    python tests/benchmarks/bench_explorer_beside.py RUN --app FOLDER --python ENV/bin/python

FOLDER is a checkout of github.com/HugoFry/SAE-Explorer, ENV an environment with its requirements and `pyarrow<22`.
Both show the same features of RUN in headless Chromium with an empty cache, in turn. Its grids, which the app takes
from a server of its author, are made of the run's own thumbnails and served on this machine, so that no network is in
the figures.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from thresher.analysis.explorer.runs import ExploredRun

HERE = Path(__file__).resolve().parent
GRIDS = "https://saeexplorer.s3.eu-west-2.amazonaws.com/saeexplorer"  # where the app takes its pictures from
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
FEATURES = 1221  # as many as the app shows
STEPS = 10
OURS_DONE = """
const shown = [...document.querySelectorAll('main ol.grid img')].slice(0, 16);
return shown.length > 0 && shown.every((image) => image.complete && image.naturalWidth > 0) ? shown[0].src : null;
"""
THEIRS_DONE = """
const found = [...document.querySelectorAll('img')].find((image) => image.src.includes('highest_activating_images'));
return found && found.complete && found.naturalWidth > 0 ? found.src : null;
"""

PRESS = "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0], bubbles: true}))"
CLICK = """
const found = [...document.querySelectorAll('button')].find((button) => button.innerText.includes(arguments[0]));
if (found) found.click();
return found !== undefined;
"""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--app", type=Path, required=True)
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    a = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {"Thresher": [], "the post's app": []}
    with tempfile.TemporaryDirectory() as folder:
        app = make_app_folder(Path(folder), a.run, a.app, a.python)
        for number in range(a.rounds):
            for name, measure in (
                ("Thresher", partial(ours, a.run)),
                ("the post's app", partial(theirs, app, a.python)),
            ):
                found[name].append(measure())
                print(f"{number}: {name}: {found[name][-1]}", file=sys.stderr, flush=True)
    columns = ("start_s", "first_grid_s", "next_feature_s", "first_bytes", "next_bytes")
    print(f"{a.rounds} rounds, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; medians\n")
    print(
        "| | server's start, s | first grid, s | next feature, s | bytes to the first grid | bytes a further feature |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for name, rounds in found.items():
        medians = [statistics.median(each[column] for each in rounds) for column in columns]
        cells = [f"{value:.2f}" for value in medians[:3]] + [f"{value / 1e3:,.0f} kB" for value in medians[3:]]
        print("| " + " | ".join([name, *cells]) + " |")


def make_app_folder(folder: Path, run_path: Path, app: Path, python: Path) -> Path:
    """The app with its data: a run's features, and their grids as files."""
    run = ExploredRun(run_path)
    chosen = run.shown[:FEATURES]
    s = run.stored.statistics
    numbers = [
        {
            "id": int(feature),
            "density": float(np.log10(run.density[feature])),
            "mean_top": float(s.mean_top[feature]),
            "entropy": float(np.nan_to_num(s.label_entropy[feature], nan=-1.0)),
        }
        for feature in chosen
    ]
    (folder / "features.json").write_text(json.dumps(numbers))
    subprocess.run([python, HERE / "explorer" / "make_app_data.py", folder], check=True)
    (folder / "web_app" / "images").mkdir()
    for feature in chosen[: 4 * STEPS]:  # those that are looked at; its list is shuffled, so the first is drawn for all
        path = folder / "grids" / "neurons" / str(feature) / "highest_activating_images.png"
        path.parent.mkdir(parents=True)
        sheet = Image.new("RGB", (512, 512), "white")
        for place, row in enumerate(s.top_row[feature, :16]):
            if row >= 0 and (picture := run.thumbnail(int(row))) is not None:
                thumbnail = Image.open(BytesIO(picture)).convert("RGB").resize((128, 128))
                sheet.paste(thumbnail, (128 * (place % 4), 128 * (place // 4)))
        sheet.save(path)
    for feature in chosen[4 * STEPS :]:
        path = folder / "grids" / "neurons" / str(feature)
        path.mkdir(parents=True)
        shutil.copy(folder / "grids" / "neurons" / str(chosen[int(feature) % (4 * STEPS)]) / _GRID, path / _GRID)
    source = (app / "web_app.py").read_text()
    (folder / "web_app.py").write_text(source.replace(GRIDS, "http://127.0.0.1:GRIDPORT"))
    return folder


_GRID = "highest_activating_images.png"


def ours(run: Path) -> dict[str, float]:
    """One visit to the explorer: the page of a feature, then the key for the next."""
    port = _free_port()
    command = [sys.executable, "-m", "thresher", "explore", str(run), "--no-browser", "--port", str(port), "--quiet"]
    with _Serving(command, f"http://127.0.0.1:{port}/", Path.cwd()) as serving, _Browser() as browser:
        first = browser.timed(lambda: browser.driver.get(f"http://127.0.0.1:{port}/f/0"), OURS_DONE)
        steps = [browser.timed(lambda: browser.press("j"), OURS_DONE) for _ in range(STEPS)]
        return _answer(serving.start_s, first, steps)


def theirs(folder: Path, python: Path) -> dict[str, float]:
    """One visit to the app: the navigator, then its button for the next neuron."""
    handler = partial(_Quiet, directory=str(folder / "grids"))
    pictures = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=pictures.serve_forever, daemon=True).start()
    here = folder / "served"
    here.mkdir(exist_ok=True)
    (here / "web_app.py").write_text(
        (folder / "web_app.py").read_text().replace("GRIDPORT", str(pictures.server_address[1]))
    )
    if not (here / "web_app").exists():
        (here / "web_app").symlink_to(folder / "web_app")
    port = _free_port()
    command = [str(python), "-m", "streamlit", "run", "web_app.py", "--server.port", str(port)]
    command += ["--server.headless", "true", "--browser.gatherUsageStats", "false", "--server.address", "127.0.0.1"]
    try:
        with _Serving(command, f"http://127.0.0.1:{port}/_stcore/health", here) as serving, _Browser() as browser:

            def open_navigator() -> None:
                browser.driver.get(f"http://127.0.0.1:{port}/")
                browser.click("Neuron navigator")

            first = browser.timed(open_navigator, THEIRS_DONE)
            steps = [browser.timed(lambda: browser.click("Next neuron"), THEIRS_DONE) for _ in range(STEPS)]
            return _answer(serving.start_s, first, steps)
    finally:
        pictures.shutdown()
        pictures.server_close()


def _answer(start_s: float, first: tuple[float, int], steps: list[tuple[float, int]]) -> dict[str, float]:
    return {
        "start_s": start_s,
        "first_grid_s": first[0],
        "next_feature_s": statistics.median(seconds for seconds, _ in steps),
        "first_bytes": first[1],
        "next_bytes": statistics.median(n_bytes for _, n_bytes in steps),
    }


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


class _Serving:
    """A server's process, from its start until it answers."""

    def __init__(self, command: list[str], address: str, folder: Path) -> None:
        import urllib.error
        import urllib.request

        started = time.monotonic()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed when the server is)
        self._process = subprocess.Popen(command, cwd=folder, stdout=self._log, stderr=subprocess.STDOUT)
        while True:
            try:
                urllib.request.urlopen(address, timeout=5).read()
                break
            except (urllib.error.URLError, OSError):
                if self._process.poll() is not None or time.monotonic() - started > 60:
                    self._log.seek(0)
                    raise RuntimeError(self._log.read().decode()[-2000:]) from None
                time.sleep(0.02)
        self.start_s = time.monotonic() - started

    def __enter__(self) -> "_Serving":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(20)
        self._log.close()


class _Browser:
    """Headless Chromium with an empty cache that counts what it receives."""

    def __enter__(self) -> "_Browser":
        options = Options()
        options.binary_location = shutil.which("chromium") or "/usr/bin/chromium"
        for flag in (*FLAGS, "--window-size=1280,1400"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        driver = shutil.which("chromedriver") or "/usr/bin/chromedriver"
        self.driver = webdriver.Chrome(options=options, service=Service(driver))
        self._last: str | None = None
        return self

    def __exit__(self, *_: object) -> None:
        self.driver.quit()

    def timed(self, act: Any, done: str) -> tuple[float, int]:
        """Seconds until another grid is shown whole, and the bytes that came for it."""
        self._received()
        started = time.monotonic()
        act()
        while True:
            shown = self.driver.execute_script(done)
            if shown and shown != self._last:
                seconds, self._last = time.monotonic() - started, shown
                time.sleep(1)  # what is still under way is counted too
                return seconds, self._received()
            if time.monotonic() - started > 60:
                raise RuntimeError(f"no grid within a minute: {self.driver.title}")
            time.sleep(0.005)

    def press(self, key: str) -> None:
        """Press a key on the page."""
        self.driver.execute_script(PRESS, key)

    def click(self, text: str) -> None:
        """Click the button that holds a text, once it is there."""
        for _ in range(3000):
            if self.driver.execute_script(CLICK, text):
                return
            time.sleep(0.01)
        raise RuntimeError(f"no button {text!r}")

    def _received(self) -> int:
        n_bytes = 0
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.loadingFinished":
                n_bytes += int(message["params"]["encodedDataLength"])
            elif message["method"] == "Network.webSocketFrameReceived":
                n_bytes += len(message["params"]["response"]["payloadData"]) * 3 // 4  # binary frames come as base64
        return n_bytes


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


if __name__ == "__main__":
    main()
