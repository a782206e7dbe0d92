"""How the result of each command reads on a terminal."""

import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .analysis.description import table_lines
from .progress import format_bytes, format_rate, format_s
from .store.format import Site

if TYPE_CHECKING:
    from .analysis.encode import EncodeResult, EncodeResults
    from .analysis.stats import StatsResult
    from .analysis.sweep_results import Comparison, SaeResult
    from .harvest.run import HarvestResult
    from .store.verify import VerifyReport
    from .train.hub import PushResult
    from .train.interchange import ExportResult, ImportResult
    from .train.outcome import TrainResult
    from .train.sweep import SweepResult

_LISTED_FAILURES = 3  # `sweep` names them all
_NOTHING = "-"
_SPLICED = {"contrastive_loss": "spliced loss", "loss_recovered": "recovered", "zero_shot_top1": "top-1"}
"""Numbers of the tower with the SAE spliced in, as the table of a comparison heads them."""
_LISTED = 10  # unreadable images named on the screen; `info --json` names them all


def table(lines: list[tuple[str, str]]) -> str:
    """Names and values, one below the other, the values aligned."""
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"  {name:{width}}  {value}" for name, value in lines)


def of_harvest(result: "HarvestResult") -> str:
    """What a harvest left behind, the images that it could not read, the next command."""
    lines = [
        f"{result.store_path}: {result.n_rows:,} rows, {result.n_valid:,} of readable images, "
        f"{format_bytes(result.size_bytes)}."
    ]
    if result.n_harvested:
        lines[0] += (
            f" {result.n_harvested:,} harvested in {format_s(result.seconds)}, "
            f"{format_rate(result.images_per_s)} images/s."
        )
    if result.unreadable:
        lines.append(f"{len(result.unreadable):,} images could not be read; their rows are marked invalid:")
        lines += [f"  {u.key!r}: {u.reason}" for u in result.unreadable[:_LISTED]]
        if len(result.unreadable) > _LISTED:
            lines.append(f"  ... `thresher info {_word(result.store_path)} --json` lists them all")
    return "\n".join([*lines, f"Next: thresher train {_word(result.store_path)} RUN{_choice(result.sites)}"])


def _choice(paths: list[str]) -> str:
    """The options that name one of a store's sites, as far as it must be named: the first of the last layer."""
    sites = [Site.parse(path) for path in paths]
    chosen = next(site for site in sites if site.layer == max(site.layer for site in sites))
    layer = f" --layer {chosen.layer}" if len({site.layer for site in sites}) > 1 else ""
    return layer + (f" --site {chosen.site}" if len({site.site for site in sites}) > 1 else "")


def of_verification(store: str, report: "VerifyReport") -> str:
    """What a verification found, line by line, what a repair did about it, and whether the store is whole."""
    lines = [f"repaired: {done}" for done in report.repaired]
    lines += [str(problem) for problem in report.problems]
    for name in report.leftovers:
        is_addition = name.endswith("/")
        lines.append(
            f"{name}: an addition that is not finished; the same `thresher harvest --append` goes on with it"
            if is_addition
            else f"{name}: belongs to no array; it is never read and may be deleted"
        )
    if not report.problems:
        if report.repaired:
            n = len(report.repaired)
            lines.append(f"{store} is whole again: {n:,} repair{'s' if n > 1 else ''}; {report.n_chunks:,} chunks.")
        else:
            lines.append(f"{store} is whole: {_read(report)}, every checksum as committed.")
    return "\n".join(lines)


def of_damage(store: str, report: "VerifyReport", *, was_repaired: bool) -> str:
    """One line on a store that is not whole, with the next step where there is one."""
    n = len(report.problems)
    line = f"{store} is damaged: {n:,} problem{'s' if n > 1 else ''}; {_read(report)}."
    # Where a harvest did not finish, the problem itself says what to do.
    is_repairable = not all("thresher harvest`" in problem.what for problem in report.problems)
    return f"{line} Next: thresher verify {_word(store)} --repair" if is_repairable and not was_repaired else line


def _read(report: "VerifyReport") -> str:
    return f"{report.n_chunks:,} chunks, {format_bytes(report.n_bytes)} read"


