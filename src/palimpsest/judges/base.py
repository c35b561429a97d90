"""What every judge is."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL.Image import Image

from palimpsest.component import Component
from palimpsest.records import Concept


@dataclass(frozen=True, kw_only=True)
class Judge(Component):
    """Says how surely a picture shows a concept."""

    def score(self, pictures: Sequence[Image], concept: Concept) -> list[float | None]:
        """For each picture how surely it shows the concept, in [0, 1]; None: could not tell.

        Raises ``UnknownName`` if the judge does not know the concept's label.
        """
        raise NotImplementedError

    def threshold(self, concept: Concept) -> float:
        """The score from which the concept counts as shown: chosen on separate data for <= 0.1 % false alarms."""
        raise NotImplementedError
