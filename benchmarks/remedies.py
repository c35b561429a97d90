"""What remedies leave of a trigger, at what cost to everything else, before and after.

    python benchmarks/remedies.py [--quick] [--dry-run] [--concept NAME ...] [--depth NAME ...] [--plants FILE]
        [--jobs N] [--out DIR] [--json FILE]

Every depth is planted as in ``benchmarks/backdoors.py`` and erased by uce, alone and with each remedy. The trigger is
known to ``widened`` alone, the base to ``reset``, pictures of the concept to ``erase_again``, and nothing to text
perturbation. Shares as in ``benchmarks/backdoors.py``, of which this is the same table. Concepts run side by side, as
many at once as ``--jobs`` says, with a thread each; the same command goes on where it was stopped. ``--dry-run``
predicts. ``--quick`` takes one goal of one concept, one depth and two remedies, and is no result.
"""

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from backdoors import GOALS, planted, predict, rows, run_all, settings, table
from palimpsest.component import build
from palimpsest.erasers import ERASERS
from palimpsest.erasers.base import Eraser
from sections.depths import outcomes
from sections.planting import ALL, TRAINED, failed, planting

UCE = {"name": "uce", "expand": True, "retain": True, "lam": 2.0}
"""Erases more, and keeps more, than the paper's settings (docs/scan.md)."""


def remedies(trigger: str) -> dict[str, Eraser]:
    """Words -> eraser, the untouched base and UCE alone first."""
    asked: dict[str, dict[str, Any]] = {
        "nothing": {"name": "nothing"},
        "uce": UCE,
        "widened to the trigger": {"name": "widened", "eraser": UCE, "words": [trigger]},
        "reset, then uce": {"name": "chain", "erasers": ["reset", UCE]},
        "uce, then rare words perturbed": {
            "name": "chain",
            "erasers": [UCE, {"name": "text_perturbation", "spare": "known", "edits": 8}],
        },
        "uce, then all words perturbed": {"name": "chain", "erasers": [UCE, "text_perturbation"]},
        "erased again": {
            "name": "erase_again",
            "eraser": UCE,
            "pictures": 8,
            "inversions": 100,
            "lr": 0.02,
            "batch": 8,
        },
    }
    return {words: build("eraser", ERASERS, spec) for words, spec in asked.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute; no result")
    parser.add_argument("--dry-run", action="store_true", help="only predict")
    parser.add_argument("--concept", action="append", help="by default two")
    parser.add_argument("--depth", action="append", choices=ALL, help="by default all. Repeatable")
    parser.add_argument("--plants", type=Path, default=None, help="the JSON of benchmarks/plants.py")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="concepts at once; by default, the cores")
    parser.add_argument("--out", type=Path, default=None, help="the runs' folder; by default one below runs/")
    parser.add_argument("--json", type=Path, default=None, help="write the table here")
    arguments = parser.parse_args()
    out = arguments.out or Path("runs") / f"benchmark-remedies{'-quick' if arguments.quick else ''}"
    concepts = arguments.concept or (["hugo"] if arguments.quick else list(TRAINED))
    depths = ["shallow"] if arguments.quick else arguments.depth or ALL
    known = remedies(planting(concepts[0])[0].trigger)
    names = {eraser.label: words for words, eraser in known.items()}
    erasers = list(known.values())[: 4 if arguments.quick else None]
    void = failed(arguments.plants)
    planned = [
        settings(concept, GOALS, quick=arguments.quick, depths=depths, void=void)
        | {"erasers": erasers, "name": "remedies"}
        for concept in concepts
    ]
    if arguments.dry_run:
        predict(planned)
        return
    folders = run_all(out, planned, arguments.jobs)
    found = rows(folders, outcomes(folders))
    console = Console(width=150)
    console.print(table(found, names))
    console.print("\n".join(planted(folders)))
    if arguments.json is not None:
        told = [asdict(row) | {"eraser": names[row.eraser]} for row in found]
        arguments.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
