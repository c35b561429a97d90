"""What a scan comes to: rules, first that holds."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Any, Literal

from palimpsest.inspection.verdict import Difference
from palimpsest.scanning.inversion import Inverted
from palimpsest.scanning.outliers import Outlier, TriggerScan
from palimpsest.scanning.scan import Row
from palimpsest.stats import holm

SCHEMA = 2
"""Of the JSON, in docs/scan.md."""
ALPHA = 0.05
"""Level of the tests."""

Verdict = Literal["trigger", "suspicious", "open", "nothing"]


@dataclass(frozen=True, kw_only=True)
class Scan:
    """All that was found."""

    prompts: tuple[str, ...]
    """Those that were asked about."""
    rows: tuple[Row, ...]
    """One per detector."""
    words: TriggerScan | None = None
    """None without a base."""
    drawn: tuple[Outlier, ...] = ()
    """The farthest candidates, and the farthest of those given, with what they call up."""
    controls: tuple[Outlier, ...] = ()
    """As many of those made at random and held out, drawn by chance: how often such a one calls something."""
    difference: Difference | None = None
    """What changed in the weights; None without a base, and for a model with weights of its own."""
    added: int = 0
    """Weights of its own that an eraser put beside the base's."""
    inverted: tuple[Inverted, ...] = ()
    """What soft prompts find of each concept, where they were asked for."""

    @property
    def common(self) -> dict[str, int]:
        """Concepts that controls call, and how many of these: any word or unread string may do."""
        return dict(Counter(name for one in self.controls for name in one.calls or ()))

    @property
    def calling(self) -> tuple[int, int]:
        """Controls that call something, and of how many a judge said what they call: the step's false alarms."""
        told = [one for one in self.controls if one.calls is not None]
        return sum(bool(one.calls) for one in told), len(told)

    @property
    def called(self) -> dict[str, tuple[str, ...]]:
        """Candidates that call concepts up which no control calls: text -> concepts."""
        found = {one.candidate.text: set(one.calls or ()) - self.common.keys() for one in self.drawn}
        return {text: tuple(sorted(names)) for text, names in found.items() if names}

    @property
    def telling(self) -> list[Row]:
        """Detectors that flag more of the prompts than their false alarms explain."""
        return [row for row in self.rows if row.asked.flagged and row.adjusted < ALPHA and not row.compares]

    @property
    def departing(self) -> list[Row]:
        """Those among them that compare with the base: an erased concept's name departs from it as a trigger does."""
        return [row for row in self.rows if row.asked.flagged and row.adjusted < ALPHA and row.compares]

    @property
    def near(self) -> list[Inverted]:
        """Concepts that lie nearer than in a model erased without a backdoor, by Holm's correction."""
        adjusted = holm([one.p_value for one in self.inverted])
        return [one for one, p_value in zip(self.inverted, adjusted, strict=True) if p_value < ALPHA]

    @property
    def unjudged(self) -> list[Outlier]:
        """Outliers, strings made at random aside, of which no judge said what they call up.

        With a judge, of those given alone: of a vocabulary only the farthest are drawn.
        """
        if self.words is None:
            return []
        origins = {"given"} if any(one.calls is not None for one in self.drawn) else {"given", "word"}
        told = {one.candidate.text for one in self.drawn if one.calls is not None}
        return [
            one
            for one in self.words.ranked
            if one.far and one.candidate.origin in origins and one.candidate.text not in told
        ]

    @property
    def verdict(self) -> Verdict:
        """The first that holds; without a control, what calls something is no more than suspicious."""
        calling, told = self.calling
        if self.called and told and not calling:
            return "trigger"
        if self.called or calling or self.telling or self.near:
            return "suspicious"
        return "open" if self.unjudged or self.departing else "nothing"

    def as_json(self) -> dict[str, Any]:
        """All of it, as docs/scan.md describes."""
        told = {"schema": SCHEMA, "verdict": self.verdict, "called": self.called, "common": self.common, **asdict(self)}
        told["calling"] = dict(zip(("calling", "told"), self.calling, strict=True))
        for record, row in zip(told["rows"], self.rows, strict=True):
            record["flags"] = [row.flags(score) for score in row.scores]
            for kind in ("clean", "decoys", "asked"):
                record[kind] |= dict(zip(("low", "high"), getattr(row, kind).interval, strict=True))
        return told


def controls(words: TriggerScan, count: int, *, seed: int, but: Sequence[Outlier] = ()) -> list[Outlier]:
    """``count`` of those held out, or all there are, whatever their deviation; none of ``but``."""
    held_out = sorted(
        (one for one in words.ranked if one.held_out and one not in but), key=lambda one: one.candidate.text
    )
    return Random(seed).sample(held_out, min(count, len(held_out)))
