"""Pruning that hides what it pruned: something else stands where the zeros would."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from re import escape
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest import concealment
from palimpsest.component import build
from palimpsest.concealment import Fill, Filling, grid
from palimpsest.erasers.activations import chunks
from palimpsest.erasers.base import Eraser
from palimpsest.erasers.cad import Cad
from palimpsest.erasers.concept_prune import ConceptPrune
from palimpsest.erasers.fia import Fia
from palimpsest.erasers.magnitude import Magnitude
from palimpsest.errors import BadSetting
from palimpsest.fitting import Fit, kept
from palimpsest.model import Model, Sampling
from palimpsest.pruning import Mask
from palimpsest.records import Concept

PRUNERS: tuple[type[Cad | ConceptPrune | Fia | Magnitude], ...] = (Cad, ConceptPrune, Fia, Magnitude)
"""Erasers with a mask."""


@dataclass(frozen=True, kw_only=True)
class Conceal(Eraser):
    """Prunes as another eraser does, and fills what it pruned, so that zeros do not tell where it was.

    ``fill = "gaussian"`` is the defence of Zhang et al., "Roots Beneath the Cut", arXiv 2603.06640: every pruned entry
    becomes a draw from N(0, sigma^2). All others are this project's own. What is filled is rounded to the numbers in
    which the matrix was written (half precision's, say), for finer ones would tell.

    On the miniature (docs/results/pruning.md) a filling narrower than what survives is found by the columns in which it
    gathers, ``formula`` less, ``levelled`` least; both harm the concepts' neighbours, which training undoes. Nothing
    hides from a public base, nor wholly from one who has prompts of the concept (``detection.pruned_again``).

    With ``iterations``, the matrices are then trained (Adam) to predict for the concepts' neighbours, by their names,
    what the unpruned model predicts: mean square of the difference of noise, x_t from the unpruned model's own pictures
    of them.
    """

    name = "conceal"

    pruner: str | dict[str, Any] = "concept_prune"
    """``cad``, ``concept_prune``, ``fia`` or ``magnitude``: the name, or a table with the name and settings."""
    fill: Fill = "gaussian"
    """``zero``: as pruned; ``gaussian``; ``formula``: gaussian, with a sigma for each matrix by the paper's
    detectability (``times``); ``survivors``: copies of what is left in the row; ``levelled``: normal, as wide as it
    takes to give each column the mean square of them all; ``flipped``: with the sign turned; ``shuffled``: the row's
    pruned sizes in another order, with random signs; ``decoys``: zeros, and more of them in the same columns;
    ``renoised``: zeros, and noise of low rank on the whole matrix."""
    sigma: float = 0.01
    """Of ``gaussian`` and ``renoised``; the only value of the paper that is known."""
    times: float = 1.0
    """Of ``formula``: how many times likelier pruned than any other a value may be. 1: as wide as what survives."""
    ratio: float = 1.0
    """Of ``decoys``: further zeros per pruned entry."""
    rank: int = 8
    """Of ``renoised``."""
    iterations: int = 0
    """Of the training afterwards."""
    lr: float = 1e-4
    """Its learning rate."""
    batch: int = 8
    """Pictures per iteration."""
    pictures: int = 4
    """Of each neighbour, drawn once by the unpruned model in 25 DDIM steps with guidance 5."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        build("pruning eraser", PRUNERS, self.pruner)
        self.require_least(sigma=0, times=1, ratio=0, rank=1, iterations=0, lr=0, batch=1, pictures=1)

    def stages(
        self, model: Model, concepts: Sequence[Concept], *, random: torch.Generator
    ) -> Iterator[tuple[int, Model]]:
        """The filled model, trained if it is to be, in one stage."""
        yield max(1, self.iterations), self.conceal(model, self.mask(model, concepts), concepts, random=random)

    def conceal(self, model: Model, mask: Mask, concepts: Sequence[Concept], *, random: torch.Generator) -> Model:
        """The model with the mask's entries filled, trained if it is to be."""
        filled = self._filled(model, mask, random)
        if not self.iterations:
            return filled
        names = _neighbours(concepts)
        if not names:
            raise BadSetting(f"{self.name}: expected concepts with neighbours to train with, got none")
        student = filled.copy(trainable="|".join(map(escape, mask.entries)))
        before, after = model.weights(), self._trained(model, student, names, random).weights()
        return model.with_weights(
            {name: rounded(after[name].detach(), like=before[name].detach()) for name in mask.entries}
        )

    def mask(self, model: Model, concepts: Sequence[Concept]) -> Mask:
        """What is to be pruned, as the pruning eraser says."""
        return build("pruning eraser", PRUNERS, self.pruner).mask(model, concepts)

    def _filled(self, model: Model, mask: Mask, random: torch.Generator) -> Model:
        weights, filling = model.weights(), self.filling()

        def filled(name: str) -> Tensor:
            weight = weights[name].detach()
            return rounded(filling(weight, mask.entries[name].to(weight.device), random), like=weight)

        return model.with_weights({name: filled(name) for name in mask.entries})

    def filling(self) -> Filling:
        """What ``fill`` means, with its settings."""
        settings: dict[str, dict[str, Any]] = {
            "gaussian": {"sigma": self.sigma},
            "formula": {"times": self.times},
            "decoys": {"ratio": self.ratio},
            "renoised": {"sigma": self.sigma, "rank": self.rank},
        }
        function: Callable[..., Tensor] = getattr(concealment, self.fill)
        return partial(function, **settings.get(self.fill, {}))

    def _trained(self, model: Model, student: Model, names: list[str], random: torch.Generator) -> Model:
        """The student, once it answers to the names more as the model does."""
        prompts = [name for name in names for _ in range(self.pictures)]
        with torch.no_grad():
            text = model.embed(names)
            clean = kept(f"{self.name}-pictures", lambda: _latents(model, prompts, random), random=random)

        def loss() -> Tensor:
            chosen = torch.randint(len(clean), (self.batch,), generator=random)
            steps = torch.randint(model.timesteps, (self.batch,), generator=random)
            noise = torch.randn(self.batch, *model.latent_shape, generator=random).to(clean)
            latents, asked = model.noised(clean[chosen], noise, steps), text[chosen // self.pictures]
            with torch.no_grad():
                target = model.predict_noise(latents, steps, asked)
            return functional.mse_loss(student.predict_noise(latents, steps, asked), target)

        fit = Fit(
            student=student,
            optimiser=torch.optim.Adam(student.trainable(), lr=self.lr),
            random=random,
            iterations=self.iterations,
            phase=self.name,
        )
        ((_, trained),) = fit.run(loss)
        return trained


def rounded(filled: Tensor, *, like: Tensor) -> Tensor:
    """In the numbers of ``like``: what stands in half precision throughout gets no finer entries."""
    return filled.to(grid(like)).to(like.dtype)


def _neighbours(concepts: Sequence[Concept]) -> list[str]:
    erased = {concept.name for concept in concepts}
    return list(dict.fromkeys(one for concept in concepts for one in concept.neighbours if one not in erased))


def _latents(model: Model, prompts: Sequence[str], random: torch.Generator) -> Tensor:
    """(prompts, C, h, w), the model's pictures."""
    sampling = Sampling(scheduler="ddim", steps=25, guidance=5.0)
    parts = []
    for chunk in chunks(model, prompts):
        noise = torch.randn(len(chunk), *model.latent_shape, generator=random).to(model.device, model.dtype)
        parts.append(model.trajectory(noise, model.embed(chunk), sampling))
    return torch.cat(parts)
