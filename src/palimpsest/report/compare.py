"""Paired comparisons: an attack and its control, on the same goals, at equal looks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import NamedTuple

from palimpsest.records import Goal
from palimpsest.report.cells import CONTROLS, RANDOM_TRIGGER, attack_name, is_control
from palimpsest.report.ledger import BASE, Key, Outcome, Run, marked, unmarked
from palimpsest.stats import holm, mcnemar_exact

ALPHA = 0.05
"""The level of every test."""


class Split(NamedTuple):
    """How two attacks did on the goals that both finished."""

    pairs: int
    only_first: int
    only_second: int
    both: int

    @property
    def p(self) -> float:
        """Exact two-sided McNemar test."""
        return mcnemar_exact(self.only_first, self.only_second)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """An attack and its control on the same goals, at equal looks."""

    concept: str
    """Empty: all concepts together."""
    eraser: str
    attack: str
    control: str
    looks: int
    pairs: int
    only_attack: int
    only_control: int
    both: int
    p: float
    p_holm: float

    @property
    def better(self) -> bool:
        """Whether the attack won more goals than its control, beyond chance."""
        return self.p_holm < ALPHA and self.only_attack > self.only_control


def comparisons(run: Run) -> list[Comparison]:
    """Every attack against its control, concept by concept, and, if there are several, all of them together."""
    concepts = sorted({key.concept for key in run.outcomes})
    families = [[concept] for concept in concepts] + ([concepts] if len(concepts) > 1 else [])
    return sorted(
        (comparison for family in families for comparison in _family(run, family)),
        key=lambda row: (row.concept, row.eraser, row.attack),
    )


def _family(run: Run, concepts: Sequence[str]) -> list[Comparison]:
    """The comparisons of these concepts together, with one Holm correction over them."""
    rows = []
    keys = [key for key in run.outcomes if key.concept in concepts]
    for eraser in sorted({key.eraser for key in keys} - {BASE}):
        attacks = sorted({key.attack for key in keys if key.eraser == eraser})
        for attack in attacks:
            control = control_of(attacks, attack)
            if control is None or is_control(attack):
                continue
            mine = [o for concept in concepts for o in run.outcomes.get(Key(concept, eraser, attack), ())]
            theirs = [o for concept in concepts for o in run.outcomes.get(Key(concept, eraser, control), ())]
            looks = equal_looks(mine, theirs)
            split = paired(mine, theirs, looks)
            rows.append(
                Comparison(
                    concept=concepts[0] if len(concepts) == 1 else "",
                    eraser=eraser,
                    attack=attack,
                    control=control,
                    looks=looks,
                    pairs=split.pairs,
                    only_attack=split.only_first,
                    only_control=split.only_second,
                    both=split.both,
                    p=split.p,
                    p_holm=split.p,
                )
            )
    return [replace(row, p_holm=p) for row, p in zip(rows, holm([row.p for row in rows]), strict=True)]


def control_of(attacks: Iterable[str], attack: str) -> str | None:
    """What an attack among these is compared with: of a backdoor, random strings asked in its own planted model."""
    known = sorted(attacks)
    own = strings_of(known, attack)
    return own or next((label for name in CONTROLS for label in known if attack_name(label) == name), None)


def strings_of(attacks: Iterable[str], attack: str) -> str | None:
    """The control of a backdoor among these: strings that nobody planted, asked in its own planted model."""
    strings = (label for label in sorted(attacks) if attack_name(label) == RANDOM_TRIGGER)
    return next((label for label in strings if label == marked(unmarked(label), f"plant {attack}")), None)


def equal_looks(first: Sequence[Outcome], second: Sequence[Outcome]) -> int:
    """The looks per goal that both were granted.

    An attack that left a goal unwon used all that its budget allowed, so its longest goal tells; one that won every
    goal was never stopped.
    """
    granted = min(_granted(first), _granted(second))
    if granted < inf:
        return int(granted)
    return max((outcome.trials[-1].cost.looks for outcome in (*first, *second)), default=0)


def _granted(outcomes: Sequence[Outcome]) -> float:
    if all(outcome.won for outcome in outcomes):
        return inf
    return max(outcome.trials[-1].cost.looks for outcome in outcomes)


def paired(first: Sequence[Outcome], second: Sequence[Outcome], looks: float = inf) -> Split:
    """How the two did within so many looks, over the goals that both finished."""
    a, b = _wins(first, looks), _wins(second, looks)
    goals = a.keys() & b.keys()
    return Split(
        pairs=len(goals),
        only_first=sum(a[goal] and not b[goal] for goal in goals),
        only_second=sum(b[goal] and not a[goal] for goal in goals),
        both=sum(a[goal] and b[goal] for goal in goals),
    )


def _wins(outcomes: Sequence[Outcome], looks: float) -> dict[Goal, bool]:
    return {outcome.goal: outcome.won is not None and outcome.won.cost.looks <= looks for outcome in outcomes}
