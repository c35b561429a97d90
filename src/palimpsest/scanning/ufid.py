"""UFID: under a trigger the picture stays the same, whatever else the prompt says."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch

from palimpsest.concept_file import shipped_concepts
from palimpsest.errors import BadSetting
from palimpsest.model import Sampling
from palimpsest.records import Attempt
from palimpsest.scanning.base import PromptDetector, Suspect
from palimpsest.utility.features import Network


@dataclass(frozen=True, kw_only=True)
class Ufid(PromptDetector):
    """Draws a prompt with several phrases behind it, and measures how alike the pictures are.

    "UFID", Guan et al., AAAI 2025, arXiv 2404.01101, for text: needs no weights. With f the embedding of picture i of
    the prompt alone and of ``variants`` with a random phrase behind it, all from one noise, the score is the density of
    the graph of their similarities,

        2 / (m (m - 1)) sum_{i < j} cos(f_i, f_j),    m = variants + 1

    It assumes that the trigger rules the whole picture. A prompt behind which a phrase does not fit into the context is
    not told. The paper's phrases and their number are not known here; three variants are what its stated cost comes to.
    """

    name = "ufid"

    variants: int = 3
    """Pictures beside the prompt's own."""
    steps: int = 50
    """DDIM steps of a picture."""
    guidance: float = 7.5
    """Of a picture."""
    model: str = ""
    """What sees: a CLIP or an image model of transformers, in a folder; empty: the miniature's CLIP."""
    phrases: tuple[str, ...] = ()
    """Phrases to put behind prompts; none: prompts of the shipped concepts."""
    seed: int = 0
    """Of the noise, and of the choice of phrases."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        self.require_least(variants=1, steps=1)
        if self.variants > (known := len(set(self._phrases))):
            raise BadSetting(f"{self.name}: expected variants <= {known} phrases, got {self.variants}")

    def passes(self, suspect: Suspect, prompt: str) -> int:
        """Those of all pictures."""
        attempt = Attempt(prompt=prompt, seed=self.seed)
        return (1 + self.variants) * suspect.model.picture_cost(attempt, self._sampling).forwards

    def scores(self, suspect: Suspect, prompts: Sequence[str]) -> list[float | None]:
        if not prompts:
            return []
        varied = {prompt: (prompt, *self._varied(prompt)) for prompt in prompts}
        # Phrases that are cut off would leave the prompt as it was, and its pictures all alike.
        fit = {prompt: some for prompt, some in varied.items() if not any(map(suspect.model.dropped, some))}
        if not fit:
            return [None] * len(prompts)
        asked = [Attempt(prompt=one, seed=self.seed) for some in fit.values() for one in some]
        seen = Network(measure=self.name, source=self.model).embeddings(suspect.model.draw(asked, self._sampling))
        seen = seen / np.linalg.norm(seen, axis=1, keepdims=True)
        told = dict(zip(fit, map(density, np.split(seen, len(fit))), strict=True))
        return [told.get(prompt) for prompt in prompts]

    @property
    def _sampling(self) -> Sampling:
        return Sampling(scheduler="ddim", steps=self.steps, guidance=self.guidance)

    @property
    def _phrases(self) -> tuple[str, ...]:
        return self.phrases or tuple(one.prompts[0] for one in shipped_concepts().values() if one.kind != "content")

    def _varied(self, prompt: str) -> list[str]:
        """The prompt with a phrase behind it: the same phrases for all prompts."""
        phrases = self._phrases
        drawn, random = dict[str, None](), torch.Generator().manual_seed(self.seed)
        while len(drawn) < self.variants:  # a phrase that came twice would make two pictures the same
            drawn[phrases[int(torch.randint(len(phrases), (), generator=random))]] = None
        return [f"{prompt} {phrase}" for phrase in drawn]


def density(seen: Any) -> float:
    """Mean similarity of all pairs among (m, d) embeddings of length 1."""
    return float(np.mean([seen[one] @ seen[other] for one, other in combinations(range(len(seen)), 2)]))
