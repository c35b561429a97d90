"""An audit from one TOML file or from flags, wholly checked before any model is opened."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from palimpsest.attacks import ATTACKS
from palimpsest.attacks.base import BUDGETS, Budget, Need
from palimpsest.component import Component, build
from palimpsest.concept_file import check_concept, check_table, find_concept, read_table
from palimpsest.erasers import ERASERS, Checkpoint
from palimpsest.errors import BadAudit, unknown
from palimpsest.judges import JUDGES
from palimpsest.model import Precision, Sampling, default_device, fastest_precision
from palimpsest.protocol import RULES, Audit, Keep, Rules, as_toml
from palimpsest.records import Concept
from palimpsest.references import open_reference
from palimpsest.utility import MEASURES

FOLDER = Path(__file__).parent / "audits"
MINIATURE, TWIN = "miniature", "twin"
STEPS = {"quick": 15}
"""A picture's steps by budget, where the audit does not say; 25 for all others."""

MOST_GOALS = 100_000
"""Per concept."""
MOST_SAMPLES = 4096
"""Per batch."""
MOST_TOKENS = 1_000_000
"""Of a prompt."""

Spec = str | dict[str, Any]
"""A part: ``name``, ``name:setting=value,...`` or a table with its name and settings."""
PartT = TypeVar("PartT", bound=Component)


@dataclass(frozen=True, kw_only=True)
class _Written:
    """An audit as it is written down, with what goes without saying."""

    concepts: tuple[Spec, ...]
    erasers: tuple[Spec, ...]
    attacks: tuple[Spec, ...] = ("direct", "random_prefix", "unlearn_diff")
    judges: tuple[Spec, ...] = ()
    """None: the miniature's own, for the miniature and its twin."""
    measures: tuple[Spec, ...] = ("neighbours",)
    name: str = "audit"
    base: str = MINIATURE
    goals: int = 20
    budget: str | dict[str, int] = "standard"
    sampling: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    batch: int | None = None
    precision: Precision | Literal["auto"] = "fp32"
    """``auto``: what the device computes fastest; the audit then holds what that is here."""
    keep: Keep = "hits"
    longest: int | None = None
    protocol: str | None = None
    """One of ``RULES``."""
    references: dict[str, str | tuple[str, ...]] | None = None


def load_audit(source: str | Path, changes: Mapping[str, Any] | None = None) -> Audit:
    """The audit of a TOML file, or the shipped one of that name; ``changes`` go before what the file says."""
    path = Path(source)
    if path.suffix != ".toml":
        shipped = {path.stem: path for path in FOLDER.glob("*.toml")}
        if str(source) not in shipped:
            raise unknown("audit", str(source), shipped)
        path = shipped[str(source)]
    return make_audit({"name": path.stem, **read_table(path, BadAudit), **(changes or {})}, where=str(source))


def make_audit(table: Mapping[str, Any], *, where: str = "audit") -> Audit:
    """The audit that a table describes; its concepts and parts may also be given ready made."""
    plain = {key: as_toml(value) for key, value in table.items()}
    written = check_table(_Written, plain, where=where, error=BadAudit)
    concepts = tuple(_concept(entry, where) for entry in table["concepts"])
    if written.protocol is not None:
        if written.protocol not in RULES:
            raise unknown("protocol", written.protocol, RULES)
        told = _followed(RULES[written.protocol], plain, concepts, where)
        written = check_table(_Written, told, where=where, error=BadAudit)
    for key, least, most in (
        *(("goals", 1, MOST_GOALS), ("seed", 0, 2**63), ("batch", 1, MOST_SAMPLES)),
        ("longest", 1, MOST_TOKENS),
    ):
        value = getattr(written, key)
        if value is not None and value < least:
            raise BadAudit(f"{where}: expected {key} >= {least}, got {value}")
        if value is not None and value > most:
            raise BadAudit(f"{where}: expected {key} <= {most:,}, got {value}")
    judges = table.get("judges", ())
    if not judges and written.base in (MINIATURE, TWIN):
        judges = (MINIATURE, f"{MINIATURE}_second")
    audit = Audit(
        name=written.name,
        base=written.base,
        concepts=concepts,
        erasers=_parts("eraser", ERASERS, table["erasers"]),
        attacks=_parts("attack", ATTACKS, table.get("attacks", written.attacks)),
        judges=_parts("judge", JUDGES, judges),
        measures=_parts("measure", MEASURES, table.get("measures", written.measures)),
        goals=written.goals,
        budget=_budget(written.budget, where),
        sampling=_sampling(written, where),
        seed=written.seed,
        batch=written.batch,
        precision=fastest_precision(default_device()) if written.precision == "auto" else written.precision,
        keep=written.keep,
        longest=written.longest,
        rules=written.protocol,
        references=_references(written),
    )
    _check(audit, where)
    return audit


