"""Times the closed forms on random matrices of Stable Diffusion 1.4's sizes, beside one dense inverse per matrix.

UCE's edit, one epoch of RECE and MACE's fusion, on the 32 keys and values of cross-attention (outputs 320, 640 and
1280, inputs 768) with as many text states as one concept has. The plain way is what the papers describe: a dense
inverse for each matrix (numpy, double precision), which is also what the deviation is taken from.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from palimpsest.closed_form import Ridge, solved
from palimpsest.erasers.rece import Come
from palimpsest.erasers.text_states import gram

SIZES = (320,) * 10 + (640,) * 10 + (1280,) * 12
"""Outputs of Stable Diffusion 1.4's cross-attention keys and values."""
WIDTH, CONTEXT, PROMPTS = 768, 77, 30
LAM = 0.1


class Problem:
    """Random matrices, and text states that are nearly collinear, as CLIP's are."""

    def __init__(self, sizes: tuple[int, ...], width: int, seed: int = 0) -> None:
        random = torch.Generator().manual_seed(seed)
        self.weights = {str(at): torch.randn(out, width, generator=random) / width**0.5 for at, out in enumerate(sizes)}
        common = torch.randn(width, generator=random, dtype=torch.float64)
        near = torch.randn(3, CONTEXT, width, generator=random, dtype=torch.float64)
        self.keys, self.anchors, self.retained = common + 0.3 * near
        many = torch.randn(2, PROMPTS * CONTEXT, width, generator=random, dtype=torch.float64)
        self.prompts = common + 0.3 * many
        self.changes = [
            {
                name: (torch.randn(len(weight), 1, generator=random) @ torch.randn(1, width, generator=random)).double()
                * 1e-3
                for name, weight in self.weights.items()
            }
            for _ in self.prompts
        ]
        self.penalty = LAM * torch.eye(width, dtype=torch.float64) + LAM * self.retained.mT @ self.retained


def uce(given: Problem) -> dict[str, Tensor]:
    ridge = Ridge.of(given.keys, given.penalty)
    return {name: ridge.edit(weight, given.anchors @ weight.double().mT) for name, weight in given.weights.items()}


def rece(given: Problem) -> dict[str, Tensor]:
    come = Come(Ridge.of(given.keys, given.penalty).turn(given.anchors), gram(given.weights))
    keys = come.adversarial(given.keys, 0.1)
    come = come.followed_by(Ridge.of(keys, given.penalty).turn(given.anchors))
    return {name: (weight.double() + weight.double() @ come.change).float() for name, weight in given.weights.items()}


def mace(given: Problem) -> dict[str, Tensor]:
    grams = [rows.mT @ rows for rows in given.prompts]
    total = torch.stack([given.penalty, *grams]).sum(0)
    shares = [solved(total, each).mT for each in grams]
    return {
        name: (
            weight.double() + sum(each[name] @ share for each, share in zip(given.changes, shares, strict=True))
        ).float()
        for name, weight in given.weights.items()
    }


def edited(weight: np.ndarray, keys: np.ndarray, values: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    """One dense inverse for one matrix."""
    return (values.T @ keys + weight @ penalty) @ np.linalg.inv(keys.T @ keys + penalty)


def plain_uce(given: Problem) -> dict[str, np.ndarray]:
    keys, anchors, penalty = given.keys.numpy(), given.anchors.numpy(), given.penalty.numpy()
    starts = {name: weight.double().numpy() for name, weight in given.weights.items()}
    return {name: edited(w, keys, anchors @ w.T, penalty) for name, w in starts.items()}


def plain_rece(given: Problem) -> dict[str, np.ndarray]:
    anchors, penalty = given.anchors.numpy(), given.penalty.numpy()
    starts = {name: weight.double().numpy() for name, weight in given.weights.items()}
    now = plain_uce(given)
    left = 0.1 * np.eye(len(penalty)) + sum(w.T @ w for w in now.values())
    right = sum(w.T @ starts[name] for name, w in now.items())
    keys = given.keys.numpy() @ (np.linalg.inv(left) @ right).T
    return {name: edited(w, keys, anchors @ w.T, penalty) for name, w in now.items()}


def plain_mace(given: Problem) -> dict[str, np.ndarray]:
    penalty = given.penalty.numpy()
    keys = np.concatenate([rows.numpy() for rows in given.prompts])
    told = {}
    for name, weight in given.weights.items():
        w = weight.double().numpy()
        pairs = zip(given.changes, given.prompts, strict=True)
        values = np.concatenate([rows.numpy() @ (w + change[name].numpy()).T for change, rows in pairs])
        told[name] = edited(w, keys, values, penalty)
    return told


WAYS: dict[str, tuple[Callable[[Problem], dict[str, Tensor]], Callable[[Problem], dict[str, np.ndarray]]]] = {
    "uce": (uce, plain_uce),
    "rece, one epoch": (rece, plain_rece),
    "mace, fusion of two": (mace, plain_mace),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three small matrices; no result")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    given = Problem((32, 64, 128), 96) if options.quick else Problem(SIZES, WIDTH)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {len(given.weights)} matrices\n")
    print("| closed form | seconds | the plain way | ratio | largest deviation |\n|---|--:|--:|--:|--:|")
    told: dict[str, object] = {"threads": torch.get_num_threads(), "matrices": len(given.weights)}
    ours: dict[str, tuple[float, dict[str, Tensor]]] = {}
    for name, (way, _) in WAYS.items():  # all of them before the plain ways, whose memory is not ours
        began = time.perf_counter()
        found = way(given)
        ours[name] = time.perf_counter() - began, found
    told["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    for name, (_, plain) in WAYS.items():
        seconds, found = ours[name]
        began = time.perf_counter()
        expected = plain(given)
        whole = time.perf_counter() - began
        gap = max(float(np.abs(found[each].double().numpy() - one).max()) for each, one in expected.items())
        told[name] = {"seconds": seconds, "plain": whole, "ratio": whole / seconds, "deviation": gap}
        print(f"| {name} | {seconds:.2f} | {whole:.2f} | {whole / seconds:.1f} | {gap:.1e} |", flush=True)
    print(f"\n{told['peak_gb']:.2f} GB at most, libraries and the matrices included")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(told, file, indent=1)


if __name__ == "__main__":
    main()
