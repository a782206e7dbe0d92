"""How numbers are rounded for people: a share below 1 is no 100 %, a small entropy no 0."""

import numpy as np
import pytest
from starlette.testclient import TestClient
from thresher.analysis.explorer.render import number, percent


@pytest.mark.parametrize(
    ("share", "digits", "text"),
    [
        (1.0, 2, "100 %"),
        (0.9996, 2, "99.96 %"),
        (0.996, 2, "99.6 %"),
        (0.99, 2, "99 %"),
        (0.9996, 4, "99.96 %"),
        (1 - 1e-9, 3, "99.9999999 %"),
        (0.0004, 2, "0.040 %"),
        (0.0, 2, "0 %"),
        (float("nan"), 2, "–"),
        (None, 2, "–"),
    ],
)
def test_only_all_of_something_is_100_per_cent(share: float | None, digits: int, text: str) -> None:
    assert percent(share, digits) == text


def test_no_share_of_many_rows_is_rounded_to_all_or_none() -> None:
    n = 1_281_167
    for count in [*range(1, 50), *range(n - 50, n), *np.random.default_rng(0).integers(1, n, 500).tolist()]:
        for digits in (2, 3, 4):
            shown = float(percent(count / n, digits).removesuffix(" %"))
            assert 0 < shown < 100
            assert shown == pytest.approx(100 * count / n, rel=10.0 ** (1 - digits))


def test_a_small_label_entropy_is_not_shown_as_0(client: TestClient, run, monkeypatch: pytest.MonkeyPatch) -> None:
    feature = int(run.shown[0])
    entropy = run.listing.entropy.copy()
    entropy[feature] = 0.0004
    monkeypatch.setattr(run.listing, "entropy", entropy)
    label = int(run.listing.top_label[feature])
    for page in (f"/features?ids={feature}", f"/c/{label}"):
        assert number(0.0004) in client.get(page).text
