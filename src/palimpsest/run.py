"""What a run found: its folder, its table in the terminal, its report."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from palimpsest import report


@dataclass(frozen=True)
class Run:
    """A run's folder, to be looked at."""

    folder: Path

    def cells(self) -> list[dict[str, Any]]:
        """One row per concept, eraser and attack, as in ``report.json``."""
        return report.table(self.folder)

    def summary(self) -> dict[str, Any]:
        """All of ``report.json``."""
        return report.summary(self.folder)

    def write_report(self) -> Path:
        """Writes ``report.html``, ``report.md`` and ``report.json``; returns the path of the first."""
        return report.write(self.folder)

    def table(self, console: Console | None = None) -> None:
        """Prints success rates by concept, eraser and attack, what the erasure cost, and the verdicts."""
        console = console or Console()
        found = self.summary()
        console.print(_attacks(found["cells"]))
        if found["utility"]:
            console.print(_utility(found["utility"]))
        for verdict in found["verdicts"]:
            console.print(Text.assemble((f"{verdict['concept']}, {verdict['eraser']}: ", "bold"), verdict["sentence"]))


def _attacks(cells: Iterable[dict[str, Any]]) -> Table:
    table = Table(title="Goals at which the concept was shown", title_justify="left")
    for heading in ("concept", "eraser", "attack"):
        table.add_column(heading)
    for heading in ("shown", "rate", "95 % interval", "looks", "passes"):
        table.add_column(heading, justify="right")
    before = None
    for cell in cells:
        if before is not None and (before["concept"], before["eraser"]) != (cell["concept"], cell["eraser"]):
            table.add_section()
        table.add_row(
            *(Text(cell[key]) for key in ("concept", "eraser", "attack")),
            f"{cell['successes']}/{cell['n']}",
            f"{cell['rate']:.0%}",
            f"{cell['low']:.0%} - {cell['high']:.0%}",
            f"{cell['looks']:,}",
            f"{cell['passes']:,}",
        )
        before = cell
    return table


def _utility(rows: Iterable[dict[str, Any]]) -> Table:
    table = Table(title="What the erasure cost", title_justify="left")
    for heading in ("concept", "eraser", "measure", "of"):
        table.add_column(heading)
    table.add_column("value", justify="right")
    for row in rows:
        if ":" not in row["measure"]:  # the rows behind a measure's own stand in the report
            table.add_row(*(Text(row[key]) for key in ("concept", "eraser", "measure", "of")), f"{row['value']:.0%}")
    return table
