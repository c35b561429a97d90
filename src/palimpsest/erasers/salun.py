"""SalUn, Saliency Unlearning: fine-tuning of the weights that the concept's loss hangs on, towards another prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from palimpsest.erasers.base import Eraser
from palimpsest.erasers.gradients import accumulated, largest_of_all, let_through
from palimpsest.erasers.losses import denoising, guided_denoising, replacing
from palimpsest.errors import BadSetting
from palimpsest.examples import Examples, Pair, draw, forgotten_and_retained
from palimpsest.fitting import Fit
from palimpsest.model import Model, Sampling
from palimpsest.pruning import Mask
from palimpsest.records import Concept

Layers = Literal["full", "attn2"]

PATTERNS: dict[Layers, str] = {"full": r"unet\..*", "attn2": r"unet\..*\.attn2\..*"}


class Defaults(NamedTuple):
    """What the authors use for a kind of concept."""

    alpha: float
    epochs: int


PAPER = Defaults(alpha=0.5, epochs=5)
PAPER_CONTENT = Defaults(alpha=0.1, epochs=1)


@dataclass(frozen=True, kw_only=True)
class Salun(Eraser):
    """Trains the half of the weights on which the concept's loss hangs most to answer it as another prompt.

    Fan et al., "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image Classification
    and Generation", arXiv 2310.12508. With c the concept's prompt, x_t noised pictures that the base drew of it, t
    uniform, and batches b that go once through all of them,

        g = sum_b d/dW MSE((1 + w) eps(x_t, c) - w eps(x_t, ""), noise)        w = 7.5

    the mask m marks the ``share`` of the denoiser's weights, biases included, of largest |g|, all of them ranked
    together. Then Adam, whose gradient is let through on m alone, lessens

        MSE(eps(x_t, c), sg eps(x_t, pseudo)) + alpha MSE(eps(x_t', r), noise)

    where sg stops the gradient, eps is the network as it is by then, and x_t' are pictures that the base drew of
    prompts r to retain. c and pseudo are the concept's ``pairs``, with and without it; for one that has none, its name
    and its ``anchor``. The pictures are divided equally among several concepts, of which the first one's kind decides
    the defaults. (The authors' classes are real photographs, and pictures come in shuffled order. Here the base draws
    them, and each batch of the second part is drawn with replacement.)
    """

    name = "salun"

    share: float = 0.5
    """Of the denoiser's weights that the mask marks."""
    layers: Layers = "full"
    """What is trained of what the mask marks: ``full``, all of it; ``attn2``, the cross-attention's."""
    scale: float = 7.5
    """w in the equation."""
    pseudo: str | None = None
    """For all of the concept's prompts; None: the concept's own pairs, or else its anchor."""
    retain: tuple[str, ...] = ()
    """Prompts to retain; none: all that stand in for the concept in its pairs."""
    alpha: float | None = None
    """None: the paper's (content 0.1, all others 0.5)."""
    epochs: int | None = None
    """Of pictures / batch iterations each; None: the paper's (content 1, all others 5)."""
    lr: float = 1e-5
    batch: int = 8
    pictures: int = 800
    """To forget, and as many to retain, all concepts together."""
    steps: int = 50
    """DDIM steps of a picture."""
    guidance: float = 7.5
    """Of the pictures."""
    every: int = 0
    """Iterations between the stages that are kept for persistence curves; 0: the end alone."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        if not 0 < self.share <= 1:
            raise BadSetting(f"{self.name}: expected 0 < share <= 1, got {self.share}")
        self.require_least(scale=0, alpha=0, epochs=1, lr=0, batch=1, pictures=1, steps=1, every=0)

    def stages(
        self, model: Model, concepts: Sequence[Concept], *, random: torch.Generator
    ) -> Iterator[tuple[int, Model]]:
        """The student after every ``every`` iterations, and at the end."""
        paper = PAPER_CONTENT if concepts[0].kind == "content" else PAPER
        alpha = paper.alpha if self.alpha is None else self.alpha
        pairs, keep = self._prompts(concepts)
        forget = self._pictures(model, pairs, random, "forget")
        mask = self._mask(model, forget, random)
        retain = self._pictures(model, keep, random, "retain")
        student = model.copy(trainable=PATTERNS[self.layers])
        let_through(student, mask)

        def loss() -> Tensor:
            at, also = forget.drawn(model, self.batch, random), retain.drawn(model, self.batch, random)
            lost = replacing(student, at, student.remembered(at.given))
            return lost + alpha * denoising(student, also, student.remembered(also.given))

        fit = Fit(
            student=student,
            optimiser=torch.optim.Adam(student.trainable(), lr=self.lr),
            random=random,
            iterations=(paper.epochs if self.epochs is None else self.epochs) * ceil(self.pictures / self.batch),
            every=self.every,
            phase=self.name,
        )
        yield from fit.run(loss)

    def mask(self, model: Model, concepts: Sequence[Concept], *, random: torch.Generator) -> Mask:
        """The mask m, as ``stages`` takes it from the same ``random``; names are those of the weights."""
        pairs, _ = self._prompts(concepts)
        return self._mask(model, self._pictures(model, pairs, random, "forget"), random)

    def _prompts(self, concepts: Sequence[Concept]) -> tuple[list[Pair], list[Pair]]:
        return forgotten_and_retained(concepts, self.name, pseudo=self.pseudo, retain=self.retain, count=self.pictures)

    def _pictures(self, model: Model, pairs: Sequence[Pair], random: torch.Generator, what: str) -> Examples:
        sampling = Sampling(steps=self.steps, guidance=self.guidance)
        return draw(model, pairs, of="given", sampling=sampling, random=random, name=f"{self.name}-{what}")

    def _mask(self, model: Model, forget: Examples, random: torch.Generator) -> Mask:
        student = model.copy(trainable=PATTERNS["full"])

        def losses() -> Iterator[Tensor]:
            for first in range(0, len(forget), self.batch):
                at = forget.noised(model, range(first, min(first + self.batch, len(forget))), random)
                yield guided_denoising(student, at, student.remembered(at.given), self.scale)

        scores = {name: total.abs() for name, total in accumulated(student, losses(), self.name).items()}
        return largest_of_all(scores, int(self.share * sum(score.numel() for score in scores.values())))
