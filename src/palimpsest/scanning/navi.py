"""NaviT2I: one word too many moves the denoiser more than it moves the text."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal

import torch
from torch import Tensor

from palimpsest.erasers.stopwords import STOPWORDS
from palimpsest.model import Model
from palimpsest.scanning.base import PromptDetector, Suspect

KEPT = 0.75
"""Share of the words, from the least on, with which the one that matters most is compared."""


@dataclass(frozen=True, kw_only=True)
class Navi(PromptDetector):
    """Leaves out one token after the other, and looks whether one moves the denoiser's neurons more than all others.

    "NaviT2I", Zhai et al., ICCV 2025. Of a prompt c, let c_k be the same with its k-th token masked by padding, A_l the
    outputs of the denoiser's linear and convolution layers (the latter averaged over their places) at the first step
    from one and the same noise, and T a clean text encoder. With L the layers and stopwords left out,

        V_k = sum_l mean |A_l(c) - A_l(c_k)| / |T(c) - T(c_k)|_2
        S = max_k V_k / mean of the lowest three quarters of V

    Flagged is S > mu + 1.2 sigma of clean prompts (the released code has 1.598 for Stable Diffusion). A prompt with
    fewer than two tokens that say something gives nothing to compare with, and is not told.
    """

    name = "navi"
    paper = 1.598

    by: Literal["token", "word"] = "token"
    """What is masked at a time. The paper masks tokens; a trigger of many tokens may show only as a whole word."""
    beside: str = ""
    """Neutral words put behind every prompt, for short ones to be compared with; the paper has none."""
    seed: int = 0
    """Of the noise."""

    def passes(self, suspect: Suspect, prompt: str) -> int:
        """One for the prompt, one for each part masked, one more for each further batch."""
        parts = len(self._parts(suspect.model, self._text(prompt)))
        batches = -(-parts // (_batch(suspect.model) - 1))
        return parts + batches if parts >= 2 else 0

    def scores(self, suspect: Suspect, prompts: Sequence[str]) -> list[float | None]:
        return [self._score(self.effects(suspect, prompt)) for prompt in prompts]

    @torch.no_grad()
    def effects(self, suspect: Suspect, prompt: str) -> dict[str, float]:
        """V of each part that was masked, in order, under ``number: text``; none for fewer than two."""
        model, text = suspect.model, self._text(prompt)
        parts = self._parts(model, text)
        if len(parts) < 2:
            return {}
        tokens = model.tokens(text)
        rows = tokens.repeat(1 + len(parts), 1)
        for row, places in enumerate(parts, start=1):
            rows[row, places] = model.pad_token
        moved = torch.cat([self._moved(model, rows[:1], some) for some in rows[1:].split(_batch(model) - 1)])
        apart = _apart(suspect.trusted, rows)
        told = [f"{number}: {model.text(tokens[places])}" for number, places in enumerate(parts, start=1)]
        return dict(zip(told, (moved / apart).tolist(), strict=True))

    def _text(self, prompt: str) -> str:
        return f"{prompt} {self.beside}".strip()

    def _parts(self, model: Model, prompt: str) -> list[list[int]]:
        """Places in the context that are masked together; stopwords are left out, but not pieces that look like one."""
        ids = model.own_tokens(prompt)
        words: list[list[int]] = [[]]
        for place, written in enumerate(model.tokenizer.convert_ids_to_tokens(ids)):
            words[-1].append(place)
            if written.endswith("</w>"):
                words.append([])
        told = [places for places in words if places and model.text([ids[at] for at in places]) not in STOPWORDS]
        masked = told if self.by == "word" else [[place] for places in told for place in places]
        return [[1 + place for place in places] for places in masked]

    def _moved(self, model: Model, whole: Tensor, masked: Tensor) -> Tensor:
        """(n,): the sum over layers of the mean change that each row of ``masked`` makes to the whole prompt."""
        text = model.encode(torch.cat([whole, masked]))
        noise = model.noise(self.seed).to(model.device)[None].repeat(len(text), 1, 1, 1)
        with model.watch(_layers(model), keep=_changes) as seen:
            model.predict_noise(noise, model.timesteps - 1, text)
        return torch.stack([change for (change,) in seen.values()]).sum(0)[1:].cpu()

    @staticmethod
    def _score(effects: dict[str, float]) -> float | None:
        values = sorted(effects.values())
        if len(values) < 2 or not all(map(isfinite, values)):
            return None
        rest = values[: int(KEPT * len(values))]
        return values[-1] / max(sum(rest) / len(rest), 1e-12)


def _batch(model: Model) -> int:
    """Rows of a forward, the prompt itself among them."""
    return max(2, model.batch)


def _layers(model: Model) -> str:
    """A pattern of the denoiser's linear and convolution layers: those whose weight has two dimensions or more."""
    names = [name for name, weight in model.weights(r"unet\..*\.weight").items() if weight.ndim >= 2]
    return "|".join(name.removesuffix(".weight").replace(".", r"\.") for name in names)


def _changes(output: Tensor) -> Tensor:
    """(n, ...) outputs -> (n,) mean absolute difference from the first."""
    output = output.float().mean((2, 3)) if output.ndim == 4 else output.float()
    return (output - output[:1]).abs().flatten(1).mean(1)


def _apart(model: Model, rows: Tensor) -> Tensor:
    """(n - 1,): the distance between the text of the first row of ids and that of each other."""
    states = torch.cat([model.encode(some).states for some in rows.split(_batch(model))]).float()
    apart: Tensor = (states[1:] - states[:1]).flatten(1).norm(dim=1)
    return apart.clamp(min=1e-12).cpu()
