"""An erasure widened to further words: triggers that a scan found, say."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from palimpsest.erasers.base import Eraser
from palimpsest.erasers.inner import changing
from palimpsest.errors import BadSetting
from palimpsest.model import Model
from palimpsest.records import Concept


@dataclass(frozen=True, kw_only=True)
class Widened(Eraser):
    """Erases given words with a concept, as if they were further concepts of its kind.

    The remedy of a defender who has found a trigger (``palimpsest scan``), whatever the eraser: each word stands in the
    concept's place in its prompts and pairs, and has its anchor and neighbours; with several concepts, the first's.
    What nobody found, it does not reach.
    """

    name = "widened"

    eraser: str | dict[str, Any] = "uce"
    """What erases: a name, or a table with name and settings."""
    words: tuple[str, ...] = ()
    """Words or strings to erase as well; none: the erasure is that of the eraser alone."""

    def __post_init__(self) -> None:
        """Refuses an eraser that is unknown or a guard."""
        changing(self.name, self.eraser)

    @property
    def reads(self) -> tuple[str, ...]:
        """What the eraser reads."""
        return changing(self.name, self.eraser).reads

    def stages(
        self, model: Model, concepts: Sequence[Concept], *, random: torch.Generator
    ) -> Iterator[tuple[int, Model]]:
        """The eraser's; ``BadSetting`` for a word without a token."""
        for word in self.words:
            if not model.own_tokens(word):
                raise BadSetting(f"{self.name}: expected words that have a token, got {word!r}")
        known = {concept.name for concept in concepts}
        further = [called(concepts[0], word) for word in self.words if word not in known]
        yield from changing(self.name, self.eraser).stages(model, [*concepts, *further], random=random)


def called(concept: Concept, word: str) -> Concept:
    """The concept under another name, in its prompts and pairs as well; without synonyms."""
    names = "|".join(map(re.escape, sorted((concept.name, *concept.synonyms), key=len, reverse=True)))

    def renamed(prompt: str) -> str:
        return re.sub(rf"\b(?:{names})\b", lambda _: word, prompt, flags=re.IGNORECASE)

    return replace(
        concept,
        name=word,
        synonyms=(),
        prompts=tuple(map(renamed, concept.prompts)),
        pairs=tuple((renamed(shown), without) for shown, without in concept.pairs),
    )
