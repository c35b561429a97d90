"""What the attacks share that put tokens into a prompt."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from palimpsest.attacks.base import Case, NoRoom
from palimpsest.errors import BadSetting
from palimpsest.records import Attempt, Kind

Template = Sequence[int | None]
"""A prompt's tokens without start, end and padding; None where a token is free, to be found."""

LENGTHS: dict[Kind, int] = {"object": 3, "style": 3, "identity": 3, "content": 5}
"""Prefix tokens by kind of concept, as UnlearnDiffAtk has them (identities, which it does not name, as objects)."""

Insertion = Literal["prefix", "suffix", "middle", "spread", "every"]
"""Where the free tokens of UnlearnDiffAtk's framework stand: before the prompt, behind it, in its middle, with as many
of its own tokens between one and the next, or one before every ``EVERY`` of its own (those left over at its end)."""
EVERY = 3


def check_length(attack: str, k: int | None) -> None:
    """Raises ``BadSetting`` unless ``k`` is a number of tokens, or None for the paper's."""
    if k is not None and k < 1:
        raise BadSetting(f"{attack}: expected k >= 1, got {k}")


def content(case: Case) -> list[int]:
    """The tokens of the goal's prompt, without start, end and padding."""
    ids = case.tokens(case.goal.prompt).tolist()
    # The empty prompt is (start, end, padding ...). Padding may be a word of the vocabulary, the end is not.
    end = int(case.tokens("")[1])
    return ids[1 : ids.index(end, 1)]


def insert(case: Case, k: int, insertion: Insertion) -> Template:
    """The goal's prompt with ``k`` free tokens in it."""
    words = content(case)
    n = len(words)
    gap = n // (k + 1)
    # How many of its own tokens stand before each free one.
    passed = {
        "prefix": [0] * k,
        "suffix": [n] * k,
        "middle": [n // 2] * k,
        "spread": [gap * number for number in range(1, k + 1)],
        "every": [min(EVERY * number, n) for number in range(k)],
    }[insertion]
    template: list[int | None] = []
    for first, last in pairwise([0, *passed]):
        template += [*words[first:last], None]
    return template + words[passed[-1] :]


def among(case: Case, n: int) -> Template:
    """The goal's prompt with a free token at its head and after every ``n`` of its own."""
    words = content(case)
    parts = (words[first : first + n] for first in range(0, len(words) + 1, n))
    return [token for part in parts for token in (None, *part)]


def check_room(case: Case, template: Template) -> None:
    """Raises ``NoRoom`` unless it fits into the context, between its start and its end."""
    if len(template) + 2 > case.context:
        inserted = template.count(None)
        raise NoRoom(
            f"expected room for {inserted} tokens more, and the prompt's {len(template) - inserted} leave "
            f"{max(0, case.context - 2 - len(template) + inserted)}"
        )


def free(template: Template) -> list[int]:
    """Where in the context its free tokens stand."""
    return [place for place, token in enumerate(template, 1) if token is None]


def in_context(case: Case, template: Template, tokens: Sequence[int]) -> Tensor:
    """(context,) ids with ``tokens`` in the free places, start, end and padding around; needs room."""
    start, rest = case.tokens("").split([1, case.context - 1])
    filled = torch.tensor(_filled(template, tokens)).to(start)
    return torch.cat([start, filled, rest[: len(rest) - len(filled)]])


def inserted(case: Case, template: Template, tokens: Sequence[int]) -> Attempt:
    """The look at the string that a user would type for it, special tokens among ``tokens`` left out.

    The string may be tokenised otherwise than the tokens it came from; what is typed is what counts.
    """
    filled = zip(_filled(template, tokens), template, strict=True)
    words = [token for token, fixed in filled if fixed is not None or token not in case.special_tokens]
    return replace(plain(case), prompt=case.text(words))


def plain(case: Case) -> Attempt:
    """The look at the goal's own prompt."""
    return Attempt(prompt=case.goal.prompt, seed=case.goal.seed, guidance=case.goal.guidance)


def _filled(template: Template, tokens: Sequence[int]) -> list[int]:
    remaining = iter(tokens)
    return [next(remaining) if token is None else token for token in template]
