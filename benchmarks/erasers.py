"""Every eraser on the six fixed concepts: how well it erases and resists, what it costs, and which a publisher takes.

    python benchmarks/erasers.py [--quick] [--json FILE] [--plot FILE] [--out DIR]

It runs the shipped audit ``erasers``, in whose file the settings for the miniature stand; the same command goes on
where it was stopped. Rates are pooled over the concepts. ``--plot`` draws the worst rate against the neighbours kept,
as a PNG (needs the extra ``plots``). ``--quick`` takes one goal of one concept and one eraser, and is no result.
"""

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from safetensors import safe_open

from palimpsest.run import Run
from palimpsest.stats import wilson

QUICK = (
    "--goals 1 --batch 4 --budget quick --concept alice --eraser nothing --eraser uce "
    "--measure neighbours --measure clip_score"
).split()
ATTACKS = ("direct", "random_prefix", "unlearn_diff")
MEASURES = ("neighbours", "clip_score", "kid")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One eraser, over all concepts."""

    eraser: str
    shown: dict[str, tuple[int, int]]
    """Attack -> (goals at which the concept was shown, goals)."""
    measured: dict[str, float]
    """Measure -> mean over the concepts; ``neighbours`` relative to the base's."""
    seconds: float
    passes: int
    peak: int
    """Of one erasure: mean seconds and passes, largest memory of the process in bytes; 0: it was not made here."""

    @property
    def worst(self) -> float:
        """The highest rate of all attacks."""
        return max(won / n for won, n in self.shown.values())

    @property
    def kept(self) -> float:
        """Neighbours, relative to the base's."""
        return self.measured["neighbours"]


def rows(folder: Path) -> list[Row]:
    """What a run's folder holds, by eraser."""
    found = Run(folder).summary()
    shown: dict[str, dict[str, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
    for cell in found["cells"]:
        shown[cell["eraser"]][cell["attack"].partition("(")[0]].append((cell["successes"], cell["n"]))
    measured: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for reading in found["utility"]:
        if reading["measure"] in MEASURES:
            share = reading["measure"] == "neighbours"
            value = reading["value"] / reading["base"] if share else reading["value"]
            measured[reading["eraser"]][reading["measure"]].append(value)
    costs = _costs(folder)
    return [
        Row(
            eraser=eraser,
            shown={attack: (sum(w for w, _ in pairs), sum(n for _, n in pairs)) for attack, pairs in attacks.items()},
            measured={name: sum(values) / len(values) for name, values in measured[eraser].items()},
            seconds=_mean([float(cost["seconds"]) for cost in costs[eraser.partition("(")[0]]]),
            passes=round(_mean([float(cost["passes"]) for cost in costs[eraser.partition("(")[0]]])),
            peak=max((int(cost["peak_memory"]) for cost in costs[eraser.partition("(")[0]]), default=0),
        )
        for eraser, attacks in shown.items()
    ]


def _costs(folder: Path) -> Mapping[str, list[dict[str, str]]]:
    """Eraser's name -> what the files of its weights say that they cost."""
    costs: dict[str, list[dict[str, str]]] = defaultdict(list)
    for path in sorted((folder / "erased").glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            about = file.metadata()
        if "seconds" in about:
            costs[json.loads(about["eraser"])["name"]].append(about)
    return costs


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def pareto(found: Sequence[Row]) -> list[Row]:
    """Those that no other beats in both: a lower worst rate, and more of the neighbours kept."""
    return [
        row
        for row in found
        if not any(
            other.worst <= row.worst and other.kept >= row.kept and (other.worst, other.kept) != (row.worst, row.kept)
            for other in found
        )
    ]


def table(found: Sequence[Row]) -> Table:
    """Rates with their 95 % intervals."""
    drawn = Table(title="Goals at which the concept was shown, all concepts together, and what erasing cost")
    for heading in ("eraser", *ATTACKS, "neighbours kept", "CLIP score", "KID", "seconds", "passes", "peak, MiB", ""):
        drawn.add_column(heading, justify="left" if heading in ("eraser", "") else "right")
    best = pareto([row for row in found if not row.eraser.startswith("nothing")])
    for row in found:
        rates = []
        for attack in ATTACKS:
            won, n = row.shown.get(attack, (0, 0))
            low, high = wilson(won, n) if n else (0.0, 0.0)
            rates.append(f"{won}/{n} ({low:.0%}-{high:.0%})" if n else "")
        values = [
            f"{row.measured[name]:{form}}" if name in row.measured else ""
            for name, form in zip(MEASURES, (".0%", ".1f", ".2f"), strict=True)
        ]
        cost = [f"{row.seconds:.1f}", f"{row.passes:,}", f"{row.peak / 2**20:,.0f}"] if row.peak else ["", "", ""]
        drawn.add_row(row.eraser.partition("(")[0], *rates, *values, *cost, "Pareto" if row in best else "")
    return drawn


def draw(found: Sequence[Row], path: Path) -> None:
    """Worst rate against neighbours kept, the Pareto set joined by a line."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    erased = [row for row in found if not row.eraser.startswith("nothing")]
    best = sorted(pareto(erased), key=lambda row: row.kept)
    figure, axes = pyplot.subplots(figsize=(8, 5.5), layout="constrained")
    axes.plot([row.kept for row in best], [row.worst for row in best], color="#2e7d6f", lw=1.5, zorder=1)
    for row in erased:
        axes.scatter(row.kept, row.worst, color="#2e7d6f" if row in best else "#8a7f72", zorder=2)
        axes.annotate(row.eraser.partition("(")[0], (row.kept, row.worst), xytext=(5, 4), textcoords="offset points")
    axes.set(
        xlabel="neighbours kept, of the base's", ylabel="worst rate under attack", xlim=(-0.05, 1.12), ylim=(-0.05, 1.1)
    )
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute; no result")
    parser.add_argument("--json", type=Path, default=None, help="write the table here")
    parser.add_argument("--plot", type=Path, default=None, help="a PNG")
    parser.add_argument("--out", type=Path, default=None, help="the run's folder; by default one below runs/")
    arguments = parser.parse_args()
    out = arguments.out or Path("runs") / ("benchmark-erasers-quick" if arguments.quick else "benchmark-erasers")
    command = [sys.executable, "-m", "palimpsest", "audit", "erasers", "--out", str(out)]
    subprocess.run([*command, *(QUICK if arguments.quick else [])], check=True)
    found = rows(out)
    Console(width=180).print(table(found))
    if arguments.plot is not None:
        draw(found, arguments.plot)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(row) for row in found], indent=1))


if __name__ == "__main__":
    main()
