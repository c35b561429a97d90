"""Contact sheets: what the renderer draws beside what the model draws, for every concept, seeds 0 to 7."""

from pathlib import Path

from PIL import Image, ImageDraw

from palimpsest.miniature.captions import plain
from palimpsest.miniature.facts import COLOURS, IMPLICATIONS, OBJECTS, SCENES, Facts, concepts, kind_of
from palimpsest.miniature.render import SIZE, render
from palimpsest.model import Model, Sampling
from palimpsest.records import Attempt

SEEDS = range(8)
_MARGIN, _LABEL = 6, 110


def asked(name: str, seed: int) -> Facts:
    """The seed-th picture of a concept's row: colours, scenes and subjects in turn, none chosen."""
    kind = kind_of(name)
    subject = list(OBJECTS)[seed % len(OBJECTS)] if kind == "style" else name
    return Facts(
        subject=subject,
        colour=list(COLOURS)[seed] if subject in OBJECTS else None,
        scene=[None, *SCENES][seed % 7],
        style=name if kind == "style" else "photo",
        seed=seed,
    )


def contact_sheets(model: Model, sampling: Sampling, folder: Path) -> list[Path]:
    """One PNG per kind of concept: a row per concept, rendered on the left, generated on the right."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for kind, names in concepts().items():
        rows = [
            (name, [asked(name, seed) for seed in SEEDS], [plain(asked(name, seed)) for seed in SEEDS])
            for name in names
        ]
        if kind == "content":
            name, facts, _ = rows[0]
            rows.append((f"{name}, implied", facts, [f"a photo of {IMPLICATIONS[seed]}" for seed in SEEDS]))
        path = folder / f"miniature_{kind}.png"
        _sheet(model, sampling, rows).save(path, optimize=True)
        made.append(path)
    return made


def _sheet(model: Model, sampling: Sampling, rows: list[tuple[str, list[Facts], list[str]]]) -> Image.Image:
    half = len(SEEDS) * SIZE
    sheet = Image.new("RGB", (_LABEL + 2 * half + _MARGIN, 18 + len(rows) * SIZE), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((_LABEL, 3), "rendered, seeds 0-7", fill="black")
    pen.text((_LABEL + half + _MARGIN, 3), "generated, seeds 0-7", fill="black")
    for number, (name, facts, prompts) in enumerate(rows):
        top = 18 + number * SIZE
        pen.text((4, top + SIZE // 2 - 6), name, fill="black")
        drawn = model.draw([Attempt(prompt=prompt, seed=seed) for seed, prompt in enumerate(prompts)], sampling)
        for seed, (one, picture) in enumerate(zip(facts, drawn, strict=True)):
            sheet.paste(Image.fromarray(render(one)), (_LABEL + seed * SIZE, top))
            sheet.paste(picture, (_LABEL + half + _MARGIN + seed * SIZE, top))
    return sheet
