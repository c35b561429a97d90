"""How well detectors that do not know the trigger tell triggered prompts, by the depth at which it was planted.

    python benchmarks/scan.py [--quick] [--json FILE] [--concept NAME ...] [--depth NAME ...] [--detector SPEC ...]

A trigger is planted in the miniature for each concept at each depth, with the settings of the shipped audit
``backdoors``. Of every detector the area under the ROC curve is told, with a bootstrap interval over prompts (95 %):
triggered prompts against clean ones, and against clean ones with a random string in place of a word, which nobody
planted; and triggered prompts against clean ones in the base, in which nothing was planted. A detector that is as good
in the base knows no trigger. Then the rank of the trigger among words and strings by their divergence from the base.
``cda`` learns from the last concept and is tried on the others. ``--quick`` takes one concept, one depth, few prompts
and few steps, and is no result.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from palimpsest.attacks.backdoor import Backdoor
from palimpsest.audit_file import load_audit, parse_spec
from palimpsest.component import build
from palimpsest.model import Model
from palimpsest.records import Concept
from palimpsest.scanning import PROMPT_DETECTORS, Cda, PromptDetector, Suspect
from palimpsest.scanning.candidates import given, strings, vocabulary
from palimpsest.scanning.outliers import trigger_scan
from palimpsest.scanning.prompts import decoy, shipped_prompts
from palimpsest.stats import auroc

DETECTORS = ("navi", "navi:by=word", "divergence", "ftt", "daa_i", "daa_s", "cda:components=16", "ufid")
QUICK = ("navi", "divergence", "ftt:steps=6", "daa_i:steps=6", "daa_s:steps=6")
RESAMPLES = 1000
Scores = list[float | None]


@dataclass(frozen=True, kw_only=True)
class Area:
    """An area under the ROC curve."""

    value: float
    low: float
    high: float
    positives: int
    negatives: int
    curve: list[tuple[float, float]]
    """(false alarms, found) at every threshold."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One detector, one concept, one depth."""

    detector: str
    concept: str
    depth: str
    clean: Area
    """Triggered prompts against clean ones."""
    decoys: Area
    """Against clean ones with a random string."""
    base: Area
    """Against clean ones, all in the base."""
    passes: float
    """Per triggered prompt."""
    untold: int
    """Triggered prompts of which it could not tell."""


@dataclass(frozen=True, kw_only=True)
class Rank:
    """The trigger among candidates, by divergence."""

    concept: str
    depth: str
    rank: int
    """1: the farthest of those made at random and the trigger."""
    of: int
    deviation: float
    alarms: int
    held_out: int


