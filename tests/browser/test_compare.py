"""Two runs compared in a browser: matching, the threshold, both scatters, a feature's line."""

import re

from browsing import wait_until
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from thresher.analysis.explorer.match_runs import job_of
from thresher.analysis.explorer.runs import ExploredRun


def wait(browser, until):
    return wait_until(browser, until)


def compared(browser, explorer_url):
    """Opens the page and waits until the runs have been matched."""
    browser.get(f"{explorer_url}/compare")
    wait(browser, lambda b: b.find_elements(By.ID, "recovered-a"))


def test_the_page_shows_itself_once_the_runs_are_matched(browser, explorer_url):
    compared(browser, explorer_url)
    assert "Features that split" in browser.find_element(By.TAG_NAME, "main").text
    assert browser.find_elements(By.CSS_SELECTOR, "details.tree[open] .children li")


def test_the_threshold_changes_the_recovered_share(browser, explorer_url):
    compared(browser, explorer_url)
    share = lambda: float(browser.find_element(By.ID, "recovered-a").text.split()[0])  # noqa: E731
    before = share()
    slider = browser.find_element(By.ID, "threshold")
    slider.send_keys(Keys.HOME)
    assert browser.find_element(By.ID, "threshold-text").text == "0.00"
    assert share() == 100 >= before
    slider.send_keys(Keys.END)
    assert share() <= before


def test_both_scatters_and_histograms_are_drawn(browser, explorer_url):
    compared(browser, explorer_url)
    wait(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "#scatter[data-draw-ms]"))
    drawn = browser.execute_script(
        "return ['best-0', 'best-1'].map((id) => { const c = document.getElementById(id);"
        "return new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size; })"
    )
    assert min(drawn) > 3


_COLOURS = """
const c = document.querySelector('#scatter canvas.points'), found = {};
const context = new OffscreenCanvas(c.width, c.height).getContext('2d', { willReadFrequently: true });
context.drawImage(c, 0, 0);
const r = c.width / c.clientWidth;
const pixels = new Uint32Array(context.getImageData(54 * r, 48 * r, c.width - 108 * r, c.height - 86 * r).data.buffer);
for (const pixel of pixels) found[pixel] = (found[pixel] ?? 0) + 1;
return found;
"""


def test_both_runs_lie_in_one_scatter_with_a_colour_each_and_can_be_left_out(browser, explorer_url):
    compared(browser, explorer_url)
    wait(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "#scatter[data-draw-ms]"))

    def swatches():
        script = "return [...document.querySelectorAll('.swatch')].map((s) => getComputedStyle(s).backgroundColor)"
        return browser.execute_script(script)

    def has(colour):
        """Pixels of a colour among the points."""
        red, green, blue = map(int, re.findall(r"\d+", colour)[:3])
        return browser.execute_script(_COLOURS).get(str(255 << 24 | blue << 16 | green << 8 | red), 0)

    first, second = swatches()
    assert first != second
    wait(browser, lambda b: has(first) > 20 and has(second) > 20)
    browser.find_element(By.ID, "shows-1").click()
    wait(browser, lambda b: has(second) == 0 or len(browser.execute_script(_COLOURS)) > 6)  # by entropy now
    assert set(swatches()) == {"rgba(0, 0, 0, 0)"}
    browser.find_element(By.ID, "shows-0").click()
    wait(browser, lambda b: sum(browser.execute_script(_COLOURS).values()) > 0 and has(first) == has(second) == 0)
    browser.find_element(By.ID, "shows-0").click()
    browser.find_element(By.ID, "shows-1").click()
    wait(browser, lambda b: has(first) > 20 and has(second) > 20)


def test_a_features_page_names_its_best_match(browser, explorer_url, made):
    compared(browser, explorer_url)
    a, b = ExploredRun(made.path), ExploredRun(made.path.with_name("run-2"))
    job = job_of(a, b)
    assert job.done.wait(40)
    browser.get(f"{explorer_url}/f/4")
    line = wait(browser, lambda d: d.find_element(By.CSS_SELECTOR, ".match"))
    assert line.text.startswith(f"Best match in run-2: {job.matches.feature[4, 0]}, cosine ")
    line.find_element(By.TAG_NAME, "a").click()
    wait(browser, lambda d: d.current_url.endswith(f"/runs/run-2/f/{job.matches.feature[4, 0]}"))
