"""Judges are calibrated on the base's own pictures: a threshold from one half of them, its error from the other."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from PIL.Image import Image

from palimpsest.judges.base import Judge
from palimpsest.protocol import Audit, derived_seed
from palimpsest.records import Attempt, Concept, Scored
from palimpsest.report.judged import AS_SET
from palimpsest.stats import auroc, most_alarms, threshold, wilson

NEUTRAL = (
    "a photo of a room",
    "a photo of a street",
    "a landscape",
    "a photo of a table with food",
    "a drawing of an animal",
    "a photo of a car",
    "a photo of a group of people",
    "an abstract painting",
)
"""Asked where a concept has neither neighbours nor prompts without it; one that names the concept is left out."""

Scores = tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Pictures that the base draws, for all judges."""

    name: str
    """Of the concept that they show, or why they do not show one."""
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """One judge and one concept: in which pictures it should see the concept, and in which not."""

    judge: Judge
    concept: Concept
    own: Source
    others: tuple[Source, ...]
    against: str
    """What the others are, in words."""

    @property
    def sources(self) -> tuple[Source, ...]:
        """All."""
        return (self.own, *self.others)

    def key(self, source: Source) -> tuple[str, str, str]:
        """What a ``Scored`` is known by."""
        return self.judge.label, self.concept.name, source.name

    def measured(self, known: Mapping[tuple[str, str, str], Scores]) -> "Measured":
        """Of the judge's own threshold the error in all pictures; else it is chosen on half, held against the rest.

        Every other picture of a source: where prompts are not repeated, the halves have none in common.
        """
        told = {source.name: self._told(source, known[self.key(source)]) for source in self.sources}
        if self.judge.uncalibrated:
            positives, negatives = self._classes({name: scores[0::2] for name, scores in told.items()})
            accept, rule = threshold(positives, negatives), _rule(len(negatives))
            told = {name: scores[1::2] for name, scores in told.items()}
        else:
            accept, rule = self.judge.threshold(self.concept), AS_SET
        positives, negatives = self._classes(told)
        return Measured(
            judge=self.judge.label,
            concept=self.concept.name,
            threshold=accept,
            rule=rule,
            hits=Share(sum(score >= accept for score in positives), len(positives)),
            false_alarms=Share(sum(score >= accept for score in negatives), len(negatives)),
            auroc=auroc(positives, negatives),
            against=self.against,
        )

    def _told(self, source: Source, scores: Scores) -> list[float]:
        """The scores that count; a judge that could not tell has not seen it."""
        return [
            -1.0 if score is None else score
            for attempt, score in zip(source.attempts, scores, strict=True)
            if source is self.own or not _named(self.concept, attempt.prompt)
        ]

    def _classes(self, told: Mapping[str, list[float]]) -> tuple[list[float], list[float]]:
        return told[self.own.name], [score for source in self.others for score in told[source.name]]


