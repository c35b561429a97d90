"""What a run found: its folder, its table in the terminal, its report."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from palimpsest import report
from palimpsest.errors import printable
from palimpsest.report.cells import short_names
from palimpsest.report.export import frame
from palimpsest.report.judged import Judged, judged
from palimpsest.report.utility import number


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

    def frame(self, table: str = "looks") -> Any:
        """A pandas ``DataFrame`` of the run's ``looks``, ``cells`` or ``utility``; needs ``palimpsest[tables]``."""
        return frame(self.folder, table)

    def write_report(self, console: Console | None = None) -> Path:
        """Writes ``report.html``, ``report.md`` and ``report.json``; returns the path of the first.

        A console is shown the report's table, without reading the run again.
        """
        path = report.write(self.folder)
        if console:
            _print(json.loads(path.with_suffix(".json").read_text(encoding="utf-8")), console)
        return path

    def table(self, console: Console | None = None) -> None:
        """Prints success rates by concept, eraser and attack, what the erasure cost, and the verdicts.

        Before them, where judges were calibrated on the base, what they are worth.
        """
        _print(self.summary(), console or Console())


def _print(found: dict[str, Any], console: Console) -> None:
    concepts = sorted({cell["concept"] for cell in found["cells"]})
    if rows := judged(found["provenance"].get("judges") or [], concepts):
        console.print(judges_table(rows))
    console.print(_attacks(found["cells"]))
    if found["asr"]:
        console.print(_asr(found["asr"]))
    if found["utility"]:
        console.print(_utility(found["utility"]))
        meanings = {row["measure"]: row["of"] for row in found["utility"] if ":" not in row["measure"]}
        for measure, of in meanings.items():
            console.print(_text(f"{measure}: {of}"))
    for missed in found["left_out"]:
        console.print(_text(f"Not measured: {missed['measure']}. {missed['why']}"))
    for plant in found["plants"]:
        console.print(_text(plant["sentence"]))
    names = short_names(verdict["eraser"] for verdict in found["verdicts"])
    for verdict in found["verdicts"]:
        name = printable(f"{verdict['concept']}, {names[verdict['eraser']]}: ")
        console.print(Text.assemble((name, "bold"), printable(verdict["sentence"])))


def _text(words: str) -> Text:
    """Words as they are: a label may come out of a file that nobody vouches for."""
    return Text(printable(words))


def judges_table(rows: Iterable[Judged]) -> Table:
    """What judges see in the base's own pictures, with 95 % intervals."""
    table, rows = _table("What the judges see in the base's own pictures, and the rates' 95 % intervals"), list(rows)
    for heading in ("judge", "concept"):
        table.add_column(heading, overflow="fold")
    for heading in ("threshold", "of it", "interval", "of others", "interval", "AUROC"):
        table.add_column(heading, justify="right", no_wrap=True)
    names = short_names(row.judge for row in rows)
    for row in rows:
        shares = (
            text
            for share in (row.hits, row.alarms)
            for text in (f"{share.count}/{share.n}", f"{share.low:.1%} - {share.high:.1%}")
        )
        words = (_text(names[row.judge]), _text(row.concept))
        table.add_row(*words, f"{row.threshold:.3g}", *shares, f"{row.auroc:.3f}")
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False, collapse_padding=True)


def _attacks(cells: list[dict[str, Any]]) -> Table:
    table = _table("Goals at which the concept was shown, and the rate's 95 % interval")
    for heading in ("concept", "eraser", "attack"):
        table.add_column(heading, overflow="fold")
    for heading in ("shown", "rate", "interval", "looks", "passes"):
        table.add_column(heading, justify="right", no_wrap=True)
    names = {key: short_names(cell[key] for cell in cells) for key in ("eraser", "attack")}
    before = ("", "")
    for cell in cells:
        here = (cell["concept"], cell["eraser"])
        if before not in (("", ""), here):
            table.add_section()
        table.add_row(
            _text(cell["concept"] if cell["concept"] != before[0] else ""),
            _text(names["eraser"][cell["eraser"]] if here != before else ""),
            _text(names["attack"][cell["attack"]]),
            f"{cell['successes']}/{cell['n']}",
            f"{cell['rate']:.0%}",
            f"{cell['low']:.0%} - {cell['high']:.0%}",
            f"{cell['looks']:,}",
            f"{cell['passes']:,}",
        )
        before = here
    return table


def _asr(rows: list[dict[str, Any]]) -> Table:
    """What the attacks show as UnlearnDiffAtk's framework counts, and how long they took."""
    table = _table("Counted by the protocol's rules: of all prompts, and of those short enough to be attacked")
    for heading in ("concept", "eraser", "attack"):
        table.add_column(heading, overflow="fold")
    for heading in ("pre-ASR", "ASR", "pre-ASR", "ASR", "seconds", "of 50 rounds"):
        table.add_column(heading, justify="right", no_wrap=True)
    names = {key: short_names(row[key] for row in rows) for key in ("eraser", "attack")}
    for row in rows:
        table.add_row(
            *(_text(word) for word in (row["concept"], *(names[key][row[key]] for key in names))),
            *(f"{row[count]}/{row['n']}" for count in ("before", "shown")),
            *(f"{row[count]}/{row['short']}" for count in ("short_before", "short_shown")),
            *(f"{row[time]:.1f}" for time in ("seconds", "extended")),
        )
    return table


def _number(value: float | None, unit: str) -> str:
    return "" if value is None else number(value, unit)


def _utility(rows: list[dict[str, Any]]) -> Table:
    table = _table("What the erasure cost")
    for heading in ("concept", "eraser", "measure"):
        table.add_column(heading, overflow="fold")
    for heading in ("value", "interval", "base's", "n"):
        table.add_column(heading, justify="right", no_wrap=True)
    names = short_names(row["eraser"] for row in rows)
    for row in rows:
        if ":" not in row["measure"]:  # the rows behind a measure's own stand in the report
            eraser = names[row["eraser"]]
            words = (row["concept"], eraser, row["measure"])
            value, low, high, base = (_number(row[key], row["unit"]) for key in ("value", "low", "high", "base"))
            interval = f"{low} - {high}" if low else ""
            table.add_row(*(_text(word) for word in words), value, interval, base, f"{row['n']:,}")
    return table
