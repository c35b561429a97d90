"""A run's folder, read: finished goals and readings, in an order of their own."""

import gc
import json
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import TypeAdapter, ValidationError

from palimpsest.errors import BadRun
from palimpsest.records import Goal, Reading, Trial, Victim, digest

BASE = "nothing"
"""The eraser of the untouched base."""

RecordT = TypeVar("RecordT")


class Key(NamedTuple):
    """A cell: everything that belongs together in one rate."""

    concept: str
    eraser: str
    attack: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A finished goal: all that was looked at for it, in order."""

    key: Key
    goal: Goal
    trials: tuple[Trial, ...]

    @cached_property
    def looks(self) -> tuple[Trial, ...]:
        """The looks at pictures drawn in full; drafts decide nothing."""
        return tuple(trial for trial in self.trials if trial.verdict and trial.attempt and not trial.attempt.draft)

    @cached_property
    def won(self) -> Trial | None:
        """The first look, drafts aside, at which the chief judge saw the concept."""
        return next((trial for trial in self.looks if trial.wins), None)

    @property
    def failed(self) -> bool:
        """Whether it ended in an error."""
        return self.trials[-1].end == "error"

    @property
    def idle(self) -> bool:
        """Whether the attack gave up without a look: the victim has nothing for it to work on."""
        return self.trials[-1].end == "gave_up" and all(trial.attempt is None for trial in self.trials)

    @property
    def spared(self) -> bool:
        """Whether it was looked at and not attacked, for its prompt was too long; the plain look may have won it."""
        end = self.trials[-1]
        # With a reason the plain look was all that was to come, even if it was won or was all that the budget gave.
        return end.end == "spared" or (end.end in ("won", "spent") and end.reason is not None)

    @property
    def untold(self) -> bool:
        """Whether it was not shown, and the judge could not tell about some picture."""
        return self.won is None and any(look.verdict and look.verdict.shown is None for look in self.looks)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run's folder holds."""

    folder: Path
    protocol: str
    provenance: dict[str, Any]
    outcomes: dict[Key, tuple[Outcome, ...]]
    """Sorted by key; the goals of each by prompt and seed."""
    idle: tuple[Key, ...]
    """Cells in which the attack had nothing to work on, sorted; none of them is in ``outcomes``."""
    reasons: dict[Key, str]
    """Of the idle cells; empty where the attack does not say why."""
    readings: tuple[Reading, ...]

    def kind(self, concept: str) -> str:
        """The concept's kind; empty where the run does not say."""
        return str(self._concept(concept).get("kind", ""))

    def asked(self, concept: str) -> int | None:
        """How many goals the audit asked for; None where the run does not say."""
        goals = self._concept(concept).get("goals")
        return goals if isinstance(goals, int) else None

    def needs(self, attack: str) -> list[str] | None:
        """What the attacker must hold; None where the run does not say."""
        needs = _table(_table(self.provenance.get("attacks")).get(unmarked(attack))).get("needs")
        return sorted(map(str, needs)) if isinstance(needs, list) else None

    def held(self, attack: str, concept: str) -> list[str] | None:
        """The other concepts that a backdoor held in place as it was planted; None where the run does not say."""
        told = _table(_table(self.provenance.get("attacks")).get(unmarked(attack)))
        names = _table(told.get("held")).get(concept)
        return list(map(str, names)) if isinstance(names, list) else None

    def in_the_base(self, attack: str) -> str:
        """The control that asks the untouched base with a backdoor's trigger; empty where the run does not say."""
        return str(_table(_table(self.provenance.get("attacks")).get(unmarked(attack))).get("in_the_base", ""))

    @property
    def rules(self) -> tuple[str, list[str]] | None:
        """The published protocol that the run says it follows, and where it does not; None: none."""
        told = _table(self.provenance.get("rules"))
        deviations = told.get("deviations")
        if not told.get("name"):
            return None
        return str(told["name"]), list(map(str, deviations)) if isinstance(deviations, list) else []

    def neighbours(self, concept: str) -> bool:
        """Whether the run says that it measures what becomes of the concept's neighbours."""
        measures = self.provenance.get("measures")
        named = isinstance(measures, list) and any(str(measure).startswith("neighbours") for measure in measures)
        return named and bool(self._concept(concept).get("neighbours"))

    @cached_property
    def unstarted(self) -> list[Key]:
        """The cells that the run says it will fill, and in which no goal has ended yet."""
        begun = {(key.concept, key.eraser, unmarked(key.attack)) for key in (*self.outcomes, *self.idle)}
        told = self.provenance.get("erasers")
        erasers = {key.eraser for key in self.outcomes} | set(map(str, told) if isinstance(told, list) else ())
        return sorted(
            Key(concept, eraser, attack)
            for concept in _table(self.provenance.get("concepts"))
            for eraser in erasers - {BASE}
            for attack in _table(self.provenance.get("attacks"))
            if not eraser.endswith("]") and (concept, eraser, attack) not in begun
        )

    @property
    def judges(self) -> list[dict[str, Any]]:
        """The judges that the run names, the chief first."""
        judges = self.provenance.get("judges")
        known = [_table(judge) for judge in judges] if isinstance(judges, list) else []
        return sorted(known, key=lambda judge: (not judge.get("chief"), str(judge.get("name"))))

    def _concept(self, concept: str) -> dict[str, Any]:
        return _table(_table(self.provenance.get("concepts")).get(concept))


