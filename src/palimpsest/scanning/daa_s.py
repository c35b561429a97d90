"""DAA-S: the same as DAA-I, with the tokens pulling at each other."""

from dataclasses import dataclass

import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from palimpsest.scanning.attention import AttentionDetector


@dataclass(frozen=True, kw_only=True)
class DaaS(AttentionDetector):
    """Lets the tokens' attention evolve as a system of coupled nodes, and compares the end token's speed with the rest.

    The spatial form of "Dynamic Attention Analysis", Wang et al., TPAMI 2025, arXiv 2504.20518. The nodes are all
    tokens but the start, the end token the last. At step t, with d_ij = |M_i^t - M_j^t|_F,

        W_ij = (max d + min d - d_ij) / (max d + min d),   A_t = W off the diagonal, minus its sum on it
        x' = F x + c A_t x,   x_i(0) = |M_i^0|_F,   F = -1, but -10 for the end token

    is solved by Runge-Kutta (4, 5) with scipy's defaults, as the released code does; each of the solver's steps moves
    the end token by some D_end and the others by D on average. Then

        s = -sum over the first 7 steps of (D_end - D)

    A prompt is called triggered below s = 1.5e-3 (a later release: 0.028). The score is -s.
    """

    name = "daa_s"
    paper = -1.5e-3

    c: float = 1.0
    """How strongly the nodes are coupled."""
    decay: float = 10.0
    """Of the end token; all others have 1."""
    increments: int = 7
    """Steps of the solver that are counted."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        super().__post_init__()
        self.require_least(c=0, decay=0, increments=1)

    def score(self, maps: Tensor, words: int) -> float | None:
        """-s; None for a prompt without words."""
        if not words:
            return None
        own = maps[:, 1 : words + 2]
        coupling = torch.stack([laplacian(each) for each in own]).numpy()
        decay = torch.ones(words + 1, dtype=torch.float64)
        decay[-1] = self.decay
        decays = decay.numpy()
        solved = solve_ivp(
            lambda time, state: -decays * state + self.c * coupling[int(time)] @ state,
            (0, len(own) - 1),
            own[0].norm(dim=1).numpy(),
        )
        moved = torch.from_numpy(solved.y).diff(dim=1)[:, : self.increments]
        return float((moved[-1] - moved[:-1].mean(0)).sum())


def laplacian(maps: Tensor) -> Tensor:
    """(n, places) -> (n, n): the coupling A_t of one step."""
    apart = torch.cdist(maps, maps, compute_mode="donot_use_mm_for_euclid_dist")
    total = apart.max() + apart.min()
    weights = (total - apart) / total.clamp(min=1e-12)
    weights.fill_diagonal_(0.0)
    return weights.mT - torch.diag(weights.sum(0))
