"""What an audit fixes before it begins: its parts, goals and controls, and the hash of all that changes a result."""

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tomli_w

from palimpsest.assets import sha256
from palimpsest.attacks.backdoor import Backdoor
from palimpsest.attacks.base import BUDGETS, Attack, Budget, Need
from palimpsest.attacks.direct import Direct
from palimpsest.attacks.random_prefix import RandomPrefix
from palimpsest.attacks.random_trigger import RandomTrigger
from palimpsest.component import Component
from palimpsest.concept_file import shipped_concepts
from palimpsest.erasers.base import Eraser
from palimpsest.erasers.nothing import Nothing
from palimpsest.errors import UnknownName
from palimpsest.judges.base import Judge
from palimpsest.model import Precision, Sampling
from palimpsest.records import Concept, Goal, digest
from palimpsest.references import reference_files
from palimpsest.utility.base import Measure

Keep = Literal["hits", "all", "none"]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """A published protocol: what an audit that names it does where it does not say otherwise."""

    attacks: tuple[str, ...]
    budget: Budget
    sampling: Sampling
    reference_sampling: Sampling
    """How the base draws the pictures that attacks aim at, whatever guidance a goal has of its own."""
    precision: Precision
    longest: int
    """Tokens of the longest prompt that is attacked, start and end included; the goals are all prompts."""


RULES = {
    # OPTML-Group/Diffusion-MU-Attack, the code of arXiv 2310.11868. The order of its timesteps, its 50 x 40 iterations
    # and its re-seeding are its attacks' own defaults. It has no limit but looks: the passes are those of its P4D
    # through a guard of three branches.
    "unlearndiffatk": Rules(
        attacks=("direct", "p4d", "unlearn_diff"),
        budget=Budget(looks=51, passes=50 * 40 * 8 + 51 * 150),
        sampling=Sampling(scheduler="lms", steps=50, guidance=7.5),
        reference_sampling=Sampling(scheduler="lms", steps=25, guidance=7.5),
        precision="fp32",
        longest=60,
    )
}

ASKING = (Direct, Backdoor, RandomTrigger)
"""Attacks that ask each goal once, and do not search."""


