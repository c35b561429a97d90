"""Hiding what was pruned: how surely a value gives itself away, and what may stand in a pruned entry's place."""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import erf
from torch import Tensor

Cumulative = Callable[[float], float]
Filling = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""(matrix before it is pruned, (out, in) bool of what is pruned, randomness) -> the matrix to be released."""
Fill = Literal["zero", "gaussian", "formula", "survivors", "levelled", "flipped", "shuffled", "decoys", "renoised"]


def detectability_between(
    low: float, high: float, *, modified: Cumulative, unmodified: Cumulative, share: float
) -> float:
    """p_I, the probability that a value between ``low`` and ``high`` is a modified one (arXiv 2603.06640, Eq. 4).

    With f_M, f_U the densities of modified and unmodified values, given as cumulative distributions, and a the share
    of modified ones, p_I = a Int f_M / (a Int f_M + (1 - a) Int f_U); nan where no value lies between.
    """
    of_modified = share * (modified(high) - modified(low))
    of_others = (1 - share) * (unmodified(high) - unmodified(low))
    both = of_modified + of_others
    return of_modified / both if both > 0 else math.nan


def detectability(w: ArrayLike, *, sigma_m: float, sigma_u: float, share: float) -> NDArray[np.float64]:
    """p(w), the probability that a value in [-w, w] is a modified one, if both kinds are normal around 0 (Eq. 7).

        p(w) = a erf(w / sqrt2 sigma_M) / (a erf(w / sqrt2 sigma_M) + (1 - a) erf(w / sqrt2 sigma_U))

    With a = ``share``, p(0+) = a sigma_U / (a sigma_U + (1 - a) sigma_M), which is given at w = 0, and p(inf) = a.
    Where sigma_M <= sigma_U it never rises with w; where they are equal it is a throughout. ``sigma_m`` may be 0.
    """
    if sigma_m < 0 or sigma_u <= 0 or not 0 < share < 1 or np.any(np.asarray(w) < 0):
        raise ValueError(
            "expected w >= 0, sigma_m >= 0, sigma_u > 0 and 0 < share < 1, "
            f"got {np.min(w)}, {sigma_m}, {sigma_u}, {share}"
        )
    size = np.asarray(w, dtype=np.float64) / math.sqrt(2)
    with np.errstate(divide="ignore", invalid="ignore"):
        of_modified, of_others = share * erf(size / sigma_m), (1 - share) * erf(size / sigma_u)
        inside = of_modified / (of_modified + of_others)
    at_zero = share * sigma_u / (share * sigma_u + (1 - share) * sigma_m)
    found: NDArray[np.float64] = np.where(size > 0, inside, at_zero)
    return found


def sigma_for(times: float, *, sigma_u: float, share: float) -> float:
    """The smallest sigma_M with p(0+) <= ``times`` * ``share``: no value is so many times likelier modified than any.

    That is sigma_U (1 - t a) / (t (1 - a)); sigma_U for t = 1, and 0 where t a >= 1, for then zeros give away no more.
    Raises ``ValueError`` for t < 1: in some interval values are always at least as likely as any to be modified.
    """
    if times < 1:
        raise ValueError(f"expected times >= 1, got {times}")
    return max(0.0, sigma_u * (1 - times * share) / (times * (1 - share)))


def zero(weight: Tensor, mask: Tensor, random: torch.Generator) -> Tensor:
    """Zeros, as pruning erasers are published."""
    return weight.masked_fill(mask, 0)


def gaussian(weight: Tensor, mask: Tensor, random: torch.Generator, *, sigma: float) -> Tensor:
    """Draws from N(0, sigma^2), the defence of arXiv 2603.06640."""
    return torch.where(mask, sigma * _normal(weight.shape, random, weight), weight)


def formula(weight: Tensor, mask: Tensor, random: torch.Generator, *, times: float) -> Tensor:
    """The same with the matrix's own sigma by ``sigma_for``: a and sigma_U, around 0, are those of the matrix."""
    if not mask.any() or mask.all():
        return weight.masked_fill(mask, 0)
    sigma_u = float(weight[~mask].double().square().mean().sqrt())
    sigma = sigma_for(times, sigma_u=sigma_u, share=float(mask.double().mean())) if sigma_u else 0.0
    return gaussian(weight, mask, random, sigma=sigma)


