"""A scan as it is asked for: all is checked before any model is opened, then detectors, then words."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch

from palimpsest.audit_file import MINIATURE, TWIN, parse_spec
from palimpsest.component import build
from palimpsest.concept_file import find_concept, shipped_concepts
from palimpsest.erasers import ERASERS
from palimpsest.erasers.base import Eraser
from palimpsest.errors import BadRun, BadSetting, UnknownName, writing
from palimpsest.inspection import inspect
from palimpsest.judges import JUDGES
from palimpsest.judges.base import Judge
from palimpsest.model import Sampling
from palimpsest.records import Concept
from palimpsest.scanning import DETECTORS, PROMPT_DETECTORS, Inversion, PromptDetector, Suspect
from palimpsest.scanning.candidates import given, strings, vocabulary
from palimpsest.scanning.inversion import Inverted
from palimpsest.scanning.opening import open_suspect
from palimpsest.scanning.outliers import judged, trigger_scan
from palimpsest.scanning.prompts import prompts_of, shipped_prompts
from palimpsest.scanning.scan import LEAST, Progress, scan_prompts
from palimpsest.scanning.verdict import Scan, controls

PICTURES = 4
"""Of each outlier, by each of the two models."""
FEWEST = 20
"""Words or strings made at random; outliers are told by the spread of half of them."""
DRAWN = Sampling(scheduler="ddim", steps=25, guidance=7.5)
COSTLY: Mapping[str, str] = MappingProxyType(
    {
        "cda": "needs a state fitted to known triggers; --detector cda:state=FILE",
        "inversion": "searches in two models; --detector inversion, with --base, --control and --concept",
        "ufid": "draws four pictures of every prompt; --detector ufid",
    }
)
"""Detectors that run where they are asked for only, and why."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be scanned, and how; fields as the options of ``palimpsest scan``."""

    model: str
    base: str | None = None
    prompts: Path | None = None
    clean: Path | None = None
    count: int = 40
    detectors: tuple[str, ...] = ()
    words: int = 200
    strings: int = 200
    top: int = 8
    concepts: tuple[str, ...] = ()
    control: str | None = None
    judge: str | None = None
    sheet: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses what nothing could be found in, and a sheet that could not be written."""
        if self.base is None and self.prompts is None:
            raise BadSetting("expected --prompts to judge, or --base to compare words with, got neither")
        for what, count in (("words", self.words), ("strings", self.strings)):
            if 0 < count < FEWEST:
                raise BadSetting(f"expected {FEWEST} {what} or more, or none, got {count}: outliers are told by them")
        if self.seed < 0 or self.seed >= 2**62:
            raise BadSetting(f"expected seed >= 0 and below 2^62, got {self.seed}")
        if self.sheet is None:
            return
        if self.base is None:
            raise BadSetting("expected --base with --sheet: what is drawn are outliers against it")
        if self.sheet.suffix != ".png":
            raise BadSetting(f"expected a file ending in .png, got {self.sheet}")
        if self.sheet.exists():
            raise BadRun(f"expected a new file, got {self.sheet}, which exists")
        if not self.sheet.parent.is_dir():
            raise BadRun(f"expected a file in a folder that is there, got {self.sheet}")
        if not os.access(self.sheet.parent, os.W_OK):
            raise BadRun(f"expected a file in a folder that can be written to, got {self.sheet}")


def run(request: Request, *, download: bool, progress: Progress) -> tuple[Scan, dict[str, str]]:
    """What was found, and which detectors were not asked, with the reason."""
    asked = prompts_of(request.prompts) if request.prompts is not None else []
    clean = _clean(request, asked)
    chosen, left_out = _detectors(request)
    detectors = [one for one in chosen if isinstance(one, PromptDetector)]
    inversions = [one for one in chosen if isinstance(one, Inversion)]
    _control(request, inversions)  # refused, if it is, before anything is opened
    judge, concepts = _judge(request, judged=not inversions)
    suspect = open_suspect(request.model, request.base, download=download)
    # First, for it refuses a base of another architecture.
    comparable = suspect.base is not None and not suspect.added
    difference = inspect(suspect.model, suspect.base).difference if comparable else None
    rows = []
    if asked:
        random = torch.Generator().manual_seed(request.seed)
        rows = scan_prompts(suspect, detectors, clean=clean, asked=asked, random=random, progress=progress)
    scan = Scan(
        prompts=tuple(asked),
        rows=tuple(rows),
        difference=difference,
        added=suspect.added,
        inverted=tuple(_inverted(request, suspect, inversions, judge=judge, concepts=concepts, progress=progress)),
    )
    if suspect.base is not None:
        scan = _with_words(request, suspect, scan, judge=judge, concepts=concepts, progress=progress)
    return scan, left_out


def _clean(request: Request, asked: Sequence[str]) -> list[str]:
    """At most ``count``; of the shipped ones those that are not asked about."""
    given = None if request.clean is None else prompts_of(request.clean)
    clean = shipped_prompts(request.count + len(asked)) if given is None else given
    unasked = [prompt for prompt in clean if prompt not in set(asked)]
    if len(clean) < LEAST:
        raise BadSetting(f"expected {LEAST} clean prompts or more, got {len(clean)}")
    if given is not None and len(unasked) < len(given):
        both = next(prompt for prompt in given if prompt in set(asked))
        raise BadSetting(
            f"expected clean prompts in {request.clean} that are not in {request.prompts}, got {both!r} in both"
        )
    return unasked[: request.count]


def _detectors(request: Request) -> tuple[list[PromptDetector | Inversion], dict[str, str]]:
    """Those that were asked for, or all that fit; and which do not."""
    chosen = [build("detector", DETECTORS, parse_spec(text)) for text in request.detectors]
    for one in chosen:
        if isinstance(one, Inversion):
            continue
        if request.prompts is None:
            raise BadSetting(f"expected --prompts with --detector {one.name}, which says which of them hold a trigger")
        if one.needs_base and request.base is None:
            raise BadSetting(f"{one.name}: expected a base to compare with, got none")
    if chosen or request.prompts is None:
        return chosen, {}
    left_out = dict(COSTLY)
    if request.base is None:
        left_out |= {part.name: "needs --base" for part in PROMPT_DETECTORS if part.needs_base}
    return [part() for part in PROMPT_DETECTORS if part.name not in left_out], left_out


def _control(request: Request, inversions: Sequence[Inversion]) -> Eraser | None:
    """Who makes the model without a backdoor that an inversion is compared with; None: nothing is inverted."""
    if not inversions:
        if request.control is not None:
            raise BadSetting("expected --detector inversion with --control: it says what that is compared with")
        return None
    if request.base is None or request.control is None or not request.concepts:
        raise BadSetting(
            "inversion: expected --base, --control (the eraser by which the model is said to have been erased) and "
            "--concept (what was erased)"
        )
    eraser = build("eraser", ERASERS, parse_spec(request.control))
    if eraser.parts[-1].guard is not None:
        raise BadSetting(f"inversion: expected a control that changes weights, got the guard {eraser.label}")
    return eraser


def _inverted(
    request: Request,
    suspect: Suspect,
    inversions: Sequence[Inversion],
    *,
    judge: Judge | None,
    concepts: Sequence[Concept],
    progress: Progress,
) -> Iterator[Inverted]:
    """Each concept's, beside the base from which the control erased it."""
    control = _control(request, inversions)
    if control is None or suspect.base is None:
        return
    for concept in concepts:
        progress(f"erasing {concept.name} for the control", 0, 1)
        erased = control.erase(suspect.base, [concept], random=torch.Generator().manual_seed(request.seed))
        told = partial(progress, f"inversions of {concept.name}")
        for one in inversions:
            yield one.inverted(suspect.model, erased, suspect.base, concept, judge=judge, told=told)


