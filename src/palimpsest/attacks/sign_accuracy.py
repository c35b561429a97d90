"""How many of the pruned signs are found, told by the original: for analysis, not part of an attack."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from palimpsest.attacks.revive import Revive, retained
from palimpsest.model import Model

GROUPS = 5
"""Of equal size, the largest entries first: R1 to R5 by recovered size, P1 to P5 by the original's, as in the paper."""


class Found(NamedTuple):
    """Signs that were looked for."""

    right: int
    n: int

    @property
    def share(self) -> float:
        """Of those looked for; nan without any."""
        return self.right / self.n if self.n else float("nan")


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One second linear."""

    name: str
    entries: int
    pruned: int
    rounds: int
    """Iterations of the recovery."""
    found: Found | None = None
    """Of all that was pruned; None without the original."""
    kept: Found | None = None
    """Of what the attack retains."""
    by_recovered: tuple[Found, ...] = ()
    """R1 to R5; empty without the original."""
    by_true: tuple[Found, ...] = ()
    """P1 to P5; empty without the original."""


@dataclass(frozen=True, kw_only=True)
class SignAccuracy:
    """What a recovery knows of the pruned weights, layer by layer."""

    layers: tuple[Layer, ...]

    @property
    def pruned(self) -> float:
        """Share of all entries."""
        return sum(layer.pruned for layer in self.layers) / sum(layer.entries for layer in self.layers)

    @property
    def found(self) -> Found:
        """Of all that was pruned."""
        return total(layer.found for layer in self.layers)

    @property
    def kept(self) -> Found:
        """Of what the attack retains."""
        return total(layer.kept for layer in self.layers)

    @property
    def by_recovered(self) -> tuple[Found, ...]:
        """R1 to R5, of the groups of each matrix together."""
        return tuple(map(total, zip(*(layer.by_recovered for layer in self.layers if layer.found), strict=True)))

    @property
    def by_true(self) -> tuple[Found, ...]:
        """P1 to P5, of the groups of each matrix together."""
        return tuple(map(total, zip(*(layer.by_true for layer in self.layers if layer.found), strict=True)))


def sign_accuracy(victim: Model, base: Model | None, attack: Revive, *, random: torch.Generator) -> SignAccuracy:
    """What ``attack`` thinks of the victim's pruned entries, beside the ``base``'s if there is one.

    Raises ``GivesUp`` where nothing was pruned. An entry that is 0 in the original has no sign, and counts as wrong.
    """
    return SignAccuracy(
        layers=tuple(_layer(name, victim, base, attack, random) for name in attack.pruned_layers(victim, base))
    )


def total(found: Iterable[Found | None]) -> Found:
    """All of them together."""
    told = [one for one in found if one is not None]
    return Found(sum(one.right for one in told), sum(one.n for one in told))


def _layer(name: str, victim: Model, base: Model | None, attack: Revive, random: torch.Generator) -> Layer:
    pruned = attack.pruned(victim, base, name)
    recovered, rounds = attack.recovered(victim, name, pruned, random=random)
    layer = Layer(name=name, entries=pruned.numel(), pruned=int(pruned.sum()), rounds=rounds)
    if base is None:
        return layer
    true = base.weights()[name].detach().double()
    right = (recovered.sign() == true.sign()) & (true != 0)
    return replace(
        layer,
        found=_found(right[pruned]),
        kept=_found(right[retained(recovered, pruned, attack.keep)]),
        by_recovered=_grouped(right[pruned], recovered[pruned]),
        by_true=_grouped(right[pruned], true[pruned]),
    )


def _found(right: Tensor) -> Found:
    return Found(int(right.sum()), right.numel())


def _grouped(right: Tensor, values: Tensor) -> tuple[Found, ...]:
    order = values.abs().argsort(descending=True)
    return tuple(map(_found, torch.tensor_split(right[order], GROUPS)))
