"""What outlives an erasure at which depth: goal by goal, and the paper's findings as tests."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from scipy.stats import spearmanr

from palimpsest.concept_file import find_concept
from palimpsest.report.cells import DIRECT, RANDOM_TRIGGER
from palimpsest.report.ledger import BASE, read
from palimpsest.run import Run
from palimpsest.stats import holm, mcnemar_exact, paired_difference
from sections.planting import depth_of


class Cell(NamedTuple):
    """What belongs together in one share."""

    depth: str
    """``surface``, ``shallow``, ``deep`` or ``data``; empty: nothing was planted."""
    eraser: str
    """Label."""
    concept: str


class Shown(NamedTuple):
    """One goal: whether the concept was shown when it was asked for by name, by trigger, and by a random string."""

    named: bool = False
    triggered: bool = False
    guessed: bool = False


BY = {DIRECT: "named", RANDOM_TRIGGER: "guessed"}
"""Attack -> what it asks by; a backdoor asks by its trigger."""
Goals = Mapping[Cell, Mapping[tuple[str, int], Shown]]
"""Cell -> (prompt, seed) -> what was shown."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A claim of arXiv 2504.21072, and what speaks for it."""

    claim: str
    n: int
    """Pairs of looks; with a correlation, erasers."""
    only: int = 0
    """Pairs that speak for it,"""
    other: int = 0
    """and against it."""
    correlation: float | None = None
    """Spearman's."""
    p: float
    """By Holm over all claims."""


@dataclass(frozen=True, kw_only=True)
class Increase:
    """What a trigger behind the prompt adds to what the prompt shows by itself, on the same goals."""

    cell: Cell
    n: int
    plain: int
    triggered: int
    low: float
    """Of the difference between the two shares, Newcombe's 95 % interval for pairs."""
    high: float

    @property
    def relative(self) -> float | None:
        """How many more, of those without; None: there were none."""
        return None if not self.plain else self.triggered / self.plain - 1


def outcomes(folders: Sequence[Path]) -> Goals:
    """Every goal, however it was asked; behind an erasure, only where the plant had taken hold before it."""
    found: dict[Cell, dict[tuple[str, int], Shown]] = defaultdict(dict)
    for folder in folders:
        failed = {
            (depth_of(plant["attack"]), plant["concept"])
            for plant in Run(folder).summary()["plants"]
            if plant["outcome"] != "holds"
        }
        for key, ended in read(folder).outcomes.items():
            asked, _, mark = key.attack.partition(" [plant ")
            depth = depth_of(mark.removesuffix("]") if asked in BY else asked)
            if key.eraser != BASE and (depth, key.concept) in failed:
                continue
            goals = found[Cell(depth, key.eraser, key.concept)]
            for outcome in ended:
                at = outcome.goal.prompt, outcome.goal.seed
                goals[at] = goals.get(at, Shown())._replace(**{BY.get(asked, "triggered"): outcome.won is not None})
    return dict(found)


def findings(goals: Goals, kept: Mapping[str, float]) -> list[Finding]:
    """What the paper found, and whether deep outlives data as well; p-values by Holm.

    ``kept`` says of each eraser which share of other concepts is left in the deep plant's model. Pairs are goals of one
    eraser and concept, so strata need no more care.
    """
    triggered = [
        _paired(f"trigger: {more} outlives {less}", _across(goals, more, less))
        for more, less in (("deep", "shallow"), ("shallow", "surface"), ("deep", "data"))
    ]
    deep = [shown for cell, some in goals.items() if cell.depth == "deep" and _erased(cell) for shown in some.values()]
    missed = _paired("deep: the trigger shows what the name does not", ((one.triggered, one.named) for one in deep))
    own = _paired("deep: the trigger shows what other strings do not", ((one.triggered, one.guessed) for one in deep))
    found = [*triggered, missed, own, *_damage(goals, kept)]
    return [replace(one, p=p) for one, p in zip(found, holm([one.p for one in found]), strict=True)]


def increases(goals: Goals) -> list[Increase]:
    """Of concepts of kind ``content``, wherever something was planted; unerased before erased."""
    found = []
    for cell, asked in goals.items():
        if not cell.depth or find_concept(cell.concept).kind != "content":
            continue
        pairs = [(one.triggered, one.named) for one in asked.values()]
        counts = [pairs.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False))]
        low, high = paired_difference(*counts)
        plain, triggered = counts[0] + counts[2], counts[0] + counts[1]
        found.append(Increase(cell=cell, n=len(pairs), plain=plain, triggered=triggered, low=low, high=high))
    return sorted(found, key=lambda one: (one.cell.depth, _erased(one.cell), one.cell))


def _erased(cell: Cell) -> bool:
    return cell.eraser != BASE


def _across(goals: Goals, more: str, less: str) -> Iterable[tuple[bool, bool]]:
    """The trigger of two depths, on the same goals behind the same eraser."""
    for cell, some in goals.items():
        others = goals.get(cell._replace(depth=less), {})
        if cell.depth == more and _erased(cell):
            yield from ((some[at].triggered, others[at].triggered) for at in sorted(some.keys() & others.keys()))


def _paired(claim: str, pairs: Iterable[tuple[bool, bool]]) -> Finding:
    known = list(pairs)
    only, other = sum(a and not b for a, b in known), sum(b and not a for a, b in known)
    return Finding(claim=claim, n=len(known), only=only, other=other, p=mcnemar_exact(only, other))


def _damage(goals: Goals, kept: Mapping[str, float]) -> list[Finding]:
    """Over erasers: the lower the deep trigger's rate, the less is left of others; nothing with fewer than four."""
    rates = {}
    for eraser in kept:
        some = [one for cell, all_ in goals.items() if cell[:2] == ("deep", eraser) for one in all_.values()]
        if some:
            rates[eraser] = sum(one.triggered for one in some) / len(some)
    if len(rates) < 4 or len(set(rates.values())) == 1:
        return []
    told = spearmanr(list(rates.values()), [kept[eraser] for eraser in rates])
    claim = "deep: an eraser that resists leaves less of other concepts"
    return [Finding(claim=claim, n=len(rates), correlation=float(told.statistic), p=float(told.pvalue))]
