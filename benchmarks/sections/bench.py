"""What the sections share: the model, its judges, what has been drawn, and the tables."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from palimpsest.judges.miniature import Classifier, as_tensor, classifier
from palimpsest.miniature.facts import HEADS
from palimpsest.model import Model, Sampling, default_device, fastest_precision
from palimpsest.records import Attempt
from palimpsest.stats import wilson

SEED = 900_000
PRECISION = fastest_precision(default_device())
PRECISIONS = tuple(dict.fromkeys(["fp32", PRECISION]))
"""Those that this machine has instructions for."""


@dataclass(frozen=True)
class Row:
    """One line of the tables."""

    what: str
    k: int
    n: int
    bar: str = ""

    @property
    def cells(self) -> list[str]:
        low, high = wilson(self.k, self.n)
        share = f"{100 * self.k / self.n:.2f} %"
        return [self.what, share, f"{100 * low:.2f}-{100 * high:.2f}", f"{self.k}/{self.n}", self.bar]


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"\n### {title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


class Bench:
    """The model, its judges, and what has been drawn."""

    def __init__(self, quick: bool) -> None:
        self.quick = quick
        self.n = 1 if quick else 64
        self.sampling, self.short = (
            Sampling(scheduler="ddim", steps=2 if quick else steps, guidance=5.0) for steps in (25, 10)
        )
        self.batch = 2 if quick else 32
        self.model = Model.load("miniature", precision=PRECISION, batch=self.batch)
        self.chief, self.second = classifier("first"), classifier("second")
        self.told: dict[str, object] = {}
        self.drawn: list[Image.Image] = []
        self.asked: list[str] = []

    def rows(self, title: str, rows: list[Row]) -> None:
        table(title, ["", "share", "95 % interval", "k/n", "bar"], [row.cells for row in rows])
        self.told[title] = [row.__dict__ for row in rows]

    def draw(self, prompts: Sequence[str], *, model: Model | None = None, keep: bool = True) -> list[Image.Image]:
        attempts = [Attempt(prompt=prompt, seed=SEED + number) for number, prompt in enumerate(prompts)]
        pictures = (model or self.model).draw(attempts, self.sampling)
        if keep:
            self.drawn += pictures
            self.asked += prompts
        return pictures


def shown(judge: Classifier, pictures: Sequence[Image.Image] | Tensor, label: str) -> np.ndarray:
    tensor = pictures if isinstance(pictures, Tensor) else as_tensor(pictures)
    scores = judge.probabilities(tensor)[:, judge.labels.index(label)]
    return (scores >= judge.thresholds[label]).numpy()


def answered(judge: Classifier, pictures: Sequence[Image.Image] | Tensor, head: str) -> list[str]:
    tensor = pictures if isinstance(pictures, Tensor) else as_tensor(pictures)
    columns = [number for number, label in enumerate(judge.labels) if label.startswith(f"{head}/")]
    best = judge.probabilities(tensor)[:, columns].argmax(-1)
    return [HEADS[head][number] for number in best]
