"""Where an SAE's inputs are read, as far as its file says: kept on import, written on export."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ...store.format import SITES, TOKENS, Site

# The hook points of TransformerLens, by which SAELens and ViT-Prisma name a site; `mlp_act` is after the non-linearity.
_HOOKS = {
    "resid_post": "hook_resid_post",
    "resid_pre": "hook_resid_pre",
    "mlp_out": "hook_mlp_out",
    "attn_out": "hook_attn_out",
    "mlp_act": "mlp.hook_post",
}
assert set(_HOOKS) == set(SITES)
_SITES = {hook: site for site, hook in _HOOKS.items()}


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What is known of an SAE's inputs; None where a file does not say."""

    model: str | None = None
    pretrained: str | None = None
    layer: int | None = None
    """0-based; below 0 it counts from the last block, -1."""
    site: str | None = None
    token: str | None = None
    target: str | None = None
    """Path of the site that a transcoder reconstructs."""
    weights_sha256: str | None = None
    """Of the tower."""
    preprocessing_sha256: str | None = None
    n_layers: int | None = None

    def to_json(self) -> dict[str, Any]:
        """What is known, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, record: object) -> "Origin":
        """What a record says; what it does not, or not as it should be, is not known."""
        if not isinstance(record, Mapping):
            return cls()
        kinds = {f.name: int if f.name in ("layer", "n_layers") else str for f in fields(cls)}
        return cls(
            **{
                name: record[name]
                for name, kind in kinds.items()
                if isinstance(record.get(name), kind) and not isinstance(record[name], bool)
            }
        )

    @property
    def place(self) -> Site | None:
        """Its site, where layer, site and token are known and thresher's."""
        if self.layer is None or self.layer < 0 or self.site not in SITES or self.token not in TOKENS:
            return None
        return Site(self.layer, str(self.site), str(self.token))

    @property
    def hook(self) -> str | None:
        """Its hook point: `blocks.22.hook_resid_post`."""
        if self.layer is None or self.site not in _HOOKS:
            return None
        return f"blocks.{self.layer}.{_HOOKS[str(self.site)]}"

    @property
    def hook_subtype(self) -> str | None:
        """Its hook point within the block."""
        return _HOOKS.get(str(self.site))


def of_hook(name: object) -> dict[str, Any]:
    """Layer and site of a hook point's name; nothing where it is none that thresher reads."""
    match = re.fullmatch(r"blocks\.(\d+)\.([\w.]+)", name) if isinstance(name, str) else None
    if match is None or match[2] not in _SITES:
        return {}
    return {"layer": int(match[1]), "site": _SITES[match[2]]}


def hash_of(record: Mapping[str, Any]) -> str:
    """Sha256 of a record as JSON with sorted names."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