def survivors(weight: Tensor, mask: Tensor, random: torch.Generator) -> Tensor:
    """Copies of entries of the same row that survive, drawn with replacement; 0 where none does."""
    filled = weight.clone()
    for row, marks in zip(filled, mask, strict=True):
        left = row[~marks]
        places = torch.randint(max(1, len(left)), (int(marks.sum()),), generator=random).to(weight.device)
        row[marks] = left[places] if len(left) else 0.0
    return filled


def levelled(weight: Tensor, mask: Tensor, random: torch.Generator) -> Tensor:
    """Normal draws by which every column gets the mean square of them all, where rows before pruning are scaled to 1.

    In column j, of n entries with n_j pruned and S_j the sum of the survivors' squares, sigma_j^2 = (n - S_j) / n_j,
    kept between 1 and 4. So the columns where pruning took the large entries are not short of them.
    """
    scale = weight.square().mean(1, keepdim=True).sqrt().clamp(min=torch.finfo(weight.dtype).tiny)
    square = (weight / scale).masked_fill(mask, 0).square().sum(0)
    sigma = ((len(weight) - square) / mask.sum(0).clamp(min=1)).clamp(1, 4).sqrt()
    return torch.where(mask, scale * sigma * _normal(weight.shape, random, weight), weight)


def flipped(weight: Tensor, mask: Tensor, random: torch.Generator) -> Tensor:
    """The pruned entries with their signs turned: every size stays as it was."""
    return torch.where(mask, -weight, weight)


def shuffled(weight: Tensor, mask: Tensor, random: torch.Generator) -> Tensor:
    """The sizes of the row's pruned entries, in another order and with random signs: the row keeps all its sizes."""
    filled = weight.clone()
    for row, marks in zip(filled, mask, strict=True):
        sizes = row[marks].abs()
        order = torch.randperm(len(sizes), generator=random).to(weight.device)
        row[marks] = sizes[order] * _signs(sizes.shape, random, weight)
    return filled


def decoys(weight: Tensor, mask: Tensor, random: torch.Generator, *, ratio: float) -> Tensor:
    """Zeros, and further zeros in the same columns: floor(``ratio`` * pruned) survivors of each column, or all."""
    filled = weight.masked_fill(mask, 0)
    counts = (ratio * mask.sum(0)).long()
    # A survivor falls if few of its column draw a smaller number.
    drawn = torch.rand(weight.shape, generator=random).to(weight.device).masked_fill(mask, 2.0)
    return filled.masked_fill(drawn.argsort(0).argsort(0) < counts, 0)


def renoised(weight: Tensor, mask: Tensor, random: torch.Generator, *, sigma: float, rank: int) -> Tensor:
    """Zeros, and on the whole matrix noise U V / sqrt(rank), U and V of ``rank`` columns and rows: each ~ (0, sigma^2).

    Unlike a filling it moves every entry, so nothing that survives is what it was.
    """
    left = _normal((weight.shape[0], rank), random, weight)
    right = _normal((rank, weight.shape[1]), random, weight)
    return weight.masked_fill(mask, 0) + sigma / math.sqrt(rank) * left @ right


def grid(weight: Tensor) -> torch.dtype:
    """The type in which every entry can be written: half precision, bfloat16, or else its own."""
    for dtype in (torch.float16, torch.bfloat16):
        if torch.equal(weight.to(dtype).to(weight.dtype), weight):
            return dtype
    return weight.dtype


def _normal(shape: tuple[int, ...], random: torch.Generator, like: Tensor) -> Tensor:
    return torch.randn(shape, generator=random).to(like)


def _signs(shape: tuple[int, ...], random: torch.Generator, like: Tensor) -> Tensor:
    return 2 * torch.randint(2, shape, generator=random).to(like) - 1
