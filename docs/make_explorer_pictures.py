"""Make the README's pictures of the explorer: `python docs/make_explorer_pictures.py thresher-quickstart/run`.

Opens the pages of a run in headless Chromium, after `thresher name RUN` and `thresher visualise RUN --features 949`,
and writes `docs/explorer-*.webp`. Needs the `test` extra, chromium and chromedriver.
"""

import argparse
import shutil
import threading
import time
from io import BytesIO
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from thresher.analysis.explorer.app import make_app
from thresher.analysis.explorer.options import ExploreOptions
from thresher.analysis.explorer.serve import listen, server
from thresher.analysis.explorer.several import Explorer

HERE = Path(__file__).resolve().parent
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars", "--disable-sync")
WAIT_S = 5.0  # plots are drawn, pictures and neighbours are there, the map of the atlas is made

# name: path, width, height, dark
PICTURES = {
    "overview": ("/", 1180, 900, False),
    "feature": ("/f/{feature}", 1180, 900, False),
    "atlas": ("/atlas", 1180, 860, True),
    "game": ("/game?seed=3", 1180, 860, False),
}


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--feature", type=int, default=949)
    parser.add_argument("--out", type=Path, default=HERE)
    a = parser.parse_args()
    listening = listen(ExploreOptions(port=0))
    running = server(make_app(Explorer([a.run])))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        for name, (path, width, height, dark) in PICTURES.items():
            picture = screenshot(address + path.format(feature=a.feature), width, height, dark=dark)
            picture.save(a.out / f"explorer-{name}.webp", quality=82, method=6)
            print(a.out / f"explorer-{name}.webp", picture.size)
    finally:
        running.should_exit = True
        thread.join(20)
        listening.close()


def screenshot(address: str, width: int, height: int, *, dark: bool) -> Image.Image:
    """What a page looks like once its scripts are done."""
    options = Options()
    options.binary_location = shutil.which("chromium") or "/usr/bin/chromium"
    for flag in (*FLAGS, f"--window-size={width},{height}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver") or "/usr/bin/chromedriver"))
    try:
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        driver.get(address)
        time.sleep(WAIT_S)
        return Image.open(BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    finally:
        driver.quit()


if __name__ == "__main__":
    main()
