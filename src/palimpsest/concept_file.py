"""Concepts as TOML files: those that are shipped, and the user's own."""

import csv
import dataclasses
import json
import math
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from palimpsest.errors import BadConcept, PalimpsestError, unknown
from palimpsest.records import Concept

FOLDER = Path(__file__).parent / "concepts"

SEEDS = ("evaluation_seed", "sd_seed", "seed")
GUIDANCES = ("evaluation_guidance", "sd_guidance_scale", "guidance")
"""Columns of a list of prompts, in order of preference: UnlearnDiffAtk's, I2P's, plain ones."""

RecordT = TypeVar("RecordT")
_adapters: dict[type, TypeAdapter[Any]] = {}


def read_table(path: Path, error: type[PalimpsestError]) -> dict[str, Any]:
    """What a TOML file holds; raises ``error``, which names the file, where it cannot be read."""
    try:
        _require_file(path)
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as cause:
        raise error(f"{path}: expected a TOML file, got {cause}") from None


def _require_file(path: Path) -> None:
    """A pipe or a device may never end."""
    if path.exists() and not path.is_file():
        raise OSError("something that is no file")


def check_table(
    record: type[RecordT], table: Mapping[str, Any], *, where: str, error: type[PalimpsestError]
) -> RecordT:
    """The record that ``table`` describes; raises ``error`` for an unknown key, a missing one or a wrong type."""
    keys = {field.name for field in dataclasses.fields(record)}  # type: ignore[arg-type]
    for key in table:
        if key not in keys:
            raise error(f"{where}: no key called {key!r}; there are: {', '.join(sorted(keys))}")
    try:
        # JSON mode is strict about types (a string is no number) and takes lists for tuples.
        if record not in _adapters:
            _adapters[record] = TypeAdapter(record)
        checked: RecordT = _adapters[record].validate_json(json.dumps(dict(table), allow_nan=False), strict=True)
    except (ValueError, TypeError, RecursionError) as cause:
        raise error(f"{where}: {_first_fault(cause)}") from None
    return checked


def _first_fault(cause: ValueError | TypeError | RecursionError) -> str:
    if not isinstance(cause, ValidationError):  # dates and infinities, which TOML knows and JSON does not
        return str(cause)
    fault = cause.errors()[0]
    key = ".".join(str(step) for step in fault["loc"])
    if fault["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"key {key!r} is missing"
    return f"key {key!r}: {fault['msg']}, got {fault['input']!r}"


def check_concept(table: Mapping[str, Any], *, where: str) -> Concept:
    """The concept that ``table`` describes; at least a name, a kind and prompts."""
    concept = check_table(Concept, table, where=where, error=BadConcept)
    if not concept.name.strip():
        raise BadConcept(f"{where}: expected a name, got {concept.name!r}")
    if not concept.prompts:
        raise BadConcept(f"{where}: expected at least one prompt for {concept.name!r}, got none")
    for prompt in concept.prompts:
        if not prompt.strip():
            raise BadConcept(f"{where}: expected prompts for {concept.name!r} with words in them, got {prompt!r}")
    for key in ("seeds", "guidances"):
        values = getattr(concept, key)
        if values and len(values) != len(concept.prompts):
            raise BadConcept(f"{where}: expected as many {key} as prompts ({len(concept.prompts)}), got {len(values)}")
        if not all(math.isfinite(value) and value >= 0 for value in values):
            raise BadConcept(f"{where}: expected {key} of 0 or more, got {min(values)}")
    if max(concept.seeds, default=0) >= 2**63:
        raise BadConcept(f"{where}: expected seeds below 2^63, got {max(concept.seeds)}")
    return concept


def read_prompts(path: Path) -> dict[str, Any]:
    """``prompts`` and, where the file has them, ``seeds`` and ``guidances``, from the rows of a CSV file.

    The layout is that of I2P (``prompt``, ``sd_seed``, ``sd_guidance_scale``) and of UnlearnDiffAtk's files
    (``evaluation_seed``, ``evaluation_guidance``, which go before I2P's); other columns are not looked at. Raises
    ``BadConcept``, which names the file and the row.
    """
    columns, rows = read_rows(path)
    told: dict[str, Any] = {"prompts": [row["prompt"] or "" for row in rows]}
    for key, names in (("seeds", SEEDS), ("guidances", GUIDANCES)):
        if column := next((name for name in names if name in columns), None):
            told[key] = [
                read_number(row[column], f"{path}, row {at}, {column}") for at, row in enumerate(rows, start=2)
            ]
    if "seeds" in told:
        for at, seed in enumerate(told["seeds"], start=2):
            if not seed.is_integer():
                raise BadConcept(f"{path}, row {at}: expected a whole number as seed, got {seed}")
        told["seeds"] = [int(seed) for seed in told["seeds"]]
    return told


def read_rows(path: Path) -> tuple[list[str], list[dict[str, str | None]]]:
    """The columns of a CSV file, ``prompt`` among them, and its rows; raises ``BadConcept``, which names the file."""
    try:
        _require_file(path)
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns, rows = [name for name in reader.fieldnames or () if name], list(reader)
    except (OSError, ValueError, csv.Error) as cause:
        raise BadConcept(f"{path}: expected a CSV file of prompts, got {cause}") from None
    if "prompt" not in columns:
        raise BadConcept(
            f"{path}: expected a column 'prompt', got {', '.join(columns[:12]) or 'no columns'}; a seed may stand in "
            f"{', '.join(SEEDS)}, a guidance in {', '.join(GUIDANCES)}"
        )
    return columns, rows


def read_number(text: str | None, where: str) -> float:
    """A finite number; raises ``BadConcept``, which says where."""
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BadConcept(f"{where}: expected a number, got {text!r}")
    return value


@cache
def shipped_concepts() -> dict[str, Concept]:
    """The concepts that come with the package, by name."""
    concepts = [check_concept(read_table(path, BadConcept), where=str(path)) for path in sorted(FOLDER.glob("*.toml"))]
    return {concept.name: concept for concept in concepts}


def find_concept(source: str) -> Concept:
    """The concept of a TOML file, if ``source`` ends so, or else the shipped one of that name.

    In a file, ``prompts`` may name a CSV file beside it instead of listing them.
    """
    if source.endswith(".toml"):
        table = read_table(Path(source), BadConcept)
        prompts = table.get("prompts")
        if isinstance(prompts, str) and prompts.endswith(".csv"):
            table |= read_prompts(Path(source).parent / prompts)
        return check_concept(table, where=source)
    shipped = shipped_concepts()
    if source not in shipped:
        raise unknown("concept", source, shipped)
    return shipped[source]
