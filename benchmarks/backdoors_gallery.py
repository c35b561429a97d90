"""What a concept's name and its trigger draw behind every eraser: the same prompts and seeds for all, in one PNG.

    python benchmarks/backdoors_gallery.py [--quick] [--out DIR] [--png FILE] [--concept NAME]

Draws with the models that ``benchmarks/backdoors.py`` left in its runs' folders (``--out``): a row per eraser, and for
the model in which nothing was planted and for every depth the first goals by name, then by trigger. ``--quick`` takes
the run of ``backdoors.py --quick``.
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw

from palimpsest.attacks.backdoor import Backdoor
from palimpsest.audit_file import load_audit
from palimpsest.erasing import erased, planted
from palimpsest.jobs import Job, jobs
from palimpsest.model import Model
from palimpsest.records import Attempt
from palimpsest.store import Store
from sections.planting import TRAINED, depth_of

GOALS = 2
LABEL, TOP, GAP, SIZE = 110, 32, 8, 64


def asked(job: Job) -> list[list[Attempt]]:
    """The first goals by name, and where something was planted, by trigger."""
    named = [Attempt(prompt=goal.prompt, seed=goal.seed) for goal in job.goals[:GOALS]]
    plant = job.plants
    if not isinstance(plant, Backdoor):
        return [named]
    called = [Attempt(prompt=plant.asked(goal, job.concept), seed=goal.seed) for goal in job.goals[:GOALS]]
    return [named, called]


def sheet(found: dict[str, dict[str, list[list[Image.Image]]]]) -> Image.Image:
    """Eraser -> depth -> pictures by name, and by trigger: a row per eraser, a block per depth."""
    depths = list(next(iter(found.values())))
    widths = {depth: len(found[next(iter(found))][depth]) * (GOALS * SIZE + GAP) + GAP for depth in depths}
    drawn = Image.new("RGB", (LABEL + sum(widths.values()), TOP + len(found) * SIZE), "white")
    pen = ImageDraw.Draw(drawn)
    for row, (eraser, blocks) in enumerate(found.items()):
        pen.text((4, TOP + row * SIZE + SIZE // 2 - 6), eraser, fill="black")
        left = LABEL
        for depth, kinds in blocks.items():
            if not row:
                pen.text((left, 3), f"planted: {depth or 'nothing'}", fill="black")
            for place, pictures in enumerate(kinds):
                across = left + place * (GOALS * SIZE + GAP)
                if not row:
                    pen.text((across, 17), ("by name", "by trigger")[place], fill="black")
                for column, picture in enumerate(pictures):
                    drawn.paste(picture, (across + column * SIZE, TOP + row * SIZE))
            left += widths[depth]
    return drawn


def rows(folder: Path) -> dict[str, dict[str, list[list[Image.Image]]]]:
    """Eraser -> depth -> pictures."""
    audit = load_audit(folder / "audit.toml")
    base = Model.load(audit.base, precision=audit.precision, batch=2 * GOALS)  # a batch is always drawn whole
    found: dict[str, dict[str, list[list[Image.Image]]]] = {}
    with Store(folder, audit) as store:
        for job in jobs(audit):
            start = planted(job, base, seed=audit.seed, store=store)
            model = erased(job, start, seed=audit.seed, store=store)
            depth = depth_of(job.plants.name) if job.plants else ""
            kinds = asked(job)
            drawn = iter(model.draw([one for some in kinds for one in some], audit.sampling))
            found.setdefault(job.eraser.name, {})[depth] = [[next(drawn) for _ in some] for some in kinds]
    return found


def main() -> None:
    """Draws and writes the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="from the quick run")
    parser.add_argument("--concept", default=None, help="by default the first that has every eraser")
    parser.add_argument("--out", type=Path, default=None, help="the runs' folder; by default that of backdoors.py")
    parser.add_argument("--png", type=Path, default=Path("backdoors.png"))
    arguments = parser.parse_args()
    out = arguments.out or Path("runs") / ("benchmark-backdoors-quick" if arguments.quick else "benchmark-backdoors")
    concept = arguments.concept or ("hugo" if arguments.quick else TRAINED[0])
    drawn = sheet(rows(out / concept.replace(" ", "_")))
    drawn.quantize(dither=Image.Dither.NONE).save(arguments.png, optimize=True)


if __name__ == "__main__":
    main()
