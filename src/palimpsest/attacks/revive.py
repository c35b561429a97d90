"""Revival of pruned weights: the zeros that pruning leaves tell what was there."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from palimpsest.attacks.base import Attack, Need
from palimpsest.completion import Form, complete
from palimpsest.errors import BadSetting
from palimpsest.model import Model
from palimpsest.records import Concept

SECOND_LINEARS = r"unet\..*\.ff\.net\.2\.weight"
"""What ConceptPrune and its kin prune: the second linear of every feed-forward."""


@dataclass(frozen=True, kw_only=True)
class Revive(Attack):
    """Gives the pruned weights their signs back, found by matrix completion, at the largest size of their row.

    Zhang et al., "Roots Beneath the Cut: Uncovering the Risk of Concept Revival in Pruning-Based Unlearning for
    Diffusion Models", arXiv 2603.06640, as in the authors' code. In each second linear W of the feed-forwards the exact
    zeros P are what was pruned. R completes W without them (``palimpsest.completion``); of P the share ``keep`` with
    the largest |R| is retained in each matrix, and with O_i the entries of row i that survived

        W_ij <- sign(R_ij) (1 + 1e-6) max_{k in O_i} |W_ik|

    (neuron-max scaling). The rest of P stays zero. Needs no prompt, picture, gradient or original. The rivals of the
    paper are ``magnitude`` and ``recovery``.
    """

    name = "revive"
    needs = frozenset({Need.WEIGHTS})

    recovery: Literal["completion", "quantisation"] = "completion"
    """``quantisation``: every matrix rounded, row by row and symmetrically, to 4 bits, and nothing else; a zero stays
    one, so this rival cannot revive."""
    completion: Form = "released"
    """As the authors' code completes, or as the paper writes it."""
    keep: float = 0.6
    """Share of the pruned entries of a matrix, those of largest recovered size, that get their sign back."""
    magnitude: Literal["max", "mean", "sample", "recovered"] = "max"
    """Of what is given back: the row's largest, its mean, a draw from its normal distribution, or the completion's."""
    natural: float = 1e-4
    """Share of zeros up to which nothing is taken as pruned: in half precision a few weights are rounded to zero."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        if not 0 < self.keep <= 1:
            raise BadSetting(f"{self.name}: expected 0 < keep <= 1, got {self.keep}")
        if not 0 <= self.natural < 1:
            raise BadSetting(f"{self.name}: expected 0 <= natural < 1, got {self.natural}")

    def revise(
        self, victim: Model, *, base: Model | None, concepts: Sequence[Concept], random: torch.Generator
    ) -> Iterator[tuple[int, Model]]:
        """The revived victim, and nothing if there is nothing to revive."""
        pruned = {name: weight == 0 for name, weight in victim.weights(SECOND_LINEARS).items()}
        zeros, entries = (sum(int(count(mask)) for mask in pruned.values()) for count in (Tensor.sum, Tensor.numel))
        if zeros <= self.natural * entries:
            return
        changed = {
            name: self.revived(victim.weights()[name].detach(), mask, random=random)
            for name, mask in pruned.items()
            if mask.any() or self.recovery == "quantisation"
        }
        yield 1, victim.with_weights(changed)

    def revived(self, weight: Tensor, pruned: Tensor, *, random: torch.Generator) -> Tensor:
        """One matrix (out, in), of which ``pruned`` (out, in) bool is gone; in its own type."""
        if self.recovery == "quantisation":
            return quantised(weight)
        recovered = complete(weight, pruned, form=self.completion).matrix
        sizes = magnitudes(weight.double(), pruned, recovered, rule=self.magnitude, random=random)
        back = torch.where(retained(recovered, pruned, self.keep), recovered.sign() * sizes, 0.0)
        return torch.where(pruned, back, weight.double()).to(weight.dtype)


def retained(recovered: Tensor, pruned: Tensor, keep: float) -> Tensor:
    """(out, in) bool: of the pruned entries those of a recovered size above the floor((1 - keep) |P|)-th smallest."""
    sizes = recovered.abs()
    dropped = int((1 - keep) * int(pruned.sum()))
    return pruned & (sizes > sizes[pruned].sort().values[dropped - 1]) if dropped else pruned


def magnitudes(weight: Tensor, pruned: Tensor, recovered: Tensor, *, rule: str, random: torch.Generator) -> Tensor:
    """(out, in) sizes for the pruned entries by what survived in their row, 0 where nothing did."""
    left = (~pruned).sum(1, keepdim=True).clamp(min=1)
    size = weight.masked_fill(pruned, 0).abs()
    if rule == "recovered":
        return recovered.abs()
    if rule == "max":
        return (1 + 1e-6) * size.amax(1, keepdim=True).expand_as(weight)
    if rule == "mean":
        return (size.sum(1, keepdim=True) / left).expand_as(weight)
    mean = weight.masked_fill(pruned, 0).sum(1, keepdim=True) / left
    spread = ((weight - mean).masked_fill(pruned, 0).square().sum(1, keepdim=True) / left).sqrt()
    draws = torch.randn(weight.shape, generator=random, dtype=torch.float64).to(weight.device)
    return (mean + spread * draws).abs()


def quantised(weight: Tensor) -> Tensor:
    """``weight`` (out, in) at 4 bits: scale = max |row| / 7, q = clip(floor(w / scale + 0.5), -8, 7), w <- q scale."""
    scale = weight.abs().amax(1, keepdim=True) / 7
    steps = (weight / scale.clamp(min=torch.finfo(weight.dtype).tiny) + 0.5).floor().clamp(-8, 7)
    return steps * scale
