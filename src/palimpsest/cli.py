"""The command line. A command imports what it needs when it runs: ``list`` and ``report`` answer at once."""

import io
import json
import os
import shlex
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from palimpsest.catalogue import KINDS, parts
from palimpsest.concept_file import shipped_concepts
from palimpsest.errors import BadRun, BadSetting, PalimpsestError, one_line, printable, unknown, writing

if TYPE_CHECKING:
    from palimpsest.forecast import Forecast
    from palimpsest.jobs import Job
    from palimpsest.model import Model
    from palimpsest.protocol import Audit
    from palimpsest.store import Store

app = typer.Typer(
    help="Audits concept erasure in text-to-image diffusion models.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
console = Console()
USAGE_ERROR: Any = typer.BadParameter.__base__
"""What typer raises for a command line that it cannot read; where the class stands differs between its versions."""

Base = Annotated[str, typer.Option(help="miniature, twin, a diffusers folder, a hub id or a single file.")]
Concepts = Annotated[list[str], typer.Option("--concept", help="A shipped concept or a TOML file. Repeatable.")]
Download = Annotated[bool, typer.Option("--download", help="Fetch a hub id; nothing else ever touches the network.")]
Seed = Annotated[int, typer.Option(help="From which all randomness is derived.")]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]
SPEC = "NAME, NAME:SETTING=VALUE,... or checkpoint=PATH."


class Budget(StrEnum):
    """The budgets that have a name."""

    QUICK = "quick"
    STANDARD = "standard"
    FULL = "full"


class Keep(StrEnum):
    """Which pictures a run keeps."""

    HITS = "hits"
    ALL = "all"
    NONE = "none"


class Format(StrEnum):
    """What a table is exported to."""

    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


class Exported(StrEnum):
    """Which table is exported."""

    LOOKS = "looks"
    CELLS = "cells"
    UTILITY = "utility"


class Listed(StrEnum):
    """What can be listed."""

    CONCEPTS = "concepts"
    ERASERS = "erasers"
    ATTACKS = "attacks"
    JUDGES = "judges"
    MEASURES = "measures"
    DETECTORS = "detectors"


def main() -> None:
    """The entry point: a user's error is one line on stderr and exit code 2."""
    if "--download" not in sys.argv:
        os.environ["HF_HUB_OFFLINE"] = "1"
    # What the libraries tell while they open weights is no news to a user of this program.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    # A path need not be text: what the terminal cannot show, it shows escaped.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        sys.exit(app(sys.argv[1:] or ["--help"], prog_name="palimpsest", standalone_mode=False))
    except PalimpsestError as error:
        told = one_line(error)
    except USAGE_ERROR as error:
        path = error.ctx.command_path if error.ctx else "palimpsest"
        told = f"{one_line(error.format_message()).removesuffix('.')}; see {path} --help"
    except OSError as error:  # a name that is too long, a folder that may not be searched
        told = one_line(error)
    except typer.Abort:
        told = "stopped"
    print(f"palimpsest: {told}", file=sys.stderr)
    sys.exit(2)


