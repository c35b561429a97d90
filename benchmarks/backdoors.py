"""Every eraser against backdoors at four depths: what name, trigger and other concepts show, and whether depth counts.

    python benchmarks/backdoors.py [--quick] [--dry-run] [--plants FILE] [--jobs N] [--out DIR] [--json FILE]
        [--plot FILE] [--pack DIR] [--ledgers DIR]

Four concepts, 25 goals each: two under every eraser, two under those that train nothing. Plants have the settings of
the shipped audit ``backdoors``, erasers those of ``erasers``, and the prunings their papers'; of a concept's neighbours
every second one is held in place, so that *retained* are pictures of these, and of what a template of the plant names,
and *other* pictures of the rest. Accuracies are those of arXiv 2504.21072, pooled over the concepts, with 95 %
intervals; *string* are the same goals with strings like the trigger, which nobody planted, in its place. A plant that
did not take hold before the erasure says nothing behind it: those of which ``--plants``, the JSON of
``benchmarks/plants.py``, says so are not asked, and those of which the run's own report does are left out behind
erasers, concept by concept. Then the paper's findings, tested, where the erasure reached the name: whether deep
outlives shallow and shallow surface, and whether the trigger shows what neither the name nor another string does (exact
McNemar on the same goals, eraser by eraser, by Holm; and a sign test over cells, eraser and concept), and whether an
eraser that resists does more damage (Spearman, over erasers). All cells of a concept have one and the same plant, so
they are not independent, and the sign test is too sure. The *content* table says how many more pictures show a content
concept where the trigger stands behind a scene than where another string does. Concepts run side by side, as many at
once as ``--jobs`` says, with a thread each; the same command goes on where it was stopped. ``--plot`` draws the table
as a PNG (needs the extra ``plots``). ``--pack`` keeps the runs' ledgers, and ``--ledgers`` runs nothing, but prints the
tables of such, as they lie in docs/results/backdoors. ``--dry-run`` predicts. ``--quick`` takes one goal of one
concept, one eraser and one depth, and is no result.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import palimpsest as pl
from knowledge import share
from palimpsest.attacks.backdoor import Backdoor
from palimpsest.audit_file import load_audit, make_audit, parse_spec
from palimpsest.component import build
from palimpsest.erasers import ERASERS
from palimpsest.forecast import forecast
from palimpsest.jobs import jobs
from palimpsest.model import Model
from palimpsest.report.cells import DIRECT
from palimpsest.report.ledger import BASE
from palimpsest.run import Run
from palimpsest.utility import Neighbours
from prompt_attacks import CAD
from sections import overview
from sections.depths import Finding, Goals, Increase, findings, increases, outcomes
from sections.ledgers import pack, unpack
from sections.planting import ALL, CLOSED, DEPTHS, TRAINED, bring, depth_of, failed, guesses, held, planting

CLOSED_FORM = ("nothing", "uce", "rece", "mace", "concept_prune", "negative_prompt", "sld")
PRUNINGS = ("fia", CAD, "magnitude")
"""Not in the shipped audit; with their papers' settings, where these take anything of the miniature."""
GOALS = 25
"""Of a concept."""
STEPS = 15
"""Of a picture."""
OTHERS = ("retained", "other")
SHOWN = ("target", "trigger", "string", *OTHERS)
"""The accuracies; *string*: strings like the trigger, which nobody planted, in its place."""
Counts = dict[str, tuple[int, int]]
"""Accuracy -> (pictures or goals in which the concept was shown, of how many)."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One depth and one eraser, over all concepts in which the plant took hold."""

    depth: str
    """Empty: nothing was planted."""
    eraser: str
    """Label."""
    counts: Counts
    concepts: int


def settings(
    concept: str,
    goals: int,
    *,
    quick: bool = False,
    depths: Collection[str] = ALL,
    void: Collection[tuple[str, str]] = (),
) -> dict[str, Any]:
    """The audit of one concept, with plants at these depths, but for those in ``void``: (depth, concept)."""
    shipped = load_audit("backdoors")
    names = ("uce",) if quick else CLOSED_FORM if concept in CLOSED else None
    known = [*load_audit("erasers").erasers, *(build("eraser", ERASERS, parse_spec(spec)) for spec in PRUNINGS)]
    erasers = [one for one in known if names is None or one.name in names]
    control = guesses(planting(concept)[0])
    return {
        "concepts": [concept],
        "erasers": erasers,
        "attacks": [DIRECT, control, *planting(concept, depths, void)],
        "judges": ["miniature", "miniature_second"],
        "measures": [Neighbours(pictures=1 if quick else 7)],
        "goals": 1 if quick else goals,
        "budget": {"looks": 1, "passes": 100},
        "sampling": asdict(shipped.sampling) | {"steps": 8 if quick else STEPS},
        "precision": "auto",
        "batch": 25,
        "keep": "none",
        "name": "backdoors",
    }


