"""The one optimisation loop that every leg of the training runs."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Report = Callable[[str, int, int, float], None]
"""(what, step, steps, loss): shows progress."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """How a loss fell."""

    steps: tuple[int, ...]
    losses: tuple[float, ...]
    """Mean of the loss since the point before."""
    seconds: float


class Average:
    """An exponential moving average of weights, the one that is shipped."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        """``decay`` is reached from below, so that the first steps are soon forgotten."""
        self._network, self._decay, self._count = network, decay, 0
        self._kept = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Takes the network's weights of now into the average."""
        self._count += 1
        decay = min(self._decay, (1 + self._count) / (10 + self._count))
        for name, value in self._network.state_dict().items():
            if value.is_floating_point():
                self._kept[name].lerp_(value, 1 - decay)

    def apply(self) -> None:
        """Puts the average into the network."""
        self._network.load_state_dict(self._kept)


def optimise(
    what: str,
    networks: Iterable[nn.Module],
    loss_of: Callable[[int], Tensor],
    *,
    steps: int,
    rate: float,
    flat: float = 0.5,
    weight_decay: float = 0.01,
    average: float | None = None,
    after: Callable[[], None] = lambda: None,
    report: Report,
) -> Curve:
    """AdamW, warmed up over 2 % of the steps, then ``rate``, then from ``flat`` of the steps a cosine to zero.

    ``loss_of(step)`` returns the loss to go down; ``after`` is called when the weights have changed; with ``average``
    the networks end as their moving average.
    """
    networks = list(networks)
    parameters = [value for network in networks for value in network.parameters() if value.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=weight_decay, fused=True)
    averages = [Average(network, average) for network in networks] if average else []
    warm = max(1, steps // 50)
    points: list[tuple[int, float]] = []
    started, since, count = time.monotonic(), 0.0, 0
    for step in range(steps):
        fall = max(0.0, (step / steps - flat) / (1 - flat)) if flat < 1 else 0.0
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / warm) * (0.5 + 0.5 * math.cos(math.pi * fall))
        loss = loss_of(step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        after()
        for kept in averages:
            kept.update()
        since, count = since + loss.item(), count + 1
        if (step + 1) % 50 == 0 or step + 1 == steps:
            points.append((step + 1, since / count))
            report(what, step + 1, steps, since / count)
            since, count = 0.0, 0
    for kept in averages:
        kept.apply()
    return Curve(
        steps=tuple(step for step, _ in points),
        losses=tuple(loss for _, loss in points),
        seconds=time.monotonic() - started,
    )
