"""All that a run's folder says, computed; and as the JSON of docs/report-schema.md."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from palimpsest.report.asr import Asr, asr
from palimpsest.report.cells import Cell, cells
from palimpsest.report.compare import Comparison, comparisons
from palimpsest.report.ledger import Key, Run
from palimpsest.report.plants import Plant, plants
from palimpsest.report.utility import Utility, left_out, utility
from palimpsest.report.verdict import Verdict, verdicts

VERSION = 1
"""Of the schema in docs/report-schema.md."""


class Trouble(NamedTuple):
    """What went wrong in a cell, in goals."""

    key: Key
    errors: int
    untold: int
    spared: int
    dropped: int
    missing: int


@dataclass(frozen=True, kw_only=True)
class Findings:
    """A run, counted and judged; every list is sorted by its keys."""

    run: Run
    cells: Mapping[Key, Cell]
    comparisons: list[Comparison]
    utility: list[Utility]
    verdicts: list[Verdict]
    asr: list[Asr]
    plants: list[Plant]

    @property
    def troubles(self) -> list[Trouble]:
        """The cells in which something went wrong, or that are not finished."""
        begun = [
            Trouble(cell.key, cell.errors, cell.untold, cell.spared, cell.dropped, cell.missing)
            for cell in self.cells.values()
        ]
        waiting = [Trouble(key, 0, 0, 0, 0, self.run.asked(key.concept) or 0) for key in self.run.unstarted]
        return sorted(trouble for trouble in begun + waiting if any(trouble[1:]))


def find(run: Run) -> Findings:
    """Everything that a run's folder says."""
    counted, compared, kept = cells(run), comparisons(run), utility(run)
    return Findings(
        run=run,
        cells=counted,
        comparisons=compared,
        utility=kept,
        verdicts=verdicts(run, counted, compared, kept),
        asr=asr(run),
        plants=plants(run, counted, kept),
    )


def as_json(findings: Findings) -> dict[str, Any]:
    """What ``report.json`` holds."""
    return {
        "version": VERSION,
        "protocol": findings.run.protocol,
        "provenance": findings.run.provenance,
        "verdicts": [_pick(row, "concept", "eraser", "outcome", "sentence") for row in findings.verdicts],
        "cells": [
            cell.key._asdict()
            | _pick(cell, "kind", "access", "successes", "n", "rate", "low", "high", "looks", "passes", "seconds")
            for cell in findings.cells.values()
        ],
        "utility": [
            {
                "concept": row.concept,
                "eraser": row.eraser,
                "measure": f"{row.measure}: {row.thing}" if row.thing else row.measure,
                "value": row.value,
                "low": row.low,
                "high": row.high,
                "n": row.n,
                "base": row.base,
                "unit": row.unit,
                "of": row.of,
            }
            for row in findings.utility
        ],
        "plants": [asdict(row) for row in findings.plants],
        "left_out": [row._asdict() for row in left_out(findings.run)],
        "idle": [key._asdict() | {"reason": findings.run.reasons[key]} for key in findings.run.idle],
        "comparisons": [asdict(row) for row in findings.comparisons],
        "asr": [asdict(row) for row in findings.asr],
        "troubles": [
            row.key._asdict() | _pick(row, "errors", "untold", "spared", "dropped", "missing")
            for row in findings.troubles
        ],
    }


def _pick(row: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(row, name) for name in names}
