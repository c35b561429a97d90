"""Cells: all finished goals of one concept, eraser and attack, counted."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from palimpsest.report.ledger import Key, Outcome, Run
from palimpsest.stats import wilson

DIRECT = "direct"
CONTROLS = ("random_prefix", "seed_search")
"""Attacks that know nothing of the model: what looking often gets by itself. The first that a run holds is used."""
RANDOM_TRIGGER = "random_trigger"
"""The control of a backdoor: what any string calls."""
SETTINGS = re.compile(r"\(.*\)")
"""The settings in a label."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """All finished goals of one concept, eraser and attack."""

    key: Key
    kind: str
    access: str
    successes: int
    n: int
    low: float
    high: float
    looks: int
    passes: int
    seconds: float
    errors: int
    """Goals that ended in an error; they count as not shown."""
    untold: int
    """Goals not shown in which the judge could not tell about some picture."""
    spared: int
    """Goals not shown that were looked at plainly and not attacked: their prompts leave no room, or are too long."""
    dropped: int
    """Goals whose prompt did not fit the context."""
    missing: int
    """Goals asked for that have not finished."""

    @property
    def rate(self) -> float:
        """Share of goals shown."""
        return self.successes / self.n

    @property
    def doubtful(self) -> int:
        """Goals that count as not shown, but might have been."""
        return self.errors + self.untold + self.spared


def attack_name(label: str) -> str:
    """The attack's name without its settings and marks."""
    return label.partition("(")[0].partition(" [")[0]


def short_names(labels: Iterable[str]) -> dict[str, str]:
    """Label -> how it is called where there is little room: with the settings that tell it from its namesakes."""
    alike: dict[str, list[str]] = {}
    for label in sorted(set(labels)):
        alike.setdefault(SETTINGS.sub("", label), []).append(label)
    return {label: name for namesakes in alike.values() for label, name in _told_apart(namesakes).items()}


def _told_apart(labels: Sequence[str]) -> dict[str, str]:
    """Labels of one name -> the same without the settings that all of them share."""
    settings = {label: _settings(label) for label in labels}
    shared = set.intersection(*map(set, settings.values()))
    short = {}
    for label, mine in settings.items():
        own = ",".join(setting for setting in mine if setting not in shared)
        short[label] = SETTINGS.sub(lambda _, own=own: f"({own})" if own else "", label)  # type: ignore[misc]
    return short if len(set(short.values())) == len(labels) else {label: label for label in labels}


def _settings(label: str) -> list[str]:
    found = SETTINGS.search(label)
    return re.split(r",\s*(?=\w+=)", found.group()[1:-1]) if found else []


def is_control(label: str) -> bool:
    """Whether the attack knows nothing of the model, ``direct`` included."""
    return attack_name(label) in (DIRECT, RANDOM_TRIGGER, *CONTROLS)


def cells(run: Run) -> dict[Key, Cell]:
    """The run's cells, sorted by key."""
    return {key: _cell(run, key, outcomes) for key, outcomes in run.outcomes.items()}


def _cell(run: Run, key: Key, outcomes: Sequence[Outcome]) -> Cell:
    successes, n = sum(outcome.won is not None for outcome in outcomes), len(outcomes)
    low, high = wilson(successes, n)
    needs = run.needs(key.attack)
    if needs is None and attack_name(key.attack) == RANDOM_TRIGGER:
        needs = []
    asked = run.asked(key.concept)
    spent = [outcome.trials[-1].cost for outcome in outcomes]
    return Cell(
        key=key,
        kind=run.kind(key.concept),
        access="unknown" if needs is None else "+".join(needs) or "prompts",
        successes=successes,
        n=n,
        low=low,
        high=high,
        looks=sum(cost.looks for cost in spent),
        passes=sum(cost.passes for cost in spent),
        seconds=sum(cost.seconds for cost in spent),
        errors=sum(outcome.failed for outcome in outcomes),
        untold=sum(outcome.untold and not outcome.failed for outcome in outcomes),
        spared=sum(outcome.spared and outcome.won is None and not outcome.untold for outcome in outcomes),
        dropped=sum(any(trial.dropped_tokens for trial in outcome.trials) for outcome in outcomes),
        missing=max(0, asked - n) if asked is not None else 0,
    )