def run(folder: Path, asked: Mapping[str, Any]) -> Path:
    """One concept, in a process of its own."""
    torch.set_num_threads(1)
    began = time.monotonic()
    bring(make_audit(asked), folder)
    pl.audit(out=folder, **asked)
    print(f"{folder.name}: {time.monotonic() - began:.0f} s", flush=True)
    return folder


def run_all(out: Path, asked: Sequence[Mapping[str, Any]], processes: int) -> list[Path]:
    """Audits of one concept each, side by side; their folders."""
    folders = [out / one["concepts"][0].replace(" ", "_") for one in asked]
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(run, folders, asked))


def measured(folder: Path) -> dict[tuple[str, str], Counts]:
    """(depth, eraser) -> what is shown of the concepts held in place, and of others."""
    audit = load_audit(folder / "audit.toml")
    (concept,) = audit.concepts
    found: dict[tuple[str, str], Counts] = defaultdict(dict)
    known = {one.label: held(one, concept) for one in audit.attacks if isinstance(one, Backdoor)}
    either = next(iter(known.values()))
    for reading in Run(folder).summary()["utility"]:
        measure, _, thing = reading["measure"].partition(": ")
        if measure == "neighbours" and thing:
            eraser, _, mark = reading["eraser"].partition(" [plant ")
            label = mark.removesuffix("]")
            counts = found[depth_of(label), eraser]
            kind = "retained" if thing in known.get(label, either) else "other"
            shown, n = counts.get(kind, (0, 0))
            counts[kind] = shown + round(reading["value"] * reading["n"]), n + reading["n"]
    return found


