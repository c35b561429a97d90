"""What the attacks share that walk along the noise schedule."""

from collections.abc import Sequence
from typing import Literal

import torch

from palimpsest.attacks.base import Case

Order = Literal["ascending", "descending", "random"]


def middles(case: Case, steps: int, order: Order) -> Sequence[int]:
    """The middles of ``steps`` equal parts of the schedule: 10, 30, ..., 990 for 50 of 1000."""
    ascending = [int((i + 0.5) * case.timesteps / steps) for i in range(steps)]
    if order == "random":
        return [ascending[i] for i in torch.randperm(steps, generator=case.random)]
    return ascending if order == "ascending" else ascending[::-1]
