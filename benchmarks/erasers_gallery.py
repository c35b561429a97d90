"""What every eraser makes of a concept and of its neighbours: the same prompts and seeds for all, in one PNG.

    python benchmarks/erasers_gallery.py [--quick] [--out DIR] [--png FILE] [CONCEPT ...]

Draws with the models that ``benchmarks/erasers.py`` left in its runs' folders (``--out``), side by side the first goals
of each concept, and the first prompt of the first neighbours. ``--quick`` takes the run of ``erasers.py --quick``.
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw

from palimpsest.auditing import plan
from palimpsest.concept_file import find_concept
from palimpsest.erasing import erased
from palimpsest.jobs import jobs
from palimpsest.model import Model
from palimpsest.records import Attempt, Concept
from palimpsest.runner import open_base
from palimpsest.store import Store

GOALS, NEIGHBOURS = 4, 4
LABEL, TOP, GAP, SIZE = 110, 18, 8, 64


def asked(concept: Concept) -> list[Attempt]:
    """The concept's first prompts, then one of each neighbour; seeds 0, 1, ..."""
    prompts = [*concept.prompts[:GOALS], *(find_concept(name).prompts[0] for name in concept.neighbours[:NEIGHBOURS])]
    return [Attempt(prompt=prompt, seed=seed) for seed, prompt in enumerate(prompts)]


def columns(base: Model, concept: Concept, folder: Path, more: dict) -> dict[str, list[Image.Image]]:
    """Eraser -> pictures."""
    planned = plan("erasers", {"concepts": [concept.name]} | more)
    with Store(folder, planned) as store:
        return {
            job.eraser.name: erased(job, base, seed=planned.seed, store=store).draw(asked(concept), planned.sampling)
            for job in jobs(planned)
        }


def sheet(found: dict[str, dict[str, list[Image.Image]]]) -> Image.Image:
    """A row per eraser, a block per concept."""
    erasers = list(next(iter(found.values())))
    block = (GOALS + NEIGHBOURS) * SIZE + 2 * GAP
    drawn = Image.new("RGB", (LABEL + len(found) * block, TOP + len(erasers) * SIZE), "white")
    pen = ImageDraw.Draw(drawn)
    for place, (concept, by_eraser) in enumerate(found.items()):
        left = LABEL + place * block
        pen.text((left, 3), concept, fill="black")
        pen.text((left + GOALS * SIZE + GAP, 3), "neighbours", fill="black")
        for row, eraser in enumerate(erasers):
            pen.text((4, TOP + row * SIZE + SIZE // 2 - 6), eraser, fill="black")
            for column, picture in enumerate(by_eraser[eraser]):
                gap = GAP if column >= GOALS else 0
                drawn.paste(picture, (left + column * SIZE + gap, TOP + row * SIZE))
    return drawn


def main() -> None:
    """Draws and writes the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("concepts", nargs="*", default=["church", "van gogh", "alice"], metavar="CONCEPT")
    parser.add_argument("--quick", action="store_true", help="from the quick run")
    parser.add_argument("--out", type=Path, default=None, help="the runs' folder; by default that of erasers.py")
    parser.add_argument("--png", type=Path, default=Path("erasers.png"))
    arguments = parser.parse_args()
    out = arguments.out or Path("runs") / ("benchmark-erasers-quick" if arguments.quick else "benchmark-erasers")
    names = ["alice"] if arguments.quick else arguments.concepts
    more = {"erasers": ["nothing", "uce"], "goals": 1, "batch": 4, "budget": "quick"} if arguments.quick else {}
    more |= {"measures": ["neighbours", "clip_score"]} if arguments.quick else {}
    base = open_base(plan("erasers", more))
    found = {name: columns(base, find_concept(name), out / name.replace(" ", "_"), more) for name in names}
    sheet(found).save(arguments.png, optimize=True)


if __name__ == "__main__":
    main()
