"""Negative prompt: guidance away from the concept in place of the empty prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from palimpsest.erasers.base import Eraser
from palimpsest.errors import BadSetting
from palimpsest.model import Model, Text
from palimpsest.records import Concept


class NegativePrompted(Model):
    """Guided away from ``unwanted``: eps = eps_S + g (eps_c - eps_S)."""

    unwanted: str

    def guided_noise(
        self, latents: Tensor, step: float | Tensor, text: Text, guidance: float | Tensor, memory: Any = None
    ) -> tuple[Tensor, Any]:
        """Guidance whose other branch is the unwanted prompt's."""
        n = len(latents)
        steps = torch.as_tensor(step, device=latents.device).expand(n)
        both = Text.join([self.remembered([self.unwanted]).repeat(n), text])
        unwanted, given = self.predict_noise(latents.repeat(2, 1, 1, 1), steps.repeat(2), both).chunk(2)
        scale = torch.as_tensor(guidance, device=latents.device, dtype=latents.dtype).reshape(-1, 1, 1, 1)
        return unwanted + scale * (given - unwanted), memory


@dataclass(frozen=True, kw_only=True)
class NegativePrompt(Eraser):
    """Draws with the concept as its negative prompt; changes no weight.

    With the prompt c and the unwanted one S the guided prediction is

        eps = eps(x_t, S) + g (eps(x_t, c) - eps(x_t, S))

    which is the ``negative_prompt`` of diffusers, and the baseline of Schramowski et al., "Safe Latent Diffusion",
    arXiv 2211.05105. It is a guard: pictures are drawn and guided questions answered through it. At a guidance of 1
    nothing of S is left. A guard keeps in no weight, so it is made anew in every run and cannot be saved. Nothing is
    random.
    """

    name = "negative_prompt"
    guard = NegativePrompted

    text: str | None = None
    """The unwanted prompt; None: the names of the concepts, with commas between."""
    synonyms: bool = False
    """Each of a concept's synonyms as well."""

    def stages(
        self, model: Model, concepts: Sequence[Concept], *, random: torch.Generator
    ) -> Iterator[tuple[int, Model]]:
        """The model behind the guard, in one stage."""
        unwanted = unwanted_prompt(self, model, concepts, self.text, synonyms=self.synonyms)
        yield 1, model.behind(NegativePrompted, unwanted=unwanted, guard=f"{self.name} {unwanted!r}")


def unwanted_prompt(
    eraser: Eraser, model: Model, concepts: Sequence[Concept], text: str | None, *, synonyms: bool
) -> str:
    """What a guard steers away from; ``BadSetting`` if that is nothing, or more than the context holds."""
    names = [name for concept in concepts for name in (concept.name, *(concept.synonyms if synonyms else ()))]
    unwanted = ", ".join(dict.fromkeys(names)) if text is None else text
    if not unwanted.strip():
        raise BadSetting(f"{eraser.name}: expected a text to steer away from, got {unwanted!r}")
    if dropped := model.dropped(unwanted):
        raise BadSetting(
            f"{eraser.name}: expected a text to steer away from of at most {model.context} tokens, start and end "
            f"included, got {model.context + dropped}: {unwanted!r}"
        )
    return unwanted
