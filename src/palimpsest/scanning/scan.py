"""The whole scan: detectors calibrated on clean prompts and asked of others; words against the base; a verdict."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from palimpsest.errors import BadSetting
from palimpsest.scanning.base import PromptDetector, Suspect
from palimpsest.scanning.prompts import decoy
from palimpsest.stats import Interval, at_least, holm, wilson

LEAST = 4
"""Clean prompts: two to choose a threshold on, two to count its false alarms on."""
Progress = Callable[[str, int, int], None]
"""(what, done, of how many)."""


@dataclass(frozen=True, kw_only=True)
class Count:
    """How many of some prompts a detector flags."""

    flagged: int
    told: int
    """Of how many it could tell."""
    prompts: int

    @property
    def interval(self) -> Interval:
        """Of the share that is flagged, 95 %."""
        return wilson(self.flagged, self.told)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One detector: its threshold, its false alarms, and what it says of the prompts that were asked about."""

    detector: str
    """Label."""
    compares: bool = False
    """Whether it compares with the base: then it flags what was erased as well as what was planted."""
    threshold: float
    paper: float | None
    """The paper's own threshold for Stable Diffusion 1.4, where it gives one."""
    clean: Count
    """Clean prompts on which the threshold was not chosen."""
    decoys: Count
    """The same with a random string in place of a word, which nobody planted."""
    asked: Count
    scores: tuple[float | None, ...]
    """Of the prompts that were asked about, in order; higher is more suspicious; None: it could not tell."""
    passes: float
    """Forwards of the denoiser that such a prompt costs, on average; clean prompts where none was asked about."""
    p_value: float
    """Of so many flagged, if each were one with the upper bound of the higher of the two rates of false alarms."""
    adjusted: float = 1.0
    """By Holm's correction, over the detectors."""

    def flags(self, score: float | None) -> bool:
        """Whether this score is beyond the threshold."""
        return score is not None and score > self.threshold


def scan_prompts(
    suspect: Suspect,
    detectors: Sequence[PromptDetector],
    *,
    clean: Sequence[str],
    asked: Sequence[str] = (),
    random: torch.Generator,
    progress: Progress = lambda what, done, of: None,
) -> list[Row]:
    """One row per detector. Half of the clean prompts, drawn, give the thresholds, the others the false alarms.

    Raises ``BadSetting`` for fewer than four clean prompts, and for a detector that does not fit.
    """
    if len(clean) < LEAST:
        raise BadSetting(f"expected {LEAST} clean prompts or more, got {len(clean)}")
    order = torch.randperm(len(clean), generator=random).tolist()
    known, held_out = ([clean[place] for place in some] for some in (order[::2], order[1::2]))
    decoys = [decoy(prompt, random) for prompt in held_out]
    prompts = [*known, *held_out, *decoys, *asked]
    found: list[list[float | None]] = [[] for _ in detectors]
    # Some prompts at a time, all detectors of each: those that read the same maps draw them once, the longest first.
    longest_first = sorted(zip(found, detectors, strict=True), key=lambda both: -both[1].steps_read)
    for first in range(0, len(prompts), suspect.model.batch):
        some = prompts[first : first + suspect.model.batch]
        for scores, detector in longest_first:
            scores += detector.scores(suspect, some)
        suspect.maps.clear()
        progress("prompts", min(first + len(some), len(prompts)), len(prompts))
    ends = len(known), len(known) + len(held_out), len(known) + len(held_out) + len(decoys)
    rows = []
    for detector, scores in zip(detectors, found, strict=True):
        threshold = detector.calibrated([score for score in scores[: ends[0]] if score is not None])
        counts = [
            _count(part, threshold)
            for part in (scores[ends[0] : ends[1]], scores[ends[1] : ends[2]], scores[ends[2] :])
        ]
        costs = [detector.passes(suspect, prompt) for prompt in (asked or clean)]
        chance = max(one.interval.high for one in counts[:2])
        rows.append(
            Row(
                detector=detector.label,
                compares=detector.needs_base,
                threshold=threshold,
                paper=detector.paper,
                clean=counts[0],
                decoys=counts[1],
                asked=counts[2],
                scores=tuple(scores[ends[2] :]),
                passes=sum(costs) / len(costs),
                p_value=at_least(counts[2].flagged, counts[2].told, chance),
            )
        )
    adjusted = holm([row.p_value for row in rows])
    return [Row(**{**vars(row), "adjusted": value}) for row, value in zip(rows, adjusted, strict=True)]


def _count(scores: Sequence[float | None], threshold: float) -> Count:
    told = [score for score in scores if score is not None]
    return Count(flagged=sum(score > threshold for score in told), told=len(told), prompts=len(scores))
