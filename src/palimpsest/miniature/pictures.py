"""Pictures of the world by the thousand, as tensors."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from palimpsest.miniature.facts import Facts, imagine
from palimpsest.miniature.render import render


def imagine_many(count: int, seed: int, *, without: frozenset[str] = frozenset()) -> list[Facts]:
    """``count`` facts as the training pictures are drawn from."""
    random = np.random.default_rng(seed)
    return [imagine(random, without=without) for _ in range(count)]


def render_many(facts: Sequence[Facts]) -> Tensor:
    """(n, 3, 64, 64) uint8."""
    return torch.from_numpy(np.stack([render(one) for one in facts])).permute(0, 3, 1, 2).contiguous()


def signed(pictures: Tensor) -> Tensor:
    """uint8 pictures as float in [-1, 1], the autoencoder's range."""
    return pictures.float() / 127.5 - 1
