"""What every judge is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL.Image import Image

from palimpsest.component import Component
from palimpsest.errors import BadSetting
from palimpsest.records import Concept

LEAST = 4
"""Pictures of a concept: two to choose a threshold on, two to count its error on."""


@dataclass(frozen=True, kw_only=True)
class Judge(Component):
    """Says how surely a picture shows a concept."""

    def check(self, concept: Concept) -> None:
        """Raises ``UnknownName`` if the judge does not know the concept's label."""
        self.threshold(concept)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the model that it opens; empty: it opens none but what is shipped."""
        return ""

    def draws(self) -> int:
        """How many of the base's pictures of each concept it is calibrated on; 0: none."""
        return 0

    @property
    def uncalibrated(self) -> bool:
        """Whether its thresholds are still to be chosen, on the base's pictures."""
        return False

    def calibrated(self, thresholds: Mapping[str, float]) -> "Judge":
        """The judge with its thresholds: concept's name -> the score from which it counts as shown."""
        return Calibrated(judge=self, thresholds=dict(thresholds))

    def score(self, pictures: Sequence[Image], concept: Concept) -> list[float | None]:
        """For each picture how surely it shows the concept, in [0, 1]; None: could not tell.

        Raises ``UnknownName`` if the judge does not know the concept's label.
        """
        raise NotImplementedError

    def threshold(self, concept: Concept) -> float:
        """The score from which the concept counts as shown: chosen on separate data for <= 0.1 % false alarms.

        Raises ``BadSetting`` where it is still to be chosen.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Calibrated(Judge):
    """A judge whose thresholds were chosen on the base's pictures; called what the judge is called."""

    judge: Judge
    thresholds: dict[str, float] = field(hash=False)

    @property
    def spec(self) -> dict[str, Any]:
        """The judge's own."""
        return self.judge.spec

    @property
    def label(self) -> str:
        """The judge's own."""
        return self.judge.label

    @property
    def fingerprint(self) -> str:
        """The judge's own."""
        return self.judge.fingerprint

    def check(self, concept: Concept) -> None:
        """As the judge does."""
        self.judge.check(concept)

    def score(self, pictures: Sequence[Image], concept: Concept) -> list[float | None]:
        """As the judge does."""
        return self.judge.score(pictures, concept)

    def threshold(self, concept: Concept) -> float:
        """What was chosen; ``BadSetting`` for a concept for which nothing was."""
        if concept.name not in self.thresholds:
            raise missing(self.label, concept)
        return self.thresholds[concept.name]


def missing(judge: str, concept: Concept) -> BadSetting:
    """The error for a threshold that is asked for before it was chosen."""
    return BadSetting(f"{judge}: expected to be calibrated for {concept.name!r} first, on pictures of the base")


def check_calibration(judge: str, pictures: int, uncalibrated: bool, rule: str) -> None:
    """Raises ``BadSetting`` for a number of pictures that cannot be; ``rule``: the settings that do without any."""
    if uncalibrated and pictures < LEAST:
        raise BadSetting(f"{judge}: expected calibration >= {LEAST}, or {rule} to be set, got {pictures}")
    if pictures < 0:
        raise BadSetting(f"{judge}: expected calibration >= 0, got {pictures}")
