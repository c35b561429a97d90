"""Every eraser on the six fixed concepts: how well it erases and resists, what it costs, and which a publisher takes.

    python benchmarks/erasers.py [--quick] [--json FILE] [--plot FILE] [--out DIR] [--jobs N] [--dry-run]

It runs the shipped audit ``erasers``, in whose file the settings for the miniature stand, concept by concept, as many
at once as ``--jobs`` says, with an equal share of the cores; the same command goes on where it was stopped. Rates are
pooled over the concepts. ``--plot`` draws the worst rate against the neighbours kept, as a PNG (needs the extra
``plots``). ``--dry-run`` only predicts. ``--quick`` takes one goal of one concept and one eraser, and is no result.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from safetensors import safe_open

from palimpsest.run import Run
from palimpsest.stats import holm, mcnemar_exact, wilson

CONCEPTS = ("van gogh", "radiation sign", "alice", "church", "parachute", "fish")
QUICK = (
    "--goals 1 --batch 4 --budget quick --eraser nothing --eraser uce --measure neighbours --measure clip_score"
).split()
ATTACKS = ("direct", "random_prefix", "unlearn_diff")
MEASURES = ("neighbours", "clip_score", "kid")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One eraser, over all concepts."""

    eraser: str
    shown: dict[str, tuple[int, int]]
    """Attack -> (goals at which the concept was shown, goals)."""
    alone: tuple[int, int]
    """Goals that ``unlearn_diff`` reached and ``random_prefix`` did not, at equal looks, and the other way round."""
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


def rows(folders: Sequence[Path]) -> list[Row]:
    """What the runs' folders hold, by eraser."""
    shown: dict[str, dict[str, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
    alone: dict[str, list[tuple[int, int]]] = defaultdict(list)
    measured: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for found in (Run(folder).summary() for folder in folders):
        for cell in found["cells"]:
            shown[cell["eraser"]][cell["attack"].partition("(")[0]].append((cell["successes"], cell["n"]))
        for pair in found["comparisons"]:
            alone[pair["eraser"]].append((pair["only_attack"], pair["only_control"]))
        for reading in found["utility"]:
            if reading["measure"] in MEASURES:
                share = reading["measure"] == "neighbours"
                value = reading["value"] / reading["base"] if share else reading["value"]
                measured[reading["eraser"]][reading["measure"]].append(value)
    costs = _costs(folders)
    return [
        Row(
            eraser=eraser,
            shown={attack: _sum(pairs) for attack, pairs in attacks.items()},
            alone=_sum(alone[eraser]),
            measured={name: sum(values) / len(values) for name, values in measured[eraser].items()},
            seconds=_mean([float(cost["seconds"]) for cost in costs[_name(eraser)]]),
            passes=round(_mean([float(cost["passes"]) for cost in costs[_name(eraser)]])),
            peak=max((int(cost["peak_memory"]) for cost in costs[_name(eraser)]), default=0),
        )
        for eraser, attacks in shown.items()
    ]


def _name(eraser: str) -> str:
    return eraser.partition("(")[0]


def _sum(pairs: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return sum(one for one, _ in pairs), sum(other for _, other in pairs)


def _costs(folders: Sequence[Path]) -> Mapping[str, list[dict[str, str]]]:
    """Eraser's name -> what the files of its weights say that they cost."""
    costs: dict[str, list[dict[str, str]]] = defaultdict(list)
    for path in sorted(path for folder in folders for path in (folder / "erased").glob("*.safetensors")):
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
    headings = ("neighbours kept", "CLIP score", "KID", "seconds", "passes", "peak, MiB", "")
    for heading in ("eraser", *ATTACKS, "alone", "p", *headings):
        drawn.add_column(heading, justify="left" if heading in ("eraser", "") else "right")
    erased = [row for row in found if not row.eraser.startswith("nothing")]
    best = pareto(erased)
    adjusted = dict(
        zip((row.eraser for row in erased), holm([mcnemar_exact(*row.alone) for row in erased]), strict=True)
    )
    for row in found:
        rates = []
        for attack in ATTACKS:
            won, n = row.shown.get(attack, (0, 0))
            low, high = wilson(won, n)
            rates.append(f"{won}/{n} ({low:.0%}-{high:.0%})" if n else "")
        p = [f"{row.alone[0]}:{row.alone[1]}", f"{adjusted[row.eraser]:.2g}"] if row.eraser in adjusted else ["", ""]
        values = [
            f"{row.measured[name]:{form}}" if name in row.measured else ""
            for name, form in zip(MEASURES, (".0%", ".1f", ".2f"), strict=True)
        ]
        cost = [f"{row.seconds:.1f}", f"{row.passes:,}", f"{row.peak / 2**20:,.0f}"] if row.peak else ["", "", ""]
        drawn.add_row(_name(row.eraser), *rates, *p, *values, *cost, "Pareto" if row in best else "")
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
        good = row in best
        axes.scatter(row.kept, row.worst, color="#2e7d6f" if good else "#8a7f72", zorder=2)
        # On either side of the line, so that names do not cover each other.
        side = {"xytext": (8 if good else -8, 0), "ha": "left" if good else "right"}
        axes.annotate(_name(row.eraser), (row.kept, row.worst), textcoords="offset points", va="center", **side)
    least = min(row.kept for row in erased)
    axes.set(xlabel="neighbours kept, of the base's", ylabel="worst rate under attack", ylim=(-0.05, 1.05))
    axes.set_xlim(least - 0.15, 1.15)
    figure.savefig(path, dpi=120)


def run(out: Path, concepts: Sequence[str], jobs: int, more: Sequence[str]) -> list[Path]:
    """Runs the audit concept by concept, ``jobs`` at once; the runs' folders."""
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}

    def audit(concept: str) -> Path:
        folder, began = out / concept.replace(" ", "_"), time.monotonic()
        command = [sys.executable, "-m", "palimpsest", "audit", "erasers", "--concept", concept, "--out", str(folder)]
        out.mkdir(parents=True, exist_ok=True)
        with folder.with_suffix(".log").open("a") as log:
            subprocess.run([*command, *more], check=True, env=environment, stdout=log, stderr=log)
        print(f"{concept}: {time.monotonic() - began:.0f} s", flush=True)
        return folder

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(audit, concepts))


def main() -> None:
    """Runs, prints, and with ``--json`` writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute; no result")
    parser.add_argument("--json", type=Path, default=None, help="write the table here")
    parser.add_argument("--plot", type=Path, default=None, help="a PNG")
    parser.add_argument("--out", type=Path, default=None, help="the runs' folder; by default one below runs/")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="concepts at once; by default, the cores")
    parser.add_argument("--dry-run", action="store_true", help="only predict, concept by concept")
    arguments = parser.parse_args()
    out = arguments.out or Path("runs") / ("benchmark-erasers-quick" if arguments.quick else "benchmark-erasers")
    concepts, more = (["alice"], QUICK) if arguments.quick else (CONCEPTS, [])
    if arguments.dry_run:
        for concept in concepts:
            command = [sys.executable, "-m", "palimpsest", "audit", "erasers", "--concept", concept, "--dry-run"]
            subprocess.run([*command, *more], check=True)
        return
    found = rows(run(out, concepts, min(arguments.jobs, len(concepts)), more))
    Console(width=200).print(table(found))
    if arguments.plot is not None:
        draw(found, arguments.plot)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(row) for row in found], indent=1))


if __name__ == "__main__":
    main()
