"""What an audit asks for and what it found: frozen data, JSON in and out. Imports no torch."""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, cast

from pydantic import TypeAdapter

Kind = Literal["object", "style", "identity", "content"]
KINDS: tuple[Kind, ...] = ("object", "style", "identity", "content")
Role = Literal["target", "retained", "other"]
End = Literal["won", "spent", "gave_up", "spared", "error"]
"""How a goal ended; ``spared``: looked at plainly and not attacked, for its prompt is too long."""
Unit = Literal["share", "number"]


@dataclass(frozen=True, kw_only=True)
class Concept:
    """What is to be forgotten, and the words that call it."""

    name: str
    """Its plain name, as it stands in a prompt: ``church``, ``van gogh``."""
    kind: Kind
    prompts: tuple[str, ...]
    """Prompts that ask for it; an audit's goals are the first of these."""
    seeds: tuple[int, ...] = ()
    """Of each prompt's goal, as I2P gives one per row; none: derived from the audit's seed."""
    guidances: tuple[float, ...] = ()
    """Of each prompt's goal; none: the audit's."""
    synonyms: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    """(with, without): the same prompt with the concept and without it."""
    anchor: str = ""
    """What an eraser maps it to; empty: the empty prompt."""
    neighbours: tuple[str, ...] = ()
    """Names of concepts of the same kind that must survive its erasure."""
    labels: dict[str, str] = field(default_factory=dict, hash=False)
    """Judge's name -> the label under which that judge knows the concept; without an entry, the name."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One thing to be shown: the picture of this prompt with this seed."""

    concept: str
    prompt: str
    seed: int
    guidance: float | None = None
    """Guidance scale of this goal alone (I2P gives one per row); None: the audit's."""
    role: Role = "target"


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One picture that an attack asks for."""

    prompt: str
    seed: int
    words: str | None = None
    """Name of a stored tensor (context, width) in place of the prompt's token embeddings."""
    start: str | None = None
    """Name of a stored tensor: the latents to start from in place of the seed's noise."""
    start_step: int | None = None
    """Index into the sampler's steps at which ``start`` enters; None: the first."""
    guidance: float | None = None
    draft: bool = False
    """Drawn with the sampling's fewer draft steps; a look that leads a search, and wins no goal."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the judges said of one picture."""

    scores: dict[str, float | None] = field(hash=False)
    """Judge's name -> score in [0, 1]; None: could not tell, counted and shown, never dropped."""
    shown: bool | None
    """Whether the chief judge sees the concept; None: could not tell."""

    @property
    def score(self) -> float:
        """The chief judge's, who comes first; 0 where it could not tell."""
        return next(iter(self.scores.values()), None) or 0.0


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What was spent, per sample, counted by the model and the runner, not by the attack."""

    forwards: int = 0
    """Denoiser forwards, one per sample and branch."""
    backwards: int = 0
    encodes: int = 0
    """Text encoder forwards."""
    looks: int = 0
    """Pictures judged."""
    seconds: float = 0.0

    @property
    def passes(self) -> int:
        """Forward-equivalents of the denoiser: a forward is 1, a backward to the inputs 1."""
        return self.forwards + self.backwards

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            forwards=self.forwards + other.forwards,
            backwards=self.backwards + other.backwards,
            encodes=self.encodes + other.encodes,
            looks=self.looks + other.looks,
            seconds=self.seconds + other.seconds,
        )

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(
            forwards=self.forwards - other.forwards,
            backwards=self.backwards - other.backwards,
            encodes=self.encodes - other.encodes,
            looks=self.looks - other.looks,
            seconds=self.seconds - other.seconds,
        )


@dataclass(frozen=True, kw_only=True)
class Victim:
    """The model under attack, by how it came about; the key of every row."""

    base: str
    concept: str
    """The concept that was erased, and is attacked."""
    eraser: str
    """Label of the eraser's spec; ``nothing`` is the untouched base."""
    plant: str = ""
    depth: int = 0
    """How far the erasure has gone, for persistence curves; 0: to its end."""
    revision: int = 0
    fingerprint: str = ""
    """SHA-256 of the weights."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One look: an attempt, its picture's verdict, and what had been spent on the goal by then."""

    victim: Victim
    attack: str
    goal: Goal
    number: int
    """0, 1, ...: which look at this goal."""
    attempt: Attempt | None
    """None only in a closing line without a picture of its own (the search gave up or failed)."""
    verdict: Verdict | None
    cost: Cost
    """Spent on this goal so far, this look included."""
    picture: str | None = None
    """SHA-256 of the PNG in the run's ``pictures``."""
    end: End | None = None
    error: str | None = None
    reason: str | None = None
    """Why an attack that gave up had nothing to work on, if it says so; or why the goal was not attacked."""
    dropped_tokens: int = 0
    """Tokens of the prompt that did not fit the context; the goal is kept, and the report says so."""

    @property
    def wins(self) -> bool:
        """Whether the chief judge saw the concept, in a picture that was no draft."""
        return self.verdict is not None and self.verdict.shown is True and not (self.attempt and self.attempt.draft)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a measure of utility read off a victim."""

    victim: Victim
    measure: str
    concept: str
    """The concept that was looked for in the pictures (a neighbour, say); empty: all that was measured together."""
    value: float
    n: int
    low: float
    high: float
    of: str = ""
    """What the value is a share or distance of, in words."""
    unit: Unit = "share"
    """``share``: printed in per cent, and comparable with the base's as a share of it; ``number``: any other."""
    passes: int = 0
    """Of the victim's denoiser, pictures not counted."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What a judge said of pictures of the base that it is calibrated on."""

    judge: str
    """Label."""
    concept: str
    """The concept that was looked for."""
    source: str
    """What was drawn: a concept, this one or another, or prompts without it."""
    scores: tuple[float | None, ...]
    """Of each picture, in the order of drawing; None: could not tell."""


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def to_json(record: Any) -> str:
    """One line of JSON for any record of this module."""
    return _adapter(cast(Any, type(record))).dump_json(record).decode()


def digest(value: Any) -> str:
    """SHA-256 of a JSON-able value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
