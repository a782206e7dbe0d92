"""The overview in a real browser: the scatter is drawn, pointed at, selected from, clicked and walked with keys."""

import math

import numpy as np
import pytest
from browsing import wait_until
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from thresher.analysis.explorer.runs import ExploredRun

N_MANY = 65_536


def until(browser, condition):
    return wait_until(browser, condition)


def opened(browser, address):
    """The scatter of an overview, once it is drawn and in view."""
    browser.get(address)
    until(browser, lambda b: "drawn" in b.find_element(By.ID, "scatter").get_attribute("class"))
    element = browser.find_element(By.ID, "scatter")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    return element


def text(browser, name):
    return browser.find_element(By.ID, name).text


def pixels(browser, name="points"):
    """How many pixels of a canvas of the scatter are not clear."""
    return browser.execute_script(
        "const c = document.querySelector(`#scatter canvas.${arguments[0]}`);"
        "const d = new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer);"
        "return d.reduce((n, pixel) => n + (pixel !== 0), 0);",
        name,
    )


def drag(browser, element, start, end, key=None):
    """Drag between two places, as shares of the element's width and height from its upper left corner."""
    width, height = element.size["width"], element.size["height"]
    at = [(round((x - 0.5) * width), round((y - 0.5) * height)) for x, y in (start, end)]
    actions = ActionChains(browser, duration=20).move_to_element_with_offset(element, *at[0])
    if key is not None:
        actions.key_down(key)
    actions.click_and_hold().move_to_element_with_offset(element, *at[1]).release()
    if key is not None:
        actions.key_up(key)
    actions.perform()


@pytest.fixture(scope="module")
def points(made):
    return ExploredRun(made.path).points.astype(np.float64)


def count_within(points, **ranges):
    """Features whose numbers lie in ranges, both ends included; of those that have a place."""
    chosen = ~np.isnan(points[0])
    for name, (low, high) in ranges.items():
        values = points["dme".index(name)]
        chosen &= (values >= low) & (values <= high)
    return int(chosen.sum())


def ranges_of(address):
    """The ranges in an address."""
    parts = dict(part.split("=") for part in address.split("?", 1)[1].split("&"))
    return {name: tuple(map(float, parts[name].split(":"))) for name in parts}


def test_the_scatter_and_the_plots_are_drawn(browser, explorer_url, points):
    opened(browser, explorer_url)
    assert pixels(browser) > 2000
    n = count_within(points)
    assert text(browser, "count") == f"{n} of {n} features"
    until(browser, lambda b: len(b.find_elements(By.CSS_SELECTOR, "#curves canvas")) == 4)
    for name in ("density", "entropy", "legend"):
        assert browser.execute_script(
            "const c = document.getElementById(arguments[0]);"
            "return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((value) => value);",
            name,
        ), name


def test_a_definition_is_shown_to_who_points_at_or_focuses_a_tile(browser, explorer_url):
    browser.get(explorer_url)
    tile = browser.find_element(By.CLASS_NAME, "tile")
    definition = tile.find_element(By.CLASS_NAME, "definition")
    assert not definition.is_displayed()
    browser.execute_script("arguments[0].focus()", tile)
    assert definition.is_displayed()
    assert "SSE / SST" in definition.text
    browser.execute_script("arguments[0].blur()", tile)
    assert not definition.is_displayed()
    ActionChains(browser).move_to_element(tile).perform()
    assert definition.is_displayed()


def test_a_drag_selects_and_the_selection_survives_a_reload(browser, explorer_url, points):
    scatter = opened(browser, explorer_url)
    drag(browser, scatter, (0.3, 0.2), (0.7, 0.6))
    until(browser, lambda b: "?d=" in b.current_url)
    address, shown = browser.current_url, text(browser, "count")
    expected = count_within(points, **ranges_of(address))
    assert 0 < expected < count_within(points)
    assert shown == f"{expected} of {count_within(points)} features"
    listed = browser.find_element(By.ID, "as-list").get_attribute("href")
    assert listed == address.replace("/?", "/features?") + "&set=all"
    counted = "fetch(arguments[0]).then((answer) => answer.json()).then((found) => arguments[1](found.total))"
    assert browser.execute_async_script(counted, listed.replace("/features?", "/features.json?")) == expected
    opened(browser, address)
    assert browser.current_url == address
    assert text(browser, "count") == shown
    assert browser.find_element(By.ID, "range-d").get_attribute("value") == address.split("d=")[1].split("&")[0]
    browser.find_element(By.ID, "reset").click()
    assert browser.current_url == f"{explorer_url}/"
    assert text(browser, "count") == f"{count_within(points)} of {count_within(points)} features"


