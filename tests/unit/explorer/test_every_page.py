"""What holds for each page and address of the explorer, whatever module it is of."""

import json
import re
from html.parser import HTMLParser

import pytest
from explored import HOSTILE_LABELS, make_explored_run
from starlette.testclient import TestClient
from thresher.analysis.explorer.app import chapters, make_app
from thresher.analysis.explorer.several import Explorer

PAGES = [page for chapter in chapters() for page in chapter.pages]
ENDPOINTS = [end for chapter in chapters() for end in chapter.endpoints]
WITHOUT = ("/neurons/0",)  # the made runs have no alignment


def address_of(path):
    """An address of a path; the first of what it numbers, the other run of those it names."""
    return re.sub(r"{\w+(:\w+)?}", lambda match: "0" if match[1] else "run-2", path)


ADDRESSES = [address_of(page.path) for page in PAGES]
ATTRIBUTES = {"style", "background", "srcdoc"}


class Parsed(HTMLParser):
    """What a page is made of, as far as its safety goes."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.inline, self.addresses, self.tags, self.texts, self.ids = [], [], [], [], []
        self._data = None
        self.json = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append(tag)
        self.inline += [f"{tag} {name}" for name in given if name.startswith("on") or name in ATTRIBUTES]
        self.addresses += [given[name] for name in ("src", "href", "action", "srcset") if given.get(name)]
        if given.get("id"):
            self.ids.append(given["id"])
        if tag == "style" or (tag == "script" and "src" not in given and given.get("type") != "application/json"):
            self.inline.append(tag)
        self._data = [] if given.get("type") == "application/json" else None

    def handle_data(self, data):
        if self._data is not None:
            self._data.append(data)
        else:
            self.texts.append(data)

    def handle_endtag(self, tag):
        if tag == "script" and self._data is not None:
            self.json.append(json.loads("".join(self._data)))
            self._data = None


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two runs of a store whose first labels are hostile."""
    folder = tmp_path_factory.mktemp("two")
    paths = [
        make_explored_run(folder, n_features=300, n_images=400, name=name, seed=seed).path
        for seed, name in enumerate(("run", "run-2"))
    ]
    with TestClient(make_app(Explorer(paths)), base_url="http://127.0.0.1") as client:
        yield client


@pytest.mark.parametrize("root", ["", "/runs/run-2"])
@pytest.mark.parametrize("address", ADDRESSES)
def test_a_page_runs_and_loads_nothing_but_its_own(two, root, address):
    answer = two.get(root + (address.replace("/run-2", "/run") if root else address))
    assert answer.status_code == (503 if address in WITHOUT else 200), answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    page = Parsed(answer.text)
    assert page.inline == []
    assert [each for each in page.addresses if not each.startswith(("/", "#", "?", "data:image/"))] == []
    assert [each for each in page.addresses if each.startswith("//")] == []
    assert len(page.ids) == len(set(page.ids)), "ids are unique"
    assert page.tags.count("h1") == 1
    assert "script" not in "".join(tag for tag in page.tags if tag not in ("script", "noscript"))
    assert page.tags.count("img") == len(re.findall(r"<img [^>]*\balt=", answer.text)), "each picture has its alt"


def test_what_pages_link_to_is_there(two):
    """Of a page's many pictures and features the first few."""
    targets = set()
    for address in ADDRESSES:
        links = [link.partition("#")[0] for link in Parsed(two.get(address).text).addresses]
        of_kind = {}
        for link in links:
            full = address + link if link.startswith("?") else link
            of_kind.setdefault(re.sub(r"\d+", "", full), full)
        targets |= {link for link in of_kind.values() if link.startswith("/")}
    wrong = {target: two.get(target).status_code for target in sorted(targets)}
    assert {target: status for target, status in wrong.items() if status not in (200, 503)} == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_a_twin_in_json(two, page):
    address = address_of(page.path)
    answer = two.get("/index.json" if address == "/" else f"{address}.json")
    assert answer.status_code == (503 if address in WITHOUT else 200)
    assert answer.headers["content-type"] == "application/json"
    assert isinstance(json.loads(answer.text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")), dict)


def test_hostile_names_are_text(two):
    """They are on the page of their class and nowhere an element."""
    for label, name in enumerate(HOSTILE_LABELS):
        answer = two.get(f"/c/{label}")
        assert answer.status_code == 200
        page = Parsed(answer.text)
        shown = " ".join("".join(page.texts).split())
        assert " ".join(name.split()) in shown
        assert "49" not in re.sub(r"[\d.,]{3,}", "", name)
        assert page.inline == []
        assert page.tags.count("title") == 1
    assert "<script>alert" not in "".join(two.get(address).text for address in ADDRESSES)


@pytest.mark.parametrize("address", [each for each in ADDRESSES if "0" in each and each not in WITHOUT])
def test_a_number_that_is_none_is_told_in_one_line(two, address):
    for number in ("99999999", "9" * 30):
        answer = two.get(address.replace("0", number))
        assert answer.status_code == 404
        assert "Traceback" not in answer.text
        twin = two.get(address.replace("0", number) + ".json")
        assert twin.status_code == 404


@pytest.mark.parametrize("address", ["/nowhere", "/f/5/", "/static", "/runs/run-2/nowhere", "/runs/run-2/f/5/"])
def test_what_is_not_there_is_a_page_too(two, address):
    answer = two.get(address, follow_redirects=False)
    assert answer.status_code == 404
    assert "There is no such page." in answer.text


@pytest.mark.parametrize("end", [end for end in ENDPOINTS if end.is_post], ids=lambda end: end.path)
@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"{}" * 1000, b"[" * 100_000, b"1e999"]
)
def test_a_body_that_is_rubbish_is_refused(two, end, body):
    answer = two.post(address_of(end.path), content=body)
    assert 400 <= answer.status_code < 500 or answer.status_code in (200, 503)
    assert "Traceback" not in answer.text


def test_a_json_address_that_is_no_page_says_so_as_json(two):
    answer = two.get("/nothing.json")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/json")
    assert answer.json() == {"error": "There is no such page."}


def test_the_titles_of_pages_name_the_run(two):
    for root, name in (("", "run"), ("/runs/run-2", "run-2")):
        for address, title in (
            ("/", "Overview"),
            ("/f/3", "Feature 3"),
            ("/atlas", "Atlas"),
            ("/notes", "Names, tags and notes"),
        ):
            assert f"<title>{title} · {name} · Thresher</title>" in two.get(root + address).text
    assert "<title>Not found · run · Thresher</title>" in two.get("/nothing").text
