"""Low-rank matrix completion: what entries that are missing must have been, if the matrix is simple."""

from math import hypot, inf
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Form = Literal["released", "paper"]


class Completion(NamedTuple):
    """A matrix without holes."""

    matrix: Tensor
    """(m, n) in the type worked in, float64 unless told; the known entries as they were."""
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
    dtype: torch.dtype = torch.float64,
) -> Completion:
    """SoftImpute (Mazumder et al. 2010) as "Roots Beneath the Cut" (arXiv 2603.06640) uses it.

    With F the matrix, Omega its known entries and s_1 >= ... >= s_m its singular values, each round does

        L = U diag(max(s - t, 0)) V^T    with F = U diag(s) V^T;        F <- X on Omega, L elsewhere

    ``form = "released"``, the authors' code: F starts with the means of the columns' known entries, t is the smallest
    singular value of F, anew in every round, and it ends when F has moved, relative to its norm, by less than
    ``tolerance`` since two rounds before. ``form = "paper"``, its equations 1 to 3: F starts with zeros, t is fixed at
    ``lam`` (the paper leaves it open; here a share of the largest singular value of X), and it ends by the move of one
    round. Either ends after ``rounds``.

    Columns that miss nothing never change, so of them (of the rows, if m > n) only the Gram matrix is kept.

    ``matrix`` is (m, n), ``missing`` (m, n) bool; what stands in missing places is not looked at. ``dtype`` is what is
    worked in, float64 as released or float32. Raises ``ValueError`` if shapes differ or a known entry is not finite.
    """
    if matrix.shape != missing.shape or matrix.ndim != 2:
        raise ValueError(
            f"expected a matrix and a mask of one shape, got {tuple(matrix.shape)}, {tuple(missing.shape)}"
        )
    known = matrix.detach().to(dtype).masked_fill(missing, 0)
    if not known.isfinite().all():
        raise ValueError("expected finite entries outside the mask, got inf or nan")
    if not missing.any():
        return Completion(known, 0)
    wide = known.shape[0] <= known.shape[1]
    if form == "released":
        means = known.sum(0) / (~missing).sum(0).clamp(min=1)
        filled, threshold, memory = torch.where(missing, means, known), None, 2
    else:
        largest = torch.linalg.eigvalsh(lower_gram(known if wide else known.mT))[-1].clamp(min=0).sqrt()
        filled, threshold, memory = known, lam * float(largest), 1
    sides = (filled, missing) if wide else (filled.mT, missing.mT)
    completed, count = iterated(*sides, threshold, memory, rounds, tolerance)
    return Completion(completed if wide else completed.mT, count)


def iterated(
    filled: Tensor, holes: Tensor, threshold: float | None, memory: int, rounds: int, tolerance: float
) -> tuple[Tensor, int]:
    """``filled`` (m, n), m <= n, after the rounds, and how many; ``memory``: over how many of them a move is taken."""
    touched = holes.any(0)
    part, places, whole = filled[:, touched], holes[:, touched], filled[:, ~touched]
    others, size = lower_gram(whole), float(whole.norm())
    past, count, moved = [part], 0, inf
    while count < rounds and moved >= tolerance:
        part = torch.where(places, shrunk(part, threshold, others), part)
        past = [*past, part][-memory - 1 :]
        count += 1
        if count >= memory:
            moved = float((part - past[0]).norm()) / (hypot(size, float(past[0].norm())) + 1e-12)
    done = filled.clone()
    done[:, touched] = part
    return done, count


def shrunk(matrix: Tensor, threshold: float | None, others: Tensor | None = None) -> Tensor:
    """``matrix`` (m, n) with ``threshold`` taken off its singular values, down to 0; None: the smallest of them.

    By the eigenvectors of the smaller Gram matrix G = F F^T = U diag(s^2) U^T: U diag(max(s - t, 0) / s) U^T F is the
    same as by the singular vectors, and cheaper. With ``others`` (m, m), the Gram matrix of more columns (its lower
    triangle), it is ``matrix``'s part of the whole.
    """
    if others is None and matrix.shape[0] > matrix.shape[1]:
        return shrunk(matrix.mT, threshold).mT
    gram = lower_gram(matrix)
    squares, basis = torch.linalg.eigh(gram if others is None else gram + others, UPLO="L")
    # What is smaller than rounding leaves in G is 0: a singular matrix has the threshold 0.
    sizes = squares.where(squares > 16 * torch.finfo(squares.dtype).eps * squares[-1], 0).sqrt()
    left = (sizes - (sizes[0] if threshold is None else threshold)).clamp(min=0)
    # Where a singular value is 0, nothing is left of it either.
    factors = left / sizes.clamp(min=torch.finfo(sizes.dtype).tiny)
    left_over: Tensor = ((basis * factors) @ basis.mT) @ matrix
    return left_over


def lower_gram(matrix: Tensor) -> Tensor:
    """F F^T (m, m) of F (m, n) as ``eigh`` reads it: above the diagonal most stays 0, to save time."""
    gram = matrix.new_zeros(matrix.shape[0], matrix.shape[0])
    step = max(64, -(-matrix.shape[0] // 8))
    for start in range(0, matrix.shape[0], step):
        rows = slice(start, start + step)
        gram[rows, : rows.stop] = matrix[rows] @ matrix[: rows.stop].mT
    return gram
