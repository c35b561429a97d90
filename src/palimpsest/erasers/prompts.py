"""Prompts around a concept's name, for erasers that need many."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from palimpsest.erasers.base import Eraser
from palimpsest.erasers.text_states import states
from palimpsest.errors import BadSetting
from palimpsest.model import Model
from palimpsest.records import Kind

SHOTS = ("a photo of {}", "a picture of {}", "an image of {}", "a painting of {}", "a drawing of {}")
PLACES = ("", " at night", " by the sea", " in the snow", " on the grass", " in the street")
WORKS = (
    "a painting of {thing} by {}",
    "a {} painting of {thing}",
    "a picture of {thing} in the style of {}",
    "{} style, {thing}",
    "a drawing of {thing} by {} at night",
    "art by {}, {thing}",
)
THINGS = ("a house", "a tree", "a boat", "a cat", "a flower")

SUBJECTS = tuple(shot + place for place in PLACES for shot in SHOTS)
STYLES = tuple(work.replace("{thing}", thing) for work in WORKS for thing in THINGS)


class Prompt(NamedTuple):
    """A name among other words."""

    before: str
    name: str
    after: str

    @property
    def text(self) -> str:
        """The whole prompt."""
        return self.before + self.name + self.after

    def place(self, model: Model) -> range:
        """The positions of the name's tokens in the context."""
        before, name = (len(model.own_tokens(text)) for text in (self.before, self.name))
        return range(1 + before, 1 + before + name)


class Counterparts(NamedTuple):
    """A prompt with a concept, and the states at its other tokens beside those with the anchor in its place."""

    states: Tensor
    """(context, width), of the prompt with the concept."""
    others: Tensor
    """(n, width): those of them that are not the concept's own."""
    anchored: Tensor
    """(n, width): the same words, and as much of the padding, with the anchor."""


def prompts(kind: Kind, name: str) -> list[Prompt]:
    """Thirty, by the kind of concept; the name of an object gets its article."""
    article = ""
    if kind == "object" and name and not name.startswith(("a ", "an ", "the ")):
        article = "an " if name[0] in "aeiou" else "a "
    halves = (form.split("{}") for form in (STYLES if kind == "style" else SUBJECTS))
    return [Prompt(before + article, name, after) for before, after in halves]


def fitting(eraser: Eraser, model: Model, kind: Kind, name: str, anchor: str) -> list[tuple[Prompt, Prompt]]:
    """The prompts with a name and the same with its anchor, of which both fit the context; ``BadSetting`` if none."""
    both = list(zip(prompts(kind, name), prompts(kind, anchor), strict=True))
    fit = [pair for pair in both if not any(model.dropped(prompt.text) for prompt in pair)]
    if not fit:
        raise BadSetting(
            f"{eraser.name}: expected a concept and an anchor with room for a prompt in {model.context} tokens, "
            f"got {name!r} and {anchor!r}"
        )
    return fit


def paired(model: Model, both: Sequence[tuple[Prompt, Prompt]]) -> list[Counterparts]:
    """The text states of prompts with a concept and of the same with its anchor."""
    ours, theirs = (list(states(model, [pair[side].text for pair in both])) for side in (0, 1))
    return [
        _paired(mine, other, own=prompt.place(model), its=anchored.place(model))
        for (prompt, anchored), mine, other in zip(both, ours, theirs, strict=True)
    ]


def _paired(given: Tensor, anchored: Tensor, *, own: range, its: range) -> Counterparts:
    length = len(given) - max(own.stop, its.stop)
    # Up to the name the two prompts are one; behind it the words stand where they were pushed to.
    before, rest, its_rest = (slice(0, own.start), *(slice(at.stop, at.stop + length) for at in (own, its)))
    return Counterparts(
        given, torch.cat([given[before], given[rest]]), torch.cat([anchored[before], anchored[its_rest]])
    )