def test_ranges_are_typed_with_open_ends_and_nonsense_is_marked(browser, explorer_url, points):
    opened(browser, explorer_url)
    field = browser.find_element(By.ID, "range-e")
    field.send_keys(":0.5")
    n = count_within(points, e=(-math.inf, 0.5))
    until(browser, lambda b: text(b, "count").startswith(f"{n} of"))
    assert browser.current_url.endswith("/?e=:0.5")
    field.send_keys("x")
    assert browser.execute_script("return arguments[0].matches(':invalid')", field)
    assert text(browser, "count").startswith(f"{n} of")


def ring(browser, scatter):
    """Where the ring around the point under the pointer lies in the scatter; an arrow key shows one."""
    scatter.send_keys(Keys.ARROW_RIGHT)
    until(browser, lambda b: scatter.get_attribute("data-hovered"))
    place = browser.execute_script(
        "const c = document.querySelector('#scatter canvas.over'), w = c.width;"
        "const d = c.getContext('2d').getImageData(0, 0, w, c.height).data;"
        "let n = 0, x = 0, y = 0;"
        "d.forEach((value, i) => {"
        " if (i % 4 === 3 && value) { n++; x += ((i - 3) / 4) % w; y += Math.floor((i - 3) / 4 / w); } });"
        "return [x / n * c.clientWidth / w, y / n * c.clientHeight / c.height];"
    )
    scatter.send_keys(Keys.ESCAPE)
    assert scatter.get_attribute("data-hovered") is None
    return place


def test_a_point_under_the_pointer_has_a_card_with_four_pictures_and_a_click_opens_it(browser, explorer_url):
    scatter = opened(browser, explorer_url)
    left, top = ring(browser, scatter)
    width, height = scatter.size["width"], scatter.size["height"]
    pointer = ActionChains(browser).move_to_element_with_offset(
        scatter, round(left - width / 2), round(top - height / 2)
    )
    pointer.perform()
    feature = until(browser, lambda b: scatter.get_attribute("data-hovered"))
    card = browser.find_element(By.ID, "card")
    pictures = "return [...document.querySelectorAll('#card img')].filter((each) => each.naturalWidth > 0).length"
    until(browser, lambda b: b.execute_script(pictures) == 4)
    assert card.text.startswith(f"Feature {feature}\ndensity")
    pointer.click().perform()
    until(browser, lambda b: b.current_url == f"{explorer_url}/f/{feature}")


def test_a_first_touch_shows_the_card_and_a_second_opens_the_feature(browser, explorer_url):
    scatter = opened(browser, explorer_url)
    left, top = ring(browser, scatter)
    corner = browser.execute_script("const r = arguments[0].getBoundingClientRect(); return [r.left, r.top]", scatter)

    def touch():
        at = {"x": corner[0] + left, "y": corner[1] + top}
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [at]})
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    touch()
    feature = until(browser, lambda b: scatter.get_attribute("data-hovered"))
    assert browser.find_element(By.ID, "card").is_displayed()
    assert browser.current_url == f"{explorer_url}/"
    touch()
    until(browser, lambda b: b.current_url == f"{explorer_url}/f/{feature}")


def test_arrows_walk_through_points_and_enter_opens_one(browser, explorer_url, points):
    scatter = opened(browser, explorer_url)
    scatter.send_keys(Keys.ARROW_LEFT)
    walked = [int(scatter.get_attribute("data-hovered"))]
    for _ in range(5):
        scatter.send_keys(Keys.ARROW_RIGHT)
        walked.append(int(scatter.get_attribute("data-hovered")))
    at = points[0, walked]
    assert (np.diff(at) >= 0).all()
    assert at[-1] > at[0]
    assert f"Feature {walked[-1]}" in browser.find_element(By.ID, "said").get_attribute("textContent")
    scatter.send_keys(Keys.ENTER)
    until(browser, lambda b: b.current_url == f"{explorer_url}/f/{walked[-1]}")


def test_a_feature_opened_from_a_selection_has_it_as_the_list_of_j_and_k(browser, explorer_url, points):
    scatter = opened(browser, f"{explorer_url}/?d=-1.2:-0.8")
    scatter.send_keys(Keys.ARROW_RIGHT)
    feature = int(scatter.get_attribute("data-hovered"))
    scatter.send_keys(Keys.ENTER)
    until(browser, lambda b: b.current_url == f"{explorer_url}/f/{feature}")
    kept = browser.execute_script("return JSON.parse(sessionStorage.getItem('thresher-list-run'))")
    assert kept == np.flatnonzero((points[0] >= -1.2) & (points[0] <= -0.8)).tolist()
    assert feature in kept


