"""T2IShield's CDA: what attention maps covary like under known triggers, told by a linear discriminant."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palimpsest.errors import BadSetting, writing
from palimpsest.model.screening import read_json
from palimpsest.scanning.attention import AttentionDetector
from palimpsest.scanning.base import Suspect
from palimpsest.scanning.ftt import scaled

SHRINK = 1e-4
"""Added to the spread within classes, in parts of its mean, so that few prompts suffice."""


@dataclass(frozen=True, kw_only=True)
class Cda(AttentionDetector):
    """Maps the covariance of a prompt's attention maps to a plane, and asks on which side of known triggers it lies.

    The covariance discriminative analysis of "T2IShield", Wang et al., ECCV 2024, arXiv 2407.04215. The maps of all
    tokens behind the start token, the mean over all steps, each scaled to a maximum of 1, are reduced to
    ``components`` principal components; their covariance C, by Riemann's logarithm, becomes the vector log C, and
    Fisher's linear discriminant, learnt from prompts that are known to be triggered and others,

        score = w . log C - b,    w = S^-1 (m_triggered - m_clean),    b = w . (m_triggered + m_clean) / 2

    with m the means and S the spread within the classes. It knows what it was shown: ``fit`` makes its ``state``.
    """

    name = "cda"
    paper = 0.0

    state: str = ""
    """A JSON file that ``fit`` wrote, with these same settings of the maps."""
    components: int = 20
    """Of the maps; there must be fewer than the context has tokens, and no more than a map has places."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range, and a state that cannot be read."""
        super().__post_init__()
        self.require_least(components=2)
        if self.state:
            assert len(self.plane) == self.components + 1

    def score(self, maps: Tensor, words: int) -> float | None:
        """On which side of the plane, and how far; None for a prompt without words."""
        if not self.state:
            raise BadSetting(f"{self.name}: expected state=FILE, of known triggers, got none")
        *weights, offset = self.plane
        return float(np.dot(weights, self.features(maps)) - offset) if words else None

    def features(self, maps: Tensor) -> NDArray[np.float64]:
        """(components,): the diagonal of log C, which in its own principal components is all of it."""
        own = scaled(maps)[1:]
        if self.components > min(len(own) - 1, own.shape[1]):
            raise BadSetting(
                f"{self.name}: expected components <= {min(len(own) - 1, own.shape[1])}, got {self.components}"
            )
        variances = torch.linalg.svdvals(own - own.mean(0))[: self.components].square() / (len(own) - 1)
        return np.asarray(variances.clamp(min=1e-12).log().numpy(), dtype=np.float64)

    def fit(self, path: Path, suspect: Suspect, triggered: Sequence[str], clean: Sequence[str]) -> "Cda":
        """Learns the plane from prompts of both kinds, and writes it; raises ``BadSetting`` for fewer than two each."""
        if min(len(triggered), len(clean)) < 2:
            raise BadSetting(
                f"{self.name}: expected two triggered and two clean prompts or more, got {len(triggered)} and "
                f"{len(clean)}"
            )
        kinds = [
            np.stack([self.features(maps) for maps in self.maps(suspect, prompts)]) for prompts in (triggered, clean)
        ]
        plane = discriminant(*kinds)
        with writing(path):
            path.write_text(json.dumps({"fitted": self._fitted, "plane": plane}), encoding="utf-8")
        return Cda(**{key: value for key, value in self.spec.items() if key not in ("name", "state")}, state=str(path))

    @cached_property
    def plane(self) -> list[float]:
        """The plane's w, and b behind it."""
        if not Path(self.state).is_file():  # a device may never end
            raise BadSetting(f"{self.name}: expected a state that was fitted, got {self.state}, which is no file")
        told = read_json(Path(self.state))
        if not isinstance(told, dict) or told.keys() != {"fitted", "plane"}:
            raise BadSetting(f"{self.name}: expected a state that was fitted, got {self.state}")
        if told["fitted"] != self._fitted:
            raise BadSetting(
                f"{self.name}: expected a state fitted with {self._fitted}, got {self.state}, fitted with "
                f"{told['fitted']}"
            )
        try:
            plane = [float(number) for number in told["plane"]]
        except (ValueError, TypeError, OverflowError):
            plane = []
        if len(plane) != self.components + 1 or not all(map(math.isfinite, plane)):
            raise BadSetting(f"{self.name}: expected a state of {self.components + 1} finite numbers in {self.state}")
        return plane

    @property
    def _fitted(self) -> dict[str, Any]:
        """Settings on which the plane hangs."""
        return {name: getattr(self, name) for name in ("components", "steps", "guidance", "side", "seed")}


def discriminant(triggered: NDArray[np.float64], clean: NDArray[np.float64]) -> list[float]:
    """Fisher's w and b from (n, d) features of the two classes."""
    means = triggered.mean(0), clean.mean(0)
    within = np.concatenate([triggered - means[0], clean - means[1]])
    spread = within.T @ within / max(1, len(within) - 2)
    spread += SHRINK * np.trace(spread) / len(spread) * np.eye(len(spread))
    weights = np.linalg.solve(spread, means[0] - means[1])
    return [*weights.tolist(), float(weights @ (means[0] + means[1]) / 2)]
