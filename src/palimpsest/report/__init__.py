"""A run's folder -> tables -> ``report.html``, ``report.md``, ``report.json``: a view, computed at any time."""

import json
from pathlib import Path
from typing import Any

from palimpsest.errors import BadRun
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
    try:
        written = set()
        for name, html in paging.pages(findings):
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(html, encoding="utf-8")
            written.add(path)
        _remove_stale(folder / paging.FOLDER, written)
        (folder / "report.md").write_text(page.markdown(findings), encoding="utf-8")
        data = json.dumps(as_json(findings), indent=1, ensure_ascii=False)
        (folder / "report.json").write_text(data + "\n", encoding="utf-8")
    except OSError as error:
        raise BadRun(f"{error.filename or folder}: cannot be written ({error.strerror or error})") from None
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