def of_training(result: "TrainResult") -> str:
    """What a training made, its held-out numbers, the next command."""
    made = f"{result.run_path}: {result.d_sae:,} features of {result.site}, {result.steps:,} steps"
    lines = [f"{made}, {result.rows:,} training rows ({result.passes:.2f} passes)"]
    if not result.was_finished:
        lines[0] += f" in {format_s(result.seconds)}, {format_rate(result.rows_per_s)} rows/s"
    if result.held_out is not None:
        q = result.held_out
        lines.append(f"On {q.n_rows:,} held-out rows:")
        lines.append(_quality(q.explained_variance, q.explained_energy, q.mse, q.normalized_mse, q.l1))
        lines.append(table([("L0", f"mean {q.l0.mean:.1f}, median {q.l0.median:.0f}, max {q.l0.max}")]))
    if result.spliced is not None:
        lines += _spliced(result.spliced)
    if result.n_dead is None:
        lines.append("Dead: not known, since metrics.jsonl holds no step of training; `thresher stats` counts them.")
    elif result.rows > result.dead_after_rows:
        lines.append(
            f"Dead: {result.n_dead:,} of {result.d_sae:,} features did not fire on the last "
            f"{result.dead_after_rows:,} training rows."
        )
    else:
        lines.append(
            f"Dead: not known, since the run has no more rows than --dead-after-rows {result.dead_after_rows:,}; "
            "`thresher stats` counts them."
        )
    return "\n".join([*lines, f"Next: thresher encode {_word(result.run_path)}"])


def of_sweep_training(result: "SweepResult", comparison: "Comparison") -> str:
    """What the training of a sweep made, as a table, and the next command."""
    n, path = len(result.sweep.members), result.sweep.path
    lines = [f"{path}: {len(result.results):,} of {n:,} SAEs trained"]
    first = next(iter(result.results.values()), None)
    if first is not None:
        lines[0] += f", {first.steps:,} steps, {first.rows:,} training rows ({first.passes:.2f} passes)"
    seconds = [each.seconds for each in result.results.values() if not each.was_finished]
    if seconds:
        lines[0] += f" in {format_s(max(seconds))}"
    lines += [_table_of(comparison), f"Next: thresher sweep {_word(path)}"]
    return "\n".join(lines)


def of_failures(result: "SweepResult") -> str:
    """One line on the SAEs of a sweep that stopped, and why."""
    failures = [f"{name}: {failure.reason.rstrip('.')}" for name, failure in result.failures.items()]
    n, rest = len(failures), ""
    if n > _LISTED_FAILURES:
        rest = f"; and {n - _LISTED_FAILURES} more"
    return (
        f"{n:,} of {len(result.sweep.members):,} SAEs stopped: {'; '.join(failures[:_LISTED_FAILURES])}{rest}. "
        "--resume tries them again."
    )


def of_comparison(comparison: "Comparison") -> str:
    """The SAEs of a sweep, or of several runs, beside each other, and where table and figure are."""
    lines = [_table_of(comparison)]
    lines += [f"  {each.name} failed: {each.reason}" for each in comparison.results if each.reason]
    lines += [f"{path}" for path in comparison.files]
    if not comparison.files:
        lines.append("Written nowhere: --out DIR writes the table and the figure.")
    return "\n".join(lines)


def _table_of(comparison: "Comparison") -> str:
    saes = comparison.results
    # What varies within one sweep says which is which; runs have their names.
    is_told_by_what_varies = len({tuple(each.varies.items()) for each in saes}) == len(saes) and comparison.varying
    header = [] if is_told_by_what_varies else ["run"]
    spliced = [name for name in comparison.spliced if name in _SPLICED]
    header += [*comparison.varying, "L0", "EV", "energy", "norm. MSE", "dead", "rows"]
    header += [*(_SPLICED[name] for name in spliced), "status"]
    rows = [[] if is_told_by_what_varies else [each.name] for each in saes]
    for row, each in zip(rows, saes, strict=True):
        row += [_value(each.varies.get(name)) for name in comparison.varying] + _numbers_of(each)
        row += [_NOTHING if (value := getattr(each, name)) is None else f"{value:.4f}" for name in spliced]
        row.append(each.status if each.status != "unfinished" or each.step is None else f"at step {each.step:,}")
    return "\n".join(f"  {line}" for line in table_lines(header, rows))


