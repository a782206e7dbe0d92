"""The provenance record: what stored activations were made of, and with what."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from .errors import StoreError


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a store's rows are: which tower, which images, in which order, how computed."""

    model: str
    """open_clip name of the tower, or the path of its config."""
    pretrained: str
    """open_clip tag, checkpoint path, `none` for random weights, or `quickstart` for the embedded ones."""
    weights_sha256: str
    """Of the visual tower's tensors as loaded: names, dtypes, shapes, bytes."""
    quick_gelu: bool
    """Whether the tower's activation function is QuickGELU, x sigmoid(1.702 x), rather than GELU."""
    n_layers: int
    """Residual blocks of the tower."""
    width: int
    """Length of a residual vector: d_in of the SAEs."""
    preprocessing: dict[str, Any]
    """open_clip's preprocessing config: size, mode, mean, std, interpolation, resize mode, fill colour."""
    precision: str
    """Arithmetic of the forward pass: fp32, bf16, fp16."""
    dtype: str
    """Logical dtype of the stored rows."""
    batch_size: int
    """Images per forward pass. Sums may differ in the last bit between batch sizes."""
    image_source: str
    """Where the images came from, one line."""
    source: list[str]
    """The same, as `harvest` takes it: absolute paths or URLs. Empty where the images were not opened by name."""
    limit: int | None
    """Images that `--limit` left of the source; None for all."""
    n_images: int
    keys_sha256: str
    """Of the images' keys and labels in source order."""
    row_order: str
    """`random`, or `source`: see `row_order.RowOrder`."""
    seed: int
    packages: dict[str, str] = field(default_factory=dict)
    """Versions of what computed the rows."""
    precision_error: dict[str, float] | None = None
    """Relative error of the rows against fp32, measured on the first batch; none for fp32."""

    def to_json(self) -> dict[str, Any]:
        """The record as JSON holds it."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        """Read a record back.

        Raises
        ------
        StoreError
            When a field is missing or unknown.
        """
        names = {f.name for f in fields(cls)}
        if set(record) != names:
            odd = ", ".join(sorted(set(record) ^ names))
            raise StoreError(f"the provenance record does not have the fields of this version (differs in: {odd})")
        return cls(**record)

    def require_same_rows(self, other: "Provenance", what: str) -> None:
        """Check that `other` would give the same rows bit for bit, so that a harvest may go on.

        The versions of packages, the source's path and the measured error of the precision may differ.

        Raises
        ------
        StoreError
            Naming the first field that differs.
        """
        free = {"packages", "image_source", "source", "limit", "precision_error"}
        self._require_same(other, what, [f.name for f in fields(self) if f.name not in free])

    def require_same_space(self, other: "Provenance", what: str) -> None:
        """Check that `other`'s rows lie in the same space, so that one SAE may read both.

        Raises
        ------
        StoreError
            Naming the first field that differs.
        """
        self._require_same(other, what, ["weights_sha256", "quick_gelu", "width", "preprocessing"])

    def require_same_kind(self, other: "Provenance", what: str) -> None:
        """Check that `other`'s rows were computed and stored alike, so that both may be parts of one store.

        Raises
        ------
        StoreError
            Naming the first field that differs.
        """
        names = ["weights_sha256", "quick_gelu", "width", "preprocessing", "precision", "dtype"]
        self._require_same(other, what, names)

    def differences(self, other: "Provenance", names: Sequence[str] | None = None) -> list[str]:
        """Each field that differs, with its values: `seed is 0 there and 1 here`; `other` is here.

        Parameters
        ----------
        other
            What to compare with.
        names
            Of the fields to compare; all of them where None.
        """
        found = []
        for name in names if names is not None else [f.name for f in fields(self)]:
            found += differences(name, getattr(self, name), getattr(other, name))
        return found

    def _require_same(self, other: "Provenance", what: str, names: Sequence[str]) -> None:
        found = self.differences(other, names)
        if found:
            raise StoreError(f"{what}: {found[0]}.")


def differences(name: str, there: Any, here: Any) -> list[str]:
    """How two values of a field differ, entry by entry where it has entries: `packages.torch is ...`."""
    if there == here:
        return []
    if isinstance(there, dict) and isinstance(here, dict):
        found = []
        for entry in there | here:
            found += differences(f"{name}.{entry}", there.get(entry), here.get(entry))
        return found
    return [f"{name} is {there!r} there and {here!r} here"]
