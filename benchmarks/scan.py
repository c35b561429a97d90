"""How well detectors that do not know the trigger tell triggered prompts, by the depth at which it was planted.

    python benchmarks/scan.py [--quick] [--dry-run] [--depth NAME ...] [--concept NAME ...] [--detector SPEC ...]
        [--count N] [--plants FILE] [--jobs N] [--out DIR] [--json FILE] [--plot FILE]

Plants are those of ``benchmarks/backdoors.py`` at surface, shallow and deep, and so are the concepts (but for those
that ``--plants``, the JSON of ``benchmarks/plants.py``, says failed). At every depth ``--count`` prompts, the same
number of each concept, stand for themselves (*clean*), with the trigger in the name's place, and with a string like it
there, of other words, that nobody planted (*odd*): shipped prompts of other concepts. Attention maps are those of
pictures of 25 steps (the papers': 50). Of every detector the area under the ROC curve is told, the mean over the
concepts, with a 95 % bootstrap interval (each class of each concept resampled; where nothing overlaps, Newcombe's):
triggered prompts against clean ones, and against odd ones, each in the planted model and in the base, in which nothing
was planted. A detector that is as good in the base knows no trigger; neither does one that is no better than chance
against odd strings. ``divergence``, which compares with the base, says nothing of the base itself. ``cda`` learns from
a plant of the same depth, of another concept with another trigger, by prompts that are asked nowhere. Then the rank of
the trigger among words and strings by their divergence from the base, and beside it strings like the trigger, which
nobody planted. Plants are asked side by side, as many at once as ``--jobs`` says, with a thread each; the same command
goes on where it was stopped. ``--plot`` draws the curves as a PNG (needs the extra ``plots``). ``--dry-run`` predicts.
``--quick`` takes one concept, one depth, few prompts and few steps, and is no result.
"""

import argparse
import json
import math
import multiprocessing
import os
import random
import re
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from palimpsest.attacks.backdoor import Backdoor
from palimpsest.attacks.trigger import triggered
from palimpsest.audit_file import parse_spec
from palimpsest.component import build
from palimpsest.concept_file import find_concept, shipped_concepts
from palimpsest.errors import writing
from palimpsest.model import Model, default_device, fastest_precision
from palimpsest.records import Concept, digest
from palimpsest.scanning import PROMPT_DETECTORS, Cda, PromptDetector, Suspect
from palimpsest.scanning.attention import AttentionDetector
from palimpsest.scanning.candidates import candidate, strings, vocabulary
from palimpsest.scanning.outliers import trigger_scan
from palimpsest.scanning.prompts import shipped_prompts
from palimpsest.stats import auroc
from sections.areas import Area, Scores, area, draw
from sections.hours import told
from sections.planting import ALL, CLOSED, DEPTHS, TRAINED, depth_of, failed, home, planted, planting, strangers

DETECTORS = (
    *("navi", "navi:by=word", "divergence", "ftt:steps=25", "daa_i:steps=25", "daa_s:steps=25"),
    *("cda:components=16,steps=25", "ufid:steps=10"),
)
QUICK = ("navi", "divergence", "ftt:steps=6", "daa_i:steps=6", "daa_s:steps=6")
LEARNT = ("hugo", "yellow dunes")
"""Concept and trigger of the plants from which ``cda`` learns; neither is planted in what it is asked about."""
KINDS = ("object", "identity")
"""Of the concepts in whose name's place the trigger stands."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One detector at one depth, over all concepts."""

    depth: str
    detector: str
    clean: Area | None
    """Triggered prompts against clean ones."""
    odd: Area | None
    """Against the same with a string like the trigger, which nobody planted, where that stands."""
    base_clean: Area | None
    """Both of them in the base; None where it is what the detector compares with."""
    base_odd: Area | None
    concepts: dict[str, tuple[float | None, float | None]]
    """Concept -> the first two areas."""
    passes: float
    """Per triggered prompt."""
    untold: int
    """Triggered prompts of which it could not tell."""


