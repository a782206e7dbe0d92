"""How the rows of a store are best read for training, and how well its batches mix."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .epochs import default_run_length
from .errors import StoreError

if TYPE_CHECKING:
    from .reader import ActivationArray, ActivationStore

MIXING = 1.1
"""Mean chi2/df of a batch's labels, against sampling without replacement, that a plan keeps to where it can."""

MEMORY_BYTES = 1 << 30
"""Default bound of the memory for reading."""

_LONGEST_RUN = 4096  # rows: 8 MB at d = 1024 in float16; longer reads are no faster
_FEW_ROWS = 16  # a run below: 32 KB at d = 1024, which a disk reads at a fraction of its rate


@dataclass(frozen=True)
class LoadingPlan:
    """How batches are read."""

    mode: str
    """`runs`: straight into the batch, some rows from each of many places. `buffer`: longer runs into a buffer, whose
    rows are drawn in random order."""
    run_length: int
    """Rows that are read as one piece."""
    is_chunked: bool
    """Whether a run is a whole chunk: where that is compressed or far away."""
    buffer_rows: int
    """Rows that are mixed at a time; 0 without a buffer."""
    mixing: float
    """Expected chi2/df of the labels of a batch, had the source been sorted by class; 1 is sampling without
    replacement."""
    memory_bytes: int
    """At most, beside a few batches."""
    notes: tuple[str, ...] = ()
    """What the user should know."""

    def to_json(self) -> dict[str, Any]:
        """The plan as a run records it, so that its order of rows can be had again wherever its store is moved to."""
        return asdict(self) | {"notes": list(self.notes)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "LoadingPlan":
        """Read a plan back."""
        return cls(**record | {"notes": tuple(record["notes"])})


def plan_loading(
    arrays: "Sequence[ActivationArray]", batch_size: int, memory_bytes: int = MEMORY_BYTES, mixing: float = MIXING
) -> LoadingPlan:
    """The plan for arrays of one store.

    Parameters
    ----------
    arrays
        To be read side by side.
    batch_size
        Rows a batch.
    memory_bytes
        For the buffer, where one is needed.
    mixing
        To keep to, where it can be: see `LoadingPlan.mixing`.
    """
    store = arrays[0].store
    in_place = all(array.reads_in_place for array in arrays)
    same_image = _share_of_same_image(store)
    if in_place and store.row_order == "random":
        run = min(default_run_length(batch_size), store.n_train)
        expected = 1 + (run - 1) * same_image
        notes = [_note_on_windows(store, batch_size, run, expected, mixing)] if expected > mixing else []
        return LoadingPlan("runs", run, False, 0, expected, 0, tuple(notes))
    row_bytes = sum(array.row_bytes for array in arrays)
    n_rows = _buffer_rows(store.n_train, batch_size, memory_bytes // row_bytes)
    memory = n_rows * row_bytes * (1 if n_rows == store.n_train else 2)
    if not in_place:
        run = _rows_of_a_chunk(store)
    elif n_rows == store.n_train:
        run = min(_LONGEST_RUN, n_rows)
    else:
        spread = batch_size * same_image * (1 - n_rows / store.n_train)
        run = max(1, min(_LONGEST_RUN, int(1 + (mixing - 1) * (n_rows - 1) / spread)))
    expected = _mixing(batch_size, run, n_rows, store.n_train, same_image)
    notes = []
    if expected > mixing:
        needed = _memory_for(mixing, batch_size, run, store.n_train, same_image, row_bytes)
        lie, remedy = "the order of their source", "--order random"
        if store.row_order == "random":
            lie, remedy = "random order, but in chunks that are read whole", "--codec none, on a disk,"
        notes.append(
            f"its rows are in {lie}, and batches of {batch_size:,} rows mix them only to chi2/df {expected:.1f} of "
            f"their labels (1 is ideal) should the source be sorted by class; {mixing:g} takes {needed / 1e9:.1f} GB "
            f"of memory (--loader-memory), or a harvest with {remedy} takes none."
        )
    elif in_place and run < min(_FEW_ROWS, default_run_length(batch_size)):
        notes.append(
            f"its rows are in the order of their source: to mix them they are read {run} at a time, which is slow. "
            "More memory (--loader-memory) makes the reads longer; a harvest with --order random needs none."
        )
    return LoadingPlan("buffer", run, not in_place, n_rows, expected, memory, tuple(notes))


def require_training_rows(store: "ActivationStore") -> None:
    """Check that there is something to train on.

    Raises
    ------
    StoreError
        When no image of the store that is not held out could be read.
    """
    if not store.n_train:
        first = store.unreadable[0]
        raise StoreError(
            f"{store.url} has no rows to train on: {len(store.unreadable):,} of its {store.n_images:,} images could "
            f"not be read, for one {first.key!r} ({first.reason}). Harvest images that can be."
        )


def _share_of_same_image(store: "ActivationStore") -> float:
    """How much more often two rows of one run are of one label than any two rows: 0 never, 1 always.

    In random order two rows of a run share a label by more than chance where they are tokens of one image; in the
    order of a source sorted by class, always.
    """
    if store.row_order == "source":
        return 1.0
    of_windows = _share_of_tokens(store.tokens_per_image, _images_of_a_window(store))
    return max(0.0, of_windows - _share_of_tokens(store.tokens_per_image, store.n_images))


def _images_of_a_window(store: "ActivationStore") -> int:
    return min(min(part.rows_per_chunk, part.n_images) for part in store.parts)


def _share_of_tokens(t: int, n_images: int) -> float:
    """How often two rows are of one image, where the t tokens of each of `n_images` lie in random order."""
    return (t - 1) / (n_images * t - 1) if t > 1 else 0.0


def _note_on_windows(store: "ActivationStore", batch_size: int, run: int, expected: float, mixing: float) -> str:
    """What it takes to mix the tokens of images better."""
    t = store.tokens_per_image
    share = (mixing - 1) / (run - 1) + _share_of_tokens(t, store.n_images)
    needed = -(-(1 + (t - 1) / share) // t)  # images whose tokens share no more than that
    return (
        f"the {t} tokens of an image lie among those of {_images_of_a_window(store):,} images, and batches of "
        f"{batch_size:,} rows mix them only to chi2/df {expected:.1f} of their labels (1 is ideal); {mixing:g} takes a "
        f"harvest with --rows-per-chunk {needed:.0f}."
    )


def _buffer_rows(n: int, batch: int, memory_rows: int) -> int:
    """Rows of the buffers that `n` training rows are read through, in memory for `memory_rows`.

    All of them where they fit. Else there are two buffers, of which one is filled while the other is drained, and a
    pass is cut into equal ones: a small last one would mix its rows badly.
    """
    if n <= memory_rows:
        return n
    n_buffers = -(-n // max(batch, memory_rows // 2))
    return -(-n // n_buffers)


def _rows_of_a_chunk(store: "ActivationStore") -> int:
    """Rows of the chunk that a row is in, the mean over the rows of every part."""
    rows = sum(part.n_rows * min(part.rows_per_chunk, part.n_rows) for part in store.parts)
    return min(-(-rows // store.n_rows), store.n_train)


def _mixing(batch: int, run: int, buffer: int, n: int, same_image: float) -> float:
    """Expected chi2/df: two rows of a batch are of one run (run - 1) / (buffer - 1) of the time."""
    if buffer <= 1 or n <= buffer:
        return 1.0
    return 1 + (batch - 1) * (run - 1) / (buffer - 1) * (1 - buffer / n) * same_image


def _memory_for(mixing: float, batch: int, run: int, n: int, same_image: float, row_bytes: int) -> int:
    """Bytes of the buffers that mix so well."""
    worst = (batch - 1) * (run - 1) * same_image / (mixing - 1)
    n_buffers = int((n + worst) / (worst + 1))  # most whose n / n_buffers rows make `_mixing` no more than `mixing`
    return row_bytes * n if n_buffers < 3 else 2 * row_bytes * -(-n // n_buffers)
