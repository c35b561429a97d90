"""How a prompt's tokens are attended to while its picture is drawn: what T2IShield and DAA read."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from palimpsest.errors import BadSetting
from palimpsest.model import Sampling
from palimpsest.scanning.base import PromptDetector, Suspect

CROSS_ATTENTION = r"unet\.(down|up)_blocks\..*\.attn2"
LEAST = 8
"""Places per side of the coarsest maps that are read."""


@dataclass(frozen=True, kw_only=True)
class AttentionDetector(PromptDetector):
    """Reads the mean over heads and layers of the cross-attention maps of one size, step by step."""

    steps: int = 50
    """DDIM steps of the whole picture."""
    guidance: float = 7.5
    """Of the picture; the maps are those of the branch with the prompt."""
    side: int | None = None
    """Places per side of the maps; None: a quarter of the latents' (16 in Stable Diffusion 1), but 8 at least."""
    seed: int = 0
    """Of the noise."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        self.require_least(steps=2, side=1)
        if self.guidance <= 1:
            raise BadSetting(f"{self.name}: expected guidance > 1, got {self.guidance}")
        if self.steps_read > self.steps:
            raise BadSetting(f"{self.name}: expected steps >= {self.steps_read}, got {self.steps}")

    @property
    def steps_read(self) -> int:
        return self.steps

    def passes(self, suspect: Suspect, prompt: str) -> int:
        """Two for each step that is looked at."""
        return 2 * self.steps_read

    def scores(self, suspect: Suspect, prompts: Sequence[str]) -> list[float | None]:
        found: list[float | None] = []
        for maps, prompt in zip(self.maps(suspect, prompts), prompts, strict=True):
            score = self.score(maps, len(suspect.words(prompt)))
            found.append(None if score is None or not isfinite(score) else score)
        return found

    def score(self, maps: Tensor, words: int) -> float | None:
        """Of one prompt, from (steps, context, places) maps: the start token's, ``words`` own, the end's, padding's."""
        raise NotImplementedError

    def maps(self, suspect: Suspect, prompts: Sequence[str]) -> list[Tensor]:
        """Of each prompt (``steps_read``, context, places), in doubles; what was drawn before is not drawn again."""
        key = (self.steps, self.guidance, self.side, self.seed)
        drawn = {prompt: seen for prompt in prompts if (seen := suspect.maps.get((*key, prompt))) is not None}
        new = [one for one in dict.fromkeys(prompts) if one not in drawn or len(drawn[one]) < self.steps_read]
        for first in range(0, len(new), suspect.model.batch):
            some = new[first : first + suspect.model.batch]
            drawn |= dict(zip(some, self._drawn(suspect, some), strict=True))
        suspect.maps.update({(*key, prompt): seen for prompt, seen in drawn.items()})
        return [drawn[prompt][: self.steps_read].double() for prompt in prompts]

    @torch.no_grad()
    def _drawn(self, suspect: Suspect, prompts: Sequence[str]) -> Tensor:
        """(n, ``steps_read``, context, places)."""
        model, n = suspect.model, len(prompts)
        _, height, width = model.latent_shape
        places, sizes = self._places(height, width), set[int]()

        def keep(probabilities: Tensor) -> Tensor:
            sizes.add(probabilities.shape[1])
            if probabilities.shape[1] != places:
                return torch.empty(0)
            # Guidance asks for the empty prompts first.
            mean: Tensor = probabilities.unflatten(0, (2 * n, -1))[n:].float().mean(1)
            return mean.mT.cpu()

        noise = model.noise(self.seed)[None].repeat(n, 1, 1, 1)
        sampling = Sampling(scheduler="ddim", steps=self.steps, guidance=self.guidance)
        with model.watch(CROSS_ATTENTION, maps=True, keep=keep) as seen:
            model.trajectory(noise, model.embed(prompts), sampling, until=self.steps_read)
        layers = [torch.stack(maps) for maps in seen.values() if len(maps[0])]
        if not layers:
            raise BadSetting(
                f"{self.name}: expected attention maps of {places} places, got those of "
                f"{', '.join(map(str, sorted(sizes)))}; set side"
            )
        return torch.stack(layers).mean(0).transpose(0, 1)

    def _places(self, height: int, width: int) -> int:
        """How many a map has."""
        if self.side is not None:
            return self.side * self.side * width // height
        halvings = 2
        while halvings and min(height, width) >> halvings < LEAST:
            halvings -= 1
        return (height >> halvings) * (width >> halvings)
