"""Edits of a linear map that have a closed form."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from palimpsest.errors import BadSetting

SINGULAR = 1e-12
"""Least square of a pivot, relative to the largest, below which a solution would be rounding alone."""


@dataclass(frozen=True, eq=False)
class Ridge:
    """Edits, of any number of maps, that send the same keys to values: factored once, then two thin products each.

    Of all maps W the edit has the smallest ``scale * sum |W k - v|^2 + tr((W - weight) penalty (W - weight)^T)``;
    ``penalty = lam I + p R`` with ``R = sum r r^T`` is a ridge of weight ``lam`` plus weight ``p`` on what happens to
    retained inputs ``r``. So

        W = (scale sum v k^T + weight penalty) (scale sum k k^T + penalty)^-1
    """

    keys: Tensor
    """(n, in) float64."""
    gains: Tensor
    """(n, in) float64: row by row k^T (scale sum k k^T + penalty)^-1, times ``scale``."""

    @classmethod
    def of(cls, keys: Tensor, penalty: Tensor, *, scale: float = 1.0) -> Self:
        """``keys`` (n, in), ``penalty`` (in, in); ``BadSetting`` if the two leave the edit open in some direction."""
        k = keys.double()
        return cls(k, scale * solved(scale * k.mT @ k + penalty.double(), k.mT).mT)

    def edit(self, weight: Tensor, values: Tensor) -> Tensor:
        """The edit of ``weight`` (out, in) that sends each key to its value, (n, out); in the weight's type."""
        start = weight.double()
        # The change, not W, is solved for: what no key touches then stays equal to the last bit, not to rounding.
        change = (values.double() - self.keys @ start.mT).mT @ self.gains
        return (start + change).to(weight.dtype)

    def turn(self, anchors: Tensor) -> Tensor:
        """(in, in) D, for every map the same: W + W D answers each key as W answers its anchor, (n, in)."""
        return (anchors.double() - self.keys).mT @ self.gains


def ridge_edit(weight: Tensor, keys: Tensor, values: Tensor, penalty: Tensor, *, scale: float = 1.0) -> Tensor:
    """One edit of one map; see ``Ridge``."""
    return Ridge.of(keys, penalty, scale=scale).edit(weight, values)


def solved(gram: Tensor, right: Tensor) -> Tensor:
    """(in, n) gram^-1 right, in double precision; ``BadSetting`` if gram (in, in) is not positive definite."""
    factor, failed = torch.linalg.cholesky_ex(gram)
    pivots = factor.diagonal() ** 2
    # Text states are nearly collinear: rounding can make a singular system look like one that has a solution.
    if failed or not bool(pivots.min() > SINGULAR * pivots.max()):
        rank = int(torch.linalg.matrix_rank(gram, hermitian=True))
        raise BadSetting(
            f"expected text states in all {len(gram)} directions or a ridge that holds the weights in the others, got "
            f"states in {rank}: their closed form has no single solution"
        )
    return torch.cholesky_solve(right, factor)
