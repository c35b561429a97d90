"""Whether soft-prompt inversion tells a backdoor from an erasure that only hides: the model against a clean control.

    python benchmarks/scan_inversion.py [--quick] [--dry-run] [--depth NAME ...] [--concept NAME ...] [--plants FILE]
        [--restarts N] [--iterations N] [--jobs N] [--json FILE]

Plants are those of ``benchmarks/backdoors.py`` (but for those that ``--plants``, the JSON of ``benchmarks/plants.py``,
says failed), erased by uce; the control is the base erased by uce. In both, words of no vocabulary are searched for the
concept's pictures, from the same random words. Told are the mean gain and the pictures that show the concept, with the
area under the ROC curve of one restart's gain, planted against control, and the exact test over restarts, by Holm over
the plants. Plants run side by side, as many at once as ``--jobs`` says, with a thread each. ``--dry-run`` predicts.
``--quick`` takes one plant, two restarts and few iterations, and is no result.
"""

import argparse
import json
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import repeat
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from palimpsest.attacks.backdoor import Backdoor
from palimpsest.concept_file import find_concept
from palimpsest.erasers import Uce
from palimpsest.judges import Miniature
from palimpsest.model import Model, default_device, fastest_precision
from palimpsest.scanning import Inversion
from palimpsest.scanning.inversion import Inverted
from palimpsest.stats import holm
from sections.areas import area
from sections.hours import told
from sections.planting import ALL, DEPTHS, TRAINED, depth_of, failed, planted, planting

CLEAN = Uce(expand=True)


def opened() -> Model:
    """The base."""
    return Model.load("miniature", precision=fastest_precision(default_device()), batch=16)


def inverted(attack: Backdoor, name: str, inversion: Inversion) -> Inverted:
    """One plant, in a process of its own."""
    torch.set_num_threads(1)
    base, concept = opened(), find_concept(name)
    model, control = (
        CLEAN.erase(start, [concept], random=torch.Generator().manual_seed(0))
        for start in (planted(attack, name, base), base)
    )
    found = inversion.inverted(model, control, base, concept, judge=Miniature())
    print(f"{depth_of(attack.name)}, {name}: {found}", flush=True)
    return found


def table(depths: Sequence[str], found: Sequence[Inverted]) -> Table:
    """A row for each plant."""
    drawn = Table(title="Soft prompts, in the model and in the control", box=None)
    for heading in ("planted", "concept", "gain", "control", "shown", "control", "ROC area of a restart's gain", "p"):
        drawn.add_column(heading, justify="left" if heading in ("planted", "concept") else "right")
    for depth, one, p_value in zip(depths, found, holm([one.p_value for one in found]), strict=True):
        roc, looks = area([(list(one.gains), list(one.control))]), one.looks * len(one.gains)
        assert roc is not None, "every restart has a gain"
        drawn.add_row(
            depth,
            one.concept,
            *(f"{sum(each) / len(each):.3f}" for each in (one.gains, one.control)),
            *(f"{sum(each)}/{looks}" for each in (one.shown, one.control_shown)),
            f"{roc.value:.2f} ({roc.low:.2f}-{roc.high:.2f})",
            f"{p_value:.2g}",
        )
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute; no result")
    parser.add_argument("--dry-run", action="store_true", help="only predict")
    parser.add_argument("--depth", action="append", choices=ALL, help="by default surface, shallow, deep. Repeatable")
    parser.add_argument("--concept", action="append", help="by default two. Repeatable")
    parser.add_argument("--plants", type=Path, default=None, help="the JSON of benchmarks/plants.py")
    parser.add_argument("--restarts", type=int, default=5, help="searches in each model")
    parser.add_argument("--iterations", type=int, default=300, help="of each search")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at once; by default, the cores")
    parser.add_argument("--json", type=Path, default=None, help="write the figures here")
    arguments = parser.parse_args()
    depths = arguments.depth or (["shallow"] if arguments.quick else list(DEPTHS))
    concepts = arguments.concept or list(TRAINED)[: 1 if arguments.quick else None]
    quick = {"restarts": 2, "iterations": 3, "pictures": 4, "looks": 1}
    full = {"restarts": arguments.restarts, "iterations": arguments.iterations, "lr": 0.02}
    inversion, void = Inversion(**(quick if arguments.quick else full)), failed(arguments.plants)
    planned = [(attack, concept) for concept in concepts for attack in planting(concept, depths, void)]
    if not planned:
        parser.error("expected a plant that took, got none")
    if arguments.dry_run:
        passes = len(planned) * inversion.passes()
        print(f"{len(planned)} plants; {told(passes, opened(), processes=arguments.jobs)}.")
        return
    with ProcessPoolExecutor(arguments.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(inverted, *zip(*planned, strict=True), repeat(inversion)))
    named = [depth_of(attack.name) for attack, _ in planned]
    Console(width=150).print(table(named, found))
    if arguments.json is not None:
        rows = [{"depth": depth, **asdict(one)} for depth, one in zip(named, found, strict=True)]
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
