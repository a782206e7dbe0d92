"""The page of `report`: nothing outside it, everything escaped, its numbers those of the run's files."""

import base64
import io
import itertools
import json
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from thresher.analysis import report as report_module
from thresher.analysis import report_sections
from thresher.analysis.align_options import AlignOptions
from thresher.analysis.attribute_table import AttributeTable
from thresher.analysis.attributes_options import AttributesOptions
from thresher.analysis.encode import encode
from thresher.analysis.given_options import kept_options
from thresher.analysis.known_attributes import attributes_of_run
from thresher.analysis.options import EncodeOptions, StatsOptions
from thresher.analysis.post import differences
from thresher.analysis.report import report
from thresher.analysis.report_figures import alignment_figures
from thresher.analysis.report_numbers import cluster_table
from thresher.analysis.report_page import NumberTable
from thresher.analysis.report_text import Beside
from thresher.analysis.stats import stats
from thresher.analysis.stored_statistics import open_statistics
from thresher.cli import main
from thresher.store.errors import DamagedStoreError, StoreError
from thresher.store.format import Site
from thresher.train.run_dir import open_run

HOSTILE = "</td><script>alert('x')</script><img src=http://evil/x onerror=alert(1)> & \"q\" $x^$ {{ 7*7 }} \u202e"


class Page(HTMLParser):
    """Every element with its attributes, and the rows of every table as text."""

    def __init__(self, text):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.rows: list[list[str]] = []
        self._cell: list[str] | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._cell = []

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.rows[-1].append("".join(self._cell).strip())
            self._cell = None

    def handle_data(self, data):
        if self._cell is not None:
            self._cell.append(data)

    def all(self, *tags):
        return [attrs for tag, attrs in self.elements if tag in tags]


@pytest.fixture
def counted(make_store, make_run):
    """A run with statistics, in a store whose class names are hostile."""
    names = [HOSTILE, *(f"class {i}" for i in range(4))]
    run = make_run(make_store(n=300, thumbnails=False, label_names=names).path)
    encode(run.path)
    stats(run.path, StatsOptions(figures=False, min_labelled=1))
    return run


def _evaluation():
    def way(loss):
        return {"loss": loss, "loss_interval_images": [loss - 0.1, loss + 0.1]}

    shot = {"top1": 0.5, "top5": 0.9, "agreement": 0.8, "top1_interval": [0.4, 0.6], "top5_interval": None}
    return {
        "format": "thresher-evaluation",
        "image_source": HOSTILE,
        "n_images": 77,
        "n_classes": 5,
        "held_out": "none left out",
        "options": {"n_images": 77, "caption": HOSTILE, "repeat_captions": True, "seed": 0},
        "contrastive": {
            "repeats_captions": True,
            "batch_size": 64,
            "ln_batch_size": 4.159,
            "ways": {"original": way(1.2345), "sae": way(1.5678), "zero": way(4.5), "mean": way(3.5)},
            "loss_recovered": 0.8979,
            "loss_recovered_interval_images": [0.85, 0.95],
        },
        "zero_shot": {"original": shot, "sae": shot},
        "classes": [
            {
                "class": HOSTILE,
                "n": 3,
                "top1_original": 1,
                "top1_sae": 0.5,
                "difference": -0.5,
                "low": -0.9,
                "high": 0.1,
            }
        ],
    }


@dataclass
class Reported:
    path: Path
    text: str
    page: Page


_MADE: list[Reported] = []


@pytest.fixture
def full(request):
    """The same run with an evaluation, attributes of hostile names, a contact sheet and its report: made once."""
    if not _MADE:
        run = _completed(request.getfixturevalue("counted"))
        text = report(run.path).path.read_text()
        _MADE.append(Reported(run.path, text, Page(text)))
    return _MADE[0]


