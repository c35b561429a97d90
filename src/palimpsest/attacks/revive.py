"""Revival of pruned weights: the zeros that pruning leaves tell what was there."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from palimpsest.attacks.base import Attack, GivesUp, Need
from palimpsest.completion import Completion, Form, complete
from palimpsest.detection import DETECTORS, Locate
from palimpsest.errors import BadSetting
from palimpsest.matrix_normal import complete_normal
from palimpsest.model import Model
from palimpsest.pruning import largest
from palimpsest.records import Concept

Recovery = Literal["completion", "matrix_normal", "random", "quantisation"]
Sizes = Literal["max", "mean", "sample", "draw", "recovered"]


@dataclass(frozen=True, kw_only=True)
class Revive(Attack):
    """Gives the pruned weights their signs back, found by matrix completion, at the largest size of their row.

    Zhang et al., "Roots Beneath the Cut: Uncovering the Risk of Concept Revival in Pruning-Based Unlearning for
    Diffusion Models", arXiv 2603.06640, as in the authors' code. In each second linear W of the feed-forwards the exact
    zeros P are what was pruned. R completes W without them (``palimpsest.completion``); of P the share ``keep`` with
    the largest |R| is retained in each matrix, and with O_i the entries of row i that survived

        W_ij <- sign(R_ij) (1 + 1e-6) max_{k in O_i} |W_ik|

    (neuron-max scaling). The rest of P stays zero. Needs no prompt, picture, gradient or original. The rivals of the
    paper are ``magnitude`` and ``recovery``. ``matrix_normal`` is not the paper's: it finds more signs, and in the few
    pictures of the miniature that were drawn with it the concept was not shown more often.

    Where zeros were filled (``conceal``), ``locate`` says what takes their place: P are then the floor(``share`` *
    size) entries of each matrix that a detector of ``palimpsest.detection`` scores highest.
    """

    name = "revive"
    needs = frozenset({Need.WEIGHTS})

    recovery: Recovery = "completion"
    """``matrix_normal``: the mean given the other rows and units that the first linear tells the same
    (``palimpsest.matrix_normal``). ``random``: from a normal distribution, so that signs mean nothing.
    ``quantisation``: every matrix rounded, row by row and symmetrically, to 4 bits, and nothing else; a zero stays one,
    so this rival cannot revive."""
    completion: Form = "released"
    """As the authors' code completes, or as the paper writes it."""
    keep: float = 0.6
    """Share of the pruned entries of a matrix, those of largest recovered size, that get their sign back."""
    magnitude: Sizes = "max"
    """Of what is given back: the row's largest, its mean, a draw from its normal distribution, ``draw`` (the larger of
    such a draw and the row's largest, as the authors' code has it to the letter), or what was recovered."""
    natural: float = 1e-4
    """Share of zeros up to which nothing is taken as pruned: in half precision a few weights are rounded to zero."""

    locate: Locate = "zeros"
    """``zeros``: the exact ones, as the paper has it; else by which detector."""
    share: float = 0.02
    """Of a matrix's entries, those taken as pruned where it is not by zeros."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        if not 0 < self.share < 1:
            raise BadSetting(f"{self.name}: expected 0 < share < 1, got {self.share}")
        if not 0 < self.keep <= 1:
            raise BadSetting(f"{self.name}: expected 0 < keep <= 1, got {self.keep}")
        if not 0 <= self.natural < 1:
            raise BadSetting(f"{self.name}: expected 0 <= natural < 1, got {self.natural}")

    def revise(
        self, victim: Model, *, base: Model | None, concepts: Sequence[Concept], random: torch.Generator
    ) -> Iterator[tuple[int, Model]]:
        """The revived victim; raises ``GivesUp`` if there is nothing to revive."""
        names = self.pruned_layers(victim, base)

        def revived(name: str) -> Tensor:
            weight = victim.weights()[name].detach()
            if self.recovery == "quantisation":
                return quantised(weight)
            pruned = self.pruned(victim, base, name)
            recovered = self.recovered(victim, name, pruned, random=random).matrix
            sizes = magnitudes(weight.double(), pruned, recovered, rule=self.magnitude, random=random)
            back = torch.where(retained(recovered, pruned, self.keep), recovered.sign() * sizes, 0.0)
            return torch.where(pruned, back, weight.double()).to(weight.dtype)

        yield 1, victim.with_weights(OneByOne(names, revived))

    def pruned(self, victim: Model, base: Model | None, name: str) -> Tensor:
        """(out, in) bool: what is taken as pruned."""
        weight = victim.weights()[name].detach()
        if self.locate == "zeros":
            return weight == 0
        return largest(DETECTORS[self.locate](weight, leading_in(victim, name)), self.share, per="matrix")

    def pruned_layers(self, victim: Model, base: Model | None) -> list[str]:
        """The second linears in which something is taken as pruned; raises ``GivesUp`` if that is too little."""
        layers = victim.feed_forwards()
        counts = {name: int(self.pruned(victim, base, name).sum()) for name in layers}
        pruned, entries = sum(counts.values()), sum(victim.weights()[name].numel() for name in layers)
        if pruned <= self.natural * entries:
            raise GivesUp(self.nothing(pruned, f"{entries:,} weights of {len(layers)} feed-forwards' second linears"))
        return [name for name, count in counts.items() if count or self.recovery == "quantisation"]

    def nothing(self, found: int, where: str) -> str:
        """Why there is nothing to do, where ``found`` entries are no more than nature makes."""
        if self.locate != "zeros":
            return f"nothing to revive: a share of {self.share} takes {found} entries in {where}"
        return f"nothing to revive: no exact zeros beyond {found} natural ones in {where}"

    def recovered(self, victim: Model, name: str, pruned: Tensor, *, random: torch.Generator) -> Completion:
        """What is thought of the ``pruned`` entries (out, in) of one second linear, and in how many iterations."""
        weight = victim.weights()[name].detach()
        match self.recovery:
            case "matrix_normal":
                return complete_normal(weight, pruned, leading_in(victim, name))
            case "random":
                drawn = torch.randn(weight.shape, generator=random, dtype=torch.float64).to(weight.device)
                return Completion(torch.where(pruned, drawn, weight.double()), 0)
            case "quantisation":
                return Completion(quantised(weight).double(), 0)
        return complete(weight, pruned, form=self.completion)


@dataclass(frozen=True)
class OneByOne(Mapping[str, Tensor]):
    """Changed weights that are worked out when they are asked for, so that no two are worked on at once."""

    names: Sequence[str]
    make: Callable[[str], Tensor]

    def __getitem__(self, name: str) -> Tensor:
        """Worked out anew each time."""
        return self.make(name)

    def __iter__(self) -> Iterator[str]:
        """The weights' names."""
        return iter(self.names)

    def __len__(self) -> int:
        """How many there are."""
        return len(self.names)


