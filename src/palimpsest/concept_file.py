"""Concepts as TOML files: those that are shipped, and the user's own."""

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from palimpsest.errors import BadConcept, PalimpsestError, unknown
from palimpsest.records import Concept

FOLDER = Path(__file__).parent / "concepts"

RecordT = TypeVar("RecordT")
_adapters: dict[type, TypeAdapter[Any]] = {}


def read_table(path: Path, error: type[PalimpsestError]) -> dict[str, Any]:
    """What a TOML file holds; raises ``error``, which names the file, where it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise error(f"{path}: expected a TOML file, got {cause}") from None


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
    except (ValueError, TypeError) as cause:
        raise error(f"{where}: {_first_fault(cause)}") from None
    return checked


def _first_fault(cause: ValueError | TypeError) -> str:
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
    return concept


@cache
def shipped_concepts() -> dict[str, Concept]:
    """The concepts that come with the package, by name."""
    concepts = [check_concept(read_table(path, BadConcept), where=str(path)) for path in sorted(FOLDER.glob("*.toml"))]
    return {concept.name: concept for concept in concepts}


def find_concept(source: str) -> Concept:
    """The concept of a TOML file, if ``source`` ends so, or else the shipped one of that name."""
    if source.endswith(".toml"):
        return check_concept(read_table(Path(source), BadConcept), where=source)
    shipped = shipped_concepts()
    if source not in shipped:
        raise unknown("concept", source, shipped)
    return shipped[source]
