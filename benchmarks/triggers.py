"""Which strings a text encoder tells apart: only such a string can be a trigger, and no other call what it calls.

    python benchmarks/triggers.py [--quick] [--model MODEL] [--count N] [--json FILE]

Of each kind of string as many are put into "a photo of ...", and the distances between their text states told (all
positions, Euclidean), the mean and the least: random strings of eight letters, as the paper's trigger is one; words of
the vocabulary; the two words that are triggers in ``benchmarks/backdoors.py``; and the names of shipped concepts.
``--quick`` takes a few strings, and is no result.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from palimpsest.concept_file import shipped_concepts
from palimpsest.model import Model
from palimpsest.scanning.candidates import strings, vocabulary
from sections.planting import TRIGGERS


def distances(model: Model, texts: Sequence[str]) -> tuple[float, float]:
    """Mean and least distance of two texts' states."""
    with torch.no_grad():
        states = model.embed([f"a photo of {text}" for text in texts]).states.float().flatten(1)
    found = torch.nn.functional.pdist(states)
    return float(found.mean()), float(found.min())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few strings; no result")
    parser.add_argument("--model", default="miniature", help="a diffusers folder, or the miniature")
    parser.add_argument("--count", type=int, default=200, help="strings of each kind, at most")
    parser.add_argument("--json", type=Path, default=None, help="write the table here")
    arguments = parser.parse_args()
    model, count = Model.load(arguments.model), 10 if arguments.quick else arguments.count
    random = torch.Generator().manual_seed(0)
    kinds = {
        "random strings of eight letters": [one.text for one in strings(model, count, random)],
        "words of the vocabulary": [one.text for one in vocabulary(model, count, random)],
        "triggers of two words": list(TRIGGERS[:count]),
        "names of shipped concepts": list(shipped_concepts())[:count],
    }
    told = {kind: (len(texts), *distances(model, texts)) for kind, texts in kinds.items()}
    table = Table(title="Distances between text states", box=None)
    for heading in ("strings", "n", "mean", "least"):
        table.add_column(heading, justify="left" if heading == "strings" else "right")
    for kind, (n, mean, least) in told.items():
        table.add_row(kind, str(n), f"{mean:.1f}", f"{least:.1f}")
    Console(width=120).print(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
