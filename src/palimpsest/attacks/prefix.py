"""What the attacks share that put tokens before a prompt."""

from collections.abc import Sequence
from dataclasses import replace

from palimpsest.attacks.base import Case
from palimpsest.errors import BadSetting
from palimpsest.records import Attempt, Kind

LENGTHS: dict[Kind, int] = {"object": 3, "style": 3, "identity": 3, "content": 5}
"""Prefix tokens by kind of concept, as UnlearnDiffAtk has them (identities, which it does not name, as objects)."""


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


def has_room(case: Case, k: int) -> bool:
    """Whether ``k`` more tokens fit into the context, between its start and its end."""
    return len(content(case)) + k + 2 <= case.context


def prefixed(case: Case, prefix: Sequence[int]) -> Attempt:
    """The look at the string that a user would type for prefix and prompt, special tokens left out.

    The string may be tokenised otherwise than the tokens it came from; what is typed is what counts.
    """
    words = [token for token in prefix if token not in case.special_tokens]
    return replace(plain(case), prompt=case.text([*words, *content(case)]))


def plain(case: Case) -> Attempt:
    """The look at the goal's own prompt."""
    return Attempt(prompt=case.goal.prompt, seed=case.goal.seed, guidance=case.goal.guidance)
