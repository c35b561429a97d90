"""Questions to the network: many goals' probes in one forward and backward."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from palimpsest.model.network import Network
from palimpsest.records import Cost

T = TypeVar("T")
Loss = Callable[[Tensor, Tensor | None], Tensor]
"""(answer, latents) -> scalar, for one sample; latents is None when the question is about the text."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Probe:
    """One question to the network."""

    tokens: Tensor
    """(context,) int64: the whole context with start, end and padding."""
    words: Tensor | None = None
    """(context, width) in place of the token embeddings; positions are added by the encoder."""
    latents: Tensor | None = None
    """(C, h, w): x_t; None: the question is about the text encoding."""
    step: int | None = None
    """Training timestep of ``latents``."""
    guidance: float | None = None
    """None: the conditional branch alone; a number: guided, through any guard."""
    of: Literal["victim", "base"] = "victim"
    loss: Loss | None = None
    wrt: Literal["words", "latents"] | None = None
    """What the gradient is taken with respect to; None: forward only."""

    def __post_init__(self) -> None:
        if (self.latents is None) != (self.step is None):
            raise ValueError("expected latents and step together, got one without the other")
        if self.wrt is not None and self.loss is None:
            raise ValueError(f"expected a loss to take the gradient of with respect to {self.wrt}, got none")
        if self.latents is None and (self.wrt == "latents" or self.guidance is not None):
            raise ValueError("expected latents for a gradient with respect to them or for guidance, got none")


@dataclass(frozen=True, kw_only=True, eq=False)
class Slope:
    """The answer to a probe."""

    answer: Tensor
    """(C, h, w) noise, always as epsilon, or (context, width) text states; detached, on the model's device."""
    loss: float | None
    gradient: Tensor | None
    """Of the loss with respect to ``words`` (context, width) or ``latents`` (C, h, w)."""
    cost: Cost
    """What this probe alone is charged with."""


class _Kind(NamedTuple):
    """What probes must share to be answered in one batch."""

    of: str
    wrt: str | None
    about_text: bool
    guided: bool


def probe_cost(model: Network, probe: Probe) -> Cost:
    """A forward per branch, a backward for each forward if a gradient is asked for, and one encode."""
    forwards = 0 if probe.latents is None else 1 if probe.guidance is None else model.branches
    return Cost(forwards=forwards, backwards=forwards if probe.wrt else 0, encodes=1)


def ask(model: Network, probes: Sequence[Probe], base: Network | None) -> list[Slope]:
    """Slopes in the order of the probes; batches of one size, of probes of one kind."""
    kinds: dict[_Kind, list[int]] = defaultdict(list)
    for place, probe in enumerate(probes):
        kind = _Kind(probe.of, probe.wrt, probe.latents is None, probe.guidance is not None)
        kinds[kind].append(place)
    slopes: dict[int, Slope] = {}
    for kind, places in kinds.items():
        asked = model if kind.of == "victim" else base
        if asked is None:
            raise ValueError("expected a base to answer a probe of the base, got none")
        for first in range(0, len(places), asked.batch):
            chunk = places[first : first + asked.batch]
            answered = _ask_batch(asked, [probes[place] for place in chunk], kind)
            slopes.update(zip(chunk, answered, strict=True))
    return [slopes[place] for place in range(len(probes))]


def _ask_batch(model: Network, probes: list[Probe], kind: _Kind) -> list[Slope]:
    real = len(probes)
    padding = [probes[-1]] * (model.batch - real)
    with torch.set_grad_enabled(kind.wrt is not None), model.padded(real):
        leaf, latents, answers = _answer(model, probes + padding, kind)
        losses = [
            None if probe.loss is None else probe.loss(answer, None if latents is None else latents[place])
            for place, (probe, answer) in enumerate(zip(probes, answers, strict=False))
        ]
        gradients: Sequence[Tensor | None] = [None] * real
        if leaf is not None:
            # Each loss depends on its own sample alone, so the gradient of the sum is every sample's own gradient.
            total = torch.stack([loss for loss in losses if loss is not None]).sum()
            gradients = torch.autograd.grad(total, leaf)[0].unbind(0)
    return [
        Slope(
            answer=answer.detach(),
            loss=None if loss is None else float(loss.detach()),
            gradient=gradient,
            cost=probe_cost(model, probe),
        )
        for probe, answer, loss, gradient in zip(probes, answers, losses, gradients, strict=False)
    ]


def _given(value: T | None) -> T:
    assert value is not None
    return value


class _Answers(NamedTuple):
    leaf: Tensor | None
    """What the gradient is taken with respect to."""
    latents: Sequence[Tensor] | None
    answers: Sequence[Tensor]


def _answer(model: Network, probes: list[Probe], kind: _Kind) -> _Answers:
    tokens = torch.stack([probe.tokens for probe in probes]).to(model.device)
    words = model.vocabulary.detach()[tokens]
    for place, probe in enumerate(probes):
        if probe.words is not None:
            words[place] = probe.words.detach().to(words)
    words.requires_grad_(kind.wrt == "words")
    text = model.encode(tokens, words)
    if kind.about_text:
        return _Answers(words if kind.wrt else None, None, text.states.unbind(0))
    latents = torch.stack([_given(probe.latents).detach() for probe in probes]).to(model.device, model.dtype)
    latents.requires_grad_(kind.wrt == "latents")
    # Unbound before use: a row taken by its index would make every backward write a whole batch of zeros.
    rows = latents.unbind(0)
    steps = torch.tensor([_given(probe.step) for probe in probes], device=model.device)
    if kind.guided:
        guidance = torch.tensor([_given(probe.guidance) for probe in probes], device=model.device, dtype=model.dtype)
        noise, _ = model.guided_noise(latents, steps, text, guidance)
    else:
        noise = model.predict_noise(latents, steps, text)
    leaf = {"words": words, "latents": latents, None: None}[kind.wrt]
    return _Answers(leaf, rows, noise.unbind(0))
