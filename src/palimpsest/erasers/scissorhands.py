"""Scissorhands: the weights that the concept needs most begin anew, and the whole is trained without it."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from palimpsest.erasers.base import Eraser
from palimpsest.erasers.gradients import accumulated, largest_of_all
from palimpsest.erasers.losses import denoising, guided_denoising, replacing
from palimpsest.errors import BadModel, BadSetting
from palimpsest.examples import Examples, Pair, draw, forgotten_and_retained
from palimpsest.fitting import Fit
from palimpsest.model import Model, Sampling
from palimpsest.pruning import Mask
from palimpsest.records import Concept

Form = Literal["ascent", "pseudo"]

WEIGHTS = r"unet\..*"
SELF_ATTENTION = re.compile(r"unet\.up_blocks\.(\d+)\.attentions\.(\d+)\..*\.attn1\..*")
MARGIN, RIDGE = 0.5, 1e-3
"""Of the projection."""


class Defaults(NamedTuple):
    """What the authors use for a kind of concept."""

    form: Form
    sparsity: float
    lr: float
    epochs: int
    batch: int


PAPER = Defaults(form="ascent", sparsity=0.999, lr=2e-5, epochs=3, batch=8)
PAPER_CONTENT = Defaults(form="pseudo", sparsity=0.995, lr=1e-5, epochs=5, batch=16)


@dataclass(frozen=True, kw_only=True)
class Scissorhands(Eraser):
    """Re-initialises the weights that the concept's loss hangs on most, then trains the whole denoiser.

    Wu and Harandi, "Scissorhands: Scrub Data Influence via Connection Sensitivity in Networks", arXiv 2401.06187. With
    x_t noised pictures that the base drew of the concept's prompts c, t uniform, and ``saliency`` batches b,

        s = |W| * sum_b |d/dW L_b|

    Of the denoiser's weights, biases included, all ranked together, the 1 - ``sparsity`` of largest s are chosen; those
    of them that lie where ``where`` says begin anew. Then Adam trains the whole denoiser:

        form "ascent":  L = L_r - lam L_f
                        L_b = MSE((1 + 7.5) eps(x_t, c) - 7.5 eps(x_t, ""), noise); anew: normal, std 0.02, cut at 2
        form "pseudo":  L = L_r + lam MSE(eps(x_t, c), sg eps(x_t, pseudo))
                        L_b = MSE(eps(x_t, c), noise); anew: Kaiming uniform

    L_f and L_r are MSE(eps(x_t, .), noise) on pictures of the concept and of prompts to retain; sg stops the gradient,
    eps is the network as it is by then. Biases begin anew as 0, gains of norms as 1. c and pseudo are the concept's
    ``pairs``, with and without it; for one that has none, its name and its ``anchor``. The pictures are divided equally
    among several concepts, of which the first one's kind decides the defaults, which are those of the authors' launch
    script. (Their classes are real photographs. Here the base draws them.)

    ``project``: the paper's gradient projection, which the authors' code for diffusion models leaves out. With g_o the
    gradient of -L_f on one batch before the training, a gradient g for which <g, g_o> < 0 becomes g + v g_o, with
    v = max(0.5, -<g, g_o> / (<g_o, g_o> + 0.001)).
    """

    name = "scissorhands"

    form: Form | None = None
    """None: the authors' (content ``pseudo``, all others ``ascent``)."""
    sparsity: float | None = None
    """None: the authors' (content 0.995, all others 0.999)."""
    where: Literal["attn1", "all"] = "attn1"
    """``attn1``: the self-attention of the middle one of the transformers in each of the first two blocks on the way up
    that have any, as in the authors' code (output_blocks 4 and 7 of Stable Diffusion 1); ``all``: the denoiser, as in
    the paper."""
    saliency: int = 10
    """Batches that s sums over."""
    lam: float = 0.1
    project: bool = False
    pseudo: str | None = None
    """For all of the concept's prompts; None: the concept's own pairs, or else its anchor."""
    retain: tuple[str, ...] = ()
    """Prompts to retain; none: all that stand in for the concept in its pairs."""
    lr: float | None = None
    """None: the authors' (content 1e-5, all others 2e-5)."""
    epochs: int | None = None
    """Of pictures / batch iterations each; None: the authors' (content 5, all others 3)."""
    batch: int | None = None
    """None: the authors' (content 16, all others 8)."""
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
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise BadSetting(f"{self.name}: expected 0 <= sparsity < 1, got {self.sparsity}")
        self.require_least(saliency=1, epochs=1, batch=1, pictures=1, steps=1, lam=0, lr=0, every=0)

    def stages(
        self, model: Model, concepts: Sequence[Concept], *, random: torch.Generator
    ) -> Iterator[tuple[int, Model]]:
        """The student after every ``every`` iterations, and at the end."""
        own = self._own(concepts)
        pairs, keep = self._prompts(concepts)
        forget = self._pictures(model, pairs, random, "forget")
        student = self._cut(model, forget, own, random).copy(trainable=WEIGHTS)
        retain = self._pictures(model, keep, random, "retain")

        def lost() -> Tensor:
            at = forget.drawn(model, own.batch, random)
            text = student.remembered(at.given)
            return replacing(student, at, text) if own.form == "pseudo" else -denoising(student, at, text)

        def loss() -> Tensor:
            also = retain.drawn(model, own.batch, random)
            return denoising(student, also, student.remembered(also.given)) + self.lam * lost()

        optimiser = torch.optim.Adam(student.trainable(), lr=own.lr)
        if self.project:
            at = forget.drawn(model, own.batch, random)
            direction = accumulated(student, [-denoising(student, at, student.remembered(at.given))], self.name)
            projecting(optimiser, list(direction.values()))
        fit = Fit(
            student=student,
            optimiser=optimiser,
            random=random,
            iterations=own.epochs * ceil(self.pictures / own.batch),
            every=self.every,
            phase=self.name,
        )
        yield from fit.run(loss)

    def mask(self, model: Model, concepts: Sequence[Concept], *, random: torch.Generator) -> Mask:
        """What begins anew, as ``stages`` chooses it from the same ``random``; names are those of the weights."""
        pairs, _ = self._prompts(concepts)
        return self._mask(model, self._pictures(model, pairs, random, "forget"), self._own(concepts), random)

    def _own(self, concepts: Sequence[Concept]) -> Defaults:
        """The settings, with the authors' where they are left to them."""
        paper = PAPER_CONTENT if concepts[0].kind == "content" else PAPER
        given = {field: getattr(self, field) for field in Defaults._fields}
        return paper._replace(**{field: value for field, value in given.items() if value is not None})

    def _prompts(self, concepts: Sequence[Concept]) -> tuple[list[Pair], list[Pair]]:
        return forgotten_and_retained(concepts, self.name, pseudo=self.pseudo, retain=self.retain, count=self.pictures)

    def _pictures(self, model: Model, pairs: Sequence[Pair], random: torch.Generator, what: str) -> Examples:
        sampling = Sampling(steps=self.steps, guidance=self.guidance)
        return draw(model, pairs, of="given", sampling=sampling, random=random, name=f"{self.name}-{what}")

    def _cut(self, model: Model, forget: Examples, own: Defaults, random: torch.Generator) -> Model:
        """The model with what was chosen begun anew."""
        weights, changed = model.weights(), {}
        for name, marks in self._mask(model, forget, own, random).entries.items():
            weight = weights[name].detach()
            fresh = _fresh(name, weight, own.form, random)
            changed[name] = torch.where(marks.reshape(weight.shape).to(weight.device), fresh, weight)
        return model.with_weights(changed)

    def _mask(self, model: Model, forget: Examples, own: Defaults, random: torch.Generator) -> Mask:
        """What begins anew."""
        student = model.copy(trainable=WEIGHTS)

        def losses() -> Iterator[Tensor]:
            for _ in range(self.saliency):
                at = forget.drawn(model, own.batch, random)
                text = student.remembered(at.given)
                yield denoising(student, at, text) if own.form == "pseudo" else guided_denoising(student, at, text, 7.5)

        sums, weights = accumulated(student, losses(), self.name, sizes=True), student.weights()
        scores = {name: weights[name].detach().float().abs() * total for name, total in sums.items()}
        size = sum(score.numel() for score in scores.values())
        chosen = largest_of_all(scores, size - int(own.sparsity * size)).entries
        allowed = chosen if self.where == "all" else middle_self_attention(chosen)
        mask = Mask({name: chosen[name] for name in allowed if chosen[name].any()})
        if not mask.count:
            raise BadSetting(
                f"{self.name}: expected a sparsity below {own.sparsity}, or where=all: of the {size:,} weights none of "
                "those chosen is where they may begin anew"
            )
        return mask