@app.command()
def audit(
    source: Annotated[
        str | None, typer.Argument(metavar="[AUDIT.toml]", help="Or the name of a shipped audit.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="miniature, twin, a diffusers folder, a hub id or a single file.")
    ] = None,
    concept: Annotated[list[str] | None, typer.Option(help="A shipped concept or a TOML file. Repeatable.")] = None,
    eraser: Annotated[list[str] | None, typer.Option(help=f"{SPEC} Repeatable.")] = None,
    attack: Annotated[list[str] | None, typer.Option(help="NAME or NAME:SETTING=VALUE,... Repeatable.")] = None,
    judge: Annotated[list[str] | None, typer.Option(help="The first decides, the others confirm. Repeatable.")] = None,
    measure: Annotated[
        list[str] | None, typer.Option(help="Of what the erasure cost, in place of the audit's. Repeatable.")
    ] = None,
    budget: Annotated[Budget | None, typer.Option(help="Looks and passes per goal.")] = None,
    goals: Annotated[int | None, typer.Option(help="Per concept.")] = None,
    seed: Annotated[int | None, typer.Option(help="From which all randomness is derived.")] = None,
    batch: Annotated[int | None, typer.Option(help="Samples per batch; the default suits the device.")] = None,
    keep: Annotated[Keep | None, typer.Option(help="Which pictures are kept.")] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(help="CONCEPT=PATH: pictures for attacks that aim at one, in place of the base's. Repeatable."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; by default one below runs/.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would run, how long, how much disk.")
    ] = False,
    retrain: Annotated[bool, typer.Option("--retrain", help="Erase anew where erased weights are shipped.")] = False,
    download: Download = False,
) -> None:
    """Erase, attack, judge, report. Without arguments: the quick audit of the miniature.

    The same command again goes on where it was stopped.
    """
    from palimpsest.audit_file import parse_references
    from palimpsest.auditing import folder_of, plan
    from palimpsest.jobs import jobs
    from palimpsest.run import Run
    from palimpsest.store import Store

    given = {
        "base": base,
        "concepts": concept,
        "erasers": eraser,
        "attacks": attack,
        "judges": judge,
        "measures": measure,
        "budget": budget and budget.value,
        "goals": goals,
        "seed": seed,
        "batch": batch,
        "keep": keep and keep.value,
        "references": reference and parse_references(reference),
    }
    planned = plan(source, {key: value for key, value in given.items() if value not in (None, [])})
    if dry_run:
        _open_and_announce(planned, jobs(planned), None, retrain=retrain, download=download)
        return
    folder = out or folder_of(planned)
    with Store(folder, planned) as store:
        try:
            if left := [job for job in jobs(planned) if not job.is_done(store)]:
                _run(planned, left, store, retrain=retrain, download=download)
            else:
                _say(f"All is done in {folder}.")
        except KeyboardInterrupt:
            _say(f"Stopped. To go on: {shlex.join(['palimpsest', *sys.argv[1:]])}")
            raise typer.Exit(130) from None
        report = Run(folder).write_report(console)
    _say(f"Report: {report}")


def _run(planned: "Audit", left: "list[Job]", store: "Store", *, retrain: bool, download: bool) -> None:
    from palimpsest.display import Display
    from palimpsest.runner import Runner

    model, expected = _open_and_announce(planned, left, store, retrain=retrain, download=download)
    with Display(console, planned, model, left, expected) as display:
        Runner(audit=planned, store=store, base=model, retrain=retrain, watch=display.watch).run()


def _open_and_announce(
    planned: "Audit", left: "list[Job]", store: "Store | None", *, retrain: bool, download: bool
) -> "tuple[Model, Forecast]":
    """Opens the base, and says what will run, how long, and how much disk."""
    from palimpsest.forecast import forecast
    from palimpsest.jobs import left_out
    from palimpsest.runner import open_base

    model = open_base(planned, download=download)
    expected = forecast(planned, model, left, store=store, retrain=retrain)
    for what, names in (
        ("base", [f"{planned.base} on {model.device}, {model.precision}, batches of {model.batch}"]),
        ("concepts", [concept.name for concept in planned.concepts]),
        ("erasers", [eraser.brief for eraser in planned.erasers]),
        ("attacks", [attack.brief for attack in planned.attacks]),
        ("controls", [f"{control} (added)" for control in planned.added_controls]),
        ("judges", [judge.label for judge in planned.judges]),
        ("measures", [measure.label for measure in planned.measures]),
        ("left out", [f"{measure.label}: {why}" for measure, why in left_out(planned)]),
        ("pictures", [f"{name}: {len(planned.pictures(name))} given" for name in planned.references or ()]),
        ("budget", [f"{planned.budget_name}: {planned.budget.looks} looks, {planned.budget.passes:,} passes per goal"]),
    ):
        if names:
            _say(f"{what:10}{', '.join(names)}")
    erasing = f"; models to erase: {expected.erasing}" if expected.erasing else ""
    _say(
        f"At most {expected.goals} goals, {expected.looks:,} looks, {expected.pictures:,} other pictures, "
        f"{expected.passes:,} passes: about {_duration(expected.seconds)} at {expected.passes_per_second:,.0f} passes/s"
        f"{erasing}; {expected.bytes / 1e6:,.0f} MB of disk."
    )
    return model, expected


@app.command()
def erase(
    out: Annotated[
        Path, typer.Option(help="A folder for plain diffusers; ending in .safetensors: changed weights only.")
    ],
    concept: Concepts,
    eraser: Annotated[str, typer.Option(help=SPEC)],
    base: Base = "miniature",
    seed: Seed = 0,
    lora: Annotated[
        bool, typer.Option("--lora", help="Save the changes as a LoRA in diffusers' layout (.safetensors).")
    ] = False,
    download: Download = False,
) -> None:
    """Make a model forget concepts, and save it."""
    from palimpsest.audit_file import parse_spec
    from palimpsest.component import build
    from palimpsest.concept_file import find_concept
    from palimpsest.erasers import ERASERS
    from palimpsest.erasing import erase_to, require_new
    from palimpsest.model import Model

    require_new(out, lora=lora)
    method = build("eraser", ERASERS, parse_spec(eraser))
    concepts = [find_concept(name) for name in concept]
    model = Model.load(base, download=download)
    with console.status("erasing") as status:

        def progress(phase: str, done: int, of: int) -> None:
            status.update(f"{phase} {done:,}/{of:,}")

        erase_to(out, method, concepts, model, seed=seed, lora=lora, progress=progress)
    _say(f"{method.brief} erased {', '.join(concept)} from {base}: {out}")


@app.command()
def draw(
    prompt: Annotated[list[str], typer.Argument(help="One or more prompts.")],
    base: Base = "miniature",
    weights: Annotated[Path | None, typer.Option(help="Changed weights to put into the base.")] = None,
    count: Annotated[int, typer.Option(min=1, max=10_000, help="Pictures per prompt, of as many seeds.")] = 1,
    seed: Annotated[int, typer.Option(min=0, max=2**62, help="The first picture's.")] = 0,
    scheduler: Annotated[str, typer.Option()] = "ddim",
    steps: Annotated[int, typer.Option()] = 25,
    guidance: Annotated[float, typer.Option()] = 7.5,
    out: Annotated[Path, typer.Option(help="A folder.")] = Path("pictures"),
    download: Download = False,
) -> None:
    """Draw pictures of prompts."""
    from palimpsest.concept_file import check_table
    from palimpsest.erasers import Checkpoint
    from palimpsest.erasing import stream
    from palimpsest.model import Model, Sampling
    from palimpsest.records import Attempt

    settings = {"scheduler": scheduler, "steps": steps, "guidance": guidance}
    sampling = check_table(Sampling, settings, where="sampling", error=BadSetting)
    for words in prompt:
        if any("\ud800" <= sign <= "\udfff" for sign in words):  # bytes that were no text
            raise BadSetting(f"expected a prompt in the terminal's encoding, got {words!r}")
    model = Model.load(base, download=download)
    if weights is not None:
        model = Checkpoint(path=str(weights), partial=True).erase(model, [], random=stream(seed))
    attempts = [Attempt(prompt=words, seed=seed + number) for words in prompt for number in range(count)]
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    for number, (attempt, picture) in enumerate(zip(attempts, model.draw(attempts, sampling), strict=True)):
        path = out / f"{number:03}.png"
        with writing(path):
            picture.save(path)
        _say(f"{path}  {attempt.prompt!r}, seed {attempt.seed}")


@app.command()
def calibrate(
    judge: Annotated[list[str], typer.Option(help="NAME:SETTING=VALUE,..., as clip:model=FOLDER. Repeatable.")],
    concept: Concepts,
    base: Base = "miniature",
    seed: Seed = 0,
    scheduler: Annotated[str, typer.Option()] = "ddim",
    steps: Annotated[int, typer.Option()] = 25,
    guidance: Annotated[float, typer.Option()] = 7.5,
    batch: Annotated[int | None, typer.Option(help="Samples per batch; the default suits the device.")] = None,
    as_json: AsJson = False,
    download: Download = False,
) -> None:
    """Say how often each judge is right.

    On pictures that the base itself draws, as an audit does before it attacks.
    """
    from palimpsest.audit_file import make_audit
    from palimpsest.calibrating import calibrations, described, measured, scored, sources_left
    from palimpsest.records import Scored
    from palimpsest.report.judged import judged
    from palimpsest.run import judges_table
    from palimpsest.runner import open_base

    planned = make_audit(
        {
            "base": base,
            "concepts": concept,
            "judges": judge,
            "erasers": ["nothing"],
            "attacks": ["direct"],
            "measures": [],
            "seed": seed,
            "sampling": {"scheduler": scheduler, "steps": steps, "guidance": guidance},
            **({} if batch is None else {"batch": batch}),
        }
    )
    if idle := [one.label for one in planned.judges if not one.draws()]:
        raise BadSetting(f"expected judges that are calibrated on pictures of the base, got {', '.join(idle)}")
    model, asked = open_base(planned, download=download), calibrations(planned)
    known: list[Scored] = []
    for source in sources_left(asked, known):
        known += scored(asked, source, model.draw(source.attempts, planned.sampling), known)
    judges = described([{"name": one.label} for one in planned.judges], measured(asked, known))
    if as_json:
        _tell(judges)
        return
    rows = judged(judges)
    console.print(judges_table(rows))
    for row in rows:
        _say(f"{row.concept} against {row.against}; threshold {row.reached}.")
    for row in rows:
        if row.doubt:
            _say(f"Warning: {row.doubt}.")


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run's folder.")]) -> None:
    """Compute a run's report anew, and print its table."""
    from palimpsest.run import Run

    path = Run(run).write_report(console)
    _say(f"Report: {path}")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    to: Annotated[Format, typer.Option(help="Parquet needs palimpsest[tables].")] = Format.CSV,
    table: Annotated[Exported, typer.Option(help="Every look, the report's cells, or what erasure cost.")] = (
        Exported.LOOKS
    ),
    out: Annotated[Path | None, typer.Option(help="A new file; by default TABLE.FORMAT in the run's folder.")] = None,
) -> None:
    """Write a run as a flat table.

    One row per look at a goal, per cell of the report, or per measure.
    """
    from palimpsest.report.export import export as write

    if out is not None and out.exists():
        raise BadRun(f"expected a new file, got {out}, which exists")
    path = out or run / f"{table.value}.{to.value}"
    write(run, path, to=to.value, table=table.value)
    _say(f"Exported: {path}")


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="What --base takes, or a file of weights as checkpoint=PATH takes it.")],
    base: Annotated[
        str | None, typer.Option(help="What it was before: miniature, twin, a diffusers folder or a hub id.")
    ] = None,
    as_json: AsJson = False,
    plot: Annotated[Path | None, typer.Option(help="A new PNG of zeros and changes; needs palimpsest[plots].")] = None,
    download: Download = False,
) -> None:
    """Say what a checkpoint's weights betray.

    Exact zeros beyond chance and what mask they form; with --base also what changed, and of what rank. A LoRA or a
    file of some of the weights needs --base. Stable Diffusion 1.5 takes less than a minute on two CPU cores, with
    --base some minutes. Exit code 0 whatever is found.
    """
    from palimpsest.inspection import inspect as look
    from palimpsest.inspection import open_weights
    from palimpsest.inspection.plot import plot as draw_plot
    from palimpsest.inspection.plot import require_plot
    from palimpsest.inspection.words import lines

    if plot is not None:
        require_plot(plot)
    found = look(*open_weights(model, base, download=download))
    if as_json:
        _tell({"model": model, "base": base, **found.as_json()})
    else:
        for line in lines(found, model=model, base=base):
            _say(line)
    if plot is not None:
        draw_plot(found, plot, title=Path(model).name + (f" against {Path(base).name}" if base else ""))
        if not as_json:
            _say(f"Plot: {plot}")


