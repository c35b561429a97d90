"""Edits of a linear map that have a closed form."""

import torch
from torch import Tensor


def ridge_edit(weight: Tensor, keys: Tensor, values: Tensor, penalty: Tensor, *, scale: float = 1.0) -> Tensor:
    """The map that sends each key to its value, and else moves as little from ``weight`` as ``penalty`` asks.

    Minimises ``scale * sum |W k - v|^2 + tr((W - weight) penalty (W - weight)^T)`` over W; ``penalty = lam I + p R``
    with ``R = sum r r^T`` is a ridge of weight ``lam`` plus weight ``p`` on what happens to retained inputs ``r``. So

        W = (scale sum v k^T + weight penalty) (scale sum k k^T + penalty)^-1

    ``weight`` is (out, in), ``keys`` (n, in), ``values`` (n, out), ``penalty`` (in, in), positive definite.
    """
    start, k, v = weight.double(), keys.double(), values.double()
    gram = scale * k.mT @ k + penalty.double()
    # The change, not W, is solved for: what no key touches then stays equal to the last bit, not to rounding.
    pull = scale * (v - k @ start.mT).mT @ k
    # gram is symmetric, so pull gram^-1 = (gram^-1 pull^T)^T. Text states are nearly collinear: hence float64.
    change = torch.cholesky_solve(pull.mT, torch.linalg.cholesky(gram)).mT
    return (start + change).to(weight.dtype)
