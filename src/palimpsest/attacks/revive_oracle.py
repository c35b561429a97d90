"""What brings a pruned concept back, signs or sizes: revival by one who knows the original."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from palimpsest.attacks.base import Attack, Need
from palimpsest.attacks.revive import OneByOne, Revive, Sizes, magnitudes, retained
from palimpsest.errors import BadSetting
from palimpsest.model import Model
from palimpsest.records import Concept


@dataclass(frozen=True, kw_only=True)
class ReviveOracle(Attack):
    """An oracle, for analysis and no attack: fills the zeros of pruning with signs or sizes of the original.

    The ideal experiments of arXiv 2603.06640, as in the authors' code. Of the pruned entries of a matrix the share
    ``right`` with the largest |W| of the original gets the sign ``signs`` says, the others what ``others`` says. The
    authors rank by |W| times how much more a unit answers to the concept; of one row's entries that is mostly |W|.
    """

    name = "revive_oracle"
    needs = frozenset({Need.WEIGHTS, Need.BASE})

    signs: Literal["true", "random"] = "true"
    """Of the entries: the original's, or by chance."""
    magnitude: Literal["true", "max", "mean", "sample", "draw"] = "max"
    """Of the entries: the original's, or by a rule of ``revive``."""
    right: float = 1.0
    """Share of the pruned entries that get their sign."""
    others: Literal["flipped", "zeroed"] = "flipped"
    """What becomes of the rest."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        if not 0 < self.right <= 1:
            raise BadSetting(f"{self.name}: expected 0 < right <= 1, got {self.right}")

    def revise(
        self, victim: Model, *, base: Model | None, concepts: Sequence[Concept], random: torch.Generator
    ) -> Iterator[tuple[int, Model]]:
        """The filled victim; raises ``GivesUp`` if there are no zeros to fill."""
        assert base is not None, "needs says base"
        locating = Revive()

        def filled(name: str) -> Tensor:
            weight = victim.weights()[name].detach()
            pruned, true = locating.pruned(victim, base, name), base.weights()[name].detach().double()
            fill = self._signs(true, pruned, random) * self._sizes(weight.double(), pruned, true, random)
            return torch.where(pruned, fill, weight.double()).to(weight.dtype)

        yield 1, victim.with_weights(OneByOne(locating.pruned_layers(victim, base), filled))

    def _signs(self, true: Tensor, pruned: Tensor, random: torch.Generator) -> Tensor:
        """(out, in) of -1, 0 and 1."""
        signs = true.sign()
        if self.signs == "random":
            signs = 2 * torch.randint(2, true.shape, generator=random).to(true) - 1
        rest = -signs if self.others == "flipped" else torch.zeros_like(signs)
        return torch.where(retained(true, pruned, self.right), signs, rest)

    def _sizes(self, weight: Tensor, pruned: Tensor, true: Tensor, random: torch.Generator) -> Tensor:
        if self.magnitude == "true":
            return true.abs()
        rule: Sizes = self.magnitude
        return magnitudes(weight, pruned, true, rule=rule, random=random)
