"""Low-rank matrix completion: what entries that are missing must have been, if the matrix is simple."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Form = Literal["released", "paper"]


class Completion(NamedTuple):
    """A matrix without holes."""

    matrix: Tensor
    """(m, n) float64; the known entries as they were."""
    rounds: int
    """Iterations that it took."""


def complete(
    matrix: Tensor,
    missing: Tensor,
    *,
    form: Form = "released",
    lam: float = 0.1,
    rounds: int = 500,
    tolerance: float = 1e-5,
) -> Completion:
    """SoftImpute (Mazumder et al. 2010) as "Roots Beneath the Cut" (arXiv 2603.06640) uses it, in float64.

    With F the matrix, Omega its known entries and s_1 >= ... >= s_m its singular values, each round does

        L = U diag(max(s - t, 0)) V^T    with F = U diag(s) V^T;        F <- X on Omega, L elsewhere

    ``form = "released"``, the authors' code: F starts with the means of the columns' known entries, t is the smallest
    singular value of F, anew in every round, and it ends when F has moved, relative to its norm, by less than
    ``tolerance`` since two rounds before. ``form = "paper"``, its equations 1 to 3: F starts with zeros, t is fixed at
    ``lam`` (the paper leaves it open; here a share of the largest singular value of X), and it ends by the move of one
    round. Either ends after ``rounds``.

    ``matrix`` is (m, n), ``missing`` (m, n) bool; what stands in missing places is not looked at. Raises ``ValueError``
    if shapes differ or a known entry is not finite.
    """
    if matrix.shape != missing.shape or matrix.ndim != 2:
        raise ValueError(
            f"expected a matrix and a mask of one shape, got {tuple(matrix.shape)}, {tuple(missing.shape)}"
        )
    known = matrix.detach().double().masked_fill(missing, 0)
    if not known.isfinite().all():
        raise ValueError("expected finite entries outside the mask, got inf or nan")
    if not missing.any():
        return Completion(known, 0)
    if form == "released":
        means = known.sum(0) / (~missing).sum(0).clamp(min=1)
        filled, threshold, memory = torch.where(missing, means, known), None, 2
    else:
        filled, threshold, memory = known, lam * float(torch.linalg.matrix_norm(known, 2)), 1
    past = [filled]
    for count in range(1, rounds + 1):
        filled = torch.where(missing, shrunk(filled, threshold), known)
        past = [*past, filled][-memory - 1 :]
        before = past[0]
        if len(past) > memory and (filled - before).norm() / (before.norm() + 1e-12) < tolerance:
            return Completion(filled, count)
    return Completion(filled, rounds)


def shrunk(matrix: Tensor, threshold: float | None) -> Tensor:
    """``matrix`` (m, n) with ``threshold`` taken off its singular values, down to 0; None: the smallest of them.

    By the eigenvectors of the smaller Gram matrix G = F F^T = U diag(s^2) U^T: U diag(max(s - t, 0) / s) U^T F is the
    same as by the singular vectors, and cheaper.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return shrunk(matrix.mT, threshold).mT
    squares, basis = torch.linalg.eigh(matrix @ matrix.mT)
    sizes = squares.clamp(min=0).sqrt()
    left = (sizes - (sizes[0] if threshold is None else threshold)).clamp(min=0)
    # Where a singular value is 0, nothing is left of it either.
    factors = left / sizes.clamp(min=torch.finfo(sizes.dtype).tiny)
    left_over: Tensor = (basis * factors) @ (basis.mT @ matrix)
    return left_over
