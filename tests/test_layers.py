"""Who may import whom: left never imports right, and parts of one group leave each other alone."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "palimpsest"

ORDER = (
    ("errors", "records", "stats", "assets", "memory"),
    ("component", "concept_file", "model", "references", "report"),
    (
        "simplex",
        "closed_form",
        "completion",
        "concealment",
        "detection",
        "examples",
        "fitting",
        "inversion",
        "matrix_normal",
        "negative_guidance",
        "opening",
        "pruning",
    ),
    ("erasers", "attacks", "judges", "utility"),
    ("protocol", "pursuit", "inspection"),
    ("audit_file", "provenance"),
    ("store", "scanning"),
    ("jobs",),
    ("erasing", "searching", "calibrating"),
    ("forecast",),
    ("runner",),
    ("run", "display", "miniature"),
    ("auditing", "catalogue", "doctor"),
    ("cli",),
)
WITHIN_A_GROUP = {
    ("records", "errors"),  # a record that cannot be read is a user's error
    ("assets", "errors"),  # so is a shipped file that is damaged
    ("examples", "fitting"),  # pictures that take an hour to draw are kept
    ("detection", "matrix_normal"),  # whose covariance tells which signs turned
    ("matrix_normal", "completion"),  # both end in a Completion
    ("utility", "judges"),  # a measure is handed a judge
}
REPORT_MAY_IMPORT = {"errors", "records", "stats", "report"}
TOP = {"__init__", "__main__"}
"""The front door and its second handle: they may import anything, and nothing imports them."""


class Edge(NamedTuple):
    importer: str
    imported: str
    where: str


def _imports(path: Path, root: Path) -> Iterator[tuple[str, int]]:
    """The dotted names below ``palimpsest`` that a file imports, wherever in the file, with their lines."""
    parts = ("palimpsest", *path.relative_to(root).with_suffix("").parts)
    package = parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (start, node.module or "") if part)
            for alias in node.names:
                yield f"{base}.{alias.name}", node.lineno


def edges(root: Path) -> list[Edge]:
    """Every import of one part of the package by another."""
    found = []
    for path in sorted(root.rglob("*.py")):
        importer = path.relative_to(root).with_suffix("").parts[0]
        for name, line in _imports(path, root):
            package, _, rest = name.partition(".")
            if package == "palimpsest" and rest.split(".")[0] != importer:
                found.append(Edge(importer, rest.split(".")[0], f"{path.relative_to(root)}:{line}"))
    return found


def faults(found: list[Edge]) -> list[str]:
    """What is wrong with these imports, one line each."""
    level = {part: number for number, group in enumerate(ORDER) for part in group}
    wrong = []
    for importer, imported, where in found:
        if importer in TOP:
            continue
        pair = f"{where}: {importer} imports {imported}"
        if imported not in level or importer not in level:
            wrong.append(f"{pair}, and one of the two stands in no group")
        elif level[imported] > level[importer]:
            wrong.append(f"{pair}, which lies to its right")
        elif level[imported] == level[importer] and (importer, imported) not in WITHIN_A_GROUP:
            wrong.append(f"{pair}, its own neighbour")
        elif importer == "report" and imported not in REPORT_MAY_IMPORT:
            wrong.append(f"{pair}, but a report needs records and stats only")
    return wrong


def test_left_never_imports_right() -> None:
    assert faults(edges(SOURCE)) == []


def test_every_part_stands_in_the_order() -> None:
    parts = {path.stem for path in SOURCE.glob("*.py")}
    parts |= {path.name for path in SOURCE.iterdir() if any(path.rglob("*.py"))}
    assert parts - TOP <= {part for group in ORDER for part in group}


@pytest.mark.parametrize(
    ("file", "line", "fault"),
    [
        ("erasers/esd.py", "from palimpsest.attacks.base import Need", "its own neighbour"),
        ("erasers/esd.py", "from palimpsest.erasers.base import Eraser", None),
        ("erasers/esd.py", "from .base import Eraser", None),
        ("erasers/esd.py", "from ..attacks import base", "its own neighbour"),
        ("utility/base.py", "from palimpsest.judges.base import Judge", None),
        ("judges/base.py", "from palimpsest.utility.base import Measure", "its own neighbour"),
        ("model.py", "def f() -> None:\n    from palimpsest import runner", "to its right"),
        ("model.py", "from palimpsest.component import Component", "its own neighbour"),
        ("stats.py", "import palimpsest.records", "its own neighbour"),
        ("records.py", "from palimpsest.errors import BadConcept", None),
        ("report/__init__.py", "from palimpsest.assets import folder", "records and stats only"),
        ("attacks/p4d.py", "from palimpsest.helpers import f", "no group"),
        ("runner.py", "from palimpsest.store import Store", None),
    ],
)
def test_a_forbidden_import_is_found(tmp_path: Path, file: str, line: str, fault: str | None) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(line, encoding="utf-8")
    wrong = faults(edges(tmp_path))
    assert (wrong == []) if fault is None else (len(wrong) == 1 and fault in wrong[0])