def test_the_wheel_zooms_about_the_pointer_moves_with_shift_and_resets(browser, explorer_url):
    scatter = opened(browser, explorer_url)
    image = "return document.querySelector('#scatter canvas.points').toDataURL()"
    before = browser.execute_script(image)
    browser.execute_script(
        "const s = document.getElementById('scatter'), r = s.getBoundingClientRect();"
        "s.dispatchEvent(new WheelEvent('wheel', {deltaY: -1200, clientX: r.left + 300, clientY: r.top + 200,"
        " cancelable: true}));"
    )
    until(browser, lambda b: b.execute_script(image) != before)
    zoomed = browser.execute_script(image)
    drag(browser, scatter, (0.5, 0.5), (0.6, 0.6), Keys.SHIFT)
    until(browser, lambda b: b.execute_script(image) != zoomed)
    assert "?d=" not in browser.current_url
    scatter.send_keys("0")
    until(browser, lambda b: b.execute_script(image) == before)


def test_the_colours_follow_the_theme(browser, explorer_url):
    opened(browser, explorer_url)
    image = "return document.querySelector('#scatter canvas.points').toDataURL()"
    before = browser.execute_script(image)
    browser.find_element(By.ID, "theme").click()
    assert browser.execute_script(image) != before


@pytest.mark.parametrize("width", [1280, 375])
def test_nothing_is_wider_than_the_screen(browser, explorer_url, width):
    browser.set_window_size(width, 800)
    opened(browser, explorer_url)
    for tile in browser.find_elements(By.CLASS_NAME, "tile"):
        browser.execute_script("arguments[0].focus()", tile)
        assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")


def many_points(seed=0):
    """`(3, 65,536)`: two clusters of the sizes and places that the post shows, its share of undefined entropies."""
    rng = np.random.default_rng(seed)
    is_uld = rng.random(N_MANY) < 0.95
    density = np.where(is_uld, rng.normal(-4.6, 0.3, N_MANY), rng.normal(-2, 0.6, N_MANY))
    mean_top = np.where(is_uld, rng.normal(-2, 0.2, N_MANY), rng.normal(0.5, 0.3, N_MANY))
    entropy = np.where(rng.random(N_MANY) < 0.27, np.nan, rng.uniform(0, 3, N_MANY))
    return np.stack([density, mean_top, entropy]).astype(np.float32)


_FRAMES = """
const done = arguments[arguments.length - 1], change = new Function('i', arguments[0]), n = 60;
const scatter = document.getElementById('scatter'), drawn = [], frames = [];
let i = 0, last = null;
function frame(now) {
  if (last !== null) { frames.push(now - last); drawn.push(Number(scatter.dataset.drawMs)); }
  last = now;
  if (i === n) { done([drawn, frames]); return; }
  change(i++);
  requestAnimationFrame(frame);
}
requestAnimationFrame(frame);
"""


def test_65536_points_are_drawn_and_their_times_printed(browser, made, serve, monkeypatch, capsys):
    many = many_points()
    monkeypatch.setattr(ExploredRun, "points", property(lambda run: many))
    opened(browser, serve([made.path]))
    assert text(browser, "count") == "65,536 of 65,536 features"
    first = browser.execute_script(
        "const of = performance.getEntriesByType('resource').find((each) => each.name.endsWith('points.bin'));"
        "return [of.decodedBodySize, of.responseEnd, performance.getEntriesByName('scatter-drawn')[0].startTime];"
    )
    assert first[0] == 786_432
    wheel = (
        "const s = document.getElementById('scatter'), r = s.getBoundingClientRect();"
        "s.dispatchEvent(new WheelEvent('wheel', {deltaY: %s, clientX: r.left + 400, clientY: r.top + 250,"
        " cancelable: true}));"
    )
    rows = {
        "zoom in and out": wheel % "i < 30 ? -40 : 40",
        "pointer moves": "const s = document.getElementById('scatter'), r = s.getBoundingClientRect();"
        "s.dispatchEvent(new PointerEvent('pointermove', {clientX: r.left + 200 + 5 * i, clientY: r.top + 300,"
        " pointerType: 'mouse', bubbles: true}));",
    }
    with capsys.disabled():
        print(f"\n65,536 points: drawn {first[2] - first[1]:.0f} ms after their last byte")
        for name, change in rows.items():
            drawn, frames = (np.array(each) for each in browser.execute_async_script(_FRAMES, change))
            drawing = f"drawing p50 {np.median(drawn):.1f} ms, p95 {np.quantile(drawn, 0.95):.1f} ms; "
            print(
                f"  {name}: {drawing if 'zoom' in name else ''}"
                f"frame to frame p50 {np.median(frames):.1f} ms, p95 {np.quantile(frames, 0.95):.1f} ms"
            )
    assert pixels(browser) > 30_000
