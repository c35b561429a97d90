"""What entries of a layer's matrix must have been, by its other rows and by what its columns' units are told."""

from collections.abc import Sequence

import torch
from torch import Tensor

from palimpsest.completion import Completion


def complete_normal(
    matrix: Tensor,
    missing: Tensor,
    inputs: Sequence[Tensor] = (),
    *,
    noise: float = 1.0,
    rounds: int = 100,
    tolerance: float = 1e-2,
) -> Completion:
    """The mean of a matrix normal distribution given the known entries (Gaussian process regression), in float64.

    With every row of the known X (m, n) scaled to mean square 1, entries have the covariance

        cov(X_ij, X_kl) = R_ik K_jl + noise [i = k, j = l],    K_jl = prod_f cos(f_j, f_l)

    R (m, m) is the cosine of the rows' known entries. K says how alike two hidden units are: f_j is what leads into
    unit j in each of ``inputs``, matrices (n, ...) such as value and gate of a GEGLU. Training moves the column of a
    unit by the unit's activations, so units that are told the same have moved alike; and the product keeps a GEGLU's
    symmetry, in which value and column change their sign together. Without ``inputs`` columns are independent, and only
    rows tell of each other.

    The linear system of the known entries is solved by conjugate gradients, until the residual's norm is below
    ``tolerance`` of X's, or ``rounds``. ``matrix`` is (m, n), ``missing`` (m, n) bool; what stands in missing places is
    not looked at. Raises ``ValueError`` if shapes differ or a known entry is not finite.
    """
    if matrix.ndim != 2 or matrix.shape != missing.shape or any(len(one) != matrix.shape[1] for one in inputs):
        shapes = ", ".join(str(tuple(one.shape)) for one in (matrix, missing, *inputs))
        raise ValueError(f"expected a matrix (m, n), its mask and inputs of n rows, got {shapes}")
    known = matrix.detach().double().masked_fill(missing, 0)
    if not known.isfinite().all():
        raise ValueError("expected finite entries outside the mask, got inf or nan")
    scale = (known.square().sum(1, keepdim=True) / (~missing).sum(1, keepdim=True).clamp(min=1)).sqrt()
    scaled = known / scale.clamp(min=torch.finfo(known.dtype).tiny)
    rows, units = cosines(scaled), alike(inputs, like=known)
    residual, weights = scaled.clone(), torch.zeros_like(scaled)
    direction, square, count = residual.clone(), residual.square().sum(), 0
    enough = tolerance**2 * square
    while square > enough and count < rounds:
        spread = (rows @ direction @ units).masked_fill(missing, 0) + noise * direction
        step = square / (direction * spread).sum()
        weights += step * direction
        residual -= step * spread
        square, before = residual.square().sum(), square
        direction = residual + square / before * direction
        count += 1
    return Completion(torch.where(missing, scale * (rows @ weights @ units), known), count)


def cosines(rows: Tensor) -> Tensor:
    """(m, m) of the rows (m, n); 0 with a row of zeros."""
    straight = torch.nn.functional.normalize(rows, dim=1)
    return straight @ straight.mT


def alike(inputs: Sequence[Tensor], *, like: Tensor) -> Tensor:
    """(n, n), K of the equation for the columns of ``like`` (m, n); the identity without inputs."""
    if not inputs:
        return torch.eye(like.shape[1], dtype=like.dtype, device=like.device)
    product = cosines(inputs[0].detach().to(like))
    for one in inputs[1:]:
        product *= cosines(one.detach().to(like))
    return product
