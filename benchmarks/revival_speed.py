"""How long the completion of the revival attack takes at the size of Stable Diffusion 1.5, and whether it is exact.

    python benchmarks/revival_speed.py [--quick] [--whole] [--tried] [--spread SD] [--json FILE]

The 16 second linears (5 of 320x1280, 5 of 640x2560, 6 of 1280x5120) are random but seeded: a planted part of low rank
plus noise of the same variance, of which the top 2 to 4 % of each row by |W| times a norm of the column are missing, as
Wanda prunes; the norms are log-normal. First ours completes all of them. Then, on one matrix of each size, the plain
way (a full singular value decomposition in every round, float64, as released) and ours do the same rounds in turn:
all rounds of the two small sizes, a few of the largest; what the plain way takes for all 16 is scaled to the rounds
that ours took. ``--whole`` follows the plain way to the end of the largest too (minutes); ``--tried`` times the other
ways that were tried; ``--quick`` takes one small matrix and few rounds of the others and is no result.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from palimpsest.attacks import Revive
from palimpsest.attacks.revive import retained
from palimpsest.completion import Completion, complete, shrunk

SIZES = ((320, 5), (640, 5), (1280, 6))
"""Rows (columns are four times as many), and how many matrices."""
Step = Callable[[Tensor, Tensor], Tensor]
"""From a filled matrix (m, n) and its holes to what the next round puts into the holes."""


class Victim(NamedTuple):
    """A weight (m, n) float32 and what is missing of it."""

    weight: Tensor
    missing: Tensor


def victim(rows: int, seed: int, spread: float) -> Victim:
    """Planted, seeded and pruned; between 2 and 4 % of every row, by the seed."""
    random = torch.Generator().manual_seed(1000 * rows + seed)
    rank, columns = rows // 16, 4 * rows
    low = torch.randn(rows, rank, generator=random) @ torch.randn(rank, columns, generator=random) / rank**0.5
    weight = 0.02 * (low + torch.randn(rows, columns, generator=random))
    score = weight.abs() * (spread * torch.randn(columns, generator=random)).exp()
    taken = score.topk(int((0.02 + 0.02 * (seed % 5) / 4) * columns), dim=1).indices
    return Victim(weight, torch.zeros(rows, columns, dtype=torch.bool).scatter_(1, taken, True))


def followed(given: Victim, step: Step, rounds: int) -> Completion:
    """The released procedure in float64 with any step."""
    known = given.weight.double().masked_fill(given.missing, 0)
    means = known.sum(0) / (~given.missing).sum(0).clamp(min=1)
    past = [torch.where(given.missing, means, known)]
    for count in range(1, rounds + 1):
        past = [*past, torch.where(given.missing, step(past[-1], given.missing), known)][-3:]
        if count > 1 and (past[2] - past[0]).norm() / (past[0].norm() + 1e-12) < 1e-5:
            return Completion(past[-1], count)
    return Completion(past[-1], rounds)


def decomposed(filled: Tensor, _: Tensor) -> Tensor:
    u, s, vt = torch.linalg.svd(filled, full_matrices=False)
    result: Tensor = (u * (s - s[-1])) @ vt
    return result


def decomposed_by_numpy(filled: Tensor, _: Tensor) -> Tensor:
    u, s, vt = np.linalg.svd(filled.numpy(), full_matrices=False)
    return torch.from_numpy((u * (s - s[-1])) @ vt)


def eigen_by_numpy(filled: Tensor, _: Tensor) -> Tensor:
    squares, basis = (torch.from_numpy(part) for part in np.linalg.eigh((filled @ filled.mT).numpy()))
    sizes = squares.sqrt()
    return ((basis * (1 - sizes[0] / sizes)) @ basis.mT) @ filled


def sampled(filled: Tensor, holes: Tensor) -> Tensor:
    """Products at the holes alone."""
    squares, basis = torch.linalg.eigh(filled @ filled.mT)
    sizes = squares.sqrt()
    left = (basis * (1 - sizes[0] / sizes)) @ basis.mT
    places = holes.mT.to(filled.dtype).to_sparse_csr()
    return torch.sparse.sampled_addmm(places, filled.mT.contiguous(), left, beta=0).to_dense().mT


def newton_schulz(filled: Tensor, _: Tensor) -> Tensor:
    """Products alone for G^-1/2, from nothing: Y <- Y T, Z <- T Z, T = (3 - Z Y) / 2."""
    gram = filled @ filled.mT
    squares = torch.linalg.eigvalsh(gram)
    one, top = torch.eye(len(gram), dtype=gram.dtype), squares[-1]
    y, z = gram / top, one
    while float((gap := one - z @ y).abs().max()) > 1e-11:
        turn = one + gap / 2
        y, z = y @ turn, turn @ z
    return filled - squares[0].sqrt() / top.sqrt() * (z @ filled)


class Warm:
    """Newton for S G S = 1 from the last round's S, its equation solved in the eigenbasis of the first round."""

    def __init__(self) -> None:
        self.root, self.basis, self.sums = torch.empty(0), torch.empty(0), torch.empty(0)

    def __call__(self, filled: Tensor, _: Tensor) -> Tensor:
        gram = filled @ filled.mT
        if self.root.shape != gram.shape:
            squares, self.basis = torch.linalg.eigh(gram)
            self.sums = squares.sqrt()[:, None] + squares.sqrt()
            self.root = (self.basis / squares.sqrt()) @ self.basis.mT
        for _ in range(20):
            gap = torch.eye(len(gram), dtype=gram.dtype) - self.root @ (gram @ self.root)
            if float(gap.abs().max()) < 1e-11:
                break
            self.root = self.root + self.basis @ ((self.basis.mT @ gap @ self.basis) / self.sums) @ self.basis.mT
        return filled - torch.linalg.eigvalsh(gram)[0].sqrt() * (self.root @ filled)


