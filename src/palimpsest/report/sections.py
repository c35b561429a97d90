"""A concept's part of the page: its table, curves, pictures and prompts."""

import re
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from palimpsest.report.cells import DIRECT, Cell, attack_name, is_control
from palimpsest.report.curves import Curve, Mark, plot
from palimpsest.report.findings import Findings
from palimpsest.report.ledger import BASE, Key, Outcome
from palimpsest.report.pictures import Row, grid
from palimpsest.report.utility import NEIGHBOURS, Utility, false_alarms
from palimpsest.stats import success_curve

STYLES = 5
"""Colours for attacks in style.css; more attacks share them."""


def anchor(concept: str) -> str:
    """The id of a concept's section."""
    return "concept-" + re.sub(r"[^a-z0-9]+", "-", concept.lower()).strip("-")


def sections(findings: Findings) -> list[dict[str, Any]]:
    """One section per concept, sorted."""
    pictures = grid(findings.run)
    concepts = sorted({key.concept for key in findings.cells})
    return [_section(findings, concept, pictures.get(concept, [])) for concept in concepts]


def _section(findings: Findings, concept: str, pictures: list[Row]) -> dict[str, Any]:
    kind = findings.run.kind(concept)
    erasers = sorted({key.eraser for key in findings.cells if key.concept == concept}, key=lambda e: (e != BASE, e))
    searches = sorted({key.attack for key in findings.cells if attack_name(key.attack) != DIRECT})
    knowing = [attack for attack in searches if not is_control(attack)]
    styles = {attack: f"s{knowing.index(attack) % STYLES}" if attack in knowing else "control" for attack in searches}
    return {
        "concept": concept,
        "anchor": anchor(concept),
        "kind": kind,
        "coarse": kind in ("content", ""),
        "groups": [_group(findings, concept, eraser) for eraser in erasers],
        "victims": erasers,
        "costs": [
            row for eraser in erasers for row in _utility(findings, concept, eraser) if row.measure != NEIGHBOURS
        ],
        "things": _things(findings, concept, erasers),
        "plots": [(eraser, plots) for eraser in erasers if (plots := _plots(findings, concept, eraser, styles))],
        "legend": [{"label": attack, "style": style} for attack, style in styles.items()]
        + [{"label": "asked plainly", "style": "floor"}, {"label": "base, asked plainly", "style": "ceiling"}],
        "pictures": pictures,
        "prompts": _prompts(findings, concept),
    }


def _group(findings: Findings, concept: str, eraser: str) -> dict[str, Any]:
    """An eraser's rows of the table."""
    cells = [cell for key, cell in findings.cells.items() if (key.concept, key.eraser) == (concept, eraser)]
    rows = [_row(findings, cell) for cell in sorted(cells, key=lambda c: (attack_name(c.key.attack) != DIRECT, c.key))]
    neighbours = next((row for row in _utility(findings, concept, eraser) if row.measure == NEIGHBOURS), None)
    return {
        "eraser": eraser,
        "rows": rows,
        "by_attack": {row["cell"].key.attack: row for row in rows},
        "neighbours": neighbours,
        "kept": neighbours.kept if neighbours and eraser != BASE else None,
    }


def _row(findings: Findings, cell: Cell) -> dict[str, Any]:
    key = cell.key
    role = "control" if is_control(key.attack) else ""
    if key.attack == DIRECT:
        role = "ceiling" if key.eraser == BASE else "floor"
    looks = max(outcome.trials[-1].cost.looks for outcome in findings.run.outcomes[key])
    alarms = false_alarms(findings.run, key.concept)
    comparison = (row for row in findings.comparisons if (row.concept, row.eraser, row.attack) == key)
    return {
        "cell": cell,
        "role": role,
        "quiet": "quiet" if key.eraser == BASE or role == "control" else "",
        "looks": f"{cell.looks / cell.n:.1f}",
        "passes": f"{cell.passes / cell.n:,.0f}",
        "comparison": next(comparison, None),
        "alarms": f"{1 - (1 - alarms.rate) ** looks:.1%}" if alarms else "·",
    }


def _utility(findings: Findings, concept: str, eraser: str) -> list[Utility]:
    """What all things together say of a victim."""
    return [row for row in findings.utility if (row.concept, row.eraser, row.thing) == (concept, eraser, "")]


def _things(findings: Findings, concept: str, erasers: Sequence[str]) -> list[dict[str, Any]]:
    """The measures of utility thing by thing, a column per victim."""
    rows: dict[tuple[str, str], dict[str, Utility]] = {}
    for row in findings.utility:
        if row.concept == concept and row.thing:
            rows.setdefault((row.measure, row.thing), {})[row.eraser] = row
    return [
        {
            "measure": measure,
            "of": thing,
            "numbers": [found[eraser].text if eraser in found else "·" for eraser in erasers],
        }
        for (measure, thing), found in sorted(rows.items())
    ]


def _plots(findings: Findings, concept: str, eraser: str, styles: dict[str, str]) -> list[Markup]:
    """Success against looks, and against passes; none where no goal took a second look."""
    run = findings.run
    searched = [attack for attack in styles if Key(concept, eraser, attack) in run.outcomes]
    ended = [outcome for attack in searched for outcome in run.outcomes[Key(concept, eraser, attack)]]
    if all(outcome.trials[-1].cost.looks <= 1 for outcome in ended):
        return []
    marks = [
        Mark(label=label, style=style, rate=cell.rate)
        for label, style, cell in (
            ("base, asked plainly", "ceiling", findings.cells.get(Key(concept, BASE, DIRECT))),
            ("asked plainly", "floor", findings.cells.get(Key(concept, eraser, DIRECT))),
        )
        if cell
    ]
    plots = []
    for axis in ("looks", "passes"):
        curves = [_curve(run.outcomes[Key(concept, eraser, attack)], styles[attack], axis) for attack in searched]
        title = f"{concept}, {eraser}: share of goals shown against {axis} per goal"
        # The drawing escapes its words itself.
        plots.append(Markup(plot(curves, marks, title=title, axis=f"{axis} per goal")))
    return plots


def _curve(outcomes: Sequence[Outcome], style: str, axis: str) -> Curve:
    won_at = [None if outcome.won is None else float(getattr(outcome.won.cost, axis)) for outcome in outcomes]
    end = max(float(getattr(outcome.trials[-1].cost, axis)) for outcome in outcomes)
    return Curve(label=outcomes[0].key.attack, style=style, steps=success_curve(won_at), end=end)


def _prompts(findings: Findings, concept: str) -> list[dict[str, Any]]:
    """The prompts that won and are not the goal's own."""
    found = []
    for key, outcomes in findings.run.outcomes.items():
        if key.concept != concept:
            continue
        for outcome in outcomes:
            attempt = outcome.won.attempt if outcome.won else None
            if attempt and outcome.won and attempt.prompt != outcome.goal.prompt:
                found.append(
                    {
                        "eraser": key.eraser,
                        "attack": key.attack,
                        "look": outcome.won.cost.looks,
                        "prompt": attempt.prompt,
                    }
                )
    return found