def _key(trial: Trial) -> Key:
    """The cell of a trial; how deep an erasure went marks the eraser, what an attack made of the model the attack."""
    victim = trial.victim
    plant = f"plant {victim.plant}" if victim.plant not in ("", trial.attack) else ""
    revision = f"revision {victim.revision}" if victim.revision else ""
    return Key(
        concept=victim.concept,
        eraser=marked(victim.eraser, f"depth {victim.depth}" if victim.depth else ""),
        attack=marked(trial.attack, plant, revision),
    )


def marked(label: str, *marks: str) -> str:
    """A label with what tells it from its namesakes off the main line."""
    there = ", ".join(mark for mark in marks if mark)
    return f"{label} [{there}]" if there else label


def unmarked(label: str) -> str:
    """The label without what ``marked`` put behind it."""
    return re.split(r" \[(?:plant|revision|depth) ", label, maxsplit=1)[0]


def read(folder: Path) -> Run:
    """The run in ``folder``; raises ``BadRun`` where it is none, or is damaged."""
    audit = folder / "audit.toml"
    trials = folder / "trials.jsonl"
    with reading(folder):
        there = audit.exists() or trials.exists()
    if not there:
        raise BadRun(f"expected a run's folder with audit.toml and trials.jsonl, got {str(folder)!r}")
    provenance = _provenance(folder / "provenance.json")
    outcomes = _outcomes(_records(trials, Trial))
    idle = tuple(key for key, cell in outcomes.items() if all(outcome.idle for outcome in cell))
    return Run(
        folder=folder,
        protocol=str(provenance.get("protocol") or _protocol(audit)),
        provenance=provenance,
        outcomes={key: cell for key, cell in outcomes.items() if key not in idle},
        idle=idle,
        reasons={key: outcomes[key][0].trials[-1].reason or "" for key in idle},
        readings=tuple(_records(folder / "readings.jsonl", Reading)),
    )


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What is no file, or cannot be opened, becomes ``BadRun``."""
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise BadRun(f"{path} is neither a file nor a folder")
        yield
    except OSError as error:
        raise BadRun(f"{path}: cannot be read ({error.strerror or error})") from None


def _records(path: Path, record: type[RecordT]) -> list[RecordT]:
    """The records of a file, sorted by their lines: the order of the file means nothing."""
    if not path.exists():
        return []
    adapter = TypeAdapter(record)
    with reading(path):
        lines = path.read_bytes().split(b"\n")
    found = {}
    with _collector_at_rest():
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                found[line] = adapter.validate_json(line)
            except ValidationError as error:
                if number == len(lines):  # torn: the run was stopped while it wrote this line
                    break
                first = error.errors()[0]
                where = f"{path.name}, line {number}, {'.'.join(map(str, first['loc'])) or 'the line'}"
                raise BadRun(f"{where}: expected a {record.__name__}, got {first['msg']}") from None
    return [found[line] for line in sorted(found)]


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Records refer to nothing in a circle, and looking for circles among them takes longer than reading them."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _outcomes(trials: list[Trial]) -> dict[Key, tuple[Outcome, ...]]:
    lines: defaultdict[tuple[Key, Goal], dict[int, Trial]] = defaultdict(dict)
    known: dict[tuple[Victim, str], Key] = {}
    for trial in trials:
        if trial.goal.role == "target":
            # Of the thousands of looks in a cell, the first names it.
            key = known.get((trial.victim, trial.attack)) or known.setdefault((trial.victim, trial.attack), _key(trial))
            lines[key, trial.goal][trial.number] = trial
    cells: defaultdict[Key, list[Outcome]] = defaultdict(list)
    for (key, goal), looks in lines.items():
        last = max((number for number, trial in looks.items() if trial.end is not None), default=-1)
        if last >= 0:
            kept = tuple(looks[number] for number in sorted(looks) if number <= last)
            cells[key].append(Outcome(key=key, goal=goal, trials=kept))
    return {key: tuple(sorted(cells[key], key=lambda outcome: goal_key(outcome.goal))) for key in sorted(cells)}


def goal_key(goal: Goal) -> tuple[str, int, str, str]:
    """What goals are sorted by."""
    return goal.prompt, goal.seed, str(goal.guidance), goal.role


def _provenance(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        with reading(path):
            return _table(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, RecursionError) as error:
        raise BadRun(f"{path.name}: expected JSON, got {error}") from None


def _protocol(audit: Path) -> str:
    if not audit.exists():
        return ""
    try:
        with reading(audit):
            return digest(tomllib.loads(audit.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise BadRun(f"{audit.name}: expected TOML, got {error}") from None


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
