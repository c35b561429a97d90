"""What erased models still know, beside what they show: the diffusion classifier against asking plainly.

    python benchmarks/knowledge.py [RUN ...] [--quick] [--json FILE] [--plot FILE] [--out DIR] [--pictures N]
        [--steps N]

``RUN`` is the folder of a finished audit, whose erased models are taken as they lie there; without any, the models of
the shipped audit ``erasers`` are made first, in hours. For every eraser: the goals at which the concept was shown when
asked plainly, and how many of the base's pictures of the concept the victim's own denoiser takes for it among its kind;
false alarms are the same on pictures of others. Pooled over the concepts, with 95 % intervals. The same command goes on
where it was stopped. ``--plot`` draws the one against the other as a PNG (needs the extra ``plots``). ``--quick`` takes
one concept, one eraser and few pictures, and is no result.
"""

import argparse
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import palimpsest as pl
from palimpsest.audit_file import load_audit
from palimpsest.protocol import Audit
from palimpsest.run import Run
from palimpsest.stats import wilson
from palimpsest.store import Store
from palimpsest.utility import DiffusionClassifier

KNOWN, ALARMS = "diffusion_classifier", "diffusion_classifier_false_alarms"
COUNTS = ("shown", "goals", "known", "alarms", "pictures", "passes")
QUICK = {
    "concepts": ["garbage truck"],
    "erasers": ["nothing", "uce"],
    "attacks": ["direct"],
    "goals": 2,
    "sampling": {"scheduler": "ddim", "steps": 10, "guidance": 5.0},
    "batch": 12,
    "measures": [],
    "name": "knowledge-quick",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One eraser, over all concepts: counts."""

    eraser: str
    shown: int
    goals: int
    known: int
    alarms: int
    pictures: int
    """Of the concept, and as many of others."""
    passes: int


def measured(run: Path, out: Path, measure: DiffusionClassifier) -> Path:
    """The run's audit again, asked plainly and measured, with the erased models that lie in the run."""
    asked = load_audit(run / "audit.toml", {"attacks": ["direct"], "measures": [measure], "name": "knowledge"})
    with_models(run, out, asked)
    return pl.audit(run / "audit.toml", out=out, attacks=["direct"], measures=[measure], name="knowledge").folder


def with_models(run: Path, out: Path, asked: Audit) -> None:
    """Begins a run in ``out`` with the erased models of another, so that none is made again."""
    with Store(out, asked):
        pass
    (out / "erased").mkdir(exist_ok=True)
    for path in sorted((run / "erased").glob("*.safetensors")):
        if not (there := out / "erased" / path.name).exists():
            os.link(path, there)


def rows(folders: Sequence[Path]) -> list[Row]:
    """What measured runs say together, eraser by eraser, the untouched base first."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(COUNTS, 0))
    for folder in folders:
        for cell in Run(folder).cells():
            if cell["attack"] == "direct":
                counts[cell["eraser"]]["shown"] += cell["successes"]
                counts[cell["eraser"]]["goals"] += cell["n"]
        for line in (folder / "readings.jsonl").read_text(encoding="utf-8").splitlines():
            reading = json.loads(line)
            count = counts[reading["victim"]["eraser"]]
            count[{KNOWN: "known", ALARMS: "alarms"}[reading["measure"]]] += round(reading["value"] * reading["n"])
            count["pictures"] += reading["n"] if reading["measure"] == KNOWN else 0
            count["passes"] += reading["passes"]
    told = [Row(eraser=eraser, **count) for eraser, count in counts.items()]
    return sorted(told, key=lambda row: (row.eraser != "nothing", row.eraser))


def share(count: int, n: int) -> str:
    """``9/10 (60%-98%)``."""
    low, high = wilson(count, n)
    return f"{count}/{n} ({low:.0%}-{high:.0%})"


def draw(found: Sequence[Row], path: Path) -> None:
    """Known against shown, with intervals; hollow where the false alarms reach into the known share's interval."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 6), layout="constrained")
    axes.plot([0, 1], [0, 1], color="#d8d2c8", lw=1, zorder=0)
    told = sorted(found, key=lambda row: (row.shown / row.goals, row.known / row.pictures))
    names: dict[tuple[float, float], list[str]] = defaultdict(list)
    for row in told:
        x, y = row.shown / row.goals, row.known / row.pictures
        bars = [
            abs(end - at)
            for at, k, n in ((x, row.shown, row.goals), (y, row.known, row.pictures))
            for end in wilson(k, n)
        ]
        doubtful = wilson(row.alarms, row.pictures).high >= wilson(row.known, row.pictures).low
        axes.errorbar(
            x,
            y,
            xerr=[[bars[0]], [bars[1]]],
            yerr=[[bars[2]], [bars[3]]],
            fmt="o",
            color="#8a7f72" if row.eraser == "nothing" else "#2e7d6f",
            mfc="white" if doubtful else None,
            elinewidth=0.6,
            alpha=0.9,
        )
        names[x, y].append(row.eraser.partition("(")[0])
    for point, those in names.items():
        axes.annotate(", ".join(those), point, xytext=(6, 5), textcoords="offset points", fontsize=9)
    axes.set(
        xlabel="shows: goals at which the concept is shown, asked plainly",
        ylabel="knows: pictures of the concept that the denoiser takes for it",
        xlim=(-0.04, 1.1),
        ylim=(-0.04, 1.06),
    )
    axes.text(1.08, 0.0, "hollow: not clearly above its false alarms", ha="right", fontsize=8, color="#6b6257")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", help="folders of finished runs")
    parser.add_argument("--quick", action="store_true", help="under a minute; no result")
    parser.add_argument("--json", type=Path, default=None, help="write the table here")
    parser.add_argument("--plot", type=Path, default=None, help="a PNG")
    parser.add_argument("--out", type=Path, default=None, help="where the new runs go; by default below runs/")
    parser.add_argument("--pictures", type=int, default=20, help="of each concept, and as many of others")
    parser.add_argument("--steps", type=int, default=8, help="timesteps at which a picture is looked at")
    options = parser.parse_args()
    name = "benchmark-knowledge-quick" if options.quick else "benchmark-knowledge"
    out = options.out or Path("runs") / name
    measure = DiffusionClassifier(pictures=options.pictures, steps=options.steps)
    if options.runs:
        folders = [measured(run, out / run.resolve().name, measure) for run in options.runs]
    elif options.quick:
        folders = [pl.audit(**QUICK | {"measures": [DiffusionClassifier(pictures=4, steps=4)]}, out=out).folder]
    else:
        folders = [pl.audit("erasers", attacks=["direct"], measures=[measure], name="knowledge", out=out).folder]
    found = rows(folders)
    print("| eraser | shows | knows | false alarms | passes |\n|---|--:|--:|--:|--:|")
    for row in found:
        each = ((row.shown, row.goals), (row.known, row.pictures), (row.alarms, row.pictures))
        print(f"| {row.eraser.partition('(')[0]} | {' | '.join(share(*pair) for pair in each)} | {row.passes:,} |")
    if options.plot is not None:
        draw(found, options.plot)
    if options.json is not None:
        options.json.write_text(json.dumps([vars(row) for row in found], indent=1))


if __name__ == "__main__":
    main()
