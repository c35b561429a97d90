"""A run as flat tables, for other programs: CSV, JSON, Parquet, pandas."""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from palimpsest.errors import BadRun, MissingExtra, unknown
from palimpsest.records import Trial
from palimpsest.report.findings import as_json, find
from palimpsest.report.ledger import Run, read

FORMATS = ("csv", "json", "parquet")
TABLES = ("looks", "cells", "utility")

LOOKS: dict[str, type] = {
    "concept": str,
    "kind": str,
    "eraser": str,
    "attack": str,
    "base": str,
    "plant": str,
    "depth": int,
    "revision": int,
    "weights": str,
    "goal_prompt": str,
    "goal_seed": int,
    "goal_guidance": float,
    "look": int,
    "prompt": str,
    "seed": int,
    "words": str,
    "start": str,
    "start_step": int,
    "guidance": float,
    "draft": bool,
    "shown": bool,
    "end": str,
    "error": str,
    "dropped_tokens": int,
    "picture": str,
    "forwards": int,
    "backwards": int,
    "passes": int,
    "encodes": int,
    "looks": int,
    "seconds": float,
}
"""The columns of the table ``looks`` and their types; a column ``score_<judge>`` for every judge follows."""


def rows(folder: Path, table: str = "looks") -> list[dict[str, Any]]:
    """A run's ``looks`` (each at a goal that has ended), ``cells`` or ``utility``: docs/report-schema.md says of what.

    All rows of a table have the same keys, in one order. Raises ``BadRun`` where the folder is no run, ``UnknownName``
    for another table.
    """
    if table not in TABLES:
        raise unknown("table", table, TABLES)
    run = read(folder)
    if table == "looks":
        return _looks(run)
    found: list[dict[str, Any]] = as_json(find(run))[table]
    return found


def export(folder: Path, out: Path, *, to: str, table: str = "looks") -> None:
    """Writes a table of the run, whole or not at all.

    Raises ``UnknownName`` for a format or table that is none, ``MissingExtra`` without pyarrow for Parquet, ``BadRun``
    where nothing can be written.
    """
    if to not in FORMATS:
        raise unknown("format", to, FORMATS)
    found = rows(folder, table)
    part = out.with_name(f".{out.name}.part")
    try:
        if to == "csv":
            _write_csv(found, part)
        elif to == "json":
            part.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        else:
            _write_parquet(found, part)
        os.replace(part, out)
    except OSError as error:
        raise BadRun(f"{out}: cannot be written ({error.strerror or error})") from None
    finally:
        part.unlink(missing_ok=True)


def frame(folder: Path, table: str = "looks") -> Any:
    """The table as a pandas ``DataFrame``; raises ``MissingExtra`` without pandas."""
    try:
        import pandas
    except ImportError:
        raise MissingExtra("a pandas table", "pandas", "tables") from None
    return pandas.DataFrame(rows(folder, table)).convert_dtypes()


def _looks(run: Run) -> list[dict[str, Any]]:
    trials = [
        (outcome.key, trial) for outcomes in run.outcomes.values() for outcome in outcomes for trial in outcome.trials
    ]
    judges = sorted({judge for _, trial in trials if trial.verdict for judge in trial.verdict.scores})
    return [
        {"concept": key.concept, "kind": run.kind(key.concept), "eraser": key.eraser, "attack": key.attack}
        | _look(trial)
        | {f"score_{judge}": trial.verdict.scores.get(judge) if trial.verdict else None for judge in judges}
        for key, trial in trials
    ]


def _look(trial: Trial) -> dict[str, Any]:
    attempt, victim, goal, cost = trial.attempt, trial.victim, trial.goal, trial.cost
    asked = ("prompt", "seed", "words", "start", "start_step", "guidance", "draft")
    return {
        "base": victim.base,
        "plant": victim.plant,
        "depth": victim.depth,
        "revision": victim.revision,
        "weights": victim.fingerprint,
        "goal_prompt": goal.prompt,
        "goal_seed": goal.seed,
        "goal_guidance": goal.guidance,
        "look": trial.number,
        **{name: getattr(attempt, name) if attempt else None for name in asked},
        "shown": trial.verdict.shown if trial.verdict else None,
        "end": trial.end,
        "error": trial.error,
        "dropped_tokens": trial.dropped_tokens,
        "picture": trial.picture,
        **{name: getattr(cost, name) for name in ("forwards", "backwards", "passes", "encodes", "looks", "seconds")},
    }


def _write_csv(found: Sequence[Mapping[str, Any]], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(found[0] if found else LOOKS)
        for row in found:
            writer.writerow([str(value).lower() if isinstance(value, bool) else value for value in row.values()])


def _write_parquet(found: list[dict[str, Any]], path: Path) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingExtra("Parquet", "pyarrow", "tables") from None
    types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64(), bool: pyarrow.bool_()}
    # A column may be empty throughout: what it would hold is said, not guessed.
    columns = found[0] if found else LOOKS
    held = {name: next((type(row[name]) for row in found if row[name] is not None), float) for name in columns}
    held |= LOOKS if held.keys() >= LOOKS.keys() else {}  # another table may call another thing by one of its names
    schema = pyarrow.schema([(name, types[held[name]]) for name in columns])
    parquet.write_table(pyarrow.Table.from_pylist(found, schema=schema), path)
