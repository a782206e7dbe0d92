"""A search that names one thing says where it leads, not silently an empty list."""

import numpy as np
import pytest


@pytest.mark.parametrize(
    ("q", "said"),
    [
        ("img:3", "img:3 is no feature: the page of that image is i/3."),
        ("IMG: 3", "IMG: 3 is no feature: the page of that image is i/3."),
        ("img:999999", "Row 999999 is not one of the {n_rows:,} rows of the store."),
        ("96", "Feature 96 is not one of the 96 of {name}, 0 to 95."),
        ("123456789012", "Feature 123456789012 is not one of the 96 of {name}, 0 to 95."),
    ],
)
def test_what_is_not_in_the_list_is_said(client, run, q, said):
    found = client.get("/features.json", params={"q": q}).json()
    assert found["message"] == said.format(n_rows=run.features.n_rows, name=run.name)
    assert client.get("/features", params={"q": q}).status_code == 200


def test_a_feature_that_the_filters_leave_out_is_said_to_be_elsewhere(client, run):
    dead = int(np.flatnonzero(run.is_dead)[0])
    found = client.get("/features.json", params={"q": str(dead)}).json()
    assert found["total"] == 0
    assert found["message"] == f"Feature {dead} does not pass these filters: its page is f/{dead}."
    assert client.get("/features.json", params={"q": str(dead), "set": "all"}).json()["message"] is None


@pytest.mark.parametrize("q", ["", "class", "class 6", "img:", "img:x", "-1", "1 2", "3.5", "~"])
def test_words_are_words(client, q):
    assert client.get("/features.json", params={"q": q}).json()["message"] is None
