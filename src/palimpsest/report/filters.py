"""Choices that work without a script: boxes to tick, and the rules of style that hide what was not chosen.

A browser that does not know ``:has()`` passes over every one of these rules, and shows everything.
"""

from collections.abc import Iterable

from markupsafe import Markup

OUTCOMES = {"yes": "shown", "no": "not shown"}
"""Class of a tile and of its box -> what the box is called. What a judge could not tell about counts as not shown."""


def outcome(shown: bool | None) -> str:
    """The class of what ended so."""
    return "yes" if shown else "no"


def sheet_rules(attacks: int) -> Markup:
    """The rules for the boxes ``on-a0``, ``on-a1``, ... of so many attacks, and for those of ``OUTCOMES``.

    ``.pick`` is what can be chosen: a tile of a victim, a prompt. ``.holder`` is what goes when none of its picks
    stays: a goal, a victim of a goal. Boxes of one kind add up; none ticked is as good as all.
    """
    names = [f"a{number}" for number in range(attacks)]
    rules = [_hide("on-attack", name, ".pick") for name in names]
    rules += [_hide("on-outcome", name, ".pick") for name in OUTCOMES]
    rules.append(".concept:has(.filters .on-pick:checked) .holder{display:none}")
    for name in names:
        rules.append(_keep(f":has(.on-{name}:checked):not(:has(.on-outcome:checked))", f".{name}"))
        rules += [_keep(f":has(.on-{name}:checked):has(.on-{end}:checked)", f".{name}.{end}") for end in OUTCOMES]
    rules += [_keep(f":not(:has(.on-attack:checked)):has(.on-{end}:checked)", f".{end}") for end in OUTCOMES]
    return Markup("\n".join(rules))


def verdict_rules(outcomes: Iterable[str]) -> Markup:
    """The rules for the boxes over the cards, one per outcome of a verdict."""
    rules = ["#verdicts:has(.on-verdict:checked) .holder{display:none}"]
    for name in outcomes:
        rules.append(f"#verdicts:has(.on-verdict:checked):not(:has(.on-{name}:checked)) .card.{name}{{display:none}}")
        rules.append(f"#verdicts:has(.on-{name}:checked) .holder:has(.card.{name}){{display:var(--as)}}")
    return Markup("\n".join(rules))


def _hide(kind: str, name: str, what: str) -> str:
    """A rule that hides what was not chosen, once something of this kind was."""
    return f".concept:has(.{kind}:checked):not(:has(.on-{name}:checked)) {what}.{name}{{display:none}}"


def _keep(when: str, picks: str) -> str:
    """A rule that keeps what holds such picks."""
    return f".concept{when} .holder:has(.pick{picks}){{display:var(--as)}}"
