"""The miniature's two judges: classifiers that know every fact of its world."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from transformers import AutoModelForImageClassification

from palimpsest.assets import judge_folder
from palimpsest.errors import unknown
from palimpsest.judges.base import Judge
from palimpsest.records import Concept

BATCH = 32
"""One size for every forward (short ones are padded), so that a score does not depend on a picture's neighbours."""


class Classifier:
    """An image classifier whose labels are ``head/answer``; each head is a softmax of its own."""

    def __init__(self, folder: Path) -> None:
        """Opens a folder of transformers with ``thresholds.json`` beside the weights."""
        self.network: Any = AutoModelForImageClassification.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32
        ).eval()
        names = self.network.config.id2label
        self.labels: tuple[str, ...] = tuple(names[number] for number in range(len(names)))
        self.thresholds: dict[str, float] = json.loads((folder / "thresholds.json").read_text())

    @torch.no_grad()
    def probabilities(self, pictures: Tensor) -> Tensor:
        """(n, 3, 64, 64) uint8 -> (n, labels): for each head the probabilities of its answers."""
        parts = []
        for part in pictures.split(BATCH):
            padded = torch.zeros(BATCH, *part.shape[1:], dtype=torch.uint8)
            padded[: len(part)] = part
            parts.append(self.network(pixel_values=padded.float() / 127.5 - 1).logits[: len(part)])
        return by_head(torch.cat(parts), self.labels)


def by_head(logits: Tensor, labels: Sequence[str]) -> Tensor:
    """Softmax of the logits within each head: labels of one head stand side by side."""
    heads = [label.split("/")[0] for label in labels]
    sizes = [heads.count(head) for head in dict.fromkeys(heads)]
    return torch.cat([part.softmax(-1) for part in logits.split(sizes, dim=-1)], dim=-1)


@cache
def classifier(which: str) -> Classifier:
    """The shipped classifier ``first`` or ``second``, opened once."""
    return Classifier(judge_folder(which))


def as_tensor(pictures: Sequence[Image]) -> Tensor:
    """PIL pictures of any size -> (n, 3, 64, 64) uint8."""
    arrays = [np.asarray(picture.convert("RGB").resize((64, 64))) for picture in pictures]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


@dataclass(frozen=True, kw_only=True)
class Miniature(Judge):
    """Knows the miniature's objects, styles, identities and sign: a small residual network (ResNet)."""

    name: ClassVar[str] = "miniature"
    which: ClassVar[str] = "first"

    def score(self, pictures: Sequence[Image], concept: Concept) -> list[float | None]:
        """The probability of the concept's label among the answers of its head."""
        label = self._label(concept)
        if not pictures:
            return []
        seen = classifier(self.which)
        column = seen.probabilities(as_tensor(pictures))[:, seen.labels.index(label)]
        return [float(value) for value in column]

    def threshold(self, concept: Concept) -> float:
        """Set on separate pictures for at most 0.1 % false alarms."""
        return classifier(self.which).thresholds[self._label(concept)]

    def _label(self, concept: Concept) -> str:
        label = concept.labels.get(self.name, f"{concept.kind}/{concept.name}")
        known = classifier(self.which).labels
        if label not in known:
            raise unknown(f"label of the judge {self.name!r}", label, known)
        return label


@dataclass(frozen=True, kw_only=True)
class MiniatureSecond(Miniature):
    """The same knowledge in another architecture (ConvNeXt), trained from another seed."""

    name: ClassVar[str] = "miniature_second"
    which: ClassVar[str] = "second"
