"""Every eraser against every depth, at a glance."""

from collections.abc import Mapping, Sequence
from pathlib import Path

CALLED = ("target", "trigger", "string")
"""Accuracies that an erasure should bring down; of the others it should leave all."""
Shares = Mapping[str, float]


def draw(found: Mapping[str, Mapping[str, Shares]], kinds: Sequence[str], path: Path) -> None:
    """A panel for each depth (``found``: depth -> eraser -> accuracy -> share), a row per eraser: darker is worse."""
    import matplotlib

    matplotlib.use("agg")
    import numpy as np
    from matplotlib import pyplot

    erasers = list(dict.fromkeys(eraser for of in found.values() for eraser in of))
    columns = {
        depth: [kind for kind in kinds if any(kind in shares for shares in of.values())] for depth, of in found.items()
    }
    widths = [len(some) for some in columns.values()]
    figure, axes = pyplot.subplots(
        *(1, len(found)),
        figsize=(2.2 + 0.52 * sum(widths), 1.3 + 0.27 * len(erasers)),
        width_ratios=widths,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for panel, (depth, of) in zip(axes[0], found.items(), strict=True):
        shares = np.array([[of.get(eraser, {}).get(kind, np.nan) for kind in columns[depth]] for eraser in erasers])
        good = np.array([kind not in CALLED for kind in columns[depth]])
        wrong = np.where(good, 1 - shares, shares)
        panel.imshow(wrong, cmap="OrRd", vmin=0, vmax=1.15, aspect="auto")
        for row, column in np.argwhere(~np.isnan(shares)):
            ink = "white" if wrong[row, column] > 0.7 else "black"
            told = f"{100 * shares[row, column]:.0f}"
            panel.text(column, row, told, color=ink, ha="center", va="center", fontsize=7)
        panel.set_xticks(range(len(columns[depth])), columns[depth], rotation=45, ha="right", fontsize=8)
        panel.set_yticks(range(len(erasers)), erasers, fontsize=8)
        panel.tick_params(length=0)
        panel.set_title(f"planted: {depth}", fontsize=9)
        panel.spines[:].set_visible(False)
    figure.supxlabel("shown, in percent; darker is worse", fontsize=8)
    figure.savefig(path, dpi=120)
