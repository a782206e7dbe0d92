"""How classes and their features read on a terminal."""

from .class_structure import INSIDE, SAME, ClassStructure
from .classes import CLASSES_TSV, FEATURES_TSV, PAIRS_TSV, Classes, overlaps
from .description import table_lines
from .shared_features import SharedFeatures

_LISTED = 20
_NAME_WIDTH = 28


def format_classes(found: Classes) -> str:
    """Every class, most own features first; or one class, feature by feature."""
    return "\n".join(_all(found) if found.label is None else _one(found, found.label))


def _all(found: Classes) -> list[str]:
    lines = [
        f"{found.run_path}: {found.n_labels:,} classes on {found.n_rows:,} labelled rows ({found.split}). "
        f"{found.n_own_features:,} features have label entropy 0: their {found.k} strongest rows are of one class.",
    ]
    if not found.structures:
        return [*lines, "No class has a feature of its own."]
    rows = [
        [
            _cut(found.name(s.label)),
            f"{s.n_rows:,}",
            f"{len(s.features):,}",
            f"{s.n_covered / s.n_rows:.1%}",
            f"{len(s.parts):,}",
            f"{s.effective_parts:.1f}",
        ]
        for s in found.structures[:_LISTED]
    ]
    left = len(found.structures) - len(rows)
    return [
        *lines,
        f"{len(found.structures):,} classes have such features of their own:",
        *_indented(["class", "rows", "own features", "rows covered", "parts", "effective"], rows),
        *([f"  and {left:,} more"] if left > 0 else []),
        "",
        *_pairs(found, found.shared),
        "",
        f"All of it in {found.run_path}: {CLASSES_TSV}, {FEATURES_TSV}, {PAIRS_TSV}",
        f"Next: thresher classes {found.run_path} {_word(found.name(found.structures[0].label))}",
    ]


def _one(found: Classes, label: int) -> list[str]:
    head = f"{found.name(label)} ({found.split} rows)"
    if not found.structures:
        return [f"{head}: no feature of its own (label entropy 0).", "", *_pairs(found, found.shared)]
    s = found.structures[0]
    parts = ", ".join(f"{leader} ({n / s.n_rows:.1%})" for leader, n in list(s.parts.items())[:10])
    return [
        f"{head}: {s.n_rows:,} rows, {_count(len(s.features), 'own feature')}, {s.n_covered / s.n_rows:.1%} covered.",
        f"What divides them: {_count(len(s.parts), 'part')}, {s.effective_parts:.1f} effective: {parts}"
        f"{', ...' if len(s.parts) > 10 else ''}.",
        *_features(found, s),
        *_overlaps(found, s),
        "",
        *_pairs(found, found.shared),
    ]


def _features(found: Classes, s: ClassStructure) -> list[str]:
    rows = [
        [
            str(own.feature),
            f"{own.n_class:,}",
            f"{own.n_class / s.n_rows:.1%}",
            f"{own.n_class / int(found.n_labelled[own.feature]):.1%}",
            f"{found.mean_top[own.feature]:.3g}",
            f"same as {own.leader}" if own.leader != own.feature else "part" if own.is_part else "holds others",
            str(own.inside) if own.inside >= 0 else "-",
            f"{own.n_strongest / s.n_rows:.1%}" if own.is_part else "-",
        ]
        for own in s.features[:_LISTED]
    ]
    left = len(s.features) - len(rows)
    return [
        "",
        *_indented(["feature", "rows", "of the class", "precision", "mean top", "is", "inside", "strongest on"], rows),
        *([f"  and {left:,} more: --json"] if left > 0 else []),
        f"(Same: Jaccard from {SAME:g}. Inside: {INSIDE:.0%} of its rows are the other's. Precision: share of the",
        "labelled rows it fires on that are of the class.)",
    ]


def _overlaps(found: Classes, s: ClassStructure) -> list[str]:
    pairs = sorted(overlaps(found, s), key=lambda o: (-o["jaccard"], o["a"], o["b"]))
    if not pairs:
        return []
    rows = [
        [
            f"{o['a']} and {o['b']}",
            f"{o['n_both']:,}",
            f"{o['expected']:.1f}",
            f"{o['jaccard']:.2f}",
            f"{o['decoder_cosine']:+.2f}",
        ]
        for o in pairs[:_LISTED]
    ]
    left = len(pairs) - len(rows)
    return [
        "",
        "Their overlaps, by falling Jaccard index:",
        *_indented(["features", "rows of both", "by chance", "Jaccard", "decoder cosine"], rows),
        *([f"  and {left:,} more: --json"] if left > 0 else []),
    ]


def _pairs(found: Classes, shared: list[SharedFeatures]) -> list[str]:
    of = "" if found.label is None else f" with {found.name(found.label)}"
    sure = sum(pair.p_adjusted < 0.05 for pair in shared)
    if not shared:
        return [f"No class shares features{of}."]
    rows = [
        [
            f"{_cut(found.name(p.a))} + {_cut(found.name(p.b))}",
            f"{p.n_shared:,}",
            f"{p.expected:.2f}",
            f"{p.n_a:,}, {p.n_b:,}",
            f"{p.p_adjusted:.1e}",
            " ".join(str(f) for f in p.features[:3]),
        ]
        for p in shared[:_LISTED]
    ]
    left = len(shared) - len(rows)
    return [
        f"Classes that share features{of}: {len(shared):,} pairs, {sure:,} of them more than chance at a false",
        "discovery rate of 5 %.",
        *_indented(["classes", "shared", "by chance", "of each", "p", "such as"], rows),
        *([f"  and {left:,} more"] if left > 0 else []),
    ]


def _indented(header: list[str], rows: list[list[str]]) -> list[str]:
    return [f"  {line}".rstrip() for line in table_lines(header, rows)]


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _cut(name: str) -> str:
    return name if len(name) <= _NAME_WIDTH else name[: _NAME_WIDTH - 1] + "…"


def _word(name: str) -> str:
    import shlex

    return shlex.quote(name)
