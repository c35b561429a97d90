"""How the page is cut into files: one, or for a large run an overview with pages for every concept."""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from palimpsest.report import page, sections
from palimpsest.report.findings import Findings
from palimpsest.report.ledger import Key
from palimpsest.report.pictures import Sheet, kept

LARGE_GOALS = 2_000
"""Finished goals, over all cells, above which a concept's part stands on pages of its own."""
LARGE_CONCEPTS = 50
"""The same in concepts."""
PAGE_GOALS = 200
"""Goals on a concept's page, at most."""
PAGE_TILES = 2_000
"""Pictures on a concept's page, at most, unless a single goal has more."""
OPEN_GOALS = 4
"""Goals that the one page shows at first: by prompt and seed, never chosen by how they ended."""
EMBEDDED = 180
"""Pictures embedded in the one page, so that it stays small; every concept gets the same number of goals."""
EMBEDDED_COARSE = 500
"""Pixelated pictures embedded in all pages of a large run together: making one small means reading it whole."""
FOLDER = "concepts"
"""Where the pages of the concepts lie, below the run's folder."""


def is_large(findings: Findings) -> bool:
    """Whether the report is an overview with pages for every concept."""
    goals = sum(cell.n for cell in findings.cells.values())
    return goals > LARGE_GOALS or len({key.concept for key in findings.cells}) > LARGE_CONCEPTS


def pages(findings: Findings) -> Iterator[tuple[str, str]]:
    """Path below the run's folder and HTML of every page; the one to begin with comes last."""
    large = is_large(findings)
    environment = page.environment(findings, autoescape=True)
    context = page.context(findings, folder=FOLDER if large else None)
    context["style"] = Markup(page.style(context["attacks"]))
    sheets = _sheets(findings)
    if large:
        # Only pixelated pictures must be embedded; the share is the same on every page.
        share = _share(
            (sheet.columns * len(_cuts(sheet)) for sheet in sheets.values() if sheet.coarse), EMBEDDED_COARSE
        )
        for before, section, after in _with_neighbours(context["sections"]):
            around = context | {"section": section, "before": before, "after": after}
            yield from _concept(environment, around, findings, sheets[section["concept"]], share)
    else:
        share = _share((sheet.columns for sheet in sheets.values()), EMBEDDED)
        for section in context["sections"]:
            sheet = sheets[section["concept"]]
            section |= sections.details(findings, section["concept"], context["attacks"])
            section |= _stretch(sections.prompts(findings, sheet), sheet, 0, len(sheet.goals), share=share)
    linked = any(section.get("linked") for section in context["sections"])
    context |= {"large": large, "linked": linked, "open_goals": OPEN_GOALS, "raw": page.raw(findings)}
    yield "report.html", environment.get_template("report.html").render(context)


def _sheets(findings: Findings) -> dict[str, Sheet]:
    run = findings.run
    keys: dict[str, list[Key]] = {}
    for key in run.outcomes:
        keys.setdefault(key.concept, []).append(key)
    there = kept(run.folder)
    return {concept: Sheet(run, concept, mine, there) for concept, mine in keys.items()}


def _share(columns: Iterable[int], budget: int) -> int:
    """Goals whose pictures are embedded, the first of each stretch of goals, so that the budget is kept."""
    return budget // max(1, sum(columns))


def _cuts(sheet: Sheet) -> list[tuple[int, int]]:
    """Where the goals of a page begin and end."""
    step = max(1, min(PAGE_GOALS, PAGE_TILES // max(1, sheet.columns)))
    starts = [*range(0, len(sheet.goals), step), len(sheet.goals)]
    return list(pairwise(starts))


def _stretch(
    found: list[dict[str, Any]], sheet: Sheet, start: int, end: int, *, share: int, up: str = ""
) -> dict[str, Any]:
    """The goals from ``start`` up to ``end``: their pictures, and the prompts that won them."""
    rows = sheet.rows(start, end, embedded=share, up=up)
    return {
        "rows": rows,
        "linked": any(
            tile.source and tile.source == tile.link for row in rows for _, tiles in row.victims for tile in tiles
        ),
        "prompts": [prompt for prompt in found if start < prompt["number"] <= end],
    }


def _with_neighbours(known: list[dict[str, Any]]) -> Iterator[tuple[Any, dict[str, Any], Any]]:
    around = [None, *known, None]
    return zip(around, known, around[2:], strict=False)


def _concept(
    environment: Environment, context: dict[str, Any], findings: Findings, sheet: Sheet, share: int
) -> Iterator[tuple[str, str]]:
    """A concept's pages, from the first on."""
    section = context["section"]
    found = sections.prompts(findings, sheet)
    details = sections.details(findings, section["concept"], context["attacks"])
    cuts = _cuts(sheet)
    names = [f"{section['name']}.html", *(f"{section['name']}.{number}.html" for number in range(2, len(cuts) + 1))]
    template = environment.get_template("concept.html")
    for number, (start, end) in enumerate(cuts):
        mine = _stretch(found, sheet, start, end, share=share if sheet.coarse else 0, up="../")
        links = [
            {"href": name, "first": first + 1, "last": last, "here": place == number}
            for place, (name, (first, last)) in enumerate(zip(names, cuts, strict=True))
        ]
        rest = {"links": links, "number": number, "open_goals": end - start, "linked": mine["linked"]}
        yield f"{FOLDER}/{names[number]}", template.render(context | rest | {"section": section | details | mine})