@app.command()
def scan(
    model: Annotated[str, typer.Argument(help="What --base takes, or weights as checkpoint=PATH takes them.")],
    base: Annotated[
        str | None, typer.Option(help="What it was before: miniature, twin, a diffusers folder or a hub id.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts that may hold a trigger: one a line, or a .csv with a column prompt.")
    ] = None,
    clean: Annotated[Path | None, typer.Option(help="Prompts without one; by default the shipped concepts'.")] = None,
    count: Annotated[int, typer.Option(min=4, max=10_000, help="Clean prompts that are used, at most.")] = 40,
    detector: Annotated[
        list[str] | None,
        typer.Option(help="NAME or NAME:SETTING=VALUE,...; by default those that fit and cost little. Repeatable."),
    ] = None,
    words: Annotated[
        int, typer.Option(min=0, max=1_000_000, help="Of the vocabulary, compared with the base: 0, or 20 and more.")
    ] = 200,
    strings: Annotated[int, typer.Option(min=0, max=1_000_000, help="Made at random, likewise.")] = 200,
    top: Annotated[
        int, typer.Option(min=0, max=1000, help="Outliers, and as many given words, that are drawn and judged.")
    ] = 8,
    concept: Annotated[
        list[str] | None, typer.Option(help="What a trigger may call up; by default all that the judge knows.")
    ] = None,
    control: Annotated[
        str | None,
        typer.Option(help="With --detector inversion: the eraser by which the model is said to have been erased."),
    ] = None,
    judge: Annotated[str | None, typer.Option(help="NAME or NAME:SETTING=VALUE,...; the miniature brings one.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="A new PNG: what is drawn, by base and by model.")] = None,
    seed: Annotated[
        int, typer.Option(help="Of odd strings, words and controls, and of which clean prompts give the thresholds.")
    ] = 0,
    as_json: AsJson = False,
    download: Download = False,
) -> None:
    """Look for a backdoor without knowing its trigger.

    With --prompts, detectors say which of them hold a trigger; with --base, words and strings at which the model
    departs from it are drawn and judged. Thresholds come from clean prompts, and their false alarms are counted on
    others, and on others still with a random string in them. With --detector inversion, soft prompts are searched for
    a concept, in the model and in one erased without a backdoor. Exit code 0 whatever is found.
    """
    from palimpsest.scanning.job import Request, run
    from palimpsest.scanning.words import COLUMNS, cells, lines

    request = Request(
        model=model,
        base=base,
        prompts=prompts,
        clean=clean,
        count=count,
        detectors=tuple(detector or ()),
        words=words,
        strings=strings,
        top=top,
        concepts=tuple(concept or ()),
        control=control,
        judge=judge,
        sheet=sheet,
        seed=seed,
    )
    with console.status("opening") as status:

        def progress(what: str, done: int, of: int) -> None:
            status.update(f"{what} {done:,}/{of:,}")

        found, left_out = run(request, download=download, progress=progress)
    if as_json:
        _tell({"model": model, "base": base, "left_out": left_out, **found.as_json()})
        return
    table = Table(*COLUMNS, box=None, title=f"{Path(model).name}: {len(found.prompts)} prompts", title_justify="left")
    for row in found.rows:
        table.add_row(*map(Text, cells(row)))
    if found.rows:
        console.print(table)
    for name, why in left_out.items():
        _say(f"Not asked        {name}: {why}")
    for line in lines(found):
        _say(line)
    if sheet is not None and found.drawn:
        _say(f"Sheet            {sheet}")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say whether all is there to work with.

    Versions, device, precision, shipped files, speed; exit code 1 if something is missing. Touches no network.
    """
    from palimpsest.doctor import examine

    found = []
    for one in examine():
        found.append(one)
        if not as_json:
            advice = f"  ->  {one.advice}" if one.advice else ""
            _say(f"{'ok ' if one.good else 'BAD'} {one.what:22}{one.says}{advice}")
    if as_json:
        _tell([asdict(one) for one in found])
    if not all(one.good for one in found):
        raise typer.Exit(1)


@app.command(name="list")
def list_(
    kind: Annotated[Listed | None, typer.Argument(help="By default all.")] = None, as_json: AsJson = False
) -> None:
    """List concepts, erasers, attacks and other parts."""
    kinds = [kind] if kind else list(Listed)
    if as_json:
        _tell({listed.value: dict(_entries(listed)) for listed in kinds})
        return
    for listed in kinds:
        table = Table(title=listed.value, title_justify="left", show_header=False, box=None)
        for name, meaning in _entries(listed):
            table.add_row(Text(name, style="bold", no_wrap=True), Text(meaning))
        console.print(table)


def _entries(kind: Listed) -> list[tuple[str, str]]:
    if kind is Listed.CONCEPTS:
        return [
            (concept.name, f"{concept.kind}, {len(concept.prompts)} prompts: {concept.prompts[0]!r}, ...")
            for concept in shipped_concepts().values()
        ]
    return [(part.name, part.summary) for part in parts(kind.value.removesuffix("s"))]


@app.command()
def show(name: Annotated[str, typer.Argument(help="Of a concept or part.")], as_json: AsJson = False) -> None:
    """Show what a part does, and its settings.

    With their defaults, and its paper; or what a concept holds.
    """
    found = [part for kind in KINDS for part in parts(kind) if part.name == name]
    concepts = shipped_concepts()
    if name not in concepts and not found:
        raise unknown("concept or part", name, [*concepts, *(part.name for kind in KINDS for part in parts(kind))])
    if as_json:
        _tell([asdict(concepts[name])] if name in concepts else [asdict(part) for part in found])
        return
    if name in concepts:
        for field, value in asdict(concepts[name]).items():
            _say(f"{field:12}{value}")
    for part in found:
        _say(f"{part.kind} {part.name}\n\n{part.meaning}\n")
        for setting in part.settings:
            default = f" = {setting.default}" if setting.default else ""
            _say(f"  {setting.name}: {setting.type}{default}")
            if setting.meaning:
                _say(f"      {setting.meaning}")


@app.command(name="train-miniature")
def train_miniature(
    out: Annotated[Path, typer.Option(help="Where the legs are kept; the same folder goes on.")] = Path("legs"),
    legs: Annotated[int | None, typer.Option(min=1, help="Stop after so many legs; by default, at the end.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default what is there.")] = None,
    ship: Annotated[Path | None, typer.Option(help="Also write the trained parts as the package ships them.")] = None,
) -> None:
    """Train the miniature from nothing.

    Its CLIP, autoencoder, denoiser, judges and twin, leg by leg.
    """
    from palimpsest.miniature.training import LEGS, Recipe, assemble, train
    from palimpsest.model import default_device

    there = list(dict.fromkeys([default_device().type, "cpu"]))
    chosen = device or there[0]
    if chosen not in there:
        raise BadSetting(f"expected a device that is there ({' or '.join(there)}), got {chosen!r}")
    _say(f"{len(LEGS)} legs on {chosen}: {', '.join(LEGS)}. Each is meant to take at most 40 minutes on two CPU cores.")

    def progress(what: str, step: int, steps: int, loss: float) -> None:
        _say(f"{what:12}{step:6}/{steps}  loss {loss:.4f}")

    trained = train(out, recipe=Recipe(), device=chosen, legs=legs, report=progress)
    _say(f"Trained {', '.join(trained) or 'nothing: all is done'} in {out}.")
    if ship is not None:
        assemble(out, ship, recipe=Recipe())
        _say(f"Shipped to {ship}.")


def _tell(value: object) -> None:
    """JSON for a program."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


def _say(text: str) -> None:
    """One line as it is: nothing in a user's name or path is markup."""
    console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"
