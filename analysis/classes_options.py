"""Options of `classes`."""

from dataclasses import dataclass

from ..options import option


@dataclass(frozen=True, kw_only=True)
class ClassesOptions:
    """What `classes` does beside looking."""

    overwrite: bool = option("Replace the tables that an earlier one wrote to RUN.", default=False)