def _numbers_of(sae: "SaeResult") -> list[str]:
    dead = _NOTHING if sae.n_dead is None else f"{sae.n_dead:,}"
    rows = _NOTHING if sae.n_rows is None else f"{sae.n_rows:,}"
    return [
        _NOTHING if sae.l0 is None else f"{sae.l0:.1f}",
        _NOTHING if sae.explained_variance is None else f"{sae.explained_variance:.4f}",
        _NOTHING if sae.explained_energy is None else f"{sae.explained_energy:.4f}",
        _NOTHING if sae.normalized_mse is None else f"{sae.normalized_mse:.4g}",
        dead,
        rows,
    ]


def _value(value: Any) -> str:
    if value is None:
        return _NOTHING
    return f"{value:g}" if isinstance(value, float) else str(value)


def of_import(result: "ImportResult") -> str:
    """What was imported, what differs from its source, the next command."""
    what = f"{result.run_path}: {result.variant} of {result.d_sae:,} features, {result.d_in:,} inputs"
    where = f", {Site.parse(result.site)}" if result.site else ""
    store = "" if result.store_path else " --store STORE"
    return "\n".join(
        [
            f"{what}{where}, from {result.source} ({result.format}).",
            *(f"Note: {note}" for note in result.notes),
            f"Next: thresher encode {_word(result.run_path)}{store}",
        ]
    )


def of_export(result: "ExportResult") -> str:
    """What was written, and what differs for a reader."""
    files = ", ".join(result.files)
    head = f"{result.out_path}: {files} ({result.format}), {format_bytes(result.written_bytes)}."
    return "\n".join([head, *(f"Note: {note}" for note in result.notes)])


def of_push(result: "PushResult") -> str:
    """What was pushed, and how it is loaded again."""
    head = f"{result.repo_id}: {', '.join(result.files)}, commit {result.commit[:12]}."
    again = f"Next: thresher pull {_word(result.repo_id)} RUN --folder {_word(result.folder)}"
    return "\n".join([head, *(f"Note: {note}" for note in result.notes), again])


def _spliced(s: dict[str, Any]) -> list[str]:
    """What the tower scores with the SAE in its place, beside what it scores without."""
    b = s["contrastive_batch_size"]
    recovered = f"{s['loss_recovered']:.1%} of what zeros lose is recovered"
    return [
        f"Spliced into the tower, on {s['n_images']:,} held-out images:",
        table(
            [
                (
                    "contrastive loss",
                    f"{s['contrastive_loss']:.4f} (original {s['contrastive_loss_original']:.4f}, zeros "
                    f"{s['contrastive_loss_zero']:.4f}, guessing ln {b} = {s['ln_contrastive_batch_size']:.4f}); "
                    + recovered,
                ),
                *(
                    (
                        f"zero-shot top-{k}",
                        f"{s[f'zero_shot_top{k}']:.1%} (original {s[f'zero_shot_top{k}_original']:.1%})",
                    )
                    for k in (1, 5)
                ),
            ]
        ),
    ]


def of_encoding(result: "EncodeResult") -> str:
    """What an encoding wrote, how well each split is reconstructed, the next command."""
    lines = [
        f"{result.features_path}: {result.n_rows:,} rows, {result.nnz:,} activations (L0 {result.mean_l0:.1f}), "
        f"{format_bytes(result.written_bytes)}; {format_s(result.seconds)}, {format_rate(result.rows_per_s)} rows/s."
    ]
    for split, q in result.quality.items():
        lines.append(f"On {q.n_rows:,} rows ({split}):")
        lines.append(_quality(q.explained_variance, q.explained_energy, q.mse, q.normalized_mse, q.l1))
    return "\n".join([*lines, f"Next: thresher stats {_word(result.features_path.parent)}"])


def of_encodings(encoded: "EncodeResults") -> str:
    """What each of several encodings wrote."""
    return "\n".join(of_encoding(result) for result in encoded.results)