def _completed(counted):
    (counted.path / "evaluate.json").write_text(json.dumps(_evaluation()))
    keys = [f"class {i % 5}/picture {i}.jpg" for i in range(300)]
    values = [{HOSTILE: [HOSTILE if i % 3 else "other"]} for i in range(300)]
    table = AttributeTable(source=HOSTILE, keys=keys, values=values, groups=None, group_column=None)
    attributes_of_run(counted.path, table, AttributesOptions(resamples=10, max_share=0.9))
    head = "label\tclass\tn_rows\tn_own_features\tshare_covered\tn_parts\teffective_parts\n"
    (counted.path / "classes.tsv").write_text(f"{head}0\t{HOSTILE} class\t60\t4\t0.91\t3\t2.5\n")
    (counted.path / "figures").mkdir()
    picture = np.random.default_rng(0).integers(0, 255, (500, 500, 3), dtype=np.uint8)
    Image.fromarray(picture).save(counted.path / "figures" / "sheet_random.png")
    return counted


def test_the_page_needs_nothing_outside_itself_and_runs_nothing(full):
    text, page = full.text, full.page
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form", "svg", "video", "audio"}
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in page.elements:
        assert not {name for name in attrs if name.startswith("on") or name in ("style", "srcset", "action")}
        assert attrs.get("src", "data:image/").startswith("data:image/")
        if "href" in attrs:
            assert attrs["href"].startswith("#")
            assert attrs["href"][1:] in ids
        for label in attrs.get("aria-labelledby", "").split():
            assert label in ids
    style = re.search("<style>(.*?)</style>", text, re.S)[1]
    assert "url(" not in style
    assert "@import" not in style


def test_hostile_names_stand_as_text(full):
    page = full.page
    cells = [cell for row in page.rows for cell in row]
    assert HOSTILE in cells  # the class, word for word
    assert f"{HOSTILE}: {HOSTILE}" in cells  # the attribute
    assert [f"{HOSTILE} class", "60", "4", "91.0 %", "3", "2.500"] in full.page.rows
    assert not any("evil" in attrs.get("src", "") for attrs in page.all("img"))


