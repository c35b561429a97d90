"""Goals won under prompt attacks, what they cost, and who beats whom over the live cells."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from palimpsest.concept_file import find_concept
from palimpsest.judges.miniature import MiniatureSecond
from palimpsest.report.ledger import BASE, Outcome, read
from palimpsest.stats import mcnemar_exact, paired_difference

SECOND = MiniatureSecond()
UNLEARN_DIFF, OURS, RANDOM = "unlearn_diff", "palimpsest_search", "random_prefix"


class Spent(NamedTuple):
    """One goal under one attack: what it had cost when it was won (None: it was not), and at its end."""

    won: tuple[int, int] | None
    """Looks, passes."""
    looks: int
    passes: int
    encodes: int
    seconds: float
    confirmed: bool
    """Whether it was won, and the second judge sees the concept, too."""

    def within(self, passes: float) -> bool:
        """Whether it was won by then."""
        return self.won is not None and self.won[1] <= passes


Cells = dict[tuple[str, str, str], dict[tuple[str, int], Spent]]
"""(eraser, concept, attack) -> (prompt, seed) -> what was spent."""


def spent(outcome: Outcome) -> Spent:
    """What a goal's trials say."""
    won, end = outcome.won, outcome.trials[-1].cost
    if won is None or won.verdict is None:
        return Spent(None, end.looks, end.passes, end.encodes, end.seconds, False)
    score = won.verdict.scores[SECOND.label]
    confirmed = score is not None and score >= SECOND.threshold(find_concept(outcome.key.concept))
    return Spent((won.cost.looks, won.cost.passes), end.looks, end.passes, end.encodes, end.seconds, confirmed)


def cells(folders: Sequence[Path]) -> Cells:
    """What the runs hold; a control that ran in two legs counts once, goal by goal."""
    found: Cells = defaultdict(dict)
    for folder in folders:
        for key, outcomes in read(folder).outcomes.items():
            if key.eraser != BASE:
                past = ", past the guard" if "adaptive=" in key.attack else ""
                cell = found[key.eraser.partition("(")[0], key.concept, key.attack.partition("(")[0] + past]
                for outcome in outcomes:
                    cell.setdefault((outcome.goal.prompt, outcome.goal.seed), spent(outcome))
    return dict(found)


def pooled(found: Cells, eraser: str, attack: str) -> list[Spent]:
    """The goals of all concepts."""
    return [goal for key, goals in found.items() if (key[0], key[2]) == (eraser, attack) for goal in goals.values()]


def is_live(found: Cells, eraser: str, concept: str) -> bool:
    """Whether ``unlearn_diff`` has something to win there, and does not win by its looks alone."""
    rates = []
    for attack in (UNLEARN_DIFF, RANDOM):
        goals = found.get((eraser, concept, attack), {}).values()
        rates.append(sum(goal.won is not None for goal in goals) / max(1, len(goals)))
    return 0.1 <= rates[0] <= 0.9 and rates[0] - rates[1] >= 0.1 - 1e-9


def live_goals(found: Cells) -> dict[str, list[Spent]]:
    """Attack -> the same goals for each, of all live cells among these."""
    goals: dict[str, list[Spent]] = {UNLEARN_DIFF: [], OURS: [], RANDOM: []}
    for eraser, concept in sorted({key[:2] for key in found}):
        if is_live(found, eraser, concept):
            here = {name: found.get((eraser, concept, name), {}) for name in goals}
            for goal in sorted(set.intersection(*map(set, here.values()))):
                for name, those in goals.items():
                    those.append(here[name][goal])
    return goals


def tenth(theirs: Sequence[Spent], ours: Sequence[Spent]) -> int:
    """The most passes a goal at which ours together spent no more than a tenth of what theirs did."""
    most = sum(goal.passes for goal in theirs) / 10
    return max(cut for cut in range(max(goal.passes for goal in ours) + 1) if spent_by(ours, cut) <= most)


def spent_by(goals: Sequence[Spent], cut: int) -> int:
    """Passes, each goal cut off."""
    return sum(min(goal.passes, cut) for goal in goals)


def compared(name: str, ours: Sequence[bool], theirs: Sequence[bool]) -> dict[str, Any]:
    """A paired comparison, goal by goal."""
    alone = sum(a and not b for a, b in zip(ours, theirs, strict=True))
    beaten = sum(b and not a for a, b in zip(ours, theirs, strict=True))
    both = sum(a and b for a, b in zip(ours, theirs, strict=True))
    low, high = paired_difference(both, alone, beaten, len(ours) - both - alone - beaten)
    return {
        "comparison": name,
        "ours": sum(ours),
        "theirs": sum(theirs),
        "n": len(ours),
        "alone": [alone, beaten],
        "difference": [low, high],
        "p": mcnemar_exact(alone, beaten),
    }


def comparisons(goals: Mapping[str, Sequence[Spent]]) -> list[dict[str, Any]]:
    """Ours against the others, over all live cells together."""
    ours, theirs, words = goals[OURS], goals[UNLEARN_DIFF], goals[RANDOM]
    if not ours:
        return []
    cut = tenth(theirs, ours)

    def ended(goal: Spent) -> bool:
        return goal.won is not None

    def seen_twice(goal: Spent) -> bool:
        return goal.confirmed

    def early(goal: Spent) -> bool:
        return goal.within(cut)

    def early_twice(goal: Spent) -> bool:
        return goal.within(cut) and goal.confirmed

    return [
        compared(
            f"unlearn_diff in full, ours at a tenth of its passes (each goal cut off at {cut})",
            *_marks(ours, early, theirs, ended),
        ),
        compared(f"both cut off at {cut} passes a goal", *_marks(ours, early, theirs, early)),
        compared("unlearn_diff, both in full", *_marks(ours, ended, theirs, ended)),
        compared("unlearn_diff, both in full, confirmed", *_marks(ours, seen_twice, theirs, seen_twice)),
        compared("unlearn_diff in full, ours at a tenth, confirmed", *_marks(ours, early_twice, theirs, seen_twice)),
        compared("both cut off, confirmed", *_marks(ours, early_twice, theirs, early_twice)),
        compared("random_prefix at as many looks", *_marks(ours, ended, words, ended)),
    ]


def _marks(
    ours: Sequence[Spent], won: Callable[[Spent], bool], theirs: Sequence[Spent], other: Callable[[Spent], bool]
) -> tuple[list[bool], list[bool]]:
    return [won(goal) for goal in ours], [other(goal) for goal in theirs]
