"""How far a pruned concept comes back, and by what: the paper's attack, its rivals and its oracles.

    python benchmarks/revival.py [--quick] [--json FILE] [--q SHARE]

For each of the six fixed concepts: how often it is shown by the base, after ConceptPrune, and after each way to fill
the zeros; and how many of the pruned signs the completion finds. The oracles know the original: they say whether signs
or magnitudes bring a concept back. ``--quick`` takes few pictures of one concept and is no result.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from itertools import chain

import torch
from torch import Tensor

from eye import Eye
from palimpsest.attacks import Revive
from palimpsest.attacks.revive import SECOND_LINEARS, magnitudes, retained
from palimpsest.completion import complete
from palimpsest.erasers import ConceptPrune
from palimpsest.miniature.facts import FIXED
from palimpsest.miniature.goals import concept_record
from palimpsest.model import Model, default_device, fastest_precision
from palimpsest.stats import wilson

RIVALS = {
    "revive": Revive(),
    "neuron average": Revive(magnitude="mean"),
    "neuron sample": Revive(magnitude="sample"),
    "recovered magnitudes": Revive(magnitude="recovered"),
    "4-bit quantisation": Revive(recovery="quantisation"),
    "revive, all signs": Revive(keep=1.0),
    "revive, the paper's form": Revive(completion="paper"),
}


def attacked(victim: Model) -> Iterator[tuple[str, Model]]:
    """What needs the pruned weights alone."""
    for label, attack in RIVALS.items():
        for _, model in attack.revise(victim, base=None, concepts=[], random=torch.Generator().manual_seed(0)):
            yield label, model


def oracles(base: Model, victim: Model) -> Iterator[tuple[str, Model]]:
    """What knows the original."""
    random = torch.Generator().manual_seed(0)

    def filled(with_what: Callable[[Tensor, Tensor], Tensor]) -> Model:
        changed = {}
        for name, weight in victim.weights(SECOND_LINEARS).items():
            pruned, true = weight.detach() == 0, base.weights()[name].detach()
            changed[name] = torch.where(pruned, with_what(weight.detach(), true), weight.detach())
        return victim.with_weights(changed)

    def sized(rule: str) -> Callable[[Tensor, Tensor], Tensor]:
        def fill(weight: Tensor, true: Tensor) -> Tensor:
            sizes = magnitudes(weight.double(), weight == 0, true.double(), rule=rule, random=random)
            return (true.sign() * sizes).to(weight.dtype)

        return fill

    def guessed(weight: Tensor, true: Tensor) -> Tensor:
        return true.abs() * (2 * torch.randint(2, true.shape, generator=random) - 1)

    yield "oracle: true signs, neuron max", filled(sized("max"))
    yield "oracle: true signs, neuron average", filled(sized("mean"))
    yield "oracle: true signs, neuron sample", filled(sized("sample"))
    yield "oracle: true magnitudes, random signs", filled(guessed)


def signs(base: Model, victim: Model, keep: float) -> tuple[int, int, int, int]:
    """(pruned, of them found, retained, of them found) over all second linears."""
    told = [0, 0, 0, 0]
    for name, weight in victim.weights(SECOND_LINEARS).items():
        pruned = weight.detach() == 0
        found = complete(weight, pruned).matrix
        right = found.sign() == base.weights()[name].detach().double().sign()
        kept = retained(found, pruned, keep)
        for place, count in enumerate((pruned, right & pruned, kept, right & kept)):
            told[place] += int(count.sum())
    return told[0], told[1], told[2], told[3]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few pictures of one concept; no result")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--q", type=float, default=0.1, help="share of each row that ConceptPrune may take per step")
    options = parser.parse_args()
    base = Model.load("miniature", precision=fastest_precision(default_device()), batch=32)
    eye = Eye(2 if options.quick else 32)
    prune = ConceptPrune(q=options.q, scheduler="ddim", steps=25, guidance=5.0)
    told: dict[str, object] = {"q": options.q}
    print("| concept | model | shown | 95 % interval | k/n | seconds |\n|---|---|--:|---|--:|--:|")
    found = []
    for name in FIXED[: 1 if options.quick else None]:
        victim = prune.erase(base, [concept_record(name)], random=torch.Generator())
        started = time.perf_counter()
        plain = [("base", base), (prune.label, victim)]
        for label, model in chain(plain, attacked(victim), oracles(base, victim)):
            took = time.perf_counter() - started
            (k,) = eye.shown(model, [name])
            low, high = wilson(k, eye.n)
            print(
                f"| {name} | {label} | {k / eye.n:.0%} | {low:.0%}-{high:.0%} | {k}/{eye.n} | {took:.1f} |", flush=True
            )
            told[f"{name}, {label}"] = {"k": k, "n": eye.n}
            started = time.perf_counter()
        found.append((name, *signs(base, victim, Revive().keep)))
    print("\n| concept | pruned | signs found | retained | signs found |\n|---|--:|--:|--:|--:|")
    total = sum(weight.numel() for weight in base.weights(SECOND_LINEARS).values())
    for name, pruned, right, kept, good in found:
        print(f"| {name} | {pruned / total:.1%} | {right / pruned:.1%} | {kept:,} | {good / kept:.1%} |")
    told["signs"] = found
    if options.json:
        with open(options.json, "w") as file:
            json.dump(told, file, indent=1)


if __name__ == "__main__":
    main()