def test_every_figure_is_there_with_its_files_and_an_alternative_text(full):
    page = full.page
    images = page.all("img")
    names = ["training", "l0", "contrastive_loss", "scatter", "density", "label_entropy", "sheet_random", "attributes"]
    text = full.text
    shown = re.findall(r"<code>figures/(\w+)\.png</code>", text)
    assert shown == [name for name in names if name != "training"]  # the made run has no metrics
    assert len(images) == len(shown)
    for name, image in zip(shown, images, strict=True):
        assert len(image["alt"]) > 20
        data = base64.b64decode(image["src"].partition(",")[2])
        with Image.open(io.BytesIO(data)) as inlined, Image.open(full.path / "figures" / f"{name}.png") as png:
            assert inlined.size == png.size == (int(image["width"]), int(image["height"]))
        if name != "sheet_random":
            assert (full.path / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_large_pictures_are_inlined_smaller(full):
    picture = next(image for image in full.page.all("img") if image["src"].startswith("data:image/webp"))
    assert len(picture["src"]) < (full.path / "figures" / "sheet_random.png").stat().st_size


def test_headings_tables_and_regions_tell_a_screen_reader_what_is_what(full):
    page = full.page
    assert next(attrs for tag, attrs in page.elements if tag == "html")["lang"] == "en"
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(attrs["scope"] in ("row", "col") for attrs in page.all("th"))
    regions = [attrs for attrs in page.all("div") if attrs.get("role") == "region"]
    assert all(attrs["tabindex"] == "0" and attrs["aria-label"] for attrs in regions)
    widths = {len(row) for row in page.rows}
    assert 1 not in widths


def test_the_numbers_are_those_of_the_runs_files(full):
    s = json.loads((full.path / "stats.json").read_text())
    cell = {row[0]: row[1] for row in reversed(full.page.rows)}  # the first of a name is at a glance
    for name, expected in (
        ("L0, mean", s["l0"]["mean"]),
        ("L0, largest", s["l0"]["max"]),
        ("Explained variance", s["explained_variance"]),
        ("Explained energy", s["explained_energy"]),
        ("Normalised MSE", s["normalized_mse"]),
        ("MSE", s["mse"]),
        ("L1", s["l1"]),
    ):
        assert float(cell[name]) == pytest.approx(expected, rel=1e-3)
    assert cell["Dead features"] == f"{s['n_dead']} of {s['d_sae']}"
    stored = open_statistics(full.path).statistics
    effective_n = np.median(stored.effective_n[np.isfinite(stored.label_entropy)])
    assert float(cell["Effective sample size, median"]) == pytest.approx(effective_n, rel=1e-3)
    assert cell["Contrastive loss, as it is"] == "1.2345 nats"
    assert cell["Contrastive loss, SAE spliced in"] == "1.5678 nats"
    assert cell["Loss recovered"] == "89.8 %"
    text = (full.path / "report.html").read_text()
    assert "; the losses over 77 images." in text
    assert "adjusted by Benjamini and Yekutieli" in text
    known = json.loads((full.path / "attributes.json").read_text())
    sae = next(row for row in full.page.rows if row[0] == "SAE")
    assert sae[2:4] == [str(known["counts"][0]["f1_at_least_05"]), str(known["counts"][0]["f1_at_least_07"])]
    assert float(sae[4].split()[0]) == pytest.approx(known["counts"][0]["mean_f1"], abs=6e-4)
    best = known["attributes"][0]
    shown = next(row for row in full.page.rows if row[0] == f"{best['kind']}: {best['value']}")
    assert shown[-1] == f"{best['f1_of']['random']:.2f}"  # of the control: there is no untrained tower
    reconstruction = next(row for row in full.page.rows if row[0] == "Explained variance" and len(row) == 5)
    for shown, split in zip(reconstruction[1:4], ("train", "heldout", "all"), strict=True):
        assert float(shown.split()[0]) == pytest.approx(s["quality"][split]["explained_variance"], rel=1e-3)


def test_every_number_has_a_definition_and_every_section_its_command_or_what_to_do(full):
    text = full.text
    for row in full.page.rows:
        if len(row) in (3, 4) and row[0] in ("L0, mean", "Median density", "Loss recovered"):
            assert len(row[-1]) > 10
    for section in re.findall("<section.*?</section>", text, re.S):
        named = any(f'<h2 id="{name}"' in section for name in ("glance", "provenance"))
        assert named or "<code>thresher " in section


def test_what_is_missing_is_a_sentence_that_names_the_command(counted):
    result = report(counted.path)
    text = result.path.read_text()
    path = str(counted.path)
    for command in (
        f"evaluate {path} IMAGES",
        f"classes {path}",
        f"align {path}",
        f"attributes {path} CSV",
        "train STORE SWEEP",
    ):
        assert f"<code>thresher {command}</code>" in text
        assert any(f"`thresher {command}`" in sentence for sentence in result.absent)
    assert "no ultra-low-density cluster" in text


def test_the_same_run_gives_the_same_page_and_an_earlier_one_is_not_replaced_unasked(counted):
    first = report(counted.path).path.read_bytes()
    with pytest.raises(StoreError, match="--overwrite"):
        report(counted.path)
    assert report(counted.path, overwrite=True).path.read_bytes() == first


def test_an_alignment_without_figures_says_what_draws_them(counted, monkeypatch):
    table = NumberTable(caption="Largest cosines.", numbers=[])
    monkeypatch.setattr(report_sections.findings, "alignment_table", lambda *_: table)
    section = report_sections.alignment_section(open_run(counted.path), {}, None)
    assert section.text == [f"Its figures were not drawn: `thresher align {counted.path} --overwrite` draws them."]
    (counted.path / "figures").mkdir(exist_ok=True)
    picture = counted.path / "figures" / "alignment_cosines.png"
    picture.write_bytes(b"")
    drawn = report_sections.alignment_section(open_run(counted.path), {}, None)
    picture.unlink()
    assert drawn.text == []
    assert len(drawn.figures) == 1


def test_the_figures_are_those_of_the_alignment_that_is_there(tmp_path):
    (tmp_path / "figures").mkdir()
    names = ["alignment_cosines", "alignment_entropy", "alignment_cosines_decoder"]
    for name in names:
        (tmp_path / "figures" / f"{name}.png").write_bytes(b"")

    def shown(**alignment):
        return [figure.path.stem for figure in alignment_figures(tmp_path, alignment)]

    assert shown(sides={"encoder": {}, "decoder": {}}, neurons={"projection": {}}) == names
    assert shown(sides={"encoder": {}}, neurons={}) == names[:1]  # an earlier one left the others


def test_a_damaged_document_is_named_and_a_run_without_statistics_told_what_to_do(counted, make_store, make_run):
    (counted.path / "evaluate.json").write_text("{")
    with pytest.raises(DamagedStoreError, match=r"evaluate\.json is damaged"):
        report(counted.path)
    (counted.path / "evaluate.json").write_text("[1]")
    with pytest.raises(DamagedStoreError, match="not what thresher writes"):
        report(counted.path)
    bare = make_run(make_store(n=100, name="bare.zarr").path, name="bare")
    with pytest.raises(StoreError, match="run `thresher stats` first"):
        report(bare.path)


def test_a_split_of_one_row_and_tables_of_no_class_are_told_apart_from_damage(counted):
    summary = json.loads((counted.path / "stats.json").read_text())
    summary["quality"]["heldout"]["explained_variance"] = None  # one row has no variance
    summary["quality"]["all"]["explained_variance"] = None
    (counted.path / "stats.json").write_text(json.dumps(summary))
    for name in ("classes", "class_pairs"):
        (counted.path / f"{name}.tsv").write_bytes(b"")  # what `classes` writes where no feature is of one class
    text = report(counted.path).path.read_text()
    assert "No class has a feature of label entropy 0." in text
    (row,) = [row for row in Page(text).rows if row[0] == "Explained variance" and len(row) > 3]
    assert row[2:4] == ["–", "–"]
    assert row[1] != "–"


_POST = {"model": "ViT-L-14-quickgelu", "pretrained": "openai", "quick_gelu": True}
_IMAGENET = ["tench", "goldfish", *(f"class {i}" for i in range(998))]


def test_the_posts_numbers_belong_to_its_setting_alone():
    site = Site(22, "resid_post", "cls")
    assert differences(_POST, site, _IMAGENET) == []
    assert differences({**_POST, "pretrained": "/weights/ViT-L-14.pt"}, site, _IMAGENET) == []
    for provenance, other_site, names, word in (
        ({**_POST, "model": "ViT-B-32"}, site, _IMAGENET, "ViT-B-32"),
        ({**_POST, "pretrained": "laion2b_s32b_b82k"}, site, _IMAGENET, "laion2b"),
        (_POST, Site(21, "resid_post", "cls"), _IMAGENET, "layer 21"),
        (_POST, Site(22, "mlp_out", "cls"), _IMAGENET, "mlp_out"),
        (_POST, Site(22, "resid_post", "patch"), _IMAGENET, "patch"),
        (_POST, None, _IMAGENET, "unknown"),
        (_POST, site, _IMAGENET[:999], "999 classes"),
        (_POST, site, [f"c{i}" for i in range(1000)], "not ImageNet-1k"),
        (_POST, site, None, "without class names"),
    ):
        found = differences(provenance, other_site, names)
        assert len(found) == 1
        assert word in found[0]


def test_in_the_posts_setting_its_numbers_stand_beside_ours_and_elsewhere_they_do_not(full, monkeypatch):
    rows = full.page.rows
    assert ["Number", "Value", "95 % interval", "Definition"] in rows
    assert not any("0.0027" in cell for row in rows for cell in row)
    monkeypatch.setattr(report_module, "differences", lambda *_: [])
    again = Page(report(full.path, overwrite=True).path.read_text())
    beside = {row[0]: row[-2] for row in reversed(again.rows) if len(row) == 5}
    assert beside["L0, mean"] == "26"
    assert beside["Normalised MSE"] == "0.0027"
    assert beside["L1"] == "13.9"
    assert beside["Explained energy"] == "86 %"
    assert beside["Explained variance"] == "–"  # the post's is not centred
    assert beside["Contrastive loss, as it is"] == "1.895"
    assert beside["Contrastive loss, SAE spliced in"] == "1.775"


def test_the_cluster_is_told_with_its_chance_levels_and_the_row_of_the_largest_l0():
    summary = {
        "uld": {
            **dict(n_features=64_000, share_of_alive=0.98, share_of_firings=0.1, share_of_mass=0.01),
            **dict(median_density=1e-5, median_density_rest=0.01, coherence=0.93, coherence_rest=0.01),
            **dict(coherence_between=0.02, coherence_chance_sd=1e-5, coherence_chance_p99=2e-5),
            **dict(coherence_matched_chance_sd=None, coherence_matched_chance_p99=None),
        },
        "max_l0_row_uld": {"row": 7, "l0": 6458, "n_uld": 6400, "share_of_firings": 6400 / 6458, "share_of_mass": 0.5},
    }
    numbers = {number.name: number for number in cluster_table(summary, Beside(True)).numbers}
    assert numbers["Of the largest L0"].value == "6,400 of 6,458 (99.1 %)"
    assert numbers["Of the largest L0"].post == "6,458 (at expansion 16)"
    assert numbers["Coherence of the cluster"].value == "0.9300"
    assert "Chance, even directions" in numbers
    assert "Chance, shaped directions" not in numbers


def test_the_command_says_where_the_page_is_and_what_it_lacks(counted):
    shown = CliRunner().invoke(main, ["report", str(counted.path), "--quiet"])
    assert shown.exit_code == 0, shown.output
    assert f"{counted.path}/report.html: 4 figures" in shown.output
    assert f"thresher align {counted.path}" in shown.output


def test_every_section_names_the_command_that_made_it_with_its_options(make_store, make_run, monkeypatch):
    store = make_store(n=300, thumbnails=False)
    run = make_run(store.path)
    other = make_store(n=200, thumbnails=False, name="other.zarr")
    encode(run.path, EncodeOptions(store=str(other.path), rows=150, precision="bf16"))
    stats(run.path, StatsOptions(figures=False, min_labelled=1, k=5, seed=2))
    keys = [f"class {i % 5}/picture {i}.jpg" for i in range(200)]
    values = [{"kind": ["odd" if i % 2 else "even"]} for i in range(200)]
    table = AttributeTable(source="my table.csv", keys=keys, values=values, groups=None, group_column=None)
    attributes_of_run(run.path, table, AttributesOptions(resamples=10, max_share=0.9, min_rows=9))
    page = report_sections
    opened, stored = open_run(run.path), open_statistics(run.path)
    encoded = f"thresher encode {run.path} --store {other.path} --rows 150 --precision bf16"
    counted = f"thresher stats {run.path} --k 5 --min-labelled 1 --no-figures --seed 2"
    drawn = dict.fromkeys(("l0", "scatter", "density", "label_entropy"))
    assert page.reconstruction_section(opened, stored, drawn, Beside(False)).command == f"{encoded} && {counted}"
    assert page.features_section(opened, stored, drawn).command == counted
    document = json.loads((run.path / "attributes.json").read_text())
    made = f"thresher attributes {run.path} 'my table.csv' --min-rows 9 --max-share 0.9 --resamples 10"
    assert page.attributes_section(opened, document).command == made
    monkeypatch.setattr(page.findings, "alignment_table", lambda *_: NumberTable(caption="", numbers=[]))
    aligned = kept_options(AlignOptions(project=True, neurons="mlp.zarr", other_blocks=False))
    made = f"thresher align {run.path} --neurons mlp.zarr --project --no-other-blocks"
    assert page.alignment_section(opened, {"options": aligned}, None).command == made
    (run.path / "features.zarr").rename(run.path / "elsewhere.zarr")
    stats(run.path, StatsOptions(from_store=True, split="heldout", figures=False, overwrite=True, min_labelled=1))
    section = page.reconstruction_section(opened, open_statistics(run.path), drawn, Beside(False))
    assert section.command == f"thresher stats {run.path} --split heldout --min-labelled 1 --from-store --no-figures"
