"""The same goals, drawn by the base, by each victim, and under each attack."""

import re
import struct
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from palimpsest.records import Goal
from palimpsest.report.cells import DIRECT
from palimpsest.report.ledger import BASE, Key, Outcome, Run, goal_key

SIDE = 128
"""Longest side of an embedded picture, in pixels."""
COARSE = 10
"""The same for a ``content`` concept: enough to tell pictures apart, too little to show what is on them."""
MOST = 180
"""Pictures embedded in one page, so that it stays small."""
LARGEST = 2**24
"""Pixels of a picture that is still embedded."""
GOALS = 4
"""Goals shown per concept at most: the first by prompt and seed, never chosen by how they ended."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One picture of the grid."""

    attack: str
    shown: bool | None
    looks: int
    seed: int
    embedded: str | None
    """A data URI; None: not kept, or not readable."""
    link: str | None
    """The full-size file, relative to the page."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One goal: its pictures by eraser, the base first."""

    goal: Goal
    victims: Sequence[tuple[str, Sequence[Tile]]]


def grid(run: Run) -> dict[str, list[Row]]:
    """Concept -> the rows of its grid."""
    columns: dict[str, list[Key]] = {}
    for key in run.outcomes:
        if key.eraser != BASE or key.attack == DIRECT:
            columns.setdefault(key.concept, []).append(key)
    goals = max(1, min(GOALS, MOST // max(1, sum(map(len, columns.values())))))
    return {concept: _rows(run, keys, goals) for concept, keys in columns.items()}


def _rows(run: Run, keys: Sequence[Key], goals: int) -> list[Row]:
    by_key = {key: {outcome.goal: outcome for outcome in run.outcomes[key]} for key in keys}
    first = sorted({goal for outcomes in by_key.values() for goal in outcomes}, key=goal_key)[:goals]
    erasers = sorted({key.eraser for key in keys}, key=lambda eraser: (eraser != BASE, eraser))
    # A concept of unknown kind may be of any kind.
    coarse = run.kind(keys[0].concept) in ("content", "")
    rows = []
    for goal in first:
        victims = []
        for eraser in erasers:
            outcomes = [by_key[key][goal] for key in keys if key.eraser == eraser and goal in by_key[key]]
            tiles = [tile for outcome in outcomes if (tile := _tile(run.folder, outcome, coarse))]
            if tiles:
                victims.append((eraser, tiles))
        rows.append(Row(goal=goal, victims=victims))
    return rows


def _tile(folder: Path, outcome: Outcome, coarse: bool) -> Tile | None:
    looked = [trial for trial in outcome.trials if trial.attempt and trial.verdict]
    if not looked:
        return None
    trial = outcome.won or looked[-1]
    assert trial.attempt is not None and trial.verdict is not None
    # The name comes from a file that anybody may have written: only a digest leads anywhere.
    known = trial.picture is not None and re.fullmatch("[0-9a-f]{64}", trial.picture)
    path = folder / "pictures" / f"{trial.picture}.png"
    there = bool(known) and path.is_file()
    return Tile(
        attack=outcome.key.attack,
        shown=trial.verdict.shown,
        looks=trial.cost.looks,
        seed=trial.attempt.seed,
        embedded=_embed(path, coarse) if there else None,
        link=quote(f"pictures/{path.name}") if there else None,
    )


def _embed(path: Path, coarse: bool) -> str | None:
    """The picture, made small, as a data URI."""
    try:
        # Pillow reads formats through which a file has programs run or memory filled.
        with Image.open(path, formats=("PNG",)) as opened:
            if opened.width * opened.height > LARGEST:
                return None
            picture = opened.convert("RGB")
    except (
        OSError,
        ValueError,
        SyntaxError,
        struct.error,
        Image.DecompressionBombError,
    ):  # a damaged picture is shown as missing; the ledger, not the picture, holds the verdict
        return None
    kept = BytesIO()
    if coarse:
        picture = picture.resize((COARSE, max(1, round(COARSE * picture.height / picture.width))), Image.Resampling.BOX)
        picture.save(kept, "PNG")
        return f"data:image/png;base64,{b64encode(kept.getvalue()).decode()}"
    picture.thumbnail((SIDE, SIDE))
    picture.save(kept, "WEBP", quality=85)
    return f"data:image/webp;base64,{b64encode(kept.getvalue()).decode()}"
