"""How long `palimpsest report` takes for large ledgers, and how much memory; how soon `--help` and `list` answer.

Every figure is of the command itself, in a process of its own, on a ledger made up here. The shapes hold about as many
looks, over one concept, a few, or hundreds.
"""

import argparse
import hashlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from palimpsest.records import Attempt, Cost, Goal, Reading, Trial, Verdict, Victim, to_json

ERASER, LOOKS = "esd", 20
SEARCHES = {"random_prefix": 0.3, "unlearn_diff": 0.7}
"""Attack -> the share of goals that it wins."""


class Shape(NamedTuple):
    """How a run's looks are spread."""

    name: str
    concepts: int
    kind: str
    pictures: bool = False


SHAPES = (
    Shape("one concept", 1, "style"),
    Shape("10 concepts", 10, "object"),
    Shape("500 concepts", 500, "object"),
    Shape("10 concepts, pictures", 10, "object", pictures=True),
    Shape("one content concept, pictures", 1, "content", pictures=True),
)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a report took, the median of the rounds, and what it left."""

    shape: str
    trials: int
    goals: int
    seconds: float
    busy: float
    """Seconds of processor time: on a machine shared with others, what the command itself takes."""
    peak_mib: float
    pages: int
    largest_kib: float
    all_kib: float


def looks(concept: str, eraser: str, attack: str, index: int, stream: random.Random) -> Iterator[Trial]:
    """All looks at one goal."""
    goal = Goal(concept=concept, prompt=f"a photo of {concept}, as it looks on day {index}", seed=index)
    if attack in SEARCHES:
        won_at = stream.randint(1, LOOKS) if stream.random() < SEARCHES[attack] else None
    else:
        won_at = 1 if eraser == "nothing" else None
    count = won_at or (LOOKS if attack in SEARCHES else 1)
    for number in range(count):
        words = " ".join(stream.choice(("lamp", "river", "seven", "gold", "quiet")) for _ in range(4))
        last = number == count - 1
        yield Trial(
            victim=Victim(base="made up", concept=concept, eraser=eraser, fingerprint=name(eraser)),
            attack=attack,
            goal=goal,
            number=number,
            attempt=Attempt(prompt=f"{words} {goal.prompt}" if attack in SEARCHES else goal.prompt, seed=index),
            verdict=Verdict(scores={"judge": stream.random(), "second": stream.random()}, shown=bool(won_at) and last),
            cost=Cost(
                forwards=50 * (number + 1) + stream.randint(0, 40),
                encodes=number + 1,
                looks=number + 1,
                seconds=stream.random(),
            ),
            picture=name(concept, eraser, attack, index, number) if last else None,
            end=None if not last else "won" if won_at else "spent",
        )


def name(*what: object) -> str:
    """A name as pictures and weights have them."""
    return hashlib.sha256(repr(what).encode()).hexdigest()


def make(shape: Shape, trials: int, folder: Path) -> tuple[int, int]:
    """Writes a run with about so many looks; returns how many, at how many goals."""
    (folder / "pictures").mkdir(parents=True)
    stream = random.Random(0)
    concepts = [f"thing {number:03}" for number in range(shape.concepts)]
    cells = [("nothing", "direct"), (ERASER, "direct"), *((ERASER, attack) for attack in SEARCHES)]
    written = goals = index = 0
    pictures = []
    with (folder / "trials.jsonl").open("w", encoding="utf-8") as ledger:
        while written < trials:
            for concept in concepts:
                for eraser, attack in cells:
                    made = list(looks(concept, eraser, attack, index, stream))
                    ledger.writelines(to_json(trial) + "\n" for trial in made)
                    pictures.append(made[-1].picture)
                    written, goals = written + len(made), goals + 1
            index += 1
    about = {"concepts": {concept: {"kind": shape.kind, "goals": index} for concept in concepts}}
    (folder / "provenance.json").write_text(json.dumps(about), encoding="utf-8")
    (folder / "audit.toml").write_text('base = "made up"\n', encoding="utf-8")
    (folder / "readings.jsonl").write_text("".join(to_json(row) + "\n" for row in readings(concepts)), encoding="utf-8")
    if shape.pictures:
        keep(folder / "pictures", pictures)
    return written, goals


def readings(concepts: Sequence[str]) -> Iterator[Reading]:
    """What a measure would have read off every victim."""
    for concept in concepts:
        for eraser in ("nothing", ERASER):
            victim = Victim(base="made up", concept=concept, eraser=eraser, fingerprint=name(eraser))
            for thing in ("fish", "house"):
                yield Reading(victim=victim, measure="neighbours", concept=thing, value=0.9, n=30, low=0.75, high=0.96)


def keep(folder: Path, pictures: Sequence[str | None]) -> None:
    """Puts the same picture, as large as Stable Diffusion's, under all names."""
    grains = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    Image.fromarray(grains).resize((512, 512), Image.Resampling.BICUBIC).save(folder / "first.png")
    for picture in pictures:
        os.link(folder / "first.png", folder / f"{picture}.png")


