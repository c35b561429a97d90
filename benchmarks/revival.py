"""How far a pruned concept comes back, and by what: the paper's attack, its rivals, its oracles, and more than these.

    python benchmarks/revival.py [--quick] [--json FILE] [--q Q] [--concepts NAME,...] [--pictures N] [--ways WAY;...]

For each concept: how many of the pruned signs each recovery finds, overall, of what it retains, and by size; and how
often the concept is shown by the base, after ConceptPrune, and after each way to fill the zeros. The oracles know the
original: they say whether signs or magnitudes bring a concept back. ``--pictures 0`` draws none. ``--quick`` takes few
pictures of one concept and is no result.
"""

import argparse
import json
import time
from collections.abc import Iterable, Iterator

import torch

from eye import Eye
from palimpsest.attacks import Attack, Revive, ReviveOracle
from palimpsest.attacks.sign_accuracy import SignAccuracy, sign_accuracy
from palimpsest.erasers import ConceptPrune
from palimpsest.miniature.facts import FIXED
from palimpsest.miniature.goals import concept_record
from palimpsest.model import Model, default_device, fastest_precision
from palimpsest.stats import wilson

WAYS: dict[str, Attack] = {
    "revive": Revive(),
    "neuron average": Revive(magnitude="mean"),
    "neuron sample": Revive(magnitude="sample"),
    "the code's draw": Revive(magnitude="draw"),
    "recovered magnitudes": Revive(magnitude="recovered"),
    "random signs": Revive(recovery="random"),
    "4-bit quantisation": Revive(recovery="quantisation"),
    "revive, all signs": Revive(keep=1.0),
    "revive, the paper's form": Revive(completion="paper"),
    "matrix normal": Revive(recovery="matrix_normal"),
    "matrix normal, all signs": Revive(recovery="matrix_normal", keep=1.0),
    "oracle: true signs, neuron max": ReviveOracle(),
    "oracle: true signs, neuron average": ReviveOracle(magnitude="mean"),
    "oracle: true signs, neuron sample": ReviveOracle(magnitude="sample"),
    "oracle: true magnitudes, random signs": ReviveOracle(signs="random", magnitude="true"),
    "oracle: 60 % true signs, the rest flipped": ReviveOracle(right=0.6),
    "oracle: 60 % true signs, the rest zero": ReviveOracle(right=0.6, others="zeroed"),
}
RECOVERIES = ("revive", "revive, the paper's form", "matrix normal")


def victims(base: Model, pruned: Model, ways: Iterable[str]) -> Iterator[tuple[str, Model]]:
    """The base, the pruned model, and what each way makes of it."""
    yield "base", base
    yield "pruned", pruned
    for way in ways:
        random = torch.Generator().manual_seed(0)
        for _, model in WAYS[way].revise(pruned, base=base, concepts=[], random=random):
            yield way, model


def row(name: str, way: str, told: SignAccuracy) -> str:
    """A line of the table of signs."""
    groups = (" ".join(f"{group.share:.0%}" for group in groups) for groups in (told.by_recovered, told.by_true))
    rounds = [layer.rounds for layer in told.layers]
    cells = (
        name,
        way,
        f"{told.pruned:.1%}",
        f"{min(rounds)}-{max(rounds)}",
        f"{told.found.share:.1%} ({told.found.right:,}/{told.found.n:,})",
        f"{told.kept.share:.1%} ({told.kept.right:,}/{told.kept.n:,})",
        *groups,
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few pictures of one concept; no result")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--q", type=float, default=0.1, help="share of each row that ConceptPrune may take per step")
    parser.add_argument("--concepts", default=",".join(FIXED), help="names, with commas between")
    parser.add_argument("--pictures", type=int, default=32, help="of each concept and model")
    parser.add_argument("--ways", default=";".join(WAYS), help="of filling the zeros, with semicolons between")
    options = parser.parse_args()
    base = Model.load("miniature", precision=fastest_precision(default_device()), batch=32)
    eye = Eye(2 if options.quick else options.pictures)
    prune = ConceptPrune(q=options.q, scheduler="ddim", steps=25, guidance=5.0)
    told: dict[str, object] = {"q": options.q}
    pruned = {
        name: prune.erase(base, [concept_record(name)], random=torch.Generator())
        for name in options.concepts.split(",")[: 1 if options.quick else None]
    }
    print("| concept | recovery | pruned | iterations | signs found | of those retained | R1 to R5 | P1 to P5 |")
    print("|---|---|--:|--:|--:|--:|---|---|")
    for name, victim in pruned.items():
        for way in RECOVERIES:
            attack = WAYS[way]
            assert isinstance(attack, Revive)
            signs = sign_accuracy(victim, base, attack, random=torch.Generator().manual_seed(0))
            print(row(name, way, signs), flush=True)
            told[f"{name}, {way}, signs"] = {"found": signs.found, "kept": signs.kept}
    if eye.n:
        show(base, pruned, options.ways.split(";"), eye, told)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(told, file, indent=1)


def show(base: Model, pruned: dict[str, Model], ways: list[str], eye: Eye, told: dict[str, object]) -> None:
    """How often each concept is shown."""
    print("\n| concept | model | shown | 95 % interval | k/n | seconds |\n|---|---|--:|---|--:|--:|")
    for name, victim in pruned.items():
        started = time.perf_counter()
        for label, model in victims(base, victim, ways):
            took = time.perf_counter() - started
            (k,) = eye.shown(model, [name])
            low, high = wilson(k, eye.n)
            print(
                f"| {name} | {label} | {k / eye.n:.0%} | {low:.0%}-{high:.0%} | {k}/{eye.n} | {took:.1f} |", flush=True
            )
            told[f"{name}, {label}"] = {"k": k, "n": eye.n}
            started = time.perf_counter()


if __name__ == "__main__":
    main()
