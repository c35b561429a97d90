"""The control that erases nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from palimpsest.erasers.base import Eraser
from palimpsest.model import Model
from palimpsest.records import Concept


@dataclass(frozen=True, kw_only=True)
class Nothing(Eraser):
    """Hands back the untouched base: what an attack reaches on it is the ceiling."""

    name = "nothing"

    def stages(
        self, model: Model, concepts: Sequence[Concept], *, random: torch.Generator
    ) -> Iterator[tuple[int, Model]]:
        """The model itself."""
        yield 0, model