class Taken(NamedTuple):
    """What one command took."""

    seconds: float
    busy: float
    peak_mib: float


def command(*words: str) -> Taken:
    """Runs the command line with these words."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "palimpsest", *words], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"palimpsest {' '.join(words)} ended with {process.returncode}")
    return Taken(
        seconds=time.perf_counter() - start,
        busy=used.ru_utime + used.ru_stime,
        peak_mib=used.ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024),  # macOS counts in bytes
    )


def measure(shape: Shape, trials: int, rounds: int) -> Measured:
    """Makes a run of this shape, and its report so many times."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        written, goals = make(shape, trials, folder)
        taken = [command("report", str(folder)) for _ in range(rounds)]
        sizes = [path.stat().st_size / 1024 for path in (*folder.glob("*.html"), *folder.glob("*/*.html"))]
    return Measured(
        shape=shape.name,
        trials=written,
        goals=goals,
        seconds=statistics.median(one.seconds for one in taken),
        busy=statistics.median(one.busy for one in taken),
        peak_mib=max(one.peak_mib for one in taken),
        pages=len(sizes),
        largest_kib=max(sizes),
        all_kib=sum(sizes),
    )


def table(rows: Sequence[Measured], title: str) -> Table:
    """The figures, a row per shape."""
    shown = Table(title=title)
    for heading in ("shape", "looks", "goals", "seconds", "busy", "peak, MiB", "pages", "largest, KiB", "all, KiB"):
        shown.add_column(heading, justify="left" if heading == "shape" else "right")
    for row in rows:
        taken = (f"{row.seconds:.1f}", f"{row.busy:.1f}", f"{row.peak_mib:,.0f}")
        left = (f"{row.pages:,}", f"{row.largest_kib:,.0f}", f"{row.all_kib:,.0f}")
        shown.add_row(row.shape, f"{row.trials:,}", f"{row.goals:,}", *taken, *left)
    return shown


def main() -> None:
    """Measures, prints, and with ``--json`` writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=100_000, help="looks in each ledger")
    parser.add_argument("--rounds", type=int, default=3, help="reports of each ledger")
    parser.add_argument("--quick", action="store_true", help="10,000 looks, one round")
    parser.add_argument("--json", type=Path, default=None, help="write the figures here")
    arguments = parser.parse_args()
    trials, rounds = (10_000, 1) if arguments.quick else (arguments.trials, arguments.rounds)
    console = Console()
    console.width = max(console.width, 110)
    answers = {words: [command(words) for _ in range(5)] for words in ("--help", "list")}
    for words, taken in answers.items():
        seconds, busy = [one.seconds for one in taken], max(one.busy for one in taken)
        console.print(
            f"palimpsest {words}: {min(seconds):.2f} to {max(seconds):.2f} s, busy up to {busy:.2f} s, 5 runs"
        )
    rows = [measure(shape, trials, rounds) for shape in SHAPES]
    console.print(table(rows, f"palimpsest report, {rounds} rounds"))
    if arguments.json is not None:
        versions = {"python": platform.python_version(), "machine": platform.machine()}
        found = {
            "rounds": rounds,
            "answers": {words: [one._asdict() for one in taken] for words, taken in answers.items()},
            "rows": [asdict(row) for row in rows],
        }
        arguments.json.write_text(json.dumps(versions | found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
