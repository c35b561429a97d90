"""Pruning by size alone: what pruning does to a model, whatever the concept."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from palimpsest.erasers.base import Eraser
from palimpsest.errors import BadSetting
from palimpsest.model import Model
from palimpsest.pruning import PATTERNS, Layers, Mask, Per, chosen, largest, matrices
from palimpsest.records import Concept


@dataclass(frozen=True, kw_only=True)
class Magnitude(Eraser):
    """Zeroes the smallest entries of the matrices from which other pruning erasers choose, whatever the concept.

    A control, no method of erasure: Han et al., "Learning both Weights and Connections for Efficient Neural Networks",
    arXiv 1506.02626, without its training afterwards. Of each row, or matrix, the floor(``share`` * entries) entries
    with the smallest |w| are set to zero, or with ``largest`` those with the largest. What an eraser that knows the
    concept does no better than this, at as many entries, it owes to pruning alone. Nothing is random.
    """

    name = "magnitude"

    share: float = 0.02
    """Of each row or matrix (0.02: of a row, what ConceptPrune takes for an object in one step)."""
    largest: bool = False
    """The largest in place of the smallest."""
    per: Per = "row"
    """``row``: the share of each row; ``matrix``: of each matrix as a whole."""
    layers: Layers = "ff2"
    """As ConceptPrune's: ``ff2``, ``ff1``, ``keys``, ``values``, ``text``."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        if not 0 < self.share <= 1:
            raise BadSetting(f"{self.name}: expected 0 < share <= 1, got {self.share}")

    def stages(
        self, model: Model, concepts: Sequence[Concept], *, random: torch.Generator
    ) -> Iterator[tuple[int, Model]]:
        """The pruned model, in one stage."""
        yield 1, self.mask(model, concepts).applied(model)

    def mask(self, model: Model, concepts: Sequence[Concept]) -> Mask:
        """What is to be pruned, the same for all concepts; raises ``BadSetting`` if it were nothing."""
        sign = 1 if self.largest else -1
        weights = matrices(model, PATTERNS[self.layers])
        return chosen(
            {name: largest(sign * weight.detach().abs(), self.share, per=self.per) for name, weight in weights.items()},
            self.name,
        )
