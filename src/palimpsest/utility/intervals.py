"""Means over pictures, with their intervals, as readings."""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from palimpsest.records import Reading
from palimpsest.stats import LEVEL, Interval
from palimpsest.utility.base import Erasure

RESAMPLES = 4999
AT_ONCE = 10_000_000
"""Numbers held while resampling."""


def mean_interval(values: NDArray[np.float64], seed: int) -> Interval:
    """Of the mean of (n,) values, n >= 2: the bootstrap's BCa interval (Efron 1987), by SciPy."""
    if np.all(values == values[0]):  # for which the bootstrap knows none
        return Interval(float(values[0]), float(values[0]))
    found = bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        batch=max(1, AT_ONCE // len(values)),
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(found.low), float(found.high))


def means(
    erasure: Erasure, measure: str, values: NDArray[np.float64], *, of: str, least: float = -np.inf
) -> list[Reading]:
    """A reading of each concept, and of all together: means of (n,) values, equally many of each, concept by concept.

    No reading and no bound lies below ``least``.
    """
    each = values.reshape(len(erasure.concepts), -1)
    parts = [("", values), *((concept.name, own) for concept, own in zip(erasure.concepts, each, strict=True))]
    readings = []
    for concept, own in parts:
        interval = mean_interval(own, erasure.seed)
        readings.append(
            Reading(
                victim=erasure.victim,
                measure=measure,
                concept=concept,
                value=max(least, float(own.mean())),
                n=len(own),
                low=max(least, interval.low),
                high=max(least, interval.high),
                of=of,
                unit="number",
            )
        )
    return readings