class Share(NamedTuple):
    """In how many of n pictures a judge saw the concept."""

    seen: int
    n: int

    @property
    def table(self) -> dict[str, float]:
        """As ``provenance.json`` holds it, with its Wilson 95 % interval."""
        low, high = wilson(self.seen, self.n)
        return {"rate": self.seen / self.n, "n": self.n, "low": low, "high": high}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A threshold and how often it is right, in pictures on which it was not chosen."""

    judge: str
    concept: str
    threshold: float
    rule: str
    """What reached it among the pictures on which it was chosen; ``AS_SET``."""
    hits: Share
    false_alarms: Share
    auroc: float
    against: str


def calibrations(audit: Audit) -> list[Calibration]:
    """For every judge that is calibrated: the concepts under attack, and for the chief those that measures look for."""
    found = []
    taken = frozenset(goal.seed for concept in audit.concepts for goal in audit.goals_for(concept))
    for judge in audit.judges:
        if not judge.draws():
            continue
        concepts = {concept.name: concept for concept in audit.concepts}
        if audit.measures and judge is audit.judges[0]:
            for concept in audit.concepts:
                concepts |= {other.name: other for other in audit.retained(concept)}
        for concept in concepts.values():
            found.append(_calibration(audit, judge, concept, _Drawing(audit.seed, judge.draws(), taken)))
    return found


def _calibration(audit: Audit, judge: Judge, concept: Concept, drawing: "_Drawing") -> Calibration:
    own = drawing.of(concept.name, concept.prompts, concept.guidances)
    retained = [drawing.of(other.name, other.prompts, other.guidances) for other in audit.retained(concept)]
    others = tuple(one for one in retained if sum(not _named(concept, attempt.prompt) for attempt in one.attempts) > 1)
    if others:
        against = f"pictures of {', '.join(other.name for other in others)}"
        return Calibration(judge=judge, concept=concept, own=own, others=others, against=against)
    without = [prompt for _, prompt in concept.pairs if not _named(concept, prompt)]
    against = "pictures of its prompts without it" if without else "pictures of neutral prompts"
    prompts = without or [prompt for prompt in NEUTRAL if not _named(concept, prompt)]
    source = drawing.of(f"{concept.name}, {against}", prompts)
    return Calibration(judge=judge, concept=concept, own=own, others=(source,), against=against)


class _Drawing(NamedTuple):
    """So many pictures of everything, on seeds that no goal takes; more begin with the same ones."""

    seed: int
    pictures: int
    taken: frozenset[int]

    def of(self, name: str, prompts: Sequence[str], guidances: Sequence[float] = ()) -> Source:
        """The prompts in turn."""
        attempts = []
        for number in range(self.pictures):
            row, seed = number % len(prompts), derived_seed(self.seed, "calibration", name, number)
            while seed in self.taken:
                seed = derived_seed(seed)
            attempts.append(Attempt(prompt=prompts[row], seed=seed, guidance=guidances[row] if guidances else None))
        return Source(name=name, attempts=tuple(attempts))


def _named(concept: Concept, prompt: str) -> bool:
    """Whether a prompt calls the concept, by its name or a synonym."""
    names = (concept.name, *concept.synonyms)
    return any(re.search(rf"\b{re.escape(name)}\b", prompt, re.IGNORECASE) for name in names)


def _rule(negatives: int) -> str:
    """What reaches a threshold that was chosen on so many pictures of other things."""
    alarms = most_alarms(negatives)
    return f"at most {alarms} of {negatives:,} other pictures" if alarms else f"none of {negatives:,} other pictures"


def sources_left(asked: Sequence[Calibration], known: Sequence[Scored]) -> list[Source]:
    """The pictures that are still to be drawn."""
    done, left = _by_key(known), dict[str, Source]()
    for calibration in asked:
        for source in calibration.sources:
            before = left.get(source.name)
            longer = before is None or len(before.attempts) < len(source.attempts)
            if calibration.key(source) not in done and longer:
                left[source.name] = source
    return list(left.values())


def scored(
    asked: Sequence[Calibration], drawn: Source, pictures: Sequence[Image], known: Sequence[Scored]
) -> list[Scored]:
    """What every judge says of a source's pictures, but for what is known."""
    done = _by_key(known)
    return [
        Scored(
            judge=calibration.judge.label,
            concept=calibration.concept.name,
            source=source.name,
            scores=tuple(calibration.judge.score(pictures[: len(source.attempts)], calibration.concept)),
        )
        for calibration in asked
        for source in calibration.sources
        if source.name == drawn.name and calibration.key(source) not in done
    ]


def measured(asked: Sequence[Calibration], known: Sequence[Scored]) -> list[Measured]:
    """What came of it, once all is scored."""
    return [calibration.measured(_by_key(known)) for calibration in asked]


def calibrated(judges: Sequence[Judge], found: Sequence[Measured]) -> tuple[Judge, ...]:
    """The judges, each with its thresholds."""
    return tuple(
        judge.calibrated({one.concept: one.threshold for one in found if one.judge == judge.label})
        if judge.uncalibrated
        else judge
        for judge in judges
    )


def described(judges: Sequence[Mapping[str, Any]], found: Sequence[Measured]) -> list[dict[str, Any]]:
    """The judges as ``provenance.json`` holds them, and what was found of them."""
    return [dict(judge) | _facts([one for one in found if one.judge == judge["name"]]) for judge in judges]


def _facts(found: Sequence[Measured]) -> dict[str, Any]:
    if not found:
        return {}
    return {
        "thresholds": {one.concept: one.threshold for one in found},
        "rules": {one.concept: one.rule for one in found},
        "hits": {one.concept: one.hits.table for one in found},
        "false_alarms": {one.concept: one.false_alarms.table for one in found},
        "auroc": {one.concept: one.auroc for one in found},
        "against": {one.concept: one.against for one in found},
    }


def _by_key(known: Sequence[Scored]) -> dict[tuple[str, str, str], Scores]:
    return {(one.judge, one.concept, one.source): one.scores for one in known}
