"""What the erasers share that train as ESD does: an x_t, and what the frozen original says of it."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from palimpsest.model import Model, Sampling, Text


def point(
    walker: Model, text: Text, random: torch.Generator, *, steps: int, guidance: float, within: bool
) -> tuple[Tensor, Tensor]:
    """x_t on a trajectory of ``walker`` for each of the text's rows, and t for each.

    All come by DDIM down to one of ``steps``, drawn uniformly; t is uniform within that step's part of the schedule if
    ``within``, else the step itself.
    """
    sampling = Sampling(scheduler="ddim", steps=steps, guidance=guidance)
    start = _start(walker, len(text), random, sampling, within=within)
    return walker.trajectory(start.noise, text, sampling, until=start.reached), start.times


def points(
    walker: Model, texts: Iterable[Text], random: torch.Generator, *, steps: int, guidance: float, within: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """``point`` for each text, all trajectories side by side: for a walker that nothing changes in between."""
    sampling = Sampling(scheduler="ddim", steps=steps, guidance=guidance)
    asked = [(text, _start(walker, len(text), random, sampling, within=within)) for text in texts]
    if not asked:
        return [], []
    reached = torch.tensor([start.reached for text, start in asked for _ in range(len(text))])
    text, latents = Text.join([text for text, _ in asked]), torch.cat([start.noise for _, start in asked])
    for rows in reached.argsort(stable=True).split(walker.batch):
        before = 0
        for until in reached[rows].unique().tolist():
            on = rows[reached[rows] >= until]
            latents[on] = walker.trajectory(latents[on], text[on], sampling, start=before, until=until)
            before = until
    return list(latents.split([len(text) for text, _ in asked])), [start.times for _, start in asked]


class _Start(NamedTuple):
    """What is drawn of a trajectory before it is walked."""

    reached: int
    noise: Tensor
    times: Tensor


def _start(walker: Model, n: int, random: torch.Generator, sampling: Sampling, *, within: bool) -> _Start:
    steps = sampling.steps
    reached = below(steps, random)
    noise = torch.randn(n, *walker.latent_shape, generator=random).to(walker.device, walker.dtype)
    if not within:
        return _Start(reached, noise, torch.full((n,), walker.schedule(sampling)[reached]))
    part = steps - 1 - reached
    low, high = (round(bound * walker.timesteps / steps) for bound in (part, part + 1))
    return _Start(reached, noise, torch.randint(low, high, (n,), generator=random))


def predictions(teacher: Model, latents: Tensor, steps: Tensor, texts: Sequence[Text]) -> tuple[Tensor, ...]:
    """The noise that ``teacher`` sees in ``latents`` under each text (of one row, or one for each), without gradient.

    All texts in one batch, of at most ``teacher.batch`` latents.
    """
    n, several = len(latents), len(texts)
    whole = [text if len(text) == n else text.repeat(n) for text in texts]
    told = []
    for rows in torch.arange(n).split(max(1, teacher.batch)):
        joined = Text.join([text[rows] for text in whole])
        with torch.no_grad():
            noise = teacher.predict_noise(latents[rows].repeat(several, 1, 1, 1), steps[rows].repeat(several), joined)
        told.append(noise.unflatten(0, (several, len(rows))))
    return torch.cat(told, dim=1).unbind()


def below(bound: int, random: torch.Generator) -> int:
    """One of 0, 1, ... ``bound - 1``."""
    return int(torch.randint(bound, (), generator=random))


def done(optimiser: torch.optim.Optimizer) -> int:
    """Iterations that an Adam has behind it: it alone is kept together with the weights."""
    known = [optimiser.state.get(weight, {}) for group in optimiser.param_groups for weight in group["params"]]
    return max((int(state["step"]) for state in known if state), default=0)