def _followed(rules: Rules, written: Mapping[str, Any], concepts: Sequence[Concept], where: str) -> dict[str, Any]:
    """What is written, and where it says nothing the rules."""
    theirs: dict[str, Any] = as_toml(rules)
    del theirs["reference_sampling"]  # nothing that an audit could say otherwise
    filled = theirs | dict(written)
    filled["sampling"] = as_toml(rules.sampling) | written.get("sampling", {})
    if "goals" not in written:
        counts = {len(concept.prompts) for concept in concepts}
        if len(counts) > 1:
            raise BadAudit(
                f"{where}: expected goals, as concepts have {' and '.join(map(str, sorted(counts)))} prompts"
            )
        filled["goals"] = counts.pop()
    return filled


def _check(audit: Audit, where: str) -> None:
    for what, names in (
        ("concept", [concept.name for concept in audit.concepts]),
        ("eraser", [eraser.label for eraser in audit.erasers]),
        ("attack", [attack.label for attack in audit.attacks]),
        ("judge", [judge.label for judge in audit.judges]),
        ("measure", [measure.name for measure in audit.measures]),
    ):
        if not names and what != "measure":
            raise BadAudit(f"{where}: expected at least one {what}, got none")
        if twice := {name for name in names if names.count(name) > 1}:
            raise BadAudit(f"{where}: expected each {what} once, got {min(twice)!r} more than once")
    planting = next((attack.name for attack in audit.attacks if Need.PLANT in attack.needs), None)
    finished = next((one for one in audit.erasers if any(isinstance(part, Checkpoint) for part in one.parts)), None)
    if planting and finished:
        raise BadAudit(
            f"{where}: expected erasers that erase what {planting} planted, got {finished.label}: a finished model "
            "would put its own weights in place of what was planted; name the eraser that made it"
        )
    for judge in audit.judges:
        for concept in audit.concepts:
            judge.check(concept)  # raises UnknownName for a concept that the judge cannot see
    for measure in audit.measures:
        measure.check(audit.base)
    for name in audit.references or ():
        if name not in (known := [concept.name for concept in audit.concepts]):
            raise unknown(f"concept of {where}", name, known)
        if not (files := audit.pictures(name)):
            raise BadAudit(f"{where}: expected pictures of {name!r}, got none")
        for file in files:
            open_reference(file)  # raises BadAudit for what is no picture


def parse_spec(text: str) -> dict[str, Any]:
    """``name``, ``name:setting=value,...`` or, for a part that has a path, ``name=path``, as a table.

    A value is read as TOML reads it; a bare word is a string.
    """
    name = re.split("[:=]", text, maxsplit=1)[0]
    rest = text[len(name) :]
    if rest.startswith("="):
        return {"name": name, "path": rest[1:]}
    settings = {}
    for setting in _apart(rest[1:]) if rest else []:
        key, equals, value = (piece.strip() for piece in setting.partition("="))
        if not key or not equals:
            raise BadAudit(f"expected name:setting=value,..., got {text!r}")
        settings[key] = _value(value)
    return {"name": name, **settings}


def _apart(text: str) -> list[str]:
    """What commas separate; one in brackets is part of a list or table."""
    pieces, depth = [""], 0
    for mark in text:
        depth += (mark in "[{") - (mark in "]}")
        if mark == "," and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += mark
    return pieces


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _parts(what: str, known: Sequence[type[PartT]], entries: Sequence[PartT | Spec]) -> tuple[PartT, ...]:
    return tuple(
        entry
        if isinstance(entry, Component)
        else build(what, known, parse_spec(entry) if isinstance(entry, str) else entry)
        for entry in entries
    )


def _concept(entry: Concept | Spec, where: str) -> Concept:
    if isinstance(entry, str):
        return find_concept(entry)
    return check_concept(as_toml(entry), where=where)


def _budget(written: str | dict[str, int], where: str) -> Budget:
    if isinstance(written, str):
        if written not in BUDGETS:
            raise unknown("budget", written, BUDGETS)
        return BUDGETS[written]
    budget = check_table(Budget, written, where=f"{where}, budget", error=BadAudit)
    if min(budget.looks, budget.passes) < 1:
        raise BadAudit(f"{where}: expected a budget of at least one look and one pass, got {written}")
    return budget


def _references(written: _Written) -> dict[str, tuple[str, ...]] | None:
    given = written.references or {}
    return {name: (paths,) if isinstance(paths, str) else paths for name, paths in given.items()} or None


def parse_references(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """``CONCEPT=PATH`` each, as a table; raises ``BadAudit`` for what is none."""
    found: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise BadAudit(f"expected CONCEPT=PATH for a reference, got {text!r}")
        found[name] = (*found.get(name, ()), path)
    return found


def _sampling(written: _Written, where: str) -> Sampling:
    settings = dict(written.sampling)
    if isinstance(written.budget, str) and written.budget in STEPS:
        settings.setdefault("steps", STEPS[written.budget])
    return check_table(Sampling, settings, where=f"{where}, sampling", error=BadAudit)
