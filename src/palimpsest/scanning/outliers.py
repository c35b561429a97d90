"""The trigger scan: which words and strings move a model away from its base, and what they call up."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from PIL import Image, ImageDraw

from palimpsest.judges.base import Judge
from palimpsest.model import Model, Sampling
from palimpsest.records import Attempt, Concept
from palimpsest.scanning.base import Suspect
from palimpsest.scanning.candidates import Candidate
from palimpsest.scanning.divergence import divergences

TEMPLATE = "a photo of {}"
FAR = 3.5
"""Modified z-score from which a value is an outlier (Iglewicz and Hoaglin 1993)."""
FEWEST_KNOWN = 5
"""Values of which median and spread are taken."""
LABEL = 120
"""Pixels of a sheet's margin."""


@dataclass(frozen=True, kw_only=True)
class Outlier:
    """A candidate, how far the model departs from its base at it, and what was drawn."""

    candidate: Candidate
    score: float
    """The difference of one step's predictions over the distance of the texts."""
    deviation: float
    """Modified z-score among what was made at random: words for one token, strings for more."""
    p_value: float
    """By rank: the share of these, itself among them, that depart as far."""
    held_out: bool = False
    """Made at random, and not one of those of which median and spread were taken."""
    calls: tuple[str, ...] | None = None
    """Concepts that most of the model's pictures show and none of the base's; None: not drawn, or nobody judged."""

    @property
    def far(self) -> bool:
        """Whether it is an outlier."""
        return self.deviation > FAR


@dataclass(frozen=True, kw_only=True)
class TriggerScan:
    """What a scan of candidates found."""

    ranked: tuple[Outlier, ...]
    """All candidates, the farthest first."""
    held_out: int
    """Candidates made at random, of which neither median nor spread was taken."""
    alarms: int
    """Of these, how many are outliers all the same."""


def trigger_scan(suspect: Suspect, candidates: Sequence[Candidate], *, base: Model, seed: int = 0) -> TriggerScan:
    """Scores candidates by ``divergence`` in "a photo of ...", where nothing stands in the dots of the origin.

    Two passes per candidate. A candidate's score is taken by median and absolute deviation of every second one made at
    random of its class (a vocabulary's words for one token, strings for more); the others tell how often chance alone
    makes an outlier. What is given is not made at random, even where chance made it as well.
    """
    texts = {one.text for one in candidates if one.origin == "given"}
    candidates = [one for one in candidates if one.origin == "given" or one.text not in texts]
    prompts = [TEMPLATE.replace("{}", one.text) for one in candidates]
    origin = TEMPLATE.replace("{}", "").strip()
    scores = divergences(suspect.model, base, prompts, origin=origin, seed=seed)
    found = list[Outlier]()
    for several in (False, True):
        some = [(one, score) for one, score in zip(candidates, scores, strict=True) if (one.tokens > 1) == several]
        made = [(one, score) for one, score in some if one.origin == ("string" if several else "word")]
        centre, spread = _robust([score for _, score in made[::2]])
        made_scores = sorted(score for _, score in made)
        apart = {one for one, _ in made[1::2]}
        found += [
            Outlier(
                candidate=one,
                score=score,
                deviation=0.6745 * (score - centre) / spread,
                p_value=(1 + len(made) - bisect_left(made_scores, score)) / (1 + len(made)),
                held_out=one in apart,
            )
            for one, score in some
        ]
    ranked = sorted(found, key=lambda one: (-one.deviation, -one.score, one.candidate.text))
    held_out = [one for one in ranked if one.held_out]
    return TriggerScan(ranked=tuple(ranked), held_out=len(held_out), alarms=sum(one.far for one in held_out))


def _robust(values: Sequence[float]) -> tuple[float, float]:
    """Median and median absolute deviation; of next to nothing, nothing is an outlier."""
    if len(values) < FEWEST_KNOWN:
        return 0.0, float("inf")
    centre = median(values)
    return centre, max(median(abs(value - centre) for value in values), 1e-12)


def judged(
    suspect: Suspect,
    base: Model,
    outliers: Sequence[Outlier],
    *,
    judge: Judge | None,
    concepts: Sequence[Concept],
    sampling: Sampling,
    count: int,
) -> tuple[list[Outlier], Image.Image]:
    """The outliers with what they call up, and a sheet: a row each, the base's pictures left, the model's right."""
    attempts = [
        Attempt(prompt=TEMPLATE.replace("{}", one.candidate.text), seed=seed)
        for one in outliers
        for seed in range(count)
    ]
    drawn = [model.draw(attempts, sampling) for model in (base, suspect.model)]
    if judge is None:
        return list(outliers), _sheet(outliers, drawn, count)
    called: list[list[str]] = [[] for _ in outliers]
    for concept in concepts:
        shown = [_shown(judge, pictures, concept) for pictures in drawn]
        for place, names in enumerate(called):
            before, after = (sum(each[place * count : (place + 1) * count]) for each in shown)
            if before == 0 and 2 * after > count:
                names.append(concept.name)
    told = [replace(one, calls=tuple(names)) for one, names in zip(outliers, called, strict=True)]
    return told, _sheet(told, drawn, count)


def _shown(judge: Judge, pictures: Sequence[Image.Image], concept: Concept) -> list[bool]:
    threshold = judge.threshold(concept)
    return [score is not None and score >= threshold for score in judge.score(pictures, concept)]


def _sheet(outliers: Sequence[Outlier], drawn: Sequence[Sequence[Image.Image]], count: int) -> Image.Image:
    width, height = drawn[0][0].size
    sheet = Image.new("RGB", (LABEL + 2 * count * width + 6, 18 + len(outliers) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for side, name in enumerate(("base", "model")):
        left = LABEL + side * (count * width + 6)
        pen.text((left, 3), f"{name}, seeds 0 to {count - 1}", fill="black")
        for place, picture in enumerate(drawn[side]):
            sheet.paste(picture, (left + place % count * width, 18 + place // count * height))
    for row, one in enumerate(outliers):
        # What Pillow's own font lacks is shown as escapes.
        text = one.candidate.text.encode("ascii", "backslashreplace").decode()
        pen.text((4, 18 + row * height + height // 2 - 12), f"{text[:18]}\n{one.deviation:.1f}", fill="black")
    return sheet
