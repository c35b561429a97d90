"""How many of the pruned signs a completion finds, and what structure it takes to find them.

    python benchmarks/structure.py [--quick] [--json FILE] [--q Q] [--concepts NAME,...]

No picture is drawn. First ConceptPrune takes each concept out of the miniature, and the released completion, the
paper's form and the matrix normal say what signs the pruned entries had: overall, of what is retained (K 0.6), by
recovered size (R1 to R5) and by true size (P1 to P5); then layer by layer. The control is the same mask on the same
matrix with its entries shuffled within each column (what is left are the columns' means and sizes) or all over (nothing
is left). Then matrices of the three sizes of Stable Diffusion 1.5 with a planted part of low rank in noise, 3 % of each
row pruned as Wanda does: from which share of variance on are signs found? ``--quick`` takes one concept and the
smallest size, and is no result.
"""

import argparse
import json
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from palimpsest.attacks import Revive
from palimpsest.attacks.revive import retained
from palimpsest.attacks.sign_accuracy import SignAccuracy, sign_accuracy, total
from palimpsest.completion import complete
from palimpsest.erasers import ConceptPrune
from palimpsest.miniature.facts import FIXED
from palimpsest.miniature.goals import concept_record
from palimpsest.model import Model
from palimpsest.stats import wilson

RECOVERIES = {
    "released completion": Revive(),
    "the paper's form": Revive(completion="paper"),
    "matrix normal": Revive(recovery="matrix_normal"),
}
SIZES = (320, 640, 1280)
RANKS = (64, 16, 4)
"""The planted rank is the number of rows by these."""
RATIOS = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Variance of the planted part to that of the noise."""


class Signs(NamedTuple):
    """How many of the looked-for signs are right: of all, and of those retained."""

    found: float
    kept: float


def shuffled(matrix: Tensor, *, within: bool, random: torch.Generator) -> Tensor:
    """Its entries in another order: within each column, or all over."""
    if within:
        return matrix.gather(0, torch.rand(matrix.shape, generator=random).argsort(0))
    return matrix.flatten()[torch.randperm(matrix.numel(), generator=random)].view_as(matrix)


def signs(matrix: Tensor, missing: Tensor) -> tuple[Tensor, Tensor]:
    """Whether the completion is right, for all that is missing, and for what is retained of it."""
    recovered = complete(matrix, missing).matrix
    right = recovered.sign() == matrix.sign()
    return right[missing], right[retained(recovered, missing, Revive().keep)]


def planted(rows: int, rank: int, ratio: float, random: torch.Generator) -> Signs:
    """A matrix with a part of low rank, pruned by |W| times log-normal norms of the columns, and completed."""
    columns = 4 * rows
    low = torch.randn(rows, rank, generator=random) @ torch.randn(rank, columns, generator=random) / rank**0.5
    weight = ratio**0.5 * low + torch.randn(rows, columns, generator=random)
    score = weight.abs() * torch.randn(columns, generator=random).exp()
    taken = score.topk(int(0.03 * columns), dim=1).indices
    missing = torch.zeros(rows, columns, dtype=torch.bool).scatter_(1, taken, True)
    recovered = complete(weight, missing, dtype=torch.float32).matrix
    right = recovered.sign() == weight.sign()
    kept = retained(recovered, missing, Revive().keep)
    return Signs(float(right[missing].float().mean()), float(right[kept].float().mean()))


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


def by_concept(base: Model, pruned: dict[str, Model]) -> Iterator[tuple[str, str, SignAccuracy]]:
    """Concept, recovery, what it knows; printed as it comes."""
    print("| concept | recovery | pruned | iterations | signs found | of those retained | R1 to R5 | P1 to P5 |")
    print("|---|---|--:|--:|--:|--:|---|---|")
    for name, victim in pruned.items():
        for way, attack in RECOVERIES.items():
            told = sign_accuracy(victim, base, attack, random=torch.Generator().manual_seed(0))
            print(row(name, way, told), flush=True)
            yield name, way, told


def by_layer(base: Model, pruned: dict[str, Model], told: dict[str, SignAccuracy]) -> dict[str, object]:
    """Of all concepts together: the released completion on each matrix, and on the same one shuffled."""
    print("\n| second linear | size | pruned | signs found | of those retained | shuffled in columns | shuffled |")
    print("|---|---|--:|--:|--:|--:|--:|")
    random, figures = torch.Generator().manual_seed(0), {}
    for name in base.feed_forwards():
        weight = base.weights()[name].detach().double()
        layers = [layer for one in told.values() for layer in one.layers if layer.name == name]
        found, kept = (total(getattr(layer, what) for layer in layers) for what in ("found", "kept"))
        holes = sum(layer.pruned for layer in layers) / sum(layer.entries for layer in layers)
        controls = []
        for within in (True, False):
            right = torch.cat(
                [
                    signs(shuffled(weight, within=within, random=random), victim.weights()[name] == 0)[0]
                    for victim in pruned.values()
                ]
            )
            low, high = wilson(int(right.sum()), len(right))
            controls.append(f"{right.double().mean():.1%} ({low:.1%} to {high:.1%})")
        size = "x".join(map(str, weight.shape))
        rates = (
            f"{one.share:.1%} ({wilson(one.right, one.n)[0]:.1%} to {wilson(one.right, one.n)[1]:.1%})"
            for one in (found, kept)
        )
        short = name.removesuffix(".weight")
        print(f"| {short} | {size} | {holes:.1%} | {' | '.join([*rates, *controls])} |", flush=True)
        figures[name] = {"found": found, "kept": kept, "controls": controls}
    return figures


def by_structure(sizes: tuple[int, ...]) -> dict[str, Signs]:
    """Planted matrices: size and rank by ratio."""
    print(f"\n| size | rank | {' | '.join(f'{ratio:g}' for ratio in RATIOS)} |\n|---|--:|{'--:|' * len(RATIOS)}")
    figures: dict[str, Signs] = {}
    for rows in sizes:
        for part in RANKS:
            cells = []
            for ratio in RATIOS:
                random = torch.Generator().manual_seed(rows + part)
                one = planted(rows, rows // part, ratio, random)
                figures[f"{rows}, rank {rows // part}, ratio {ratio}"] = one
                cells.append(f"{one.found:.0%}, {one.kept:.0%}")
            print(f"| {rows}x{4 * rows} | {rows // part} | {' | '.join(cells)} |", flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one concept, the smallest size; no result")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--q", type=float, default=0.1, help="share of each row that ConceptPrune may take per step")
    parser.add_argument("--concepts", default=",".join(FIXED), help="names, with commas between")
    options = parser.parse_args()
    base = Model.load("miniature")
    prune = ConceptPrune(q=options.q, scheduler="ddim", steps=25, guidance=5.0)
    pruned = {
        name: prune.erase(base, [concept_record(name)], random=torch.Generator())
        for name in options.concepts.split(",")[: 1 if options.quick else None]
    }
    told = {(name, way): one for name, way, one in by_concept(base, pruned)}
    figures: dict[str, object] = {
        f"{name}, {way}": {"pruned": one.pruned, "found": one.found, "kept": one.kept}
        for (name, way), one in told.items()
    }
    released = {name: one for (name, way), one in told.items() if way == next(iter(RECOVERIES))}
    figures |= by_layer(base, pruned, released)
    figures |= by_structure(SIZES[: 1 if options.quick else None])
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"q": options.q, "figures": figures}, file, indent=1)


if __name__ == "__main__":
    main()
