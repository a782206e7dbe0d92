"""The report on names, pictures and agreement: numbers by hand, hostile words as text, damage as a sentence."""

import io
import json
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from thresher.analysis.naming.names_file import Name, write_names
from thresher.analysis.report_names import names_section
from thresher.analysis.report_page import Page, render
from thresher.analysis.report_pictures import agreement_section, pictures_section
from thresher.analysis.visualising.agreement import ARRAYS
from thresher.analysis.visualising.checks import RULES, Checks
from thresher.analysis.visualising.figures import agreement_figure, checks_figure
from thresher.analysis.visualising.nulls import KINDS
from thresher.analysis.visualising.pictures import as_webp
from thresher.analysis.visualising.table import summarise
from thresher.analysis.visualising.visualisations_file import FOLDER, Visualisation, write_visualisations

HOSTILE = "</td><script>alert('x')</script> & \"q\" $x^$ {{ 7*7 }}"
D_SAE = 40


def line(feature, *, passed=True, ratio=1.2, rank=1, picture=None):
    checks = Checks(
        activation=2.0,
        activation_ratio=ratio,
        percentile=99.0,
        rank=rank,
        share_of_code=0.2,
        l0=16,
        retention_jpeg=0.9,
        retention_blur=0.8,
        retention_crop=0.7,
        transfer_percentile=97.0,
    )
    why = "" if passed else HOSTILE
    return Visualisation(
        feature=feature,
        picture=f"{feature}.webp" if picture is None else picture,
        parametrisation="maco",
        seed=0,
        checks=checks,
        verdict="passed" if passed else "failed",
        why=why,
    )


class Details:
    def __init__(self, arrays):
        self.arrays = arrays

    def has(self, name):
        return name in self.arrays

    def array(self, name):
        return self.arrays[name]


@pytest.fixture
def run(tmp_path):
    return SimpleNamespace(path=tmp_path, d_sae=D_SAE)


def stored(**arrays):
    rows = np.tile(np.arange(20), (D_SAE, 1))
    statistics = SimpleNamespace(top_row=rows, label_entropy=np.linspace(0, 3, D_SAE).astype(np.float32))
    return SimpleNamespace(details=Details(arrays), statistics=statistics, summary={"store_fingerprint": "f"})


@pytest.fixture
def pictured(run):
    """Three pictures of which two passed, one of them damaged, beside two nulls."""
    folder = run.path / FOLDER
    folder.mkdir()
    lines = [line(3), line(7, passed=False, rank=30), line(9, ratio=2.2)]
    for feature, colour in ((3, 200), (7, 90)):
        (folder / f"{feature}.webp").write_bytes(as_webp(np.full((48, 48, 3), colour, np.uint8)))
    (folder / "9.webp").write_bytes(b"no picture")
    write_visualisations(folder / "visualisations.tsv", lines)
    nulls = [("noise", line(5, passed=False, ratio=0.0, rank=17, picture="")), ("top images", line(3, picture=""))]
    write_visualisations(folder / "nulls.tsv", [each for _, each in nulls], [kind for kind, _ in nulls])
    kinds = summarise([*(("pictures", each) for each in lines), *nulls])
    document = {"format": "thresher-visualisation-checks", "rules": RULES, "input_size": [64, 64], "blur_px": 64 / 224}
    document["kinds"] = [{**vars(kind), "words": "some words"} for kind in kinds]
    (folder / "checks.json").write_text(json.dumps(document))
    return run


def test_a_median_of_a_few_defined_values_stands_for_no_kind():
    silent = line(1, passed=False, ratio=0.0, rank=17, picture="")
    silent = replace(silent, checks=replace(silent.checks, retention_jpeg=math.nan))
    (most,) = summarise([("noise", silent), ("noise", silent), ("noise", line(2))])
    assert most.medians["retention_jpeg"] is None  # one of three
    assert most.medians["rank"] == 17
    (half,) = summarise([("noise", silent), ("noise", line(2))])
    assert half.medians["retention_jpeg"] == line(2).checks.retention_jpeg


def html_of(section):
    return render(Page(title="t", summary=[], sections=[section], provenance=[]))


def test_the_best_and_the_worst_names_stand_in_two_tables_with_their_scores(run):
    names = {
        feature: Name(name=f"word {feature}", score=feature / 100, method="causal", auroc=0.9, alternatives=("a", "b"))
        for feature in range(30)
    }
    names[30] = Name(name=HOSTILE, score=0.99, method="causal", ablation_z=4.25)
    names[31] = Name(name="not it", score=1.0, method="causal", status="unnamed")
    names[32] = Name(name="", score=None, method="causal", status="untested")
    write_names(run.path, names)
    section = names_section(run)
    best, worst = section.tables
    assert best.rows[0] == [f"{HOSTILE} (30)", "0.990", "undefined", "4.2", "undefined", "–"]
    assert [row[0] for row in best.rows[1:3]] == ["word 29 (29)", "word 28 (28)"]
    assert best.rows[1][5] == "a, b"
    assert [row[0] for row in worst.rows] == [f"word {feature} ({feature})" for feature in range(9, -1, -1)]
    assert section.text[0].startswith("31 of 33 features are named (93.9 %); of 1 no phrase")
    assert "has no calibration" in section.text[1]
    assert "<script>" not in html_of(section)


def test_no_names_name_the_command_and_a_damaged_file_says_so(run):
    assert "`thresher name " in names_section(run).absent
    (run.path / "names.tsv").write_text("nothing of use")
    assert "must name the columns feature and name" in names_section(run).absent


