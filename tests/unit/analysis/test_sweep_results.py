"""SAEs beside each other: what varies, in which order, their own numbers; the Pareto front against a search by hand."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from thresher import results
from thresher.analysis.describe import describe
from thresher.analysis.pareto import pareto_figure, pareto_front
from thresher.analysis.sweep_results import Comparison, SaeResult, compare, gather
from thresher.store.errors import StoreError
from thresher.train.loop import train
from thresher.train.recipes import resolve_options
from thresher.train.run_dir import open_run
from thresher.train.sweep import train_sweep

SHARED = {
    "lr": [3e-3], "warmup": [2], "batch_size": [64], "rows": [640], "device": ["cpu"], "dead_after_rows": [128],
}  # fmt: skip


@pytest.fixture
def store(make_store):
    rows = np.random.default_rng(0).standard_normal((400, 8)) + 1
    return make_store(400, 8, rows=rows, dtype="float32").path


@pytest.fixture
def sweep(store, tmp_path):
    given = {"variant": ["relu", "topk"], "k": [4, 2], "l1": [1e-3], "expansion": [4.0, 2.0], **SHARED}
    train_sweep(given, store, tmp_path / "sweep")
    return tmp_path / "sweep"


def sae(l0, explained, **varies):
    return SaeResult(
        name=f"{varies}", path=Path("run"), varies=varies, status="finished", reason=None, step=10, n_rows=50, l0=l0,
        explained_variance=explained, explained_energy=0.9, normalized_mse=0.01, d_sae=32, n_dead=1, share_dead=1 / 32,
        n_almost_dead=2, decoder_coherence=0.5,
    )  # fmt: skip


def test_a_sweep_is_sorted_by_kind_then_l0_and_says_only_what_varies(sweep):
    found = gather([sweep])
    assert found.varying == ["variant", "k", "expansion"]
    assert [tuple(each.varies.values()) for each in found.results] == [
        ("relu", 2.0),
        ("relu", 4.0),
        ("topk", 2, 2.0),
        ("topk", 4, 2.0),
        ("topk", 2, 4.0),
        ("topk", 4, 4.0),
    ]
    for each in found.results:
        held_out = [m for m in open_run(each.path).metrics() if m["split"] == "heldout"][-1]
        assert (each.status, each.step, each.n_rows) == ("finished", 10, held_out["n_rows"])
        assert (each.l0, each.explained_variance) == (held_out["l0"]["mean"], held_out["explained_variance"])
        assert each.n_dead == open_run(each.path).metrics()[-2]["n_dead"]


def test_the_table_and_the_figure_are_written_to_the_sweep_and_again(sweep):
    for _ in range(2):
        comparison = compare([sweep])
        assert comparison.files == [sweep / "sweep.tsv", sweep / "figures/pareto.png"]
    assert (sweep / "figures/pareto.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with open(sweep / "sweep.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [row["name"] for row in rows] == [each.name for each in comparison.results]
    assert [(row["variant"], row["k"], row["expansion"]) for row in rows][1:3] == [
        ("relu", "", "4.0"),
        ("topk", "2", "2.0"),
    ]
    assert [float(row["explained_variance"]) for row in rows] == [e.explained_variance for e in comparison.results]
    text = results.of_comparison(comparison).splitlines()
    assert text[0].split()[:4] == ["variant", "k", "expansion", "L0"]
    assert text[1].split()[:3] == ["relu", "-", "2"]
    assert text[-1] == str(sweep / "figures/pareto.png")
    assert max(map(len, text[:-2])) <= 80


def test_what_the_tower_scores_with_an_sae_spliced_in_is_shown_where_it_was_evaluated(sweep):
    def columns() -> list[str]:
        compare([sweep])
        with open(sweep / "sweep.tsv", newline="") as file:
            return next(csv.reader(file, delimiter="\t"))

    names = ["contrastive_loss", "loss_recovered", "zero_shot_top1", "zero_shot_top5"]
    assert not set(names) & set(columns())
    assert "spliced loss" not in results.of_comparison(compare([sweep]))
    run = sweep / json.loads((sweep / "sweep.json").read_text())["members"][0]["name"]
    before, last = [3.0, 0.5, 0.1, 0.2], [2.25, None, 0.125, 0.5]  # NaN is null there
    with open(run / "metrics.jsonl", "a") as file:
        for step, values in ((10, before), (10, last)):
            held_out = [m for m in open_run(run).metrics() if m["split"] == "heldout"][-1]
            file.write(json.dumps({**held_out, "step": step, **dict(zip(names, values, strict=True))}) + "\n")
    assert [name for name in columns() if name in names] == ["contrastive_loss", "zero_shot_top1", "zero_shot_top5"]
    with open(sweep / "sweep.tsv", newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file, delimiter="\t")}
    assert [rows[run.name][name] for name in ("contrastive_loss", "zero_shot_top1", "zero_shot_top5")] == [
        "2.25", "0.125", "0.5",
    ]  # fmt: skip
    assert {row["contrastive_loss"] for name, row in rows.items() if name != run.name} == {""}
    header, *lines = results.of_comparison(compare([sweep])).splitlines()
    assert header.split()[-4:] == ["spliced", "loss", "top-1", "status"]
    assert sorted(line.split()[-3:] for line in lines[: len(rows)])[-1] == ["2.2500", "0.1250", "finished"]
    assert compare([sweep]).to_json()["saes"][0]["loss_recovered"] is None


def test_runs_and_sweeps_are_compared_with_each_other(sweep, store, tmp_path):
    alone = {"k": 2, "normalize": "none", "seed": 7, **{name: value for name, (value,) in SHARED.items()}}
    train(resolve_options(alone), store, tmp_path / "run")
    found = compare([sweep, tmp_path / "run"], tmp_path / "out")
    assert len(found.results) == 7
    assert found.varying == ["variant", "k", "expansion", "normalize", "seed"]
    by_name = {each.name: each.varies for each in found.results}
    assert by_name[str(tmp_path / "run")] == {
        "variant": "topk", "k": 2, "expansion": 16.0, "normalize": "none", "seed": 7,
    }  # fmt: skip
    assert found.files == [tmp_path / "out/sweep.tsv", tmp_path / "out/figures/pareto.png"]
    with pytest.raises(StoreError, match=r"sweep\.tsv exists: give --overwrite"):
        compare([sweep], tmp_path / "out")
    compare([tmp_path / "run"], tmp_path / "out", overwrite=True)
    assert compare([tmp_path / "run"]).files == []
    assert "--out DIR" in results.of_comparison(compare([tmp_path / "run"]))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match="a file is in its way"):
        compare([sweep], tmp_path / "file")
    with pytest.raises(StoreError, match="is not a run directory"):
        compare([tmp_path / "nowhere"])


def test_the_table_goes_into_no_store(sweep, store):
    with pytest.raises(StoreError, match=r"lies inside the store .*: name another --out"):
        compare([sweep], store)


def test_members_that_failed_or_were_never_started_are_told(sweep):
    import shutil

    record = json.loads((sweep / "sweep.json").read_text())
    first, second = record["members"][2], record["members"][3]
    first["reason"] = "the loss of step 3 is not finite"
    (sweep / "sweep.json").write_text(json.dumps(record))
    (sweep / first["name"] / "sae.safetensors").unlink()
    shutil.rmtree(sweep / second["name"])
    found = {each.name: each for each in gather([sweep]).results}
    assert (found[first["name"]].status, found[first["name"]].reason) == ("failed", first["reason"])
    assert (found[second["name"]].status, found[second["name"]].l0, found[second["name"]].n_dead) == (
        "unfinished", None, None,
    )  # fmt: skip
    told = results.of_comparison(compare([sweep]))
    assert f"{first['name']} failed: the loss of step 3 is not finite" in told
    described = describe(sweep)
    text = " ".join(value for _, value in described.lines).replace("\n", " ")
    assert "4 finished, 1 failed, 1 unfinished" in text
    assert f"`thresher train {record['store']}" in text
    assert described.record["kind"] == "sweep"


def test_dead_features_are_not_known_before_as_many_rows_as_make_one_dead(store, tmp_path):
    train_sweep({**SHARED, "k": [2, 4], "dead_after_rows": [640]}, store, tmp_path / "sweep")
    assert [each.n_dead for each in gather([tmp_path / "sweep"]).results] == [None, None]


def test_the_front_is_what_no_other_beats():
    rng = np.random.default_rng(0)
    l0, explained = rng.integers(1, 20, 60).astype(float), rng.integers(0, 20, 60) / 20
    expected = [
        not any((a <= x and b >= y) and (a < x or b > y) for a, b in zip(l0, explained, strict=True))
        for x, y in zip(l0, explained, strict=True)
    ]
    assert pareto_front(l0, explained).tolist() == expected
    assert pareto_front(np.array([4.0, 4.0]), np.array([0.5, 0.5])).tolist() == [True, True]
    assert pareto_front(np.array([]), np.array([])).tolist() == []


def drawn(saes):
    figure = pareto_figure(Comparison(list({name: 0 for each in saes for name in each.varies}), saes, []))
    (axes,) = figure.axes
    legend = axes.get_legend() or (figure.legends or [None])[0]
    texts = [text.get_text() for text in legend.get_texts()] if legend else []
    front = [line.get_xydata().tolist() for line in axes.lines if line.get_label() == "Pareto front"]
    return figure, axes, texts, front


def test_the_figure_has_a_line_a_kind_on_a_log_axis_and_the_front_marked():
    saes = [sae(k, e + k / 100, variant=v, k=k) for v, e in (("topk", 0.5), ("batchtopk", 0.6)) for k in (4, 8, 16)]
    _, axes, texts, front = drawn(saes)
    assert axes.get_xscale() == "log"
    assert texts == ["topk", "batchtopk", "Pareto front"]
    assert front[0] == [pytest.approx(each) for each in ([4, 0.64], [8, 0.68], [16, 0.76])]
    assert "L0" in axes.get_xlabel()
    assert "explained variance" in axes.get_ylabel()


def test_seeds_lie_on_one_line_through_their_means():
    saes = [sae(k, k / 100 + seed / 10, k=k, seed=seed) for k in (4, 8) for seed in (0, 1)]
    _, axes, _, _ = drawn(saes)
    line = next(line for line in axes.lines if line.get_linestyle() == "-" and len(line.get_xdata()))
    assert line.get_xydata() == pytest.approx(np.array([[4, 0.09], [8, 0.13]]))


def test_what_the_axes_cannot_show_is_counted():
    saes = [
        sae(4, 0.5, k=4), sae(0, 0.1, k=5), sae(8, -3.0, k=6), replace(sae(1, 1, k=7), l0=None),
        replace(sae(1, 1, k=8), explained_variance=None),
    ]  # fmt: skip
    _, axes, _, front = drawn(saes)
    assert front == [[[4, 0.5]]]
    assert axes.get_xlabel().splitlines()[1] == (
        "not shown: 2 without held-out numbers; 1 with L0 0; 1 with explained variance below 0"
    )
    drawn(saes[2:])
    drawn([saes[1]])
    drawn([])
