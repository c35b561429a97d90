"""Whether a trigger outlives an erasure, stage by stage: name, trigger and other concepts along each erasure's way.

    python benchmarks/persistence.py [--quick] [--dry-run] [--depth NAME ...] [--eraser SPEC ...] [--concept NAME ...]
        [--goals N] [--plants FILE] [--jobs N] [--json FILE] [--plot FILE] [--points FILE]

The four accuracies are those of arXiv 2504.21072, which shows that a trigger may sink and come back. By default
surface, shallow and deep are planted for two concepts (not those that ``--plants``, the JSON of
``benchmarks/plants.py``, says failed), and erased by esd, mace, rece and receler; depths and concepts run side by side,
as many at once as ``--jobs`` says, with a thread each. ``--plot`` draws a panel for each depth and eraser, with 95 %
bands (needs the extra ``plots``). ``--points`` runs nothing, but prints and draws what a run wrote to ``--json``.
``--dry-run`` predicts. ``--quick`` takes one depth, one concept, one eraser and two goals, and is no result.
"""

import argparse
import json
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from backdoors import settings
from palimpsest.attacks.backdoor import Backdoor
from palimpsest.audit_file import make_audit, parse_spec
from palimpsest.component import build
from palimpsest.erasers import ERASERS
from palimpsest.erasers.base import Eraser
from palimpsest.forecast import picture_passes
from palimpsest.model import Model
from sections import persisting
from sections.hours import told
from sections.planting import ALL, DEPTHS, TRAINED, failed, planted, planting

STAGES = {"esd": 4, "mace": 3, "rece": 5, "receler": 4}
"""Of each erasure, for the forecast."""


def points(attack: Backdoor, concept: str, erasers: Sequence[Eraser], goals: int) -> list[persisting.Point]:
    """One depth and concept, in a process of its own."""
    torch.set_num_threads(1)
    audit = make_audit(settings(concept, goals))
    base = Model.load(audit.base, precision=audit.precision, batch=audit.batch)
    model = planted(attack, concept, base)
    found = list(persisting.points(model, audit, attack, audit.concepts[0], erasers))
    for point in found:
        counts = ", ".join(f"{kind} {shown}/{n}" for kind, (shown, n) in point.counts.items())
        print(f"{point.attack}, {point.eraser.partition('(')[0]}, {concept}, {point.depth}: {counts}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute; no result")
    parser.add_argument("--dry-run", action="store_true", help="only count")
    parser.add_argument("--depth", action="append", choices=ALL, help="by default surface, shallow, deep. Repeatable")
    parser.add_argument("--eraser", action="append", help="NAME or NAME:SETTING=VALUE,...")
    parser.add_argument("--concept", action="append", help="by default two")
    parser.add_argument("--goals", type=int, default=20, help="of each concept")
    parser.add_argument("--plants", type=Path, default=None, help="the JSON of benchmarks/plants.py")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at once; by default, the cores")
    parser.add_argument("--json", type=Path, default=None, help="write the points here")
    parser.add_argument("--plot", type=Path, default=None, help="a PNG")
    parser.add_argument("--points", type=Path, default=None, help="print and draw these, and run nothing")
    arguments = parser.parse_args()
    if arguments.points is not None:
        tell(persisting.read(arguments.points), arguments)
        return
    depths = arguments.depth or (["shallow"] if arguments.quick else list(DEPTHS))
    concepts = arguments.concept or list(TRAINED)[: 1 if arguments.quick else None]
    goals, void = 2 if arguments.quick else arguments.goals, failed(arguments.plants)
    erasers = [build("eraser", ERASERS, parse_spec(spec)) for spec in arguments.eraser or ()]
    if not erasers:
        erasers = [one for one in persisting.SHOWN if one.name == "rece" or not arguments.quick]
    planned = [(attack, concept, erasers, goals) for concept in concepts for attack in planting(concept, depths, void)]
    if not planned:
        parser.error("expected a plant that took, got none")
    if arguments.dry_run:
        audit = make_audit(settings(concepts[0], goals))
        base = Model.load(audit.base, precision=audit.precision, batch=audit.batch)
        stages = 1 + sum(STAGES.get(one.name, 1) for one in erasers)
        passes = len(planned) * stages * len(persisting.KINDS) * goals * picture_passes(audit, base)
        print(f"{len(planned)} plants; {told(passes, base, processes=arguments.jobs)}; plants and erasures on top.")
        return
    with ProcessPoolExecutor(arguments.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = [point for some in pool.map(points, *zip(*planned, strict=True)) for point in some]
    tell(found, arguments)


def tell(found: Sequence[persisting.Point], arguments: argparse.Namespace) -> None:
    """Prints the table, and writes and draws it where asked."""
    Console(width=150).print(persisting.table(found))
    if arguments.plot is not None:
        persisting.draw(found, arguments.plot)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(point) for point in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
