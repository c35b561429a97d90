"""What the erasers share that train as ESD does: an x_t, and what the frozen original says of it."""

from collections.abc import Sequence

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
    reached = below(steps, random)
    noise = torch.randn(len(text), *walker.latent_shape, generator=random).to(walker.device, walker.dtype)
    latents = walker.trajectory(noise, text, sampling, until=reached)
    if not within:
        return latents, torch.full((len(text),), walker.schedule(sampling)[reached])
    part = steps - 1 - reached
    low, high = (round(bound * walker.timesteps / steps) for bound in (part, part + 1))
    return latents, torch.randint(low, high, (len(text),), generator=random)


def predictions(teacher: Model, latents: Tensor, steps: Tensor, texts: Sequence[Text]) -> tuple[Tensor, ...]:
    """The noise that ``teacher`` sees in ``latents`` under each text (of one row), in one batch, without gradient."""
    n, several = len(latents), len(texts)
    joined = Text.join([text.repeat(n) for text in texts])
    with torch.no_grad():
        noise = teacher.predict_noise(latents.repeat(several, 1, 1, 1), steps.repeat(several), joined)
    return noise.chunk(several)


def below(bound: int, random: torch.Generator) -> int:
    """One of 0, 1, ... ``bound - 1``."""
    return int(torch.randint(bound, (), generator=random))


def done(optimiser: torch.optim.Optimizer) -> int:
    """Iterations that an Adam has behind it: it alone is kept together with the weights."""
    known = [optimiser.state.get(weight, {}) for group in optimiser.param_groups for weight in group["params"]]
    return max((int(state["step"]) for state in known if state), default=0)
