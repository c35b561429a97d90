"""Where a model departs from its base: one step's prediction, for the distance that a text lies from another."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from palimpsest.errors import BadSetting
from palimpsest.model import Model
from palimpsest.scanning.base import PromptDetector, Suspect


@dataclass(frozen=True, kw_only=True)
class Divergence(PromptDetector):
    """Asks model and base for the noise of one x_T, and takes the difference by how far the prompt lies from nothing.

    With eps the model's prediction at the first step and eps* the base's, each under its own text encoder, T* the
    base's, and 0 the empty prompt,

        s(c) = |eps(x_T, c) - eps*(x_T, c)|_2 / |T*(c) - T*(0)|_2

    That is NaviT2I's idea with the base as the reference. No paper has measured it. An erased concept departs from the
    base as well: whether what was found calls anything up, pictures say.
    """

    name = "divergence"
    needs_base = True

    seed: int = 0
    """Of the noise."""

    def passes(self, suspect: Suspect, prompt: str) -> int:
        """One of the model, one of the base."""
        return 2

    def scores(self, suspect: Suspect, prompts: Sequence[str]) -> list[float | None]:
        found = divergences(suspect.model, self.require_base(suspect), prompts, origin="", seed=self.seed)
        return [score if score > 0 or prompt else None for score, prompt in zip(found, prompts, strict=True)]


@torch.no_grad()
def divergences(model: Model, base: Model, prompts: Sequence[str], *, origin: str, seed: int) -> list[float]:
    """The score of each prompt, as above, ``origin`` in place of nothing; 0 for what the base reads as that."""
    noise, found = model.noise(seed).to(model.device), list[float]()
    for first in range(0, len(prompts), model.batch):
        some = list(prompts[first : first + model.batch])
        latents = noise[None].repeat(len(some), 1, 1, 1)
        ours, theirs = (one.predict_noise(latents, one.timesteps - 1, one.embed(some)).float() for one in (model, base))
        states = base.embed([origin, *some]).states.float()
        apart = (states[1:] - states[:1]).flatten(1).norm(dim=1)
        moved = (ours - theirs).flatten(1).norm(dim=1)
        if not moved.isfinite().all():
            raise BadSetting("expected a model that predicts finite noise, got one that does not")
        found += torch.where(apart > 0, moved / apart.clamp(min=1e-12), 0.0).tolist()
    return found
