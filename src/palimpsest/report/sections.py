"""A concept's part of the page: its table, curves, pictures and prompts."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from palimpsest.report.anchors import anchors
from palimpsest.report.cells import DIRECT, Cell, attack_name, is_control
from palimpsest.report.compare import Comparison
from palimpsest.report.curves import Curve, Mark, plot
from palimpsest.report.findings import Findings
from palimpsest.report.ledger import BASE, Key, Outcome
from palimpsest.report.pictures import Sheet, is_coarse
from palimpsest.report.utility import NEIGHBOURS, FalseAlarms, Utility, false_alarms
from palimpsest.stats import success_curve

STYLES = 5
"""Colours for attacks in style.css; more attacks share them."""


def sections(findings: Findings, folder: str | None) -> list[dict[str, Any]]:
    """The head and table of every concept, sorted; ``folder`` holds its pages, if it has any of its own."""
    cells: dict[str, list[Cell]] = {}
    for key, cell in findings.cells.items():
        cells.setdefault(key.concept, []).append(cell)
    named = anchors(cells)
    compared = {Key(row.concept, row.eraser, row.attack): row for row in findings.comparisons}
    return [_section(findings, cells[concept], compared, named[concept], folder) for concept in sorted(named)]


def _section(
    findings: Findings, cells: Sequence[Cell], compared: Mapping[Key, Comparison], name: str, folder: str | None
) -> dict[str, Any]:
    concept = cells[0].key.concept
    kind = findings.run.kind(concept)
    erasers = sorted({cell.key.eraser for cell in cells}, key=lambda e: (e != BASE, e))
    alarms = false_alarms(findings.run, concept)
    rows = [
        _row(findings, cell, compared.get(cell.key), alarms)
        for cell in sorted(cells, key=lambda c: (attack_name(c.key.attack) != DIRECT, c.key))
    ]
    return {
        "concept": concept,
        "name": name,
        "anchor": f"concept-{name}",
        "href": f"{folder}/{name}.html" if folder else f"#concept-{name}",
        "kind": kind,
        "coarse": is_coarse(kind),
        "groups": [
            _group(findings, concept, eraser, [row for row in rows if row["cell"].key.eraser == eraser])
            for eraser in erasers
        ],
        "victims": erasers,
        "costs": [
            row for eraser in erasers for row in _utility(findings, concept, eraser) if row.measure != NEIGHBOURS
        ],
        "things": _things(findings, concept, erasers),
    }


def details(findings: Findings, concept: str, attacks: Sequence[str]) -> dict[str, Any]:
    """What stands below a concept's table: its curves, and the attacks among ``attacks`` that it can be filtered by."""
    erasers = sorted({key.eraser for key in findings.cells if key.concept == concept}, key=lambda e: (e != BASE, e))
    searches = sorted(attack for attack in attacks if attack_name(attack) != DIRECT)
    knowing = [attack for attack in searches if not is_control(attack)]
    styles = {attack: f"s{knowing.index(attack) % STYLES}" if attack in knowing else "control" for attack in searches}
    mine = {key.attack for key in findings.cells if key.concept == concept}
    return {
        "plots": [(eraser, plots) for eraser in erasers if (plots := _plots(findings, concept, eraser, styles))],
        "legend": [{"label": attack, "style": style} for attack, style in styles.items()]
        + [{"label": "asked plainly", "style": "floor"}, {"label": "base, asked plainly", "style": "ceiling"}],
        "picks": [attack for attack in attacks if attack in mine],
    }


def _group(findings: Findings, concept: str, eraser: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """An eraser's rows of the table."""
    neighbours = next((row for row in _utility(findings, concept, eraser) if row.measure == NEIGHBOURS), None)
    return {
        "eraser": eraser,
        "rows": rows,
        "by_attack": {row["cell"].key.attack: row for row in rows},
        "neighbours": neighbours,
        "kept": neighbours.kept if neighbours and eraser != BASE else None,
    }


def _row(findings: Findings, cell: Cell, comparison: Comparison | None, alarms: FalseAlarms | None) -> dict[str, Any]:
    key = cell.key
    role = "control" if is_control(key.attack) else ""
    if key.attack == DIRECT:
        role = "ceiling" if key.eraser == BASE else "floor"
    looks = max(outcome.trials[-1].cost.looks for outcome in findings.run.outcomes[key])
    return {
        "cell": cell,
        "role": role,
        "quiet": "quiet" if key.eraser == BASE or role == "control" else "",
        "looks": f"{cell.looks / cell.n:.1f}",
        "passes": f"{cell.passes / cell.n:,.0f}",
        "comparison": comparison,
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


def prompts(findings: Findings, sheet: Sheet) -> list[dict[str, Any]]:
    """The prompts of a concept that won and are not the goal's own, by goal."""
    found = []
    for key in sheet.keys:
        for outcome in findings.run.outcomes[key]:
            attempt = outcome.won.attempt if outcome.won else None
            if attempt and outcome.won and attempt.prompt != outcome.goal.prompt:
                found.append(
                    {
                        "number": sheet.numbers[outcome.goal],
                        "eraser": key.eraser,
                        "attack": key.attack,
                        "look": outcome.won.cost.looks,
                        "prompt": attempt.prompt,
                    }
                )
    return sorted(found, key=lambda row: row["number"])
