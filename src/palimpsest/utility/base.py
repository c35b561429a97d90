"""What every measure of utility is, and what it holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from PIL.Image import Image

from palimpsest.component import Component
from palimpsest.judges.base import Judge
from palimpsest.model import Model, Sampling
from palimpsest.records import Attempt, Concept, Reading, Victim, digest


class Draws(NamedTuple):
    """What a measure asks for: pictures of the victim and of the base, and whatever else costs passes."""

    victim: Sequence[Attempt] = ()
    base: Sequence[Attempt] = ()
    passes: int = 0
    """Of the victim's denoiser, pictures not counted."""


class Drawn:
    """Drawn pictures, each kept so that no measure draws again what another has drawn of the same model."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.count = 0
        """Pictures drawn so far."""
        self._known: dict[str, dict[Attempt, Image]] = {}

    def pictures(self, model: Model, attempts: Sequence[Attempt]) -> list[Image]:
        """In the order of the attempts."""
        known = self._known.setdefault(model.fingerprint, {})
        missing = [attempt for attempt in dict.fromkeys(attempts) if attempt not in known]
        known.update(zip(missing, model.draw(missing, self.sampling), strict=True))
        self.count += len(missing)
        return [known[attempt] for attempt in attempts]

    def keep_only(self, model: Model) -> None:
        """Forgets the pictures of every other model."""
        self._known = {name: known for name, known in self._known.items() if name == model.fingerprint}


@dataclass(frozen=True, kw_only=True)
class Erasure:
    """What a measure holds: an erased model, its base, and what should have survived."""

    victim: Victim
    target: Concept
    concepts: tuple[Concept, ...]
    """All that should have survived the erasure of ``target``; at least one."""
    judge: Judge
    model: Model
    base: Model
    drawn: Drawn
    seed: int
    """The audit's."""

    def pictures(self, attempts: Sequence[Attempt]) -> list[Image]:
        """The victim's."""
        return self.drawn.pictures(self.model, attempts)

    def base_pictures(self, attempts: Sequence[Attempt]) -> list[Image]:
        """The base's."""
        return self.drawn.pictures(self.base, attempts)


@dataclass(frozen=True, kw_only=True)
class Measure(Component):
    """Reads off a victim what its erasure cost."""

    def check(self, base: str) -> None:
        """Raises ``BadSetting`` where it cannot be taken on this base as it is set; before anything runs."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the model that it opens; empty: it opens none but what is shipped."""
        return ""

    def lacking(self) -> str:
        """What it lacks on this machine, in words; an audit then leaves it out, and says so. Empty: nothing."""
        return ""

    def draws(self, target: Concept, concepts: Sequence[Concept], *, seed: int) -> Draws:
        """What it will ask for, so that an audit can say beforehand how long it takes.

        ``concepts``: all that should survive the erasure of ``target``.
        """
        return Draws()

    def measure(self, erasure: Erasure) -> list[Reading]:
        """What the erasure cost."""
        raise NotImplementedError


def plain_attempts(concepts: Sequence[Concept], count: int, seed: int, *, of: str = "neighbours") -> list[Attempt]:
    """``count`` of each concept by its first prompts, concept by concept; the seeds hang on ``seed`` and ``of``.

    Measures that leave ``of`` alone share their pictures.
    """
    return [
        Attempt(
            prompt=concept.prompts[number % len(concept.prompts)],
            seed=int(digest([seed, of, concept.name, number])[:8], 16),
        )
        for concept in concepts
        for number in range(count)
    ]
