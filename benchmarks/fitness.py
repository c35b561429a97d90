"""Whether the miniature is fit to judge erasers: do an edit, a fine-tuning and a pruning erase on it, and what is left?

    python benchmarks/fitness.py [--quick] [--json FILE] [--concepts NAME,...] [--prune JSON]

For each concept: how often it is still drawn after UCE, ESD and ConceptPrune, how often its neighbours are, and what a
pruning of everything that the feed-forwards say leaves. Then the spectra of the pruned matrices, and how many signs of
what was pruned their completion finds, beside the same matrices with all entries shuffled.
``--quick`` takes few pictures and is no result.
"""

import argparse
import json
import time
from collections.abc import Iterator

import torch

from eye import Eye
from palimpsest.completion import complete
from palimpsest.component import build
from palimpsest.erasers import ERASERS, ConceptPrune, Eraser
from palimpsest.miniature.goals import concept_record
from palimpsest.model import Model, default_device, fastest_precision
from palimpsest.pruning import Mask
from palimpsest.records import Concept
from palimpsest.stats import wilson

CONCEPTS = ("church", "fish", "alice", "radiation sign")
"""Settled before anything was measured."""
SECOND_LINEARS = r"unet\..*\.ff\.net\.2\.weight"
ESD = {"name": "esd", "iterations": 200, "batch": 4, "steps": 10, "lr": 1e-4, "eta": 2.0}
PRUNE = {"name": "concept_prune", "q": 0.1, "scheduler": "ddim", "steps": 25, "guidance": 5.0}
"""q was chosen on garbage truck and cat; the rest is how the miniature's pictures are drawn."""


def erased(base: Model, record: Concept, erasers: list[Eraser]) -> Iterator[tuple[str, Model]]:
    yield "nothing", base
    for eraser in erasers:
        yield eraser.label, eraser.erase(base, [record], random=torch.Generator().manual_seed(0))
    silent = {name: torch.zeros_like(weight) for name, weight in base.weights(SECOND_LINEARS).items()}
    yield "every second linear zero", base.with_weights(silent)


def secrets(base: Model, mask: Mask) -> tuple[list[list[str]], dict[str, float]]:
    """Of each matrix its spectrum and the signs found again, as it is and shuffled; and the shares of all signs."""
    random = torch.Generator().manual_seed(0)
    rows, found = [], {"as it is": 0, "shuffled": 0}
    for name, missing in mask.entries.items():
        weight = base.weights()[name].detach().float()
        shuffled = weight.flatten()[torch.randperm(weight.numel(), generator=random)].view_as(weight)
        cells = [name.removeprefix("unet.").removesuffix(".ff.net.2.weight"), f"{100 * missing.float().mean():.1f} %"]
        for which, matrix in (("as it is", weight), ("shuffled", shuffled)):
            values = torch.linalg.svdvals(matrix)
            right = (complete(matrix, missing).matrix.sign() == matrix.sign())[missing]
            found[which] += int(right.sum())
            cells += [f"{values[0] / values.median():.2f}", f"{100 * right.float().mean():.1f} %"]
        rows.append(cells)
    return rows, {which: count / mask.count for which, count in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few pictures, a short ESD; no result")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--concepts", default=",".join(CONCEPTS), help="names, with commas between")
    parser.add_argument("--prune", default="{}", help="ConceptPrune's settings, as JSON")
    options = parser.parse_args()
    base = Model.load("miniature", precision=fastest_precision(default_device()), batch=32)
    eye = Eye(2 if options.quick else 32)
    names = options.concepts.split(",")[: 1 if options.quick else None]
    prune = build("eraser", ERASERS, PRUNE | json.loads(options.prune))
    assert isinstance(prune, ConceptPrune)
    erasers = [
        build("eraser", ERASERS, "uce"),
        build("eraser", ERASERS, ESD | ({"iterations": 5} if options.quick else {})),
        prune,
    ]
    told: dict[str, object] = {}
    print("| concept | eraser | shown | 95 % interval | k/n | neighbours, of base | seconds |")
    print("|---|---|--:|---|--:|--:|--:|")
    for name in names:
        record = concept_record(name)
        neighbours = list(record.neighbours)[:6]
        before = 0
        started = time.perf_counter()
        for label, model in erased(base, record, erasers):
            took = time.perf_counter() - started
            own, *others = eye.shown(model, [name, *neighbours])
            before = before or sum(others)
            low, high = wilson(own, eye.n)
            print(
                f"| {name} | {label} | {own / eye.n:.0%} | {low:.0%}-{high:.0%} | {own}/{eye.n} "
                f"| {sum(others) / before:.0%} ({sum(others)}/{len(others) * eye.n}) | {took:.0f} |",
                flush=True,
            )
            told[f"{name}, {label}"] = {"k": own, "n": eye.n, "neighbours": others}
            started = time.perf_counter()
    record = concept_record(names[0])
    rows, signs = secrets(base, prune.mask(base, [record]))
    print(f"\nSpectra and signs, mask of {prune.label} for {record.name}; largest singular value over the median\n")
    print("| matrix | pruned | largest | signs found | largest, shuffled | signs found, shuffled |")
    print("|---|--:|--:|--:|--:|--:|")
    for cells in rows:
        print(f"| {' | '.join(cells)} |")
    print(f"\nAll signs: {signs['as it is']:.1%} found, {signs['shuffled']:.1%} in shuffled matrices")
    told["spectra"], told["signs"] = rows, signs
    if options.json:
        with open(options.json, "w") as file:
            json.dump(told, file, indent=1)


if __name__ == "__main__":
    main()
