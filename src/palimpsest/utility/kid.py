"""Whether the victim's pictures, as a whole, are still like the base's."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from palimpsest.errors import BadSetting
from palimpsest.records import Concept, Reading
from palimpsest.stats import LEVEL
from palimpsest.utility.base import Draws, Erasure, Measure, plain_attempts
from palimpsest.utility.features import (
    INCEPTION,
    Network,
    inception_features,
    inception_fingerprint,
    inception_lacks,
)

AT_ONCE = 1024
"""Rows of a kernel matrix that are held at a time."""
LEAST = 3
"""Pictures without which there is no interval."""


@dataclass(frozen=True, kw_only=True)
class Kid(Measure):
    """Kernel inception distance between the victim's and the base's pictures of the other concepts.

    Binkowski et al. 2018, arXiv 1801.01401: the unbiased squared maximum mean discrepancy with the cubic kernel
    k(x, y) = (x . y / d + 1)^3 on d features. Here x_i and y_i are features of the victim's and the base's picture of
    the i-th prompt, of different seeds, and with n of each

        kid = 1 / (n (n - 1)) sum over i != j of  k(x_i, x_j) + k(y_i, y_j) - 2 k(x_i, y_j)

    (Gretton et al. 2012, JMLR 13, eq. 4). Pictures of one prompt are alike, so the pairs i = j are left out; with
    ``same_prompt`` they count, as in the paper, whose samples are independent, and an unerased model gets a value
    below 0. All pictures are one subset: the paper's blocks only save time. The interval is the jackknife's over
    prompts, normal; it may reach below 0, as the estimate may. It is the paper's KID only on ``inception``; values of
    two networks do not compare.
    """

    name = "kid"

    pictures: int = 10
    """Of each concept, by its first prompts; the victim's are shared with the other measures."""
    features: str = ""
    """A folder of a CLIP or an image model of transformers; or a hub id in the cache; or ``inception``, which needs
    torch-fidelity (``palimpsest[inception]``) and its weights; empty: the miniature's CLIP."""
    same_prompt: bool = False
    """Compares the two pictures of one prompt as well, as the paper's estimator for independent samples does."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        if self.pictures < LEAST:
            raise BadSetting(f"{self.name}: expected pictures >= {LEAST}, got {self.pictures}")

    def check(self, base: str) -> None:
        """Opens the network."""
        if self.features != INCEPTION:
            self._network.check("features", base)

    def lacking(self) -> str:
        """Of InceptionV3, the library or the weights."""
        return inception_lacks() if self.features == INCEPTION else ""

    @property
    def fingerprint(self) -> str:
        """Of ``features``."""
        return inception_fingerprint() if self.features == INCEPTION else self._network.fingerprint

    def draws(self, target: Concept, concepts: Sequence[Concept], *, seed: int) -> Draws:
        """The same prompts, of other seeds: an unerased model is then about 0 away, and not exactly the same."""
        return Draws(
            victim=plain_attempts(concepts, self.pictures, seed),
            base=plain_attempts(concepts, self.pictures, seed, of=self.name),
        )

    def measure(self, erasure: Erasure) -> list[Reading]:
        """One reading for all together: of one concept there are too few pictures."""
        draws = self.draws(erasure.target, erasure.concepts, seed=erasure.seed)
        shown = (erasure.pictures(draws.victim), erasure.base_pictures(draws.base))
        inception = self.features == INCEPTION
        own, base = (inception_features(some) if inception else self._network.embeddings(some) for some in shown)
        found = kid(own, base, same_prompt=self.same_prompt)
        half = float(ndtri((1 + LEVEL) / 2)) * found.error
        by = "InceptionV3" if inception else self._network.label
        return [
            Reading(
                victim=erasure.victim,
                measure=self.name,
                concept="",
                value=found.value,
                n=len(own),
                low=found.value - half,
                high=found.value + half,
                of=f"kernel distance from as many of the base's pictures of other seeds, by {by}",
                unit="number",
            )
        ]

    @property
    def _network(self) -> Network:
        return Network(measure=self.name, source=self.features)


class Estimate(NamedTuple):
    """A distance and its standard error."""

    value: float
    error: float


def kid(first: NDArray[np.float64], second: NDArray[np.float64], *, same_prompt: bool = False) -> Estimate:
    """The distance of (n, d) features from as many others, row by row of the same prompt, n >= 3; see ``Kid``.

    The error is the jackknife's, which leaves out one prompt at a time.
    """
    n = len(first)
    own, twins = zip(*(_sums(some, some) for some in (first, second)), strict=True)
    within = sum(own) - sum(twins)
    rows, twin = _sums(first, second)
    columns, _ = _sums(second, first)
    across = rows + columns - twin  # all that is gone where a prompt is left out
    if not same_prompt:
        across, twin = across - twin, 0 * twin
    inside, outside = within.sum(), (across.sum() + twin.sum()) / 2
    # Pairs of different prompts stand in two rows, the two pictures of one prompt in one.
    value = inside / (n * (n - 1)) - 2 * outside / _pairs(n, same_prompt)
    without = (inside - 2 * within) / ((n - 1) * (n - 2)) - 2 * (outside - across) / _pairs(n - 1, same_prompt)
    return Estimate(float(value), sqrt((n - 1) * without.var()))


def _pairs(n: int, same_prompt: bool) -> int:
    return n * n if same_prompt else n * (n - 1)


def _sums(first: NDArray[np.float64], second: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n,) sums of the kernel of each of ``first`` with all of ``second``, and (n,) of each with its fellow."""
    width = first.shape[1]
    rows = [((first[at : at + AT_ONCE] @ second.T / width + 1) ** 3).sum(-1) for at in range(0, len(first), AT_ONCE)]
    return np.concatenate(rows), ((first * second).sum(-1) / width + 1) ** 3
