"""CAD-Erase: the entries of the feed-forwards to which the concept's noise is attributed, set to zero."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from re import escape

import torch
from torch import Tensor

from palimpsest.erasers.base import Eraser
from palimpsest.errors import BadSetting
from palimpsest.model import Model, Sampling, Text
from palimpsest.pruning import Mask, Per, chosen, largest, matrices
from palimpsest.records import Concept, Kind

WEIGHTS = r"unet\..*ff.*"
"""Of these the matrices: both linears of every feed-forward."""
PROMPTS: dict[Kind, str] = {"style": "a photo in the style of {}"}
"""Where the concept's prompt is not its name alone."""


@dataclass(frozen=True, kw_only=True)
class Cad(Eraser):
    """Zeroes, in both linears of every feed-forward, what makes the concept's noise differ most from a base prompt's.

    Nguyen et al., "Unveiling Concept Attribution in Diffusion Models", arXiv 2412.02542, as in the authors' code. With
    c the concept's prompt and b the base prompt, z_t on a trajectory guided towards c, from noise of its own for each
    t, and the second term held constant,

        J = sum_t |eps(z_t, c) - eps(z_t, b)|^2        a = W * dJ/dW

    a_ij is by how much, to first order, J falls if W_ij becomes zero. Of each row the floor(``ratio`` columns) entries
    of largest a are set to zero, if a > 0; so a row of fewer than 1 / ``ratio`` entries keeps all. The masks of several
    concepts are joined. (The authors' code asks about z_t at the step before its own. Here z_t is as noisy as t says.)
    The noise is drawn from ``seed``.
    """

    name = "cad"

    ratio: float = 0.001
    """Share of each row (or matrix)."""
    per: Per = "row"
    """``row``: the share of each row; ``matrix``: of each matrix as a whole, as the authors' code offers."""
    prompt: str | None = None
    """The concept's prompt, {} its name; None: the paper's (styles "a photo in the style of {}", all others "{}")."""
    base: str = ""
    """The base prompt."""
    steps: int = 50
    """DDIM steps of a whole trajectory; J sums over all of them."""
    guidance: float = 3.0
    """Of the trajectories."""
    seed: int = 0
    """Of the noise that they start from."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        if not 0 < self.ratio <= 1:
            raise BadSetting(f"{self.name}: expected 0 < ratio <= 1, got {self.ratio}")
        if self.steps < 1:
            raise BadSetting(f"{self.name}: expected steps >= 1, got {self.steps}")
        if self.prompt is not None and "{}" not in self.prompt:
            raise BadSetting(f"{self.name}: expected a prompt with {{}} for the concept's name, got {self.prompt!r}")

    def stages(
        self, model: Model, concepts: Sequence[Concept], *, random: torch.Generator
    ) -> Iterator[tuple[int, Model]]:
        """The pruned model, in one stage."""
        yield 1, self.mask(model, concepts).applied(model)

    def mask(self, model: Model, concepts: Sequence[Concept]) -> Mask:
        """What is to be pruned for the concepts; raises ``BadSetting`` if it were nothing."""
        return reduce(or_, [self._mask(model, concept) for concept in concepts])

    def _mask(self, model: Model, concept: Concept) -> Mask:
        scores = self.attribution(model, concept)
        taken = {name: largest(score, self.ratio, per=self.per) & (score > 0) for name, score in scores.items()}
        return chosen(taken, self.name)

    def attribution(self, model: Model, concept: Concept) -> dict[str, Tensor]:
        """Weight's name -> (out, in) float32, a in the equation."""
        names = list(matrices(model, WEIGHTS))
        student = model.copy(trainable="|".join(map(escape, names)))
        weights = [student.weights()[name] for name in names]
        sums = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
        for latents, step, both in self._points(model, concept):
            with_concept, without = student.predict_noise(latents.repeat(2, 1, 1, 1), step, both).float().chunk(2)
            loss = (with_concept - without.detach()).square().sum()
            if not loss.isfinite():
                raise BadSetting(f"{self.name}: expected a finite J, got {loss.item()} at timestep {step}")
            for total, gradient in zip(sums, torch.autograd.grad(loss, weights), strict=True):
                total += gradient
        return {name: weight.detach().float() * total for name, weight, total in zip(names, weights, sums, strict=True)}

    def _points(self, model: Model, concept: Concept) -> Iterator[tuple[Tensor, float, Text]]:
        """(z_t, t, texts of concept and base) for every step of a trajectory."""
        sampling = Sampling(scheduler="ddim", steps=self.steps, guidance=self.guidance)
        prompt = (PROMPTS.get(concept.kind, "{}") if self.prompt is None else self.prompt).format(concept.name)
        with torch.no_grad():
            both = model.embed([prompt, self.base])
        random = torch.Generator().manual_seed(self.seed)
        for done, step in enumerate(model.schedule(sampling)):
            noise = torch.randn(1, *model.latent_shape, generator=random, dtype=model.dtype)
            yield model.trajectory(noise, both[:1], sampling, until=done), step, both