@dataclass(frozen=True, kw_only=True)
class Rank:
    """The trigger among candidates that were made at random, by divergence."""

    concept: str
    depth: str
    rank: int
    """1: the farthest of them and the trigger."""
    of: int
    deviation: float
    alarms: int
    """Outliers among those held out."""
    held_out: int
    beside: int
    """Strings like the trigger, which nobody planted, that deviate as far or farther,"""
    unplanted: int
    """and how many were asked."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What one detector says of one plant."""

    detector: str
    model: tuple[Scores, Scores, Scores]
    """Of triggered, clean and odd prompts."""
    base: tuple[Scores, Scores, Scores]
    """Of the same in the base."""
    passes: float
    """Per triggered prompt."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """What was found of one plant."""

    rank: Rank
    scored: list[Scored]

    @classmethod
    def read(cls, file: Path) -> "Told":
        """What a run wrote."""
        told = json.loads(file.read_text())
        return cls(rank=Rank(**told["rank"]), scored=[Scored(**one) for one in told["scored"]])


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What the detectors of one concept are asked: the same prompts three times."""

    triggered: list[str]
    clean: list[str]
    odd: list[str]

    @classmethod
    def of(cls, attack: Backdoor, concept: Concept, count: int, *, learnt: bool = False) -> "Prompts":
        """As many as there are, at most ``count``; no two of the triggered ones are the same.

        Of all shipped prompts one half is asked, and ``cda`` learns from the other.
        """
        known = [one for one in shipped_concepts().values() if one.kind in KINDS and one.name != concept.name]
        found: dict[str, tuple[str, Concept]] = {}
        for prompt in shipped_prompts(10_000):
            if int(digest([prompt]), 16) % 2 != learnt:
                continue
            named = next((one for one in known if re.search(rf"\b{re.escape(one.name)}\b", prompt)), None)
            if named is not None and concept.name not in prompt:
                found.setdefault(in_place(attack.trigger, prompt, named), (prompt, named))
        chosen = random.Random(concept.name).sample(sorted(found), min(count, len(found)))
        strings = random.Random(0).choices(strangers(attack.trigger), k=len(chosen))
        odd = [in_place(one, *found[key]) for key, one in zip(chosen, strings, strict=True)]
        return cls(triggered=chosen, clean=[found[one][0] for one in chosen], odd=odd)


def in_place(trigger: str, prompt: str, named: Concept) -> str:
    """The prompt with the trigger in the name's place."""
    return triggered(prompt, named, trigger, "replace", attack="scan")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A model that is asked, with its prompts; attention maps stay with it, for all detectors."""

    concept: str
    suspect: Suspect
    prompts: Prompts

    def scores(self, detector: PromptDetector) -> tuple[Scores, Scores, Scores]:
        """Of triggered, clean and odd prompts."""
        triggered, clean, odd = (
            detector.scores(self.suspect, some)
            for some in (self.prompts.triggered, self.prompts.clean, self.prompts.odd)
        )
        return triggered, clean, odd


@cache
def in_base(concept: str, count: int) -> Asked:
    """The base with a concept's prompts."""
    base = opened()
    return Asked(
        concept=concept,
        suspect=Suspect(model=base, base=base),
        prompts=Prompts.of(planting(concept)[0], find_concept(concept), count),
    )


@cache
def scored_in_base(concept: str, count: int, spec: str) -> tuple[Scores, Scores, Scores]:
    """Of triggered, clean and odd prompts."""
    return in_base(concept, count).scores(detectors((spec,))[0])


@cache
def opened() -> Model:
    """The base."""
    return Model.load("miniature", precision=fastest_precision(default_device()), batch=25)


def detectors(specs: Sequence[str]) -> list[PromptDetector]:
    """By their specs."""
    return [build("detector", PROMPT_DETECTORS, parse_spec(spec)) for spec in specs]


def ranked(asked: Asked, attack: Backdoor, count: int) -> Rank:
    """Where the trigger stands among words and strings, and strings like it beside it."""
    base, stream = opened(), torch.Generator().manual_seed(0)
    made = [*vocabulary(base, count, stream), *strings(base, count, stream)]
    beside = strangers(attack.trigger)
    told = [candidate(base, text, "given") for text in (attack.trigger, *beside)]
    words = trigger_scan(asked.suspect, [*told, *made], base=base)
    deviations = {one.candidate.text: one.deviation for one in words.ranked}
    own = deviations[attack.trigger]
    random = [one for one in words.ranked if one.candidate.origin != "given"]
    return Rank(
        concept=asked.concept,
        depth=depth_of(attack.name),
        rank=1 + sum(one.deviation >= own for one in random),
        of=1 + len(random),
        deviation=own,
        alarms=words.alarms,
        held_out=words.held_out,
        beside=sum(deviations[text] >= own for text in beside),
        unplanted=len(beside),
    )


