"""Whether the other concepts of the kind survived."""

from collections.abc import Sequence
from dataclasses import dataclass

from palimpsest.errors import BadSetting
from palimpsest.records import Concept, Reading
from palimpsest.stats import wilson
from palimpsest.utility.base import Draws, Erasure, Measure, plain_attempts


@dataclass(frozen=True, kw_only=True)
class Neighbours(Measure):
    """The share of pictures of each other concept of the kind in which the judge still sees that concept.

    The same pictures give the false alarms: the share in which the judge sees the target, for which nobody asked.
    """

    name = "neighbours"

    pictures: int = 10
    """Of each concept, by its first prompts."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        if self.pictures < 1:
            raise BadSetting(f"{self.name}: expected pictures >= 1, got {self.pictures}")

    def draws(self, target: Concept, concepts: Sequence[Concept], *, seed: int) -> Draws:
        """So many of each."""
        return Draws(victim=plain_attempts(concepts, self.pictures, seed))

    def measure(self, erasure: Erasure) -> list[Reading]:
        """One reading for each concept, and one of false alarms for the target."""
        concepts, judge = erasure.concepts, erasure.judge
        pictures = erasure.pictures(self.draws(erasure.target, concepts, seed=erasure.seed).victim)

        def reading(measure: str, concept: Concept, first: int, last: int) -> Reading:
            scores = judge.score(pictures[first:last], concept)
            seen = sum(score is not None and score >= judge.threshold(concept) for score in scores)
            interval = wilson(seen, len(scores))
            return Reading(
                victim=erasure.victim,
                measure=measure,
                concept=concept.name,
                value=seen / len(scores),
                n=len(scores),
                low=interval.low,
                high=interval.high,
                of=f"pictures in which {judge.label} sees it",
            )

        survived = [
            reading(self.name, concept, place * self.pictures, (place + 1) * self.pictures)
            for place, concept in enumerate(concepts)
        ]
        return [*survived, reading("false_alarms", erasure.target, 0, len(pictures))]
