"""The probability simplex: where a distribution over the vocabulary lives."""

import torch
from torch import Tensor


def project_to_simplex(points: Tensor) -> Tensor:
    """The nearest point of ``{p : p >= 0, sum(p) = 1}`` to each row, exactly, for all rows at once.

    The projection is ``max(x - theta, 0)``, where ``theta`` makes it sum to one. With the row sorted downwards, the
    entries that stay positive are the longest run whose last entry exceeds the run's own ``theta``.
    """
    descending = points.sort(dim=-1, descending=True).values.double()
    count = torch.arange(1, points.shape[-1] + 1, device=points.device, dtype=torch.float64)
    # In double precision: a sum over 50,000 entries of 1/50,000 would cost single precision its last digits.
    thetas = (descending.cumsum(dim=-1) - 1) / count
    positive = (descending > thetas).sum(dim=-1, keepdim=True)
    theta = thetas.gather(-1, positive - 1)
    return (points.double() - theta).clamp(min=0).to(points.dtype)
