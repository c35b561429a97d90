"""Areas under ROC curves, over several models at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtri

from palimpsest.stats import LEVEL, auroc

RESAMPLES = 1000
GRID = np.linspace(0, 1, 51)
"""False alarms at which a curve is told."""
Scores = list[float | None]
Strata = Sequence[tuple[Scores, Scores]]
"""Of each model the scores of both classes; None: it could not tell. Scores of two models are never compared."""


@dataclass(frozen=True, kw_only=True)
class Area:
    """An area under the ROC curve, the mean over models."""

    value: float
    low: float
    """95 %, by bootstrap: each class of each model resampled. Where all resamples agree, since the classes do not
    overlap or nothing but ties is there, Newcombe's score interval (2006, method 5)."""
    high: float
    positives: int
    """Scores that were told, over all models."""
    negatives: int
    curve: list[float]
    """Share found, the mean over models, at the false alarms of ``GRID``."""


def area(strata: Strata) -> Area | None:
    """What was not told is left out; None where a class of no model was told."""
    told = [[np.array([one for one in scores if one is not None]) for scores in both] for both in strata]
    known = [(good, bad) for good, bad in told if len(good) and len(bad)]
    if not known:
        return None
    random = np.random.default_rng(0)
    drawn = [
        _mean([(random.choice(good, len(good)), random.choice(bad, len(bad))) for good, bad in known])
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    if low == high:
        low, high = _score_interval(float(low), [(len(good), len(bad)) for good, bad in known])
    return Area(
        value=_mean(known),
        low=float(low),
        high=float(high),
        positives=sum(len(good) for good, _ in known),
        negatives=sum(len(bad) for _, bad in known),
        curve=np.mean([_curve(good, bad) for good, bad in known], axis=0).tolist(),
    )


def _mean(known: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> float:
    return float(np.mean([auroc(good.tolist(), bad.tolist()) for good, bad in known]))


def _score_interval(value: float, sizes: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """The areas from which the one observed is ``z`` standard errors away, where nothing overlaps, too.

    The error is the one that Hanley and McNeil (1982) give for those areas, not for the one observed.
    """
    z = float(ndtri((1 + LEVEL) / 2))

    def variance(true: float) -> float:
        spread = (1 - true) / (2 - true) + true / (1 + true)
        each = [true * (1 - true) * (1 + ((m + n) / 2 - 1) * spread) / (m * n) for m, n in sizes]
        return sum(each) / len(each) ** 2

    def beyond(true: float) -> float:
        return float((value - true) ** 2 - z**2 * variance(true))

    low = 0.0 if value == 0 else brentq(beyond, 0.0, value - 1e-9)
    high = 1.0 if value == 1 else brentq(beyond, value + 1e-9, 1.0)
    return float(low), float(high)


def _curve(good: NDArray[np.float64], bad: NDArray[np.float64]) -> list[float]:
    """The largest share found with no more than so many false alarms."""
    limits = np.concatenate([np.unique(np.concatenate([good, bad])), [np.inf]])
    alarms = (bad[None, :] >= limits[:, None]).mean(1)
    found = (good[None, :] >= limits[:, None]).mean(1)
    return [float(found[alarms <= most + 1e-12].max()) for most in GRID]


def draw(curves: Mapping[str, Mapping[str, Mapping[str, Area]]], path: Path) -> None:
    """A panel for each comparison (row) and depth (column), a line for each detector."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    depths = list(dict.fromkeys(depth for of in curves.values() for depth in of))
    names = list(dict.fromkeys(name for of in curves.values() for areas in of.values() for name in areas))
    colours = {name: f"C{place}" for place, name in enumerate(names)}
    size = (3.0 * len(depths), 3.0 * len(curves) + 0.6)
    figure, axes = pyplot.subplots(len(curves), len(depths), figsize=size, squeeze=False, layout="constrained")
    for row, (against, of) in enumerate(curves.items()):
        for column, depth in enumerate(depths):
            panel = axes[row][column]
            panel.plot([0, 1], [0, 1], color="#D8D2C8", lw=1)
            for name, one in of.get(depth, {}).items():
                panel.plot(GRID, one.curve, color=colours[name], lw=1.4, label=name)
            panel.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), title=f"{depth}, {against}")
            panel.set_aspect("equal")
        axes[row][0].set_ylabel("triggered prompts found")
    for panel in axes[-1]:
        panel.set_xlabel("false alarms")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=120)