def test_the_calibration_table_has_every_method_by_falling_share_of_right_names(run):
    write_names(run.path, {0: Name(name="dog", score=0.8, method="causal")})

    def share(value, n=50):
        return {"value": value, "low": None if value is None else value - 0.1, "high": value, "n": n}

    def row(label, right):
        shares = {column: share(0.9) for column in ("nearly", "named")}
        return {"label": label, "right": share(right), **shares, "right_of_named": share(None, 0)}

    document = {
        "format": "thresher-naming-calibration",
        "n_features": 50,
        "source": "known.tsv",
        "winner": {"label": "data, best scored"},
        "named": [row("causal, nearest", 0.5), row("data, best scored", 0.625)],
        "references": [{"label": "shuffled features", "right": share(0.02), "nearly": share(0.1)}],
        "score_auroc": 0.8123,
        "reliability": [{"at_least": 0.5, "right": share(0.6), "nearly": share(0.7)}],
    }
    (run.path / "naming").mkdir()
    path = run.path / "naming" / "calibration.json"
    path.write_text(json.dumps(document))
    _, methods, scores = names_section(run).tables
    assert [each[0] for each in methods.rows] == ["data, best scored", "causal, nearest", "shuffled features"]
    assert methods.rows[0][1].replace("\N{NO-BREAK SPACE}", " ") == "62.5 % [52.5, 62.5]"
    assert methods.rows[0][4] == "–"
    assert scores.rows[0][:2] == ["0.5", "50"]
    path.write_text("{")
    assert len(names_section(run).tables) == 1


def test_pictures_are_counted_tabled_and_shown_by_verdict(pictured):
    section = pictures_section(pictured, stored(), None)
    assert section.text[0].startswith("2 of 3 pictures passed. A picture passes when")
    assert all(rule in section.text[0] for rule in RULES)
    (table,) = section.tables
    assert [row[0] for row in table.rows] == ["pictures", "top images", "noise"]
    # Wilson's interval of 2 of 3, z = 1.96: centre (2/3 + z^2/6) / (1 + z^2/3) = 0.5731, half width 0.3654
    assert table.rows[0][1].replace("\N{NO-BREAK SPACE}", " ") == "2 of 3: 66.7 % [20.8, 93.9]"
    assert table.rows[0][2:4] == ["1.2", "1"]  # the medians of 1.2, 1.2, 2.2 and of 1, 1, 30
    assert table.rows[2][1].startswith("0 of 1: 0.0 %")
    names = [figure.path.name for figure in section.figures]
    assert names == ["picture_checks.png", "sheet_pictures_passed.png", "sheet_pictures_failed.png"]
    for figure in section.figures:
        assert figure.path.stat().st_size > 3000
    text = html_of(section)
    assert "<script>" not in text
    assert len(re.findall("<img ", text)) == 3


def test_the_sheet_shows_the_picture_and_frames_what_cannot_be_read(pictured):
    section = pictures_section(pictured, stored(), None)
    with Image.open(section.figures[2].path) as opened:
        pixels = np.asarray(opened.convert("RGB")).astype(int)
    assert (np.abs(pixels - 90).max(axis=2) <= 3).sum() > 140 * 140  # the failed picture, of even grey, at 144 pixels
    assert section.figures[1].path.stat().st_size > 3000  # the passed ones, one of which is damaged


def test_no_pictures_name_the_command(run):
    assert "`thresher visualise " in pictures_section(run, stored(), None).absent


def test_pictures_without_the_summary_are_shown_without_its_table(pictured):
    (pictured.path / FOLDER / "checks.json").unlink()
    section = pictures_section(pictured, stored(), None)
    assert section.tables == []
    assert "checks.json is gone or damaged" in section.text[0]
    assert len(section.figures) == 2


def test_agreement_is_told_with_its_median_and_shares(pictured):
    values = np.full(D_SAE, np.nan, np.float32)
    values[:8] = [10, 40, 76, 77, 80, 90, 95, 100]
    section = agreement_section(pictured, stored(**dict.fromkeys(ARRAYS, values)))
    assert section.text[1] == (
        "Of 8 features with all three the median agreement is 78.5; 75.0 % have 75 or more, 25.0 % less than chance."
    )
    assert section.figures[0].path.name == "agreement.png"
    assert "all three 78" in section.figures[0].alt


def test_agreement_that_is_not_there_or_of_no_feature_is_said(pictured):
    assert "`thresher visualise " in agreement_section(pictured, stored()).absent
    nothing = np.full(D_SAE, np.nan, np.float32)
    section = agreement_section(pictured, stored(**dict.fromkeys(ARRAYS, nothing)))
    assert section.text[1].startswith("No feature has all three")


def test_figures_draw_every_kind_and_undefined_columns():
    draw = np.random.default_rng(0)
    columns = ("activation_ratio", "rank", "retention_jpeg", "retention_blur", "retention_crop", "transfer_percentile")
    kinds = {kind: {column: 1 + draw.random(20) for column in columns} for kind in KINDS}
    kinds["noise"]["transfer_percentile"][:] = np.nan
    figure = checks_figure(kinds)
    texts = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert texts == [f"{kind} (20)" for kind in KINDS]
    assert "  undefined" in [text.get_text() for axes in figure.axes for text in axes.texts]
    arrays = dict.fromkeys(ARRAYS, draw.uniform(0, 100, 60).astype(np.float32))
    drawn = agreement_figure(arrays, draw.random(60).astype(np.float32), draw.random(60) < 0.5)
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png")
    assert len(drawn.axes) == 2
    legend = [text.get_text() for text in drawn.axes[0].get_legend().get_texts()]
    assert legend[0] == f"all three: 60, median {np.median(arrays['agreement']):.0f}"