def area(positives: Scores, negatives: Scores) -> Area:
    """With a bootstrap interval, each class resampled; what was not told is left out."""
    good, bad = ([one for one in scores if one is not None] for scores in (positives, negatives))
    random = np.random.default_rng(0)
    drawn = [
        auroc(random.choice(good, len(good)).tolist(), random.choice(bad, len(bad)).tolist()) for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    limits = sorted({*good, *bad}, reverse=True)
    curve = [(float(np.mean(np.array(bad) >= one)), float(np.mean(np.array(good) >= one))) for one in limits]
    return Area(
        value=auroc(good, bad),
        low=float(low),
        high=float(high),
        positives=len(good),
        negatives=len(bad),
        curve=[(0.0, 0.0), *curve],
    )


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What the detectors of one concept are asked."""

    triggered: list[str]
    clean: list[str]
    decoys: list[str]

    @classmethod
    def of(cls, attack: Backdoor, concept: Concept, count: int) -> "Prompts":
        """As many of each as there are, at most ``count``; clean ones name other concepts."""
        random = torch.Generator().manual_seed(0)
        triggered = list(dict.fromkeys(attack.asked(prompt, concept) for prompt in concept.prompts))[:count]
        names = (concept.name, *concept.synonyms)
        clean = [one for one in shipped_prompts(10 * count) if not any(name in one for name in names)][:count]
        return cls(triggered=triggered, clean=clean, decoys=[decoy(one, random) for one in clean])

    def scored(self, suspect: Suspect, detectors: Sequence[PromptDetector]) -> list[tuple[Scores, Scores, Scores]]:
        """Of each detector the scores of triggered, clean and odd prompts; maps are drawn once for all detectors."""
        found: list[tuple[Scores, Scores, Scores]] = [([], [], []) for _ in detectors]
        for place, prompts in enumerate((self.triggered, self.clean, self.decoys)):
            for first in range(0, len(prompts), suspect.model.batch):
                some = prompts[first : first + suspect.model.batch]
                for scores, detector in zip(found, detectors, strict=True):
                    scores[place].extend(detector.scores(suspect, some))
                suspect.maps.clear()
        return found


def ranked(suspect: Suspect, base: Model, trigger: str, count: int) -> tuple[int, int, float, int, int]:
    """Rank of the trigger, of how many, its deviation, outliers among those held out, and their number."""
    random = torch.Generator().manual_seed(0)
    made = [*vocabulary(base, count, random), *strings(base, count, random)]
    words = trigger_scan(suspect, [*given(base, [trigger]), *made], base=base)
    place = next(at for at, one in enumerate(words.ranked) if one.candidate.origin == "given")
    return place + 1, len(words.ranked), words.ranked[place].deviation, words.alarms, words.held_out


def run(
    base: Model, attacks: Sequence[Backdoor], concepts: Sequence[Concept], specs: Sequence[str], *, count: int
) -> tuple[list[Row], list[Rank]]:
    """Everything, one concept and depth after the other."""
    rows: list[Row] = []
    ranks: list[Rank] = []
    detectors = [build("detector", PROMPT_DETECTORS, parse_spec(spec)) for spec in specs]
    console = Console()
    for attack in attacks:
        fitted = detectors
        for concept in reversed(concepts):
            start = time.perf_counter()
            planted = attack.plant(base, [concept], random=torch.Generator().manual_seed(0))
            suspect, prompts = Suspect(model=planted, base=base), Prompts.of(attack, concept, count)
            if concept is concepts[-1]:
                fitted = learnt(detectors, suspect, prompts)
            asked = [one for one in fitted if not isinstance(one, Cda) or (one.state and concept is not concepts[-1])]
            before = prompts.scored(Suspect(model=base, base=base), asked)
            after = prompts.scored(suspect, asked)
            for detector, theirs, ours in zip(asked, before, after, strict=True):
                told = sum(score is not None for score in ours[0])
                if not told or all(score is None for score in theirs[0]):
                    continue
                costs = [detector.passes(suspect, prompt) for prompt in prompts.triggered]
                rows.append(
                    Row(
                        detector=detector.name if isinstance(detector, Cda) else detector.label,
                        concept=concept.name,
                        depth=attack.name.removeprefix("backdoor_"),
                        clean=area(ours[0], ours[1]),
                        decoys=area(ours[0], ours[2]),
                        base=area(theirs[0], theirs[1]),
                        passes=sum(costs) / len(costs),
                        untold=len(ours[0]) - told,
                    )
                )
            rank, of, deviation, alarms, held_out = ranked(suspect, base, attack.trigger, 10 * count)
            ranks.append(
                Rank(
                    concept=concept.name,
                    depth=attack.name.removeprefix("backdoor_"),
                    rank=rank,
                    of=of,
                    deviation=deviation,
                    alarms=alarms,
                    held_out=held_out,
                )
            )
            console.print(f"{attack.name}, {concept.name}: {time.perf_counter() - start:.0f} s")
    return rows, ranks


def learnt(detectors: Sequence[PromptDetector], suspect: Suspect, prompts: Prompts) -> list[PromptDetector]:
    """The detectors, of which ``cda`` has learnt what triggered prompts look like here."""
    with tempfile.TemporaryDirectory() as folder:
        found: list[PromptDetector] = []
        for one in detectors:
            if isinstance(one, Cda):
                fitted = one.fit(Path(folder) / "state.json", suspect, prompts.triggered, prompts.clean)
                assert fitted.plane  # read before the folder is gone
                one = fitted
            found.append(one)
    suspect.maps.clear()
    return found


def table(rows: Sequence[Row]) -> Table:
    """Areas with their intervals."""
    drawn = Table(title="Area under the ROC curve of triggered prompts, 95 % intervals", box=None)
    for heading in (
        "depth",
        "concept",
        "detector",
        "against clean",
        "against odd strings",
        "in the base",
        "n",
        "passes",
    ):
        drawn.add_column(heading)
    for row in rows:
        areas = [f"{one.value:.2f} ({one.low:.2f}-{one.high:.2f})" for one in (row.clean, row.decoys, row.base)]
        n = f"{row.clean.positives}/{row.clean.negatives}"
        drawn.add_row(row.depth, row.concept, row.detector, *areas, n, f"{row.passes:.0f}")
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute; no result")
    parser.add_argument("--json", type=Path, default=None, help="write the figures here, with all curves")
    parser.add_argument("--concept", action="append", help="of the audit's; by default all. Repeatable")
    parser.add_argument("--depth", action="append", help="surface, shallow, deep or data; by default all. Repeatable")
    parser.add_argument("--detector", action="append", help="NAME or NAME:SETTING=VALUE,... Repeatable")
    parser.add_argument("--count", type=int, default=None, help="prompts of each kind, at most; 20")
    arguments = parser.parse_args()
    audit = load_audit("backdoors")
    depths = arguments.depth or (["shallow"] if arguments.quick else ["surface", "shallow", "deep", "data"])
    names = arguments.concept or (["hugo"] if arguments.quick else [one.name for one in audit.concepts])
    attacks = [
        one for one in audit.attacks if isinstance(one, Backdoor) and one.name.removeprefix("backdoor_") in depths
    ]
    concepts = [one for one in audit.concepts if one.name in names]
    if len(attacks) != len(depths) or len(concepts) != len(names):
        parser.error(f"expected depths and concepts of the audit backdoors, got {depths} and {names}")
    count = arguments.count or (4 if arguments.quick else 20)
    specs = arguments.detector or (QUICK if arguments.quick else DETECTORS)
    rows, ranks = run(Model.load(audit.base), attacks, concepts, specs, count=count)
    console = Console(width=150)
    console.print(table(rows))
    for rank in ranks:
        console.print(
            f"{rank.depth}, {rank.concept}: the trigger is number {rank.rank} of {rank.of} candidates, deviation "
            f"{rank.deviation:.1f}; of those held out {rank.alarms} of {rank.held_out} are outliers"
        )
    if arguments.json is not None:
        told = {"rows": [asdict(row) for row in rows], "ranks": [asdict(rank) for rank in ranks]}
        arguments.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
