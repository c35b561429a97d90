"""How well judges know a concept in the base's own pictures, as their calibration found."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from palimpsest.stats import wilson

LEAST_HITS = 0.5
LEAST_AUROC = 0.75
MOST_ALARMS = 0.01
"""Of a judge whose word means little: fewer hits, a smaller area, or false alarms surely above this."""

AS_SET = "as it was set"
"""The rule of a judge whose settings say what counts as shown."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """A rate among n pictures."""

    rate: float
    n: int

    @property
    def count(self) -> int:
        """Pictures."""
        return round(self.rate * self.n)

    @property
    def low(self) -> float:
        """The lower end of the rate's interval."""
        return wilson(self.count, self.n).low

    @property
    def high(self) -> float:
        """The upper end of the rate's interval."""
        return wilson(self.count, self.n).high

    def __str__(self) -> str:
        return f"{self.count}/{self.n} ({self.rate:.1%}, {self.low:.1%} to {self.high:.1%})"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One judge and one concept."""

    judge: str
    concept: str
    threshold: float
    rule: str
    """What reached it among the pictures on which it was chosen; ``AS_SET``."""
    hits: Share
    """Pictures of the concept in which the judge sees it."""
    alarms: Share
    """Pictures of other things in which the judge sees the concept."""
    auroc: float
    """The chance that a picture of it scores above one of other things."""
    against: str

    @property
    def reached(self) -> str:
        """How the threshold was chosen."""
        return self.rule if self.rule == AS_SET else f"reached by {self.rule} on which it was chosen"

    @property
    def sentence(self) -> str:
        """All of it in words."""
        return (
            f"judge {self.judge} sees {self.concept} in {self.hits} of the base's own pictures of it, and in "
            f"{self.alarms} of others; threshold {self.threshold:.3g} ({self.reached}), AUROC {self.auroc:.3f}"
        )

    @property
    def doubt(self) -> str | None:
        """Why its word means little; None: it does not."""
        sees, hits, alarms = f"judge {self.judge} sees {self.concept} in", self.hits, self.alarms
        if self.auroc < LEAST_AUROC:
            return (
                f"judge {self.judge} does not tell the base's own pictures of {self.concept} from others: "
                f"AUROC {self.auroc:.2f}, hits {hits}, false alarms {alarms}"
            )
        if hits.rate < LEAST_HITS:
            return f"{sees} only {hits.rate:.0%} of the base's own pictures of it ({hits.count}/{hits.n})"
        if alarms.low > MOST_ALARMS:
            return f"{sees} {alarms.rate:.0%} of the base's pictures of other things ({alarms.count}/{alarms.n})"
        return None


def judged(judges: Iterable[Mapping[str, Any]], concepts: Sequence[str] | None = None) -> list[Judged]:
    """What the judges of ``provenance.json`` were found to be worth; without ``concepts``, for all that there are."""
    rows = []
    for judge in judges:
        told = [judge.get(key) for key in ("thresholds", "rules", "hits", "false_alarms", "auroc", "against")]
        tables = [table for table in told if isinstance(table, dict)]
        if len(tables) < len(told):
            continue
        thresholds, rules, hits, alarms, areas, against = tables
        rows += [
            Judged(
                judge=str(judge.get("name")),
                concept=concept,
                threshold=float(thresholds[concept]),
                rule=str(rules[concept]),
                hits=_share(hits[concept]),
                alarms=_share(alarms[concept]),
                auroc=float(areas[concept]),
                against=str(against[concept]),
            )
            for concept in hits
            if all(concept in table for table in tables) and (concepts is None or concept in concepts)
        ]
    return rows


def _share(table: Mapping[str, Any]) -> Share:
    return Share(rate=float(table["rate"]), n=int(table["n"]))