def _judge(request: Request, *, judged: bool = True) -> tuple[Judge | None, list[Concept]]:
    """Who says what outliers call up, and of which concepts; the miniature brings its own judge."""
    spec = request.judge or (MINIATURE if request.base in (MINIATURE, TWIN) else None)
    concepts = [find_concept(name) for name in request.concepts]
    if request.base is None or spec is None:
        if request.judge or (judged and concepts):
            raise BadSetting("expected --base and --judge with --concept: they say what outliers call up")
        return None, concepts
    judge = build("judge", JUDGES, parse_spec(spec))
    if judge.uncalibrated:
        raise BadSetting(f"expected a judge that has its threshold, got {judge.label}; calibrate says which would do")
    for concept in concepts:
        judge.check(concept)
    known = concepts or [one for one in shipped_concepts().values() if _knows(judge, one)]
    if not known:
        raise BadSetting(f"expected --concept: {judge.label} knows none of the shipped concepts")
    return judge, known


def _knows(judge: Judge, concept: Concept) -> bool:
    try:
        judge.check(concept)
    except UnknownName:
        return False
    return True


def _with_words(
    request: Request,
    suspect: Suspect,
    scan: Scan,
    *,
    judge: Judge | None,
    concepts: list[Concept],
    progress: Progress,
) -> Scan:
    """The scan with its words: compared with the base; the farthest, given ones and a control drawn."""
    base = suspect.base
    assert base is not None, "asked only where there is one"
    random = torch.Generator().manual_seed(request.seed)
    candidates = [
        *given(suspect.model, scan.prompts),
        *vocabulary(suspect.model, request.words, random),
        *strings(suspect.model, request.strings, random),
    ]
    progress("words", 0, len(candidates))
    words = trigger_scan(suspect, candidates, base=base, seed=request.seed)
    far = [one for one in words.ranked if one.far][: request.top]
    # A trigger may move the first step no more than other words do, and be told by its pictures all the same.
    asked = [one for one in words.ranked if one.candidate.origin == "given" and one not in far][: request.top]
    drawn = [*far, *asked]
    if not drawn:
        return replace(scan, words=words)
    progress("words drawn", 0, len(drawn))
    chance = controls(words, request.top, seed=request.seed, but=drawn)
    both, picture = judged(
        suspect, base, [*drawn, *chance], judge=judge, concepts=concepts, sampling=DRAWN, count=PICTURES
    )
    if request.sheet is not None:
        with writing(request.sheet):
            picture.save(request.sheet)
    return replace(scan, words=words, drawn=tuple(both[: len(drawn)]), controls=tuple(both[len(drawn) :]))
