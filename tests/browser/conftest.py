"""Headless Chromium, and an explorer of a made run that it visits."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from explored import Explored, make_explored_run
from thresher.analysis.explorer.app import make_app
from thresher.analysis.explorer.options import ExploreOptions
from thresher.analysis.explorer.serve import listen, server
from thresher.analysis.explorer.several import Explorer

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1280,900",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test of this folder is one of a browser."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Explored:
    """What the first run was made with; a second, `run-2`, of the same store stands beside it."""
    folder = tmp_path_factory.mktemp("explored")
    make_explored_run(folder, name="run-2", seed=1)
    return make_explored_run(folder)


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[[list[Path]], str]]:
    """A factory of explorers of some runs: gives the address, without the slash at its end."""
    stops: list[Callable[[], None]] = []

    def start(paths: list[Path]) -> str:
        listening = listen(ExploreOptions(port=0))
        running = server(make_app(Explorer(paths)))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()

        def stop() -> None:
            running.should_exit = True
            thread.join(20)
            listening.close()

        stops.append(stop)
        return f"http://127.0.0.1:{listening.getsockname()[1]}"

    yield start
    for stop in stops:
        stop()


@pytest.fixture(scope="session")
def explorer_url(made: Explored, serve: Callable[[list[Path]], str]) -> str:
    """Where the two runs are explored, without the slash at the end."""
    return serve([made.path, made.path.with_name("run-2")])


@pytest.fixture(scope="session")
def _browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator["object"]:
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if (binary is None or driver is None) and not os.environ.get("CI"):
        pytest.skip("no chromium and chromedriver on this machine (Debian: chromium, chromium-driver)")
    assert binary is not None, "chromium is not installed (Debian: chromium)"
    assert driver is not None, "chromedriver is not installed (Debian: chromium-driver)"
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = binary
    for flag in (*_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = Chrome(options=options, service=Service(driver))
    chrome.set_page_load_timeout(60)
    yield chrome
    chrome.quit()


@pytest.fixture
def browser(_browser):
    """Headless Chromium, 1280 x 900, with nothing remembered; the test fails where a page logs an error or warning."""
    _browser.set_window_size(1280, 900)
    _browser.get("about:blank")
    _browser.get_log("browser")
    yield _browser
    complaints = console_errors(_browser)
    # remembered by the pages' origin, so while one of them is open
    if _browser.current_url.startswith("http"):
        _browser.execute_script("try { localStorage.clear(); sessionStorage.clear(); } catch {}")
    assert complaints == []


def console_errors(browser) -> list[str]:
    """What a browser's console holds of errors and warnings since it was last asked."""
    return [
        f"{entry['level']}: {entry['message']}"
        for entry in browser.get_log("browser")
        if entry["level"] in ("SEVERE", "WARNING")
    ]