def run(depth: str, concept: str, specs: Sequence[str], count: int, out: Path) -> Told:
    """One plant, in a process of its own, or what a run before wrote of it."""
    attack = at_depth(depth, concept)
    file = out / f"{home(attack, concept, opened()).name}-{digest([list(specs), count])[:8]}.json"
    if file.exists():
        return Told.read(file)
    torch.set_num_threads(1)
    began = time.monotonic()
    asked = Asked(concept=concept, suspect=suspected(attack, concept), prompts=in_base(concept, count).prompts)
    told = Told(rank=ranked(asked, attack, 4 * count), scored=[scored(depth, spec, asked, count) for spec in specs])
    with writing(file):
        part = file.with_suffix(".partial")
        part.write_text(json.dumps(asdict(told)))
        part.rename(file)
    print(f"{depth}, {concept}: {time.monotonic() - began:.0f} s", flush=True)
    return told


def scored(depth: str, spec: str, asked: Asked, count: int) -> Scored:
    """One detector's scores of one plant, and of its base."""
    (detector,) = detectors((spec,))
    if isinstance(detector, Cda):
        fitted = learnt(spec, depth, count)
        before = in_base(asked.concept, count).scores(fitted)
    else:
        fitted, before = detector, scored_in_base(asked.concept, count, spec)
    costs = [detector.passes(asked.suspect, prompt) for prompt in asked.prompts.triggered]
    return Scored(detector=spec, model=asked.scores(fitted), base=before, passes=sum(costs) / len(costs))


def at_depth(depth: str, concept: str) -> Backdoor:
    """One of a concept's plants."""
    (attack,) = planting(concept, [depth])
    return attack


def suspected(attack: Backdoor, concept: str) -> Suspect:
    """The model in which that is planted."""
    return Suspect(model=planted(attack, concept, opened()), base=opened())


def rows(told: Sequence[Told]) -> list[Row]:
    """Depth by depth and detector by detector, over the concepts."""
    found = []
    for depth in dict.fromkeys(one.rank.depth for one in told):
        some = [one for one in told if one.rank.depth == depth]
        for each in zip(*(one.scored for one in some), strict=True):
            models, bases = [one.model for one in each], [one.base for one in each]
            (detector,) = detectors((each[0].detector,))
            found.append(
                Row(
                    depth=depth,
                    detector=each[0].detector,
                    clean=area([(triggered, clean) for triggered, clean, _ in models]),
                    odd=area([(triggered, odd) for triggered, _, odd in models]),
                    base_clean=None if detector.needs_base else area([(one[0], one[1]) for one in bases]),
                    base_odd=None if detector.needs_base else area([(one[0], one[2]) for one in bases]),
                    concepts={
                        one.rank.concept: (_value(triggered, clean), _value(triggered, odd))
                        for one, (triggered, clean, odd) in zip(some, models, strict=True)
                    },
                    passes=sum(one.passes for one in each) / len(each),
                    untold=sum(score is None for triggered, _, _ in models for score in triggered),
                )
            )
    return found


def _value(positives: Scores, negatives: Scores) -> float | None:
    """The area alone; None where nothing was told."""
    told = [[one for one in scores if one is not None] for scores in (positives, negatives)]
    return auroc(*told) if all(told) else None


@cache
def learnt(spec: str, depth: str, count: int) -> Cda:
    """What ``cda`` learns from another model, whose plant is known, with another concept and another trigger."""
    concept, trigger = LEARNT
    (detector,) = detectors((spec,))
    assert isinstance(detector, Cda)
    attack = replace(at_depth(depth, concept), trigger=trigger)
    prompts = Prompts.of(attack, find_concept(concept), count, learnt=True)
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state.json"
        fitted = detector.fit(state, suspected(attack, concept), prompts.triggered, prompts.clean)
        assert fitted.plane  # read before the folder is gone
    return fitted


def table(rows: Sequence[Row]) -> Table:
    """Areas with their intervals."""
    drawn = Table(title="Area under the ROC curve of triggered prompts, 95 % intervals", box=None)
    headings = ("against clean", "in the base", "against odd", "in the base")
    for heading in ("depth", "detector", *headings, "n", "untold", "passes"):
        drawn.add_column(heading, justify="left" if heading in ("depth", "detector") else "right")
    for row in rows:
        told = (row.clean, row.base_clean, row.odd, row.base_odd)
        areas = [f"{one.value:.2f} ({one.low:.2f}-{one.high:.2f})" if one else "" for one in told]
        n = f"{row.clean.positives}/{row.clean.negatives}" if row.clean else ""
        drawn.add_row(row.depth, row.detector, *areas, n, str(row.untold), f"{row.passes:.0f}")
    return drawn


