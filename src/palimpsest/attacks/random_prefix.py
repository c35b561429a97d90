"""The control that guesses."""

from dataclasses import dataclass
from typing import Literal

import torch

from palimpsest.attacks.base import Attack, Case, Search, look
from palimpsest.attacks.insertion import LENGTHS, check_length, check_room, insert, inserted, plain


@dataclass(frozen=True, kw_only=True)
class RandomPrefix(Attack):
    """Puts random tokens before the prompt, one look each: what an attack gets from its looks alone.

    First the plain prompt, then prefixes drawn uniformly from the vocabulary without its special tokens, until the
    budget is spent. Knows nothing of the model; an attack that finds something must beat it at equal looks. A prompt
    that leaves no room for k tokens is given up after the plain look.
    """

    name = "random_prefix"

    k: int | None = None
    """Tokens to insert; None: as many as ``unlearn_diff`` uses (content 5, other kinds 3)."""
    insertion: Literal["prefix", "suffix", "middle", "spread", "every"] = "prefix"
    """Where, as ``unlearn_diff`` has it: the control of an attack is the one with the same insertion."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        check_length(self.name, self.k)

    def search(self, case: Case) -> Search:
        """One look at the plain prompt, then one at each random prefix."""
        yield from look([plain(case)])
        k = self.k or LENGTHS[case.concept.kind]
        template = insert(case, k, self.insertion)
        check_room(case, template)
        words = torch.tensor([token for token in range(case.vocabulary_size) if token not in case.special_tokens])
        while True:
            drawn = torch.randint(len(words), (k,), generator=case.random)
            yield from look([inserted(case, template, words[drawn].tolist())])
