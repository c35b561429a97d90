"""What the attacks share that make the victim predict something at noised pictures of the concept."""

from collections.abc import Generator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.attacks.base import Case, ask
from palimpsest.model import Probe, Slope

Loss = Literal["denoising", "base"]
"""The squared distance of the victim's prediction from the noise that was added (UnlearnDiffAtk's loss), or from the
base's prediction under the goal's own prompt (P4D's)."""


class Point(NamedTuple):
    """A picture of the concept, noised."""

    latents: Tensor
    noise: Tensor
    step: int


def point(case: Case, step: int | None) -> Point:
    """The reference, noised to ``step`` or to one drawn from all."""
    assert case.reference is not None, "needs says reference"
    if step is None:
        step = int(torch.randint(case.timesteps, (), generator=case.random))
    noise = torch.randn(case.reference.shape, generator=case.random).to(case.reference)
    return Point(case.noised(case.reference, noise, step), noise, step)


def targets(
    case: Case, loss: Loss, points: Sequence[Point]
) -> Generator[Sequence[Probe], Sequence[Slope], Sequence[Tensor]]:
    """(C, h, w) for each: what the victim should predict there. The base's costs a forward each, the noise nothing."""
    if loss == "denoising":
        # Answers are epsilon whatever the network was trained to say, and so is the paper's loss.
        return [point.noise for point in points]
    tokens = case.tokens(case.goal.prompt)
    probes = [
        Probe(tokens=tokens, latents=point.latents, step=point.step, guidance=case.guidance, of="base")
        for point in points
    ]
    answered = yield from ask(probes)
    return [slope.answer for slope in answered]


def gradient(
    case: Case, point: Point, target: Tensor, *, tokens: Tensor, words: Tensor | None = None
) -> Generator[Sequence[Probe], Sequence[Slope], Tensor]:
    """(context, d): of the distance of the victim's prediction from ``target``, with respect to the words.

    ``tokens`` is the whole context, ``words`` what stands in place of its embeddings. Costs one probe.
    """
    assert case.vocabulary is not None, "needs says gradients"
    probe = Probe(
        tokens=tokens,
        words=case.vocabulary[tokens] if words is None else words,
        latents=point.latents,
        step=point.step,
        guidance=case.guidance,
        loss=lambda answer, latents: functional.mse_loss(answer, target.to(answer)),
        wrt="words",
    )
    (slope,) = yield from ask([probe])
    assert slope.gradient is not None, "a probe with wrt is answered with a gradient"
    return slope.gradient
