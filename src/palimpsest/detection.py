"""Detectors of pruned entries: where a matrix was changed, whatever now stands there.

A score is larger where an entry was more surely pruned, and comparable within a matrix only.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from scipy.stats import rankdata
from torch import Tensor

from palimpsest.matrix_normal import alike, cosines

Detector = Callable[[Tensor, Sequence[Tensor]], Tensor]
"""((out, in) weight, what leads into its columns' units, (in, ...) each) -> (out, in) scores."""
Locate = Literal[
    "zeros", "smallest", "likelihood", "columns", "deficit", "prominent", "mantissa", "repeats", "disagreement"
]
STEPS = 60
"""Of expectation and maximisation."""
NARROW = 1e-3
"""Of the matrix's root mean square: how narrow the filling may be thought to be."""
BITS = 23
"""Of single precision's mantissa."""


class Mixture(NamedTuple):
    """Two kinds of normal entries around 0, those of a filling and all others."""

    share: Tensor
    """(1, in) of filled entries in each column, or (1, 1) in the whole matrix."""
    filling: Tensor
    """() standard deviation, one of the matrix."""
    others: Tensor
    """(out, 1) standard deviations, one of each row."""

    def log_odds(self, weight: Tensor) -> Tensor:
        """(out, in): log of filled over not, given the value."""
        return torch.logit(self.share) + _log_normal(weight, self.filling) - _log_normal(weight, self.others)


def zeros(weight: Tensor, inputs: Sequence[Tensor] = ()) -> Tensor:
    """1 for an exact zero, else 0."""
    return (weight == 0).double()


def smallest(weight: Tensor, inputs: Sequence[Tensor] = ()) -> Tensor:
    """-|w|: what an attacker would prune once more."""
    return -weight.detach().double().abs()


def likelihood(weight: Tensor, inputs: Sequence[Tensor] = ()) -> Tensor:
    """Log odds of a mixture that is fitted to the matrix: a narrow filling among rows that each have their spread."""
    return mixture(weight).log_odds(weight.detach().double())


def columns(weight: Tensor, inputs: Sequence[Tensor] = ()) -> Tensor:
    """The same, where every column has its own share of filled entries: pruning gathers in the columns of few units."""
    return mixture(weight, by_column=True).log_odds(weight.detach().double())


def deficit(weight: Tensor, inputs: Sequence[Tensor] = ()) -> Tensor:
    """Minus the mean square of an entry's column, with every row scaled to 1: where pruning took the large entries."""
    return -_standard(weight).square().mean(0, keepdim=True).expand_as(weight)


def prominent(weight: Tensor, inputs: Sequence[Tensor] = ()) -> Tensor:
    """|w| times its column's root mean square, rows scaled to 1: what pruning would take, if it still is as large."""
    rows = _standard(weight)
    return rows.abs() * rows.square().mean(0, keepdim=True).sqrt()


def mantissa(weight: Tensor, inputs: Sequence[Tensor] = ()) -> Tensor:
    """-log of how many entries end in as many zero bits: a filling in finer or coarser numbers than the rest is rare.

    The bits are those of single precision. Among numbers of one kind this says nothing of a place: half of them end in
    no zero bit, a quarter in one.
    """
    ends = _trailing_zeros(weight.detach().float())
    counts = torch.bincount(ends.flatten(), minlength=BITS + 1).double()
    rarity: Tensor = -(counts / ends.numel()).clamp(min=1e-12).log()
    return rarity[ends]


def repeats(weight: Tensor, inputs: Sequence[Tensor] = ()) -> Tensor:
    """How many entries of the row have the same value: a copy stands beside what it was copied from."""
    values = weight.detach()
    counted = torch.empty(values.shape, dtype=torch.float64, device=values.device)
    for row, counts in zip(values, counted, strict=True):
        _, places, times = row.unique(return_inverse=True, return_counts=True)
        counts[:] = times[places].double()
    return counted


def disagreement(weight: Tensor, inputs: Sequence[Tensor] = (), *, noise: float = 1.0) -> Tensor:
    """How much better -w than w fits all other entries: the log of the two densities, for entries whose sign turned.

    With rows scaled to 1 and the covariance C of ``matrix_normal.complete_normal`` (``noise`` as there), an entry given
    all others is normal with mean m = w - (C^-1 w) / c and variance 1 / c, c the entry of C^-1's diagonal; so the log
    is -2 c w m. C is a Kronecker product but for the noise, so its eigenvectors are those of its factors.
    """
    scaled = _standard(weight)
    rows, row_basis = torch.linalg.eigh(cosines(scaled))
    units, unit_basis = torch.linalg.eigh(alike(inputs, like=scaled))
    inverse = 1 / (torch.outer(rows.clamp(min=0), units.clamp(min=0)) + noise)
    solved = row_basis @ (inverse * (row_basis.mT @ scaled @ unit_basis)) @ unit_basis.mT
    diagonal = row_basis.square() @ inverse @ unit_basis.square().mT
    log_odds: Tensor = -2 * scaled * (diagonal * scaled - solved)
    return log_odds


DETECTORS: dict[Locate, Detector] = {
    "zeros": zeros,
    "smallest": smallest,
    "likelihood": likelihood,
    "columns": columns,
    "deficit": deficit,
    "prominent": prominent,
    "mantissa": mantissa,
    "repeats": repeats,
    "disagreement": disagreement,
}
"""Those that need the weights alone."""


def difference(weight: Tensor, base: Tensor) -> Tensor:
    """|w - base|: what the owner of a public base sees (and could restore)."""
    return (weight.detach().double() - base.detach().double()).abs()


def pruned_again(weight: Tensor, given: Tensor, absent: Tensor) -> Tensor:
    """Rank within the row of ConceptPrune's own score: large entries in columns that answer to the concept.

    The score is the largest over the steps of |w| A, where A (steps, in), the norms of the column's activations, is
    larger with the concept (``given``) than without (``absent``), and 0 elsewhere. Needs prompts of the concept.
    """
    scores = weight.detach().double().abs() * _answering(given, absent)
    return scores.argsort(1).argsort(1).double()


def missing(weight: Tensor, given: Tensor, absent: Tensor, *, share: float) -> Tensor:
    """Log odds that an entry was filled after ConceptPrune took it: small ones, in columns that answer to the concept.

    Before, an entry of a scaled row was taken if |w| A > c (A as in ``pruned_again``): if w was normal, with the
    probability 2 Phi(-c / A). c is such that ``share`` of the matrix was. This takes the place of the mixture's share.
    """
    answering = _answering(given, absent).clamp(min=1e-12)
    low, high = torch.zeros((), dtype=torch.float64), 10 * answering.max()
    for _ in range(STEPS):
        middle = (low + high) / 2
        too_many = torch.special.erfc(middle / answering / 2**0.5).mean() > share
        low, high = (middle, high) if too_many else (low, middle)
    taken = torch.special.erfc(high / answering / 2**0.5).clamp(1e-12, 1 - 1e-12)
    return mixture(weight)._replace(share=taken).log_odds(weight.detach().double())


def mixture(weight: Tensor, *, by_column: bool = False, prior: float = 10.0) -> Mixture:
    """Fitted by expectation and maximisation, from a filling a third as wide as the matrix, a tenth of its entries.

    ``by_column``: each column has its own share, drawn to the matrix's as by ``prior`` further entries.
    """
    square = weight.detach().double().square()
    whole = square.mean().sqrt().clamp(min=torch.finfo(torch.float64).tiny)
    share = torch.full((1, square.shape[1] if by_column else 1), 0.1).to(square)
    fitted = Mixture(share, whole / 3, square.mean(1, keepdim=True).sqrt().clamp(min=NARROW * whole))
    for _ in range(STEPS):
        filled = fitted.log_odds(square.sqrt()).sigmoid()
        mean = filled.mean()
        share = (filled.sum(0, keepdim=True) + prior * mean) / (len(square) + prior) if by_column else mean.view(1, 1)
        others = ((1 - filled) * square).sum(1, keepdim=True) / (1 - filled).sum(1, keepdim=True).clamp(min=1e-12)
        filling = (filled * square).sum() / filled.sum().clamp(min=1e-12)
        fitted = Mixture(
            share.clamp(1e-12, 1 - 1e-12),
            filling.sqrt().clamp(min=NARROW * whole),
            others.sqrt().clamp(min=NARROW * whole),
        )
    return fitted


def auroc(scores: Tensor, mask: Tensor) -> float:
    """Probability that a pruned entry has the higher score than another (a tie counts half); nan if either is none."""
    n, pruned = mask.numel(), int(mask.sum())
    if pruned in (0, n):
        return float("nan")
    ranks = torch.from_numpy(rankdata(scores.cpu().double().flatten().numpy()))
    above = float(ranks[mask.cpu().flatten()].sum()) - pruned * (pruned + 1) / 2
    return above / (pruned * (n - pruned))


def precision(scores: Tensor, mask: Tensor) -> float:
    """Share of pruned ones among the highest scores, as many as were pruned; of ties the mean. nan if none was."""
    pruned = int(mask.sum())
    if not pruned:
        return float("nan")
    last = scores.flatten().topk(pruned).values[-1]
    above, ties = scores > last, scores == last
    hits = int((mask & above).sum()) + (pruned - int(above.sum())) * float(mask[ties].double().mean())
    return hits / pruned


def _standard(weight: Tensor) -> Tensor:
    """Every row (of a matrix) with a root mean square of 1, in float64."""
    rows = weight.detach().double()
    size: Tensor = rows.square().mean(1, keepdim=True).sqrt()
    return rows / size.clamp(min=torch.finfo(rows.dtype).tiny)


def _answering(given: Tensor, absent: Tensor) -> Tensor:
    """(1, in): the largest of the steps' norms, each step scaled to 1, of those that are larger with the concept."""
    scale = given.double().square().mean(1, keepdim=True).sqrt().clamp(min=1e-12)
    return torch.where(given > absent, given.double() / scale, 0.0).amax(0, keepdim=True)


def _log_normal(weight: Tensor, sigma: Tensor) -> Tensor:
    return -(weight / sigma).square() / 2 - sigma.log()


def _trailing_zeros(values: Tensor) -> Tensor:
    """Zero bits at the end of the mantissa, 0 to 23."""
    bits = values.view(torch.int32) & (2**BITS - 1)
    lowest = bits & -bits
    return torch.where(bits == 0, BITS, lowest.clamp(min=1).double().log2().long())
