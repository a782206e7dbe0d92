"""What a feature is called, and how well that fits: the automatic name with its scores, and a person's own."""

from dataclasses import dataclass

from ...naming.names_file import NAMED, UNNAMED, Name
from ...naming.options import NameOptions
from ..page import Unavailable
from ..render import number
from ..runs import ExploredRun


@dataclass(frozen=True)
class Naming:
    """What is known of a feature's name; numbers are None where there are none."""

    own: str
    """A person's name; empty for none."""
    status: str
    """Of the automatic one: `named`, `unnamed`, `untested`; empty where the feature was not looked at."""
    automatic: str
    """The automatic name; empty where it has none."""
    rejected: str
    """Of an unnamed feature the phrase that fitted best: no name."""
    method: str
    score: float | None
    auroc: float | None
    balanced_accuracy: float | None
    ablation_z: float | None
    ablation_percentile: float | None
    sufficiency_z: float | None
    q_value: float | None
    n_naming: float | None
    n_scoring: float | None
    alternatives: list[str]
    why: list[str]
    """Why it is unnamed: what lies beyond a threshold, in words."""

    @property
    def shown(self) -> str:
        """What the feature is called; empty for nothing."""
        return self.own or self.automatic


def naming(run: ExploredRun, feature: int) -> Naming:
    """What a feature is called."""
    names = run.names.now()
    line = names.lines.get(feature, _NOTHING)
    return Naming(
        own=names.own(feature),
        status=line.status,
        automatic=line.name if line.status == NAMED else "",
        rejected=line.name if line.status == UNNAMED else "",
        method=line.method,
        score=line.score,
        auroc=line.auroc,
        balanced_accuracy=line.balanced_accuracy,
        ablation_z=line.ablation_z,
        ablation_percentile=line.ablation_percentile,
        sufficiency_z=line.sufficiency_z,
        q_value=line.q_value,
        n_naming=line.n_naming,
        n_scoring=line.n_scoring,
        alternatives=list(line.alternatives) if line.status == NAMED else [],
        why=_why(line, _asked(run)) if line.status == UNNAMED else [],
    )


def _asked(run: ExploredRun) -> dict[str, float]:
    """The thresholds that names were held to, by option; those of `NameOptions` where the run does not say."""
    asked = NameOptions()
    found = {"min_auroc": asked.min_auroc, "min_z": asked.min_z, "fdr": asked.fdr}
    try:
        said = (run.document(_RECORD) or {}).get("thresholds")
    except Unavailable:
        said = None
    known = said if isinstance(said, dict) else {}
    return found | {name: value for name, value in known.items() if name in found and isinstance(value, int | float)}


def _why(line: Name, asked: dict[str, float]) -> list[str]:
    """Which thresholds the best phrase misses."""
    found = []
    if line.auroc is not None and line.auroc < asked["min_auroc"]:
        found.append(f"AUROC {_beside(line.auroc, asked['min_auroc'])}; {asked['min_auroc']:g} is asked")
    if line.ablation_z is not None and line.ablation_z < asked["min_z"]:
        found.append(f"ablation z {_beside(line.ablation_z, asked['min_z'])}; {asked['min_z']:g} is asked")
    if line.q_value is not None and line.q_value > asked["fdr"]:
        found.append(f"q {_beside(line.q_value, asked['fdr'])}; at most {asked['fdr']:g} is allowed")
    return found


def _beside(value: float, asked: float) -> str:
    """A number as people read it, with more digits where it would read as the threshold that it misses."""
    digits = 3
    while digits < 15 and float(f"{value:.{digits}g}") == asked:
        digits += 1
    return number(value, digits)


_RECORD = "naming/name.json"
_NOTHING = Name("", None, "", status="")