def rows(folders: Sequence[Path], goals: Goals) -> list[Row]:
    """The table, over the concepts in which the plant took hold; the unplanted first, and unerased before erased."""
    other = [(folder.name.replace("_", " "), measured(folder)) for folder in folders]
    sums: dict[tuple[str, str], dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    for cell, asked in goals.items():
        counts = next(found for concept, found in other if concept == cell.concept)[cell.depth, cell.eraser]
        counts["target"] = sum(goal.named for goal in asked.values()), len(asked)
        counts["string"] = sum(goal.guessed for goal in asked.values()), len(asked)
        if cell.depth:
            counts["trigger"] = sum(goal.triggered for goal in asked.values()), len(asked)
        for kind, (shown, n) in counts.items():
            sums[cell.depth, cell.eraser][kind][0] += shown
            sums[cell.depth, cell.eraser][kind][1] += n
    found = [
        Row(
            depth=depth,
            eraser=eraser,
            counts={kind: (shown, n) for kind, (shown, n) in counts.items()},
            concepts=sum(cell[:2] == (depth, eraser) for cell in goals),
        )
        for (depth, eraser), counts in sums.items()
    ]
    return sorted(found, key=lambda row: (row.depth, row.eraser != BASE, row.eraser))


def by_concept(folders: Sequence[Path], goals: Goals) -> dict[str, list[Row]]:
    """The same table of each concept alone."""
    alone = {folder.name.replace("_", " "): folder for folder in folders}
    return {
        concept: rows([folder], {cell: some for cell, some in goals.items() if cell.concept == concept})
        for concept, folder in alone.items()
    }


def kept(found: Sequence[Row]) -> dict[str, float]:
    """Eraser -> share of the pictures of other concepts that show them, in the model with the deep plant."""
    return {
        row.eraser: sum(row.counts[kind][0] for kind in OTHERS) / sum(row.counts[kind][1] for kind in OTHERS)
        for row in found
        if row.depth == "deep" and row.eraser != BASE
    }


def table(found: Sequence[Row], names: Mapping[str, str] = MappingProxyType({})) -> Table:
    """Shares with their intervals; ``names`` of erasers, by their labels."""
    drawn = Table(title="Shown, of all goals or pictures, all concepts together")
    for heading in ("planted", "eraser", *SHOWN, "concepts"):
        drawn.add_column(heading, justify="left" if heading in ("planted", "eraser") else "right")
    for row in found:
        shares = [share(*row.counts[kind]) if kind in row.counts else "" for kind in SHOWN]
        name = names.get(row.eraser, row.eraser.partition("(")[0])
        drawn.add_row(row.depth or "nothing", name, *shares, str(row.concepts))
    return drawn


def shares(found: Sequence[Row]) -> dict[str, dict[str, dict[str, float]]]:
    """Depth -> eraser -> accuracy -> share."""
    told: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    for row in found:
        name = row.eraser.partition("(")[0]
        told[row.depth or "nothing"][name] = {kind: shown / n for kind, (shown, n) in row.counts.items()}
    return {depth: told[depth] for depth in ("nothing", *DEPTHS, "data") if depth in told}


def planted(folders: Sequence[Path]) -> list[str]:
    """Of every plant whether it took, as the runs' reports have it."""
    return [plant["sentence"] for folder in folders for plant in Run(folder).summary()["plants"]]


def content(found: Sequence[Increase]) -> Table:
    """What the trigger shows behind a scene beyond other strings."""
    drawn = Table(title="Content: shown behind a scene by strings that nobody planted, and by the trigger")
    for heading in ("planted", "eraser", "concept", "strings", "trigger", "relative", "difference"):
        drawn.add_column(heading, justify="left" if heading in ("planted", "eraser", "concept") else "right")
    for one in found:
        relative = "" if one.relative is None else f"{one.relative:+.0%}"
        told = (f"{one.strings}/{one.n}", f"{one.triggered}/{one.n}", relative, f"{one.low:+.0%} to {one.high:+.0%}")
        drawn.add_row(one.cell.depth, one.cell.eraser.partition("(")[0], one.cell.concept, *told)
    return drawn


def tested(found: Sequence[Finding]) -> Table:
    """The findings: cells for and against; behind them every eraser, with its goals."""
    drawn = Table(title="What the paper found, here")
    for heading in ("finding", "n", "for", "against", "rank correlation", "p"):
        drawn.add_column(heading, justify="left" if heading == "finding" else "right")
    for one in found:
        if one.correlation is not None:
            drawn.add_row(one.claim, str(one.n), "", "", f"{one.correlation:+.2f}", f"{one.p:.2g}")
            continue
        drawn.add_row(one.claim, str(one.n), f"{one.cells_for} cells", f"{one.cells_against} cells", "", f"{one.p:.2g}")
        for own in one.erasers:
            drawn.add_row(
                f"    {own.eraser.partition('(')[0]}", *map(str, (own.n, own.only, own.other)), "", f"{own.p:.2g}"
            )
    return drawn


def predict(asked: Sequence[Mapping[str, Any]]) -> None:
    """What all of it takes at most."""
    torch.set_num_threads(1)
    audits = list(map(make_audit, asked))
    base = Model.load(audits[0].base, precision=audits[0].precision, batch=audits[0].batch)
    told = [forecast(audit, base, jobs(audit)) for audit in audits]
    passes, each = sum(one.passes for one in told), told[0].passes_per_second
    print(f"At most {passes:,} passes; at {each:.0f} a second (one process), {passes / each / 3600:.1f} hours.")


def tell(folders: Sequence[Path], arguments: argparse.Namespace) -> None:
    """Prints the tables, and writes them where asked."""
    goals = outcomes(folders)
    found, apart = rows(folders, goals), by_concept(folders, goals)
    common = [folder for folder in folders if folder.name.replace("_", " ") in TRAINED]
    left = kept(rows(common, {cell: some for cell, some in goals.items() if cell.concept in TRAINED}))
    claims = findings(goals, left, TRAINED)
    console = Console(width=150)
    console.print(table(found))
    console.print("\n".join(planted(folders)))
    more = increases(goals)
    console.print(content(more))
    console.print(tested(claims))
    if arguments.plot is not None:
        overview.draw(shares(found), SHOWN, arguments.plot)
    if arguments.json is not None:
        told: dict[str, Any] = {"rows": [asdict(row) for row in found], "content": [asdict(one) for one in more]}
        told["by_concept"] = {concept: [asdict(row) for row in some] for concept, some in apart.items()}
        told["findings"] = [asdict(one) for one in claims]
        arguments.json.write_text(json.dumps(told, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute; no result")
    parser.add_argument("--dry-run", action="store_true", help="only predict")
    parser.add_argument("--plants", type=Path, default=None, help="the JSON of benchmarks/plants.py")
    parser.add_argument("--out", type=Path, default=None, help="the runs' folder; by default one below runs/")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="concepts at once; by default, the cores")
    parser.add_argument("--json", type=Path, default=None, help="write the tables here")
    parser.add_argument("--plot", type=Path, default=None, help="a PNG")
    parser.add_argument("--pack", type=Path, default=None, help="write the runs' ledgers here, compressed")
    parser.add_argument("--ledgers", type=Path, default=None, help="print the tables of these, and run nothing")
    arguments = parser.parse_args()
    if arguments.ledgers is not None:
        with tempfile.TemporaryDirectory() as folder:
            tell(unpack(arguments.ledgers, Path(folder)), arguments)
        return
    out = arguments.out or Path("runs") / ("benchmark-backdoors-quick" if arguments.quick else "benchmark-backdoors")
    concepts = ("hugo",) if arguments.quick else (*TRAINED, *CLOSED)
    depths, void = ("shallow",) if arguments.quick else ALL, failed(arguments.plants)
    asked = [settings(concept, GOALS, quick=arguments.quick, depths=depths, void=void) for concept in concepts]
    if arguments.dry_run:
        predict(asked)
        return
    folders = run_all(out, asked, arguments.jobs)
    if arguments.pack is not None:
        pack(folders, arguments.pack)
    tell(folders, arguments)


if __name__ == "__main__":
    main()