def middle_self_attention(names: Iterable[str]) -> list[str]:
    """The names of self-attention in the middle transformer of the first two blocks up that have transformers."""
    found = [(name, int(fits[1]), int(fits[2])) for name in names if (fits := SELF_ATTENTION.fullmatch(name))]
    if not found:
        raise BadModel("expected a denoiser with self-attention on its way up (up_blocks), got one without")
    blocks = sorted({block for _, block, _ in found})[:2]
    middle = {block: sorted({at for _, one, at in found if one == block}) for block in blocks}
    return [name for name, block, at in found if block in middle and at == middle[block][len(middle[block]) // 2]]


def _fresh(name: str, weight: Tensor, form: Form, random: torch.Generator) -> Tensor:
    """A weight as it is before all training."""
    fresh = torch.zeros(weight.shape)
    if weight.ndim == 1:
        fresh += 0.0 if name.endswith("bias") else 1.0
    elif form == "ascent":
        nn.init.trunc_normal_(fresh, std=0.02, generator=random)
    else:
        nn.init.kaiming_uniform_(fresh, nonlinearity="relu", generator=random)
    return fresh.to(weight)


def projecting(optimiser: torch.optim.Optimizer, direction: Sequence[Tensor]) -> None:
    """From now on, gradients that lead against ``direction`` (one tensor per weight) are turned before each step."""
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    square = sum(float(one.square().sum(dtype=torch.float64)) for one in direction)

    def turn(*_: Any) -> None:
        pairs = [(weight.grad, one) for weight, one in zip(weights, direction, strict=True) if weight.grad is not None]
        along = sum(float((gradient * one).sum(dtype=torch.float64)) for gradient, one in pairs)
        if along < 0:
            for gradient, one in pairs:
                gradient.add_(one.to(gradient), alpha=max(MARGIN, -along / (square + RIDGE)))

    optimiser.register_step_pre_hook(turn)