def leading_in(model: Model, second: str) -> list[Tensor]:
    """What leads into the hidden units that a second linear reads, one (hidden, width) each: value and gate, or one."""
    weights = model.weights()
    hidden = weights[second].shape[1]
    return [part for first in model.feed_forwards()[second] for part in weights[first].detach().split(hidden)]


def retained(recovered: Tensor, pruned: Tensor, keep: float) -> Tensor:
    """(out, in) bool: of the pruned entries those of a recovered size above the floor((1 - keep) |P|)-th smallest."""
    sizes = recovered.abs()
    dropped = int((1 - keep) * int(pruned.sum()))
    return pruned & (sizes > sizes[pruned].sort().values[dropped - 1]) if dropped else pruned


def magnitudes(weight: Tensor, pruned: Tensor, recovered: Tensor, *, rule: Sizes, random: torch.Generator) -> Tensor:
    """(out, in) sizes for the pruned entries by what survived in their row, 0 where nothing did."""
    left = (~pruned).sum(1, keepdim=True).clamp(min=1)
    size = weight.masked_fill(pruned, 0).abs()
    if rule == "recovered":
        return recovered.abs()
    largest = (1 + 1e-6) * size.amax(1, keepdim=True).expand_as(weight)
    if rule == "max":
        return largest
    if rule == "mean":
        return (size.sum(1, keepdim=True) / left).expand_as(weight)
    mean = weight.masked_fill(pruned, 0).sum(1, keepdim=True) / left
    spread = ((weight - mean).masked_fill(pruned, 0).square().sum(1, keepdim=True) / left).sqrt()
    draws = torch.randn(weight.shape, generator=random, dtype=torch.float64).to(weight.device)
    sampled = (mean + spread * draws).abs()
    return torch.maximum(sampled, largest) if rule == "draw" else sampled


def quantised(weight: Tensor) -> Tensor:
    """``weight`` (out, in) at 4 bits: scale = max |row| / 7, q = clip(floor(w / scale + 0.5), -8, 7), w <- q scale."""
    scale = weight.abs().amax(1, keepdim=True) / 7
    steps = (weight / scale.clamp(min=torch.finfo(weight.dtype).tiny) + 0.5).floor().clamp(-8, 7)
    return steps * scale