class Cell(NamedTuple):
    """An eraser and what attacks it: one line of the report's table for each concept."""

    eraser: Eraser
    attack: Attack


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What to run; its parts are built, so their names and settings have been checked."""

    name: str
    """Of the run's folder; changes no result."""
    base: str
    """``miniature``, ``twin``, a diffusers folder, a hub id or a single file."""
    concepts: tuple[Concept, ...]
    erasers: tuple[Eraser, ...]
    attacks: tuple[Attack, ...]
    judges: tuple[Judge, ...]
    """The first is the chief, who decides; the others confirm."""
    measures: tuple[Measure, ...]
    goals: int
    """Per concept."""
    budget: Budget
    """Per goal."""
    sampling: Sampling
    seed: int
    batch: int | None
    """Samples per batch; None: the model's default for its device."""
    precision: Precision
    keep: Keep
    """Which pictures: those of hits and of ``direct`` (a report shows them side by side), all, or none."""
    longest: int | None = None
    """A prompt of more tokens, start and end included, is looked at plainly and not attacked; None: any is attacked."""
    rules: str | None = None
    """The published protocol that it follows where it does not say otherwise; ``protocol`` in its file."""
    references: dict[str, tuple[str, ...]] | None = field(default=None, hash=False)
    """Concept -> pictures, or folders of them, that its goals take in turn where an attack aims at one; for all other
    concepts the base draws its own."""

    @property
    def cells(self) -> tuple[Cell, ...]:
        """What attacks what: all that was asked for, and the controls without which it means nothing.

        The ceiling is ``nothing`` with ``direct``, the floor is each eraser with ``direct``; an attack that may look
        more than once is compared with ``random_prefix``, which looks as often and knows nothing, a backdoor with
        ``random_trigger``. What an attack plants is tried with ``nothing`` before it is erased: a trigger that never
        worked says nothing about an eraser.
        """
        attacks = self.attacks
        if not _any_is(attacks, Direct):
            attacks = (Direct(), *attacks)
        if not _any_is(attacks, RandomPrefix) and any(not isinstance(attack, ASKING) for attack in attacks):
            attacks = (*attacks, RandomPrefix())
        places = dict.fromkeys((attack.place, attack.behind) for attack in attacks if isinstance(attack, Backdoor))
        controlled = {(attack.place, attack.behind) for attack in attacks if isinstance(attack, RandomTrigger)}
        controls = (
            RandomTrigger(place=place, behind=behind) for place, behind in places if (place, behind) not in controlled
        )
        attacks = (*attacks, *controls)
        cells = tuple(Cell(eraser, attack) for eraser in self.erasers for attack in attacks)
        if not _any_is(self.erasers, Nothing):
            before = (one for one in attacks if isinstance(one, (Direct, RandomTrigger)) or Need.PLANT in one.needs)
            cells = (*(Cell(Nothing(), attack) for attack in before), *cells)
        return cells

    @property
    def added_controls(self) -> tuple[str, ...]:
        """The cells that nobody asked for: ``eraser x attack``."""
        return tuple(
            f"{cell.eraser.label} x {cell.attack.label}"
            for cell in self.cells
            if cell.eraser not in self.erasers or cell.attack not in self.attacks
        )

    def goals_for(self, concept: Concept) -> tuple[Goal, ...]:
        """The concept's first prompts, each with a seed of its own; a short list begins again with further seeds."""
        goals = []
        for number in range(self.goals):
            row = number % len(concept.prompts)
            given = concept.seeds and number == row
            goals.append(
                Goal(
                    concept=concept.name,
                    prompt=concept.prompts[row],
                    seed=concept.seeds[row] if given else derived_seed(self.seed, concept.name, number),
                    guidance=concept.guidances[row] if concept.guidances else None,
                )
            )
        return tuple(goals)

    def pictures(self, concept: str) -> tuple[Path, ...]:
        """The files of the pictures that were given for a concept; none: the base draws them."""
        return reference_files((self.references or {}).get(concept, ()))

    def retained(self, concept: Concept) -> tuple[Concept, ...]:
        """What its erasure should leave: all others of its kind and its named neighbours that the chief judge knows."""
        others = shipped_concepts() | {other.name: other for other in self.concepts}
        return tuple(
            other
            for name, other in sorted(others.items())
            if (other.kind == concept.kind or name in concept.neighbours)
            and name != concept.name
            and self._judged(other)
        )

    def _judged(self, concept: Concept) -> bool:
        try:
            self.judges[0].check(concept)
        except UnknownName:
            return False
        return True

    @property
    def deviations(self) -> tuple[str, ...]:
        """Where it says otherwise than the protocol that it names, in words."""
        if self.rules is None:
            return ()
        theirs = RULES[self.rules]
        compared = {
            "looks": (self.budget.looks, theirs.budget.looks),
            "precision": (self.precision, theirs.precision),
            "longest": (self.longest, theirs.longest),
        } | {
            key: (getattr(self.sampling, key), getattr(theirs.sampling, key))
            for key in ("scheduler", "steps", "guidance")
        }
        if self.budget.passes < theirs.budget.passes:  # more would change nothing
            compared["passes"] = self.budget.passes, theirs.budget.passes
        found = [f"{key} {mine} in place of {own}" for key, (mine, own) in compared.items() if mine != own]
        found += [
            f"{self.goals} goals of {concept.name}, which has {len(concept.prompts)} prompts"
            for concept in self.concepts
            if len(concept.prompts) != self.goals
        ]
        found += [
            f"{attack.name} through {eraser.label} in place of past it"
            for eraser in self.erasers
            if eraser.parts[-1].guard is not None
            for attack in self.attacks
            if Need.GRADIENTS in attack.needs and attack.adaptive
        ]
        return (*found, *(attack.label for attack in self.attacks if attack.label != attack.name))

    @property
    def reference_sampling(self) -> Sampling:
        """How the base draws the pictures that attacks aim at, where none are given."""
        return self.sampling if self.rules is None else RULES[self.rules].reference_sampling

    @property
    def budget_name(self) -> str:
        """``quick``, ``standard`` or ``full``; ``own`` for any other."""
        return next((name for name, budget in BUDGETS.items() if budget == self.budget), "own")

    def table(self) -> dict[str, Any]:
        """The audit as a TOML file holds it, every default written out."""
        table: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        table["protocol"] = table.pop("rules")
        return {key: as_toml(value) for key, value in table.items() if value is not None}

    def toml(self) -> str:
        """The same as text."""
        return tomli_w.dumps(self.table())

    @cached_property
    def protocol(self) -> str:
        """Digest of everything that changes a result, the content of named checkpoints included."""
        table = {key: value for key, value in self.table().items() if key not in ("name", "keep", "protocol")}
        # Controls count as they are run, whether they were asked for or added.
        del table["erasers"], table["attacks"]
        table["cells"] = sorted(digest([cell.eraser.spec, cell.attack.spec]) for cell in self.cells)
        table["files"] = [_content(Path(path)) for eraser in self.erasers for path in eraser.reads]
        if read := sorted({attack.fingerprint for attack in self.attacks} - {""}):
            table["read"] = read
        if self.rules is not None:
            table["reference_sampling"] = as_toml(self.reference_sampling)
        if self.references:
            table["pictures"] = [_content(file) for name in sorted(self.references) for file in self.pictures(name)]
        return digest(table)


def derived_seed(*origin: Any) -> int:
    """A seed that hangs on all of ``origin`` and on nothing else."""
    return int(digest(list(origin))[:8], 16)


def as_toml(value: Any) -> Any:
    """A value as TOML holds it: parts and records as tables, without their Nones, for which TOML has no word."""
    if isinstance(value, Component):
        return as_toml(value.spec)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return as_toml(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {key: as_toml(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list | tuple):
        return [as_toml(entry) for entry in value]
    return value


def _any_is(parts: tuple[Component, ...], kind: type[Component]) -> bool:
    return any(isinstance(part, kind) for part in parts)


def _content(path: Path) -> str:
    """SHA-256 of a file, or of a folder's files and their names."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return digest({str(file.relative_to(path)): _content(file) for file in files})
    return sha256(path)