def ours(given: Victim, rounds: int = 500, dtype: torch.dtype = torch.float64) -> Completion:
    return complete(given.weight, given.missing, rounds=rounds, dtype=dtype)


def timed(work: Callable[[], Completion]) -> tuple[Completion, float, float]:
    """What it gives, seconds on the clock, and seconds of processor time."""
    start, cpu = time.perf_counter(), time.process_time()
    done = work()
    if done.matrix.is_cuda:
        torch.cuda.synchronize()
    return done, time.perf_counter() - start, time.process_time() - cpu


def deviation(one: Tensor, other: Tensor, missing: Tensor) -> float:
    """Largest difference in the holes, relative to the largest value there."""
    return float(((one - other).abs()[missing].max() / other.abs()[missing].max()).cpu())


def peak() -> float:
    """Largest memory of this process so far, GB (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def right(found: Tensor, given: Victim) -> tuple[float, float]:
    """Share of the missing signs found; the same of the share that the attack retains."""
    good = found.sign() == given.weight.sign()
    kept = retained(found, given.missing, Revive().keep)
    return float(good[given.missing].double().mean()), float(good[kept].double().mean())


def all_of_them(device: str, sizes: list[tuple[int, int]], spread: float, dtype: torch.dtype) -> list[dict[str, float]]:
    """Ours on every matrix."""
    rows = []
    for size, many in sizes:
        for seed in range(many):
            given = victim(size, seed, spread)
            held = Victim(given.weight.to(device), given.missing.to(device))
            done, wall, cpu = timed(lambda held=held: ours(held, dtype=dtype))
            found, kept = right(done.matrix.cpu(), given)
            share, touched = float(given.missing.double().mean()), float(given.missing.any(0).double().mean())
            told = {"rows": size, "seed": seed, "missing": share, "touched": touched, "rounds": done.rounds}
            rows.append({**told, "seconds": wall, "cpu": cpu, "signs": found, "retained": kept})
            print(
                f"| {device}, {str(dtype)[6:]} | {size}x{4 * size} | {share:.1%} | {touched:.0%} | {done.rounds} "
                f"| {wall:.2f} | {wall / done.rounds:.3f} | {cpu:.2f} | {found:.2%} | {kept:.2%} |",
                flush=True,
            )
    return rows


def in_turn(size: int, rounds: int, spread: float, tried: bool) -> dict[str, dict[str, float]]:
    """The plain way, ours and others, the same rounds of one matrix; seconds of a round, and how far from the plain."""
    given = victim(size, 2, spread)
    steps: dict[str, Step] = {"SVD, torch": decomposed, "SVD, numpy": decomposed_by_numpy}
    steps["Gram, every column"] = lambda filled, _: shrunk(filled, None)
    if tried:
        steps |= {"Gram, eigh of numpy": eigen_by_numpy, "Gram, sampled products": sampled}
        steps |= {"Newton-Schulz": newton_schulz, "warm Newton": Warm()}
    ways = {name: lambda step=step: followed(given, step, rounds) for name, step in steps.items()}
    ways |= {"ours": lambda: ours(given, rounds), "ours, float32": lambda: ours(given, rounds, dtype=torch.float32)}
    if torch.cuda.is_available():
        held = Victim(given.weight.cuda(), given.missing.cuda())
        ways["ours, cuda"] = lambda: ours(held, rounds)
    told: dict[str, dict[str, float]] = {}
    plain: Completion | None = None
    for name, way in ways.items():
        done, wall, cpu = timed(way)
        plain = done if plain is None else plain
        found = done.matrix.double().cpu()
        told[name] = {"rounds": done.rounds, "seconds": wall / done.rounds, "cpu": cpu / done.rounds}
        told[name]["deviation"] = deviation(found, plain.matrix, given.missing)
        told[name]["other signs"] = int((found.sign() != plain.matrix.sign())[given.missing].sum())
        print(
            f"| {size}x{4 * size} | {name} | {done.rounds} | {wall / done.rounds:.3f} | {cpu / done.rounds:.3f} "
            f"| {told['SVD, torch']['seconds'] / told[name]['seconds']:.1f} | {told[name]['deviation']:.1e} "
            f"| {told[name]['other signs']} of {int(given.missing.sum())} |",
            flush=True,
        )
    return told


def summary(each: list[dict[str, float]], turns: dict[int, dict[str, dict[str, float]]]) -> dict[str, float]:
    """Over all matrices; what the plain way takes is its time of a round, by the rounds that ours took."""
    told: dict[str, float] = {}
    for clock, end in (("seconds", ""), ("cpu", "_cpu")):
        told[clock] = sum(row[clock] for row in each)
        for name, key in (("SVD, torch", "ratio"), ("SVD, numpy", "ratio_numpy")):
            plain = sum(row["rounds"] * turns[int(row["rows"])][name][clock] for row in each)
            told[key + end] = plain / told[clock]
    for name, key in (("ours", "deviation"), ("ours, float32", "deviation_float32")):
        told[key] = max(turn[name]["deviation"] for turn in turns.values())
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small matrix, few rounds; no result")
    parser.add_argument("--whole", action="store_true", help="the plain way to the end of the largest size too")
    parser.add_argument("--tried", action="store_true", help="also the ways that were tried and not taken")
    parser.add_argument("--spread", type=float, default=1.0, help="log-normal spread of the norms of the columns")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| | size | missing | columns hit | rounds | seconds | a round | processor s | signs | of the retained |")
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    sizes = [(320, 1)] if options.quick else list(SIZES)
    each = all_of_them("cpu", sizes, options.spread, torch.float64)
    told: dict[str, object] = {"threads": torch.get_num_threads(), "spread": options.spread, "each": each}
    told["memory"] = peak()
    told["each, float32"] = all_of_them("cpu", sizes, options.spread, torch.float32)
    if torch.cuda.is_available():
        told["each, cuda"] = all_of_them("cuda", sizes, options.spread, torch.float64)
    print("\n| size | way | rounds | seconds a round | processor seconds | ratio | deviation | other signs |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    few = {320: 500, 640: 1 if options.quick else 500, 1280: 1 if options.quick else 500 if options.whole else 3}
    turns = {size: in_turn(size, few[size], options.spread, options.tried) for size, _ in SIZES}
    told["in turn"] = turns
    told |= (figures := summary(each, turns))
    print(f"\n{len(each)} matrices: {figures['seconds']:.1f} s, {figures['cpu']:.1f} s of processors,", end=" ")
    print(f"{told['memory']:.2f} GB at most; the largest deviation from torch's SVD {figures['deviation']:.1e}")
    print(f"ratio {figures['ratio']:.1f} to torch's SVD, {figures['ratio_numpy']:.1f} to numpy's;", end=" ")
    print(f"by the processors' time {figures['ratio_cpu']:.1f}, {figures['ratio_numpy_cpu']:.1f}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(told, file, indent=1)


if __name__ == "__main__":
    main()
