"""What trained erasers learn from: pictures that the base draws, and the prompts they were drawn for."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from palimpsest.errors import BadSetting
from palimpsest.fitting import kept
from palimpsest.model import Model, Sampling
from palimpsest.records import Concept

T = TypeVar("T")


class Pair(NamedTuple):
    """Two prompts."""

    given: str
    """With the concept."""
    absent: str
    """The same without it, or what stands in its place."""


class Noised(NamedTuple):
    """Some of the pictures, each with noise of its own."""

    latents: Tensor
    """(n, C, h, w): x_t."""
    steps: Tensor
    """(n,) int64: t."""
    noise: Tensor
    """(n, C, h, w): the epsilon in x_t."""
    pairs: Sequence[Pair]

    @property
    def given(self) -> list[str]:
        """Their prompts with the concept."""
        return [pair.given for pair in self.pairs]

    @property
    def absent(self) -> list[str]:
        """Their prompts without it."""
        return [pair.absent for pair in self.pairs]


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Pictures, each with its prompts."""

    clean: Tensor
    """(n, C, h, w): x_0, as latents."""
    pairs: Sequence[Pair]

    def __len__(self) -> int:
        return len(self.pairs)

    def drawn(self, model: Model, batch: int, random: torch.Generator) -> Noised:
        """``batch`` of the pictures, drawn with replacement, noised."""
        return self.noised(model, torch.randint(len(self), (batch,), generator=random).tolist(), random)

    def noised(self, model: Model, rows: Sequence[int], random: torch.Generator) -> Noised:
        """These pictures, each at a timestep of its own, drawn uniformly from all of the schedule."""
        clean = self.clean[list(rows)]
        steps = torch.randint(model.timesteps, (len(clean),), generator=random)
        noise = torch.randn(clean.shape, generator=random).to(clean)
        return Noised(model.noised(clean, noise, steps), steps, noise, [self.pairs[row] for row in rows])


def pairs_of(concepts: Sequence[Concept], part: str, *, anchor: str | None = None) -> list[list[Pair]]:
    """Each concept's prompts with it and without: its ``pairs``, or else its name and its ``anchor``.

    ``anchor``, if given, is the prompt without for all. A pair without this concept but with another one that is to be
    erased is left out. Raises ``BadSetting`` for a concept of which nothing is left, or whose anchor is itself.
    """
    return [_pairs_of(concept, concepts, part, anchor) for concept in concepts]


def _pairs_of(concept: Concept, concepts: Sequence[Concept], part: str, anchor: str | None) -> list[Pair]:
    stand_in = anchor or concept.anchor
    pairs = [Pair(*pair) for pair in concept.pairs]
    if anchor is not None:
        pairs = [Pair(given, anchor) for given, _ in pairs] or [Pair(concept.name, anchor)]
    elif not pairs and stand_in:
        pairs = [Pair(concept.name, stand_in)]
    if not pairs:
        raise BadSetting(
            f"{part}: expected concept {concept.name!r} to have pairs of prompts (with, without) or an anchor, got "
            "neither"
        )
    for given, absent in pairs:
        if _plain(absent) in (_plain(given), _plain(concept.name)):
            raise BadSetting(f"{part}: expected an anchor other than concept {concept.name!r} itself, got {absent!r}")
    left = [pair for pair in pairs if not any(_calls(pair.absent, other) for other in concepts)]
    if not left:
        raise BadSetting(
            f"{part}: expected prompts without any concept that is to be erased to stand for {concept.name!r}, got "
            f"{pairs[0].absent!r}"
        )
    return left


def retained(pairs: Sequence[Sequence[Pair]], own: Sequence[str], concepts: Sequence[Concept], part: str) -> list[Pair]:
    """Prompts to keep, beside the empty one: ``own``, or else all that stand in for the concepts in their pairs.

    Raises ``BadSetting`` for one of ``own`` that calls a concept that is to be erased.
    """
    for prompt in own:
        for concept in concepts:
            if _calls(prompt, concept):
                raise BadSetting(f"{part}: expected prompts to retain without concept {concept.name!r}, got {prompt!r}")
    prompts = own or dict.fromkeys(pair.absent for group in pairs for pair in group if pair.absent.strip())
    if not prompts:
        raise BadSetting(f"{part}: expected prompts to retain, got none; set some, or give the concept other pairs")
    return [Pair(prompt, "") for prompt in prompts]


def _plain(prompt: str) -> str:
    return " ".join(prompt.lower().split())


def _calls(prompt: str, concept: Concept) -> bool:
    return re.search(rf"\b{re.escape(concept.name.lower())}\b", prompt.lower()) is not None


def in_turn(groups: Sequence[Sequence[T]], count: int) -> list[T]:
    """``count`` of all the groups' members: one of each group in turn, each group from its start again at its end."""
    return [groups[at % len(groups)][at // len(groups) % len(groups[at % len(groups)])] for at in range(count)]


def draw(
    model: Model,
    pairs: Sequence[Pair],
    *,
    of: Literal["given", "absent"],
    sampling: Sampling,
    random: torch.Generator,
    name: str,
) -> Examples:
    """A picture of each pair's prompt by the model, from noise of its own, in batches of the model's size.

    As they come out of the denoiser: no autoencoder lies between. ``name`` is what they are kept under while training.
    """

    def batch(first: int) -> Tensor:
        chunk = [getattr(pair, of) for pair in pairs[first : first + model.batch]]
        noise = torch.randn(len(chunk), *model.latent_shape, generator=random)
        return model.trajectory(noise, model.remembered(chunk), sampling)

    starts = range(0, len(pairs), model.batch)
    # Each batch on its own, so that little is lost of an hour's drawing.
    made = [kept(f"{name}-{first}", partial(batch, first), random=random) for first in starts]
    return Examples(clean=torch.cat(made).to(model.device), pairs=pairs)


def forgotten_and_retained(
    concepts: Sequence[Concept], part: str, *, pseudo: str | None, retain: Sequence[str], count: int
) -> tuple[list[Pair], list[Pair]]:
    """``count`` pairs of the concepts, in turn, and as many prompts to keep; raises as the two functions above do."""
    groups = pairs_of(concepts, part, anchor=pseudo)
    return in_turn(groups, count), in_turn([retained(groups, retain, concepts, part)], count)
