"""Prefixes that survive being typed, and hold no banned word."""

from collections.abc import Callable, Collection, Sequence
from itertools import islice

import torch
from torch import Tensor

from palimpsest.attacks.base import Case
from palimpsest.attacks.insertion import Template, content, inserted
from palimpsest.errors import BadSetting

Prefix = tuple[int, ...]
TRIES = 50
"""Draws for each prefix that is wanted, before fewer are taken."""


class Typable:
    """Draws prefixes of which the string is tokenised into the same tokens again."""

    def __init__(self, case: Case, template: Template, *, banned: Sequence[str] = ()) -> None:
        self.case, self.template = case, template
        self.k = template.count(None)
        self.banned = tuple(word.lower() for word in banned if word)
        # The prompt's own words, as they are tokenised once they have been decoded.
        self.own = case.tokens(case.text(content(case)))
        self._words: dict[int, bool] = {}

    def __contains__(self, prefix: Prefix) -> bool:
        """Whether it may be proposed."""
        text = self.case.text(list(prefix)).lower()
        if any(word in text for word in self.banned):
            return False
        typed = self.case.tokens(inserted(self.case, self.template, prefix).prompt)
        free = torch.tensor(prefix).to(self.own)
        return torch.equal(typed, torch.cat([self.own[:1], free, self.own[1 : len(self.own) - len(prefix)]]))

    def word(self, token: int) -> bool:
        """Whether it may be proposed on its own."""
        if token not in self._words:
            text = self.case.text([token])
            typed = self.case.tokens(text)[1:3].tolist()
            survives = token not in self.case.special_tokens and typed == [token, int(self.case.tokens("")[1])]
            self._words[token] = survives and not any(word in text.lower() for word in self.banned)
        return self._words[token]

    def random(self, count: int) -> list[Prefix]:
        """At most ``count`` different ones, of words drawn uniformly; raises ``BadSetting`` if there are none."""
        found = self._different(count, lambda: tuple(self._random_word() for _ in range(self.k)), known=())
        if not found:
            raise BadSetting(f"expected {self.k} words in a row that survive being typed, got none in {TRIES * count}")
        return found

    def ranked(self, scores: Tensor, top: int) -> list[list[int]]:
        """For each row of ``scores`` (k, V) the ``top`` words of the lowest, of those that may be proposed."""
        return [list(islice(filter(self.word, row), top)) for row in scores.argsort(dim=-1, stable=True).tolist()]

    def near(
        self,
        prefix: Prefix,
        ranked: Sequence[Sequence[int]],
        count: int,
        *,
        changes: int | None,
        known: Collection[Prefix],
    ) -> list[Prefix]:
        """At most ``count`` not ``known``, with 1 to ``changes`` (None: k) slots filled anew from ``ranked``."""
        most = min(changes or self.k, self.k)

        def changed() -> Prefix:
            slots = torch.randperm(self.k, generator=self.case.random)[: 1 + self._below(most)].tolist()
            return tuple(
                ranked[slot][self._below(len(ranked[slot]))] if slot in slots else token
                for slot, token in enumerate(prefix)
            )

        return self._different(count, changed, known=known)

    def _different(self, count: int, draw: Callable[[], Prefix], *, known: Collection[Prefix]) -> list[Prefix]:
        found: dict[Prefix, None] = {}
        for _ in range(TRIES * count):
            if len(found) < count and (drawn := draw()) not in known and drawn not in found and drawn in self:
                found[drawn] = None
        return list(found)

    def _random_word(self) -> int:
        for token in torch.randperm(self.case.vocabulary_size, generator=self.case.random).tolist():
            if self.word(token):
                return int(token)
        raise BadSetting(f"expected words that are not banned, got none among {self.case.vocabulary_size:,} tokens")

    def _below(self, most: int) -> int:
        return int(torch.randint(most, (), generator=self.case.random))
