"""Says in words what a store is: where its rows come from, how its batches mix, what its rows look like."""

from dataclasses import asdict
from functools import cached_property
from math import isnan
from typing import Any

from ..progress import format_bytes
from ..store import format as f
from ..store.attributes import read_group_attributes
from ..store.codec_advice import MEASURED, codec_advice, saved_share
from ..store.committed import read_committed
from ..store.loading import plan_loading
from ..store.mixing import MEASURED_BATCH, count_labels, measure_mixing
from ..store.objects import Objects
from ..store.part import StorePart
from ..store.reader import ActivationStore
from ..store.survey import OFF_CENTRE, SAMPLE_BYTES, survey_array
from .description import Description, laid_out, table_lines

_FLOAT16_MAX = 65_504.0
_MOST_CHUNKS = 50_000  # of a store whose files are counted one by one: a few seconds on a disk
_COORDINATES_SHOWN = 10  # of all arrays together; the JSON has five of each


def describe_unfinished(objects: Objects, state: str) -> Description:
    """What the metadata of a store says that a harvest has begun and not finished."""
    attributes = read_group_attributes(objects)
    title = f"Activation store {objects}, unfinished"
    record = {"kind": "store", "path": objects.url, "finished": False, "state": state}
    if not attributes["arrays"]:  # of a merge: it has no rows of its own
        return Description(title, laid_out([("state", state)]), record)
    provenance = attributes["provenance"]
    items: list[tuple[str, str | list[str]]] = [
        ("state", state),
        ("images", f"{provenance['image_source']} ({provenance['n_images']:,})"),
        ("arrays", ", ".join(str(f.Site.parse(name)) for name in attributes["arrays"])),
        ("rows", f"{attributes['n_rows']:,} in {provenance['dtype']} when it is finished"),
        ("model", f"{provenance['model']}, weights {provenance['pretrained']}, {provenance['precision']}"),
    ]
    return Description(title, laid_out(items), record | attributes)


def describe_store(store: ActivationStore) -> Description:
    """What a finished store is, how its batches mix, and what a sample of its rows foretells."""
    found = _Findings(store)
    items = [*_origin(found), *_reading(found), *_arrays(found)]
    return Description(f"Activation store {store.url}", laid_out(items), _record(found))


class _Findings:
    """What is read of a store to describe it: seconds, whatever its size."""

    def __init__(self, store: ActivationStore) -> None:
        self.store = store
        self.arrays = [store.activations(site) for site in store.sites]
        self.dtype = self.arrays[0].dtype
        self.is_local = all(part.objects.local is not None for part in store.parts)
        self.codecs = sorted({str(part.attributes["codec"]) for part in store.parts})
        self.rows_per_chunk = sorted({part.rows_per_chunk for part in store.parts})
        self.labels = count_labels(store)
        self.plan = plan_loading(self.arrays[:1], MEASURED_BATCH)
        self.mixing = measure_mixing(self.arrays[0], self.labels)
        self.committed = [read_committed(array) for array in self.arrays]
        sample_bytes = SAMPLE_BYTES // len(self.arrays)
        surveys = [survey_array(array, sample_bytes=sample_bytes) for array in self.arrays]
        self.surveys = [survey for survey, _ in surveys]
        self.n_places = [n_places for _, n_places in surveys]

    @property
    def n_labelled(self) -> int:
        return int(self.labels.readable[1:].sum())

    @property
    def n_classes(self) -> int:
        return int((self.labels.readable[1:] > 0).sum())

    @property
    def n_chunks(self) -> int:
        return self.committed[0].n_chunks

    @property
    def max_abs(self) -> float:
        return max(each.max_abs for each in self.committed)

    @property
    def codec_ratio(self) -> float:
        return sum(each.raw_bytes for each in self.committed) / sum(each.stored_bytes for each in self.committed)

    @cached_property
    def size_bytes(self) -> int | None:
        """Of all files, those of parts that lie elsewhere among them; None where they are too many to count."""
        if self.n_chunks * len(self.arrays) > _MOST_CHUNKS:
            return None
        counted: list[Objects] = []
        for objects in (self.store.objects, *(part.objects for part in self.store.parts)):
            if not any(_is_below(objects, other) for other in counted):
                counted.append(objects)
        return sum(objects.size_bytes for objects in counted)


def _is_below(objects: Objects, other: Objects) -> bool:
    if objects.local is not None and other.local is not None:
        return objects.local.resolve().is_relative_to(other.local.resolve())
    return f"{objects.url.rstrip('/')}/".startswith(f"{other.url.rstrip('/')}/")


