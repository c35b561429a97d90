"""A run's folder -> tables -> ``report.html``, ``report.md``, ``report.json``: a view, computed at any time."""

import json
from pathlib import Path
from typing import Any

from palimpsest.errors import writing
from palimpsest.report import page, paging
from palimpsest.report.findings import as_json, find
from palimpsest.report.ledger import read

__all__ = ["summary", "table", "write"]


def summary(folder: Path) -> dict[str, Any]:
    """What ``report.json`` holds: version, protocol, provenance, verdicts, cells, utility; see docs/report-schema.md.

    Raises ``BadRun`` where the folder is no run.
    """
    return as_json(find(read(folder)))


def table(folder: Path) -> list[dict[str, Any]]:
    """The cells of ``summary``, one row per concept, eraser and attack: what the terminal prints."""
    rows: list[dict[str, Any]] = summary(folder)["cells"]
    return rows


def write(folder: Path) -> Path:
    """Writes the three reports into the run's folder, and for a large run pages below ``concepts/``.

    Returns the path of ``report.html``. Pages that an earlier report left there are removed. Raises ``BadRun`` where
    the folder is no run, or cannot be written to.
    """
    findings = find(read(folder))
    data = json.dumps(as_json(findings), indent=1, ensure_ascii=False)
    written = set()
    for name, text in (
        ("report.md", page.markdown(findings)),
        ("report.json", data + "\n"),
        *paging.pages(findings),
    ):
        _write(folder / name, text)
        written.add(folder / name)
    with writing(folder / paging.FOLDER):
        _remove_stale(folder / paging.FOLDER, written)
    return folder / "report.html"


def _remove_stale(folder: Path, written: set[Path]) -> None:
    """Removes the pages of an earlier report, known by their mark, and the folder once nothing is left in it."""
    if not folder.is_dir():
        return
    for path in set(folder.glob("*.html")) - written:
        if path.is_file() and page.MARK in path.read_bytes()[: page.HEAD]:
            path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def _write(path: Path, text: str) -> None:
    """The file is there whole or as it was before."""
    part = path.with_name(f".{path.name}.partial")
    with writing(path):
        path.parent.mkdir(exist_ok=True)
        try:
            # A name in a damaged ledger may hold halves of characters.
            part.write_text(text, encoding="utf-8", errors="backslashreplace")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
