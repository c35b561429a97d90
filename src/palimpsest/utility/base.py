"""What every measure of utility is."""

from collections.abc import Sequence
from dataclasses import dataclass

from palimpsest.component import Component
from palimpsest.judges.base import Judge
from palimpsest.model import Model, Sampling
from palimpsest.records import Concept, Reading, Victim


@dataclass(frozen=True, kw_only=True)
class Measure(Component):
    """Reads off a victim what its erasure cost."""

    def draws(self, concepts: Sequence[Concept]) -> int:
        """How many pictures it draws of a victim, so that an audit can say beforehand how long it takes."""
        return 0

    def measure(
        self,
        model: Model,
        *,
        victim: Victim,
        target: Concept,
        concepts: Sequence[Concept],
        judge: Judge,
        sampling: Sampling,
        seed: int,
    ) -> list[Reading]:
        """What the erasure of ``target`` cost, for all of ``concepts``, which should have survived it."""
        raise NotImplementedError