def _origin(found: _Findings) -> list[tuple[str, str | list[str]]]:
    store, provenance = found.store, found.store.provenance
    tokens = f", {store.tokens_per_image:,} tokens an image" if store.tokens_per_image > 1 else ""
    counted = f" (of the first {found.labels.n_rows:,})" if found.labels.n_rows < store.n_rows else ""
    return [
        ("images", "; ".join(_images(part, is_alone=len(store.parts) == 1) for part in store.parts)),
        (
            "rows",
            f"{store.n_rows:,}{tokens}; {len(store.invalid_rows):,} of unreadable images; "
            f"{store.n_held_out:,} held out of training",
        ),
        (
            "labels",
            f"{found.n_labelled:,} rows{counted} in {found.n_classes:,} classes{_some_names(store.label_names)}",
        ),
        ("model", f"{provenance.model}, weights {provenance.pretrained} (sha256 {provenance.weights_sha256[:12]}...)"),
        ("nonlinearity", "QuickGELU" if provenance.quick_gelu else "GELU"),
        ("preprocessing", _preprocessing(provenance.preprocessing)),
        ("precision", provenance.precision + precision_error(provenance.precision_error)),
    ]


def _images(part: StorePart, *, is_alone: bool) -> str:
    told = f"{part.provenance.image_source} ({part.n_images:,})"
    return told if is_alone else f"{part.name}: {told}"


def _reading(found: _Findings) -> list[tuple[str, str | list[str]]]:
    store, plan = found.store, found.plan
    size = "too many files to count" if found.size_bytes is None else format_bytes(found.size_bytes)
    thumbnails = f", with thumbnails of {store.thumbnail_px} px" if store.thumbnail_px else ""
    if not store.n_train:
        how = "no rows to train on"
    elif plan.mode == "runs":
        how = f"{plan.run_length} rows at a time, from random places straight into the batch"
    else:
        how = (
            f"through a buffer of {plan.buffer_rows:,} rows, filled {plan.run_length:,} at a time from random places "
            f"and drawn in random order ({format_bytes(plan.memory_bytes)} of memory); each process of a torchrun "
            "fills one of its own with all rows"
        )
    return [
        ("row order", _order(store)),
        ("mixing", _mixing(found)),
        ("reading", how),
        *(("to know", note) for note in plan.notes),
        ("chunks", f"{found.n_chunks:,} of {' or '.join(f'{n:,}' for n in found.rows_per_chunk)} rows"),
        ("codec", _codec(found)),
        ("size", size + thumbnails),
    ]


def _order(store: ActivationStore) -> str:
    told = {"random": "random, seed {}", "source": "that of the source"}
    orders = [told[part.row_order].format(part.provenance.seed) for part in store.parts]
    named = (f"{part.name}: {order}" for part, order in zip(store.parts, orders, strict=True))
    return orders[0] if len(orders) == 1 else "; ".join(named)


def _mixing(found: _Findings) -> str:
    expected, measured = found.plan.mixing, found.mixing
    told = f"{expected:.2f} expected in batches of {MEASURED_BATCH:,} rows, had the images come sorted by class; "
    if measured is None:
        told += "not measured, for want of labels or of rows. "
        if found.labels.n_rows < found.store.n_rows:
            told = told.replace("for want of labels or of rows", "for there are too many rows")
    else:
        told += (
            f"{measured.mean:.2f} measured, the mean over {measured.n_batches} batches of {measured.batch_size:,} rows "
            f"(largest {measured.largest:.2f}). "
        )
    return told + (
        "This is chi2/df of a batch's labels: 1 is a fair draw from all rows; at 2, a batch tells as much of the "
        "classes as a fair one of half its size."
    )


def _codec(found: _Findings) -> str:
    if len(found.codecs) > 1:
        return (
            f"{', '.join(found.codecs)} in different parts: {saved_share(found.codec_ratio)} of the bytes saved in all"
        )
    site = max((array.site.site for array in found.arrays), key=lambda site: MEASURED[found.dtype, site]["zstd"].ratio)
    return codec_advice(found.dtype, site, found.codecs[0], found.codec_ratio, is_local=found.is_local)