def predict(took: dict[str, list[str]], specs: Sequence[str], counts: dict[str, int], processes: int) -> None:
    """Passes, maps drawn once for all detectors that read them; the base, and what cda learns, once in each process."""
    asked = [in_base(concept, counts[depth]) for depth, concepts in took.items() for concept in concepts]
    each: dict[str, int] = {}
    for detector in detectors(specs):
        kind = "maps" if isinstance(detector, AttentionDetector) else detector.label
        costs = [detector.passes(one.suspect, prompt) for one in asked for prompt in one.prompts.triggered]
        each[kind] = max(each.get(kind, 0), sum(costs))
    passes = 3 * sum(each.values()) * (len(took) + processes) // len(took)
    if any(isinstance(detector, Cda) for detector in detectors(specs)):
        passes += processes * len(took) * 2 * each["maps"] // len(asked)
    cost = told(passes, opened(), processes=processes)
    print(f"{len(asked)} plants at {len(took)} depths; {cost}; plants on top.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute; no result")
    parser.add_argument("--dry-run", action="store_true", help="only predict")
    parser.add_argument("--depth", action="append", choices=ALL, help="by default surface, shallow, deep. Repeatable")
    parser.add_argument("--concept", action="append", help="by default those of benchmarks/backdoors.py. Repeatable")
    parser.add_argument("--detector", action="append", help="NAME or NAME:SETTING=VALUE,... Repeatable")
    parser.add_argument("--count", type=int, default=None, help="prompts of each kind at a depth; 200")
    parser.add_argument("--plants", type=Path, default=None, help="the JSON of benchmarks/plants.py")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="plants at once; by default, the cores")
    parser.add_argument("--out", type=Path, default=None, help="a folder for what was found; by default below runs/")
    parser.add_argument("--json", type=Path, default=None, help="write the figures here, with all curves")
    parser.add_argument("--plot", type=Path, default=None, help="a PNG")
    arguments = parser.parse_args()
    depths = arguments.depth or (["shallow"] if arguments.quick else list(DEPTHS))
    concepts = arguments.concept or (["church"] if arguments.quick else [*TRAINED, *CLOSED])
    count = arguments.count or (4 if arguments.quick else 200)
    specs = tuple(arguments.detector or (QUICK if arguments.quick else DETECTORS))
    void = failed(arguments.plants)
    took = {depth: [name for name in concepts if (depth, name) not in void] for depth in depths}
    took = {depth: names for depth, names in took.items() if names}
    if not took:
        parser.error("expected a plant that took, got none")
    counts = {depth: math.ceil(count / len(names)) for depth, names in took.items()}
    if arguments.dry_run:
        predict(took, specs, counts, arguments.jobs)
        return
    out = arguments.out or Path("runs") / "benchmark-scan"
    out.mkdir(parents=True, exist_ok=True)
    planned = [(depth, concept, specs, counts[depth], out) for depth, names in took.items() for concept in names]
    with ProcessPoolExecutor(arguments.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        told = list(pool.map(run, *zip(*planned, strict=True)))
    found, ranks = rows(told), [one.rank for one in told]
    console = Console(width=150)
    console.print(table(found))
    for rank in ranks:
        console.print(
            f"{rank.depth}, {rank.concept}: the trigger is number {rank.rank} of {rank.of} candidates, deviation "
            f"{rank.deviation:.1f}; of those held out {rank.alarms} of {rank.held_out} are outliers; of strings like "
            f"the trigger {rank.beside} of {rank.unplanted} deviate as far"
        )
    if arguments.plot is not None:
        draw({f"against {kind}": curves(found, kind) for kind in ("clean", "odd")}, arguments.plot)
    if arguments.json is not None:
        figures = {"rows": [asdict(row) for row in found], "ranks": [asdict(rank) for rank in ranks]}
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def curves(rows: Sequence[Row], kind: str) -> dict[str, dict[str, Area]]:
    """Depth -> detector -> area of one comparison."""
    found: dict[str, dict[str, Area]] = {}
    for row in rows:
        if (one := getattr(row, kind)) is not None:
            found.setdefault(row.depth, {})[row.detector] = one
    return found


if __name__ == "__main__":
    main()
