"""Revival of an erasure that changed weights and zeroed none."""

from dataclasses import dataclass

import torch
from torch import Tensor

from palimpsest.attacks.base import Need
from palimpsest.attacks.revive import Revive
from palimpsest.errors import BadSetting
from palimpsest.model import Model


@dataclass(frozen=True, kw_only=True)
class ReviveChanged(Revive):
    """``revive`` where weights differ from a public base: these are set to zero, and then recovered as pruned ones.

    What the authors of arXiv 2603.06640 advise for erasers that do not zero. It tells how much the places alone give
    away; whoever holds the base can restore it, and needs no attack.
    """

    name = "revive_changed"
    needs = frozenset({Need.WEIGHTS, Need.BASE})

    share: float = 0.02
    """Of a matrix's entries, those that differ most; fewer if fewer differ."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        super().__post_init__()
        if self.locate != "zeros":
            raise BadSetting(f"{self.name}: expected no locate, for the base tells the places, got {self.locate!r}")

    def pruned(self, victim: Model, base: Model | None, name: str) -> Tensor:
        """(out, in) bool: the floor(share * size) entries that differ most from the base, none that does not."""
        assert base is not None, "needs says base"
        moved = (victim.weights()[name].detach().double() - base.weights()[name].detach().double()).abs()
        most = moved.flatten().topk(int(self.share * moved.numel())).indices
        marks = torch.zeros(moved.numel(), dtype=torch.bool, device=moved.device)
        return marks.index_fill(0, most, value=True).view_as(moved) & (moved > 0)

    def nothing(self, found: int, where: str) -> str:
        """Why there is nothing to do."""
        return f"nothing to revive: no more than {found} weights differ from the base in {where}"