def _arrays(found: _Findings) -> list[tuple[str, str | list[str]]]:
    """The numbers of each array side by side, and what they mean."""
    rows, coordinates = [], []
    n_shown = max(1, _COORDINATES_SHOWN // len(found.arrays))
    for array, survey, committed in zip(found.arrays, found.surveys, found.committed, strict=True):
        name = f"{array.site.layer} {array.site.site} {array.site.token}"
        numbers = (survey.mean_norm, survey.mean_to_deviation, committed.max_abs)
        rows.append([name, f"{array.d_in:,}", *(_number(n) for n in numbers), _percent(survey.zero_share)])
        for c in survey.largest[:n_shown]:
            values = [_number(value) for value in (c.mean, c.deviation, c.max_abs)]
            coordinates.append([name, f"{c.index}", *values, _percent(c.energy_share)])
    return [
        ("", ""),
        ("arrays", table_lines(["layer, site, token", "d", "norm", "off centre", "max |x|", "zeros"], rows)),
        ("", _sample(found)),
        ("off centre", _off_centre(found)),
        ("max |x|", _headroom(found)),
        ("", ""),
        ("largest", table_lines(["layer, site, token", "index", "mean", "std", "max |x|", "share"], coordinates)),
        ("", "The coordinates with the largest mean square, in the sample; share: of the sum of all squares."),
    ]


def _sample(found: _Findings) -> str:
    n_rows = _range([survey.n_rows for survey in found.surveys])
    n_bad = sum(survey.n_not_finite for survey in found.surveys)
    finite = "all finite" if not n_bad else f"{n_bad:,} more are not finite: see `thresher verify`"
    return (
        f"Layers are 0-based; values are {found.dtype}; d: values of a row; norm: mean over rows. From a sample of "
        f"{n_rows} readable rows at {_range(found.n_places)} random places (seed 0), {finite}; max |x| from the commit "
        "records."
    )


def _range(counts: list[int]) -> str:
    few, many = min(counts), max(counts)
    return f"{few:,}" if few == many else f"{few:,} to {many:,}"


def _off_centre(found: _Findings) -> str:
    told = (
        "The norm of the mean row over the rows' root mean square distance from it (gamma in arXiv 2605.31518). The "
        "larger, the more features of an SAE start dead where it does not centre the rows; "
    )
    if any(survey.mean_to_deviation > OFF_CENTRE for survey in found.surveys):
        return told + "above 1, as here, centre them: `thresher train` does by default (--normalize standardize)."
    if any(survey.n_rows for survey in found.surveys):
        return told + "below 1, as here, few."
    return told + "here there is no row to tell by."


def _headroom(found: _Findings) -> str:
    largest = found.max_abs
    records = found.committed[0]
    of_all = "of all rows" if records.n_read == records.n_chunks else f"of {records.n_read:,} chunks"
    told = f"Largest magnitude {of_all}, before rounding. "
    if largest > _FLOAT16_MAX:
        return told + f"float16 holds up to {_FLOAT16_MAX:,.0f}: too little for these rows."
    room = f"{_FLOAT16_MAX / largest:,.0f} times as much" if largest > 0 else "far more"
    return told + f"float16 holds up to {_FLOAT16_MAX:,.0f}: {room}."


def _record(found: _Findings) -> dict[str, Any]:
    store, plan = found.store, found.plan
    return {
        "kind": "store",
        "path": store.url,
        "finished": True,
        "n_parts": len(store.parts),
        "n_images": store.n_images,
        "tokens_per_image": store.tokens_per_image,
        "n_rows": store.n_rows,
        "n_valid": store.n_valid,
        "n_held_out": store.n_held_out,
        "n_labelled": found.n_labelled,
        "n_classes": found.n_classes,
        "n_rows_whose_labels_were_counted": found.labels.n_rows,
        "size_bytes": found.size_bytes,
        "rows_per_chunk": found.rows_per_chunk[0] if len(found.rows_per_chunk) == 1 else found.rows_per_chunk,
        "n_chunks": found.n_chunks,
        "row_order": store.row_order,
        "mixing": {
            "expected": plan.mixing,
            "batch_size": MEASURED_BATCH,
            "measured": found.mixing and asdict(found.mixing),
        },
        "loading": asdict(plan),
        "codec": {"name": ", ".join(found.codecs), "ratio": found.codec_ratio, "advice": _codec(found)},
        "fingerprint": store.fingerprint,
        "sites": [
            {
                "site": array.site.path,
                "d_in": array.d_in,
                "dtype": array.dtype,
                "n_places": n_places,
                **asdict(survey),
                "mean_to_deviation": survey.mean_to_deviation,
                "committed": {**asdict(committed), "codec_ratio": committed.codec_ratio},
                "codecs_measured": {name: asdict(m) for name, m in MEASURED[array.dtype, array.site.site].items()},
            }
            for array, survey, n_places, committed in zip(
                found.arrays, found.surveys, found.n_places, found.committed, strict=True
            )
        ],
        "unreadable": [{"image": u.image, "key": u.key, "reason": u.reason} for u in store.unreadable],
        "provenance": store.provenance.to_json(),
    }


def _number(value: float) -> str:
    return "-" if isnan(value) else f"{value:.4g}"


def _percent(share: float) -> str:
    if isnan(share):
        return "-"
    return f"{share:.2%}".replace("%", " %") if share and share < 0.1 else f"{share:.0%}".replace("%", " %")


def _some_names(names: list[str] | None) -> str:
    if not names:
        return ""
    shown = ", ".join(names[:3])
    return f": {shown}, ..." if len(names) > 3 else f": {shown}"


def precision_error(error: dict[str, float] | None) -> str:
    """What the rows' error against fp32 is, where it was measured."""
    if not error:
        return ""
    told = [f"{name} {value:.2g}" for name, value in error.items() if name != "n_rows"]
    return f" (relative error {', '.join(told) or 'not known'} against fp32, over {error['n_rows']:,.0f} rows)"


def _preprocessing(settings: dict[str, Any]) -> str:
    size = settings.get("size")
    side = "x".join(str(n) for n in size) if isinstance(size, list | tuple) else str(size)
    numbers = [f"{name} {' '.join(f'{v:.3f}' for v in settings[name])}" for name in ("mean", "std") if name in settings]
    words = [str(settings[name]) for name in ("resize_mode", "interpolation") if name in settings]
    return ", ".join([f"{side} px", *words, *numbers])