def of_encoding_failures(encoded: "EncodeResults") -> str:
    """Which runs were not encoded, and why."""
    n, first = len(encoded.failures), encoded.failures[0]
    were = "was" if n == 1 else "were"
    return f"{n} of {n + len(encoded.results)} runs {were} not encoded: {first.run_path}: {first.reason}"


def of_statistics(result: "StatsResult") -> str:
    """The numbers of a set of features and where their figures are."""
    s = result.summary
    l0 = s["l0"]
    lines = [
        ("rows", f"{s['n_rows']:,} ({s['split']})"),
        ("features", f"{s['d_sae']:,}, of which {s['n_dead']:,} dead (never above 0 on these rows)"),
        (
            "L0",
            f"mean {_short(l0['mean'])}{_interval(s, 'l0_mean')}, median {_short(l0['median'])}, "
            f"p99 {_short(l0['p99'])}, max {l0['max']}",
        ),
    ]
    for name in ("explained_variance", "explained_energy", "mse", "normalized_mse", "l1"):
        if s.get(name) is not None:
            lines.append((name.replace("_", " "), _short(s[name]) + _interval(s, name)))
    lines += _of_uld_in_l0(s)
    lines.append(("label entropy", _entropy(result)))
    uld = s["uld"]
    lines.append(
        (
            "ULD cluster",
            "none: the mean top activations have one mode"
            if uld is None
            else f"{uld['n_features']:,} features, {uld['share_of_firings']:.1%} of firings, "
            f"{uld['share_of_mass']:.1%} of activation mass",
        )
    )
    head = f"{result.out_dir}: statistics on {result.computed_on}, {format_s(result.seconds)}."
    pictures: list[Path] = [*result.figures, *result.sheets]
    tail = f"{len(pictures)} figures in {pictures[0].parent}: {', '.join(p.name for p in pictures)}" if pictures else ""
    return "\n".join(part for part in (head, table(lines), tail) if part)


def _of_uld_in_l0(s: dict[str, Any]) -> list[tuple[str, str]]:
    """L0 without the ULD cluster, and how much of the row with the largest L0 is of the cluster."""
    l0, row = s["l0_without_uld"], s["max_l0_row_uld"]
    if l0 is None:
        return []
    shown = f"mean {_short(l0['mean'])}, median {_short(l0['median'])}, p99 {_short(l0['p99'])}, max {l0['max']}"
    largest = f"row {row['row']:,} has the largest L0, {row['l0']:,}, of which {row['n_uld']:,} are of the ULD cluster"
    return [("L0 without ULD", f"{shown}; {largest}")]


def _entropy(result: "StatsResult") -> str:
    import numpy as np

    entropy = result.statistics.label_entropy
    defined = entropy[~np.isnan(entropy)]
    if not len(defined):
        return "undefined for every feature: too few labelled rows"
    n = np.median(result.statistics.effective_n[~np.isnan(entropy)])
    text = f"median {np.median(defined):.2f} nats over the {len(defined):,} features where it is defined, of rows that "
    text += f"amount to {n:.3g} of equal weight (median)"
    null = result.summary["details"].get("null")
    if null is None:
        return text
    return f"{text}; for {null['n_at_least_p']:,} lower than under every one of {null['n_draws']} random labellings"


def _quality(ev: float, energy: float, mse: float, normalized: float, l1: float) -> str:
    return table(
        [
            ("explained variance", f"{_share(ev)} (of energy, uncentred: {_share(energy)})"),
            ("MSE", f"{_short(mse)} (normalised by the row's norm: {_short(normalized)})"),
            ("L1", _short(l1)),
        ]
    )


def _word(path: "Path | str") -> str:
    """A path or URL as a shell takes it."""
    return shlex.quote(str(path))


def _interval(summary: dict[str, Any], name: str) -> str:
    """The 95 % interval of a number of the split that statistics are of, where there is one."""
    intervals = summary.get("intervals") or {}  # none of a matrix, nor straight from a store by an earlier version
    found = intervals.get("splits", {}).get(summary["split"], {}).get(name)
    return "" if found is None else f" (95 %: {_short(found[0])} to {_short(found[1])})"


def _share(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1000 else _short(value)  # a row of zeros or a huge one among few


def _short(value: Any) -> str:
    return "undefined" if value is None or math.isnan(value) else f"{value:.4g}"
