"""A run's folder -> tables -> ``report.html``, ``report.md``, ``report.json``: a view, computed at any time."""

import json
from pathlib import Path
from typing import Any

from palimpsest.report import page
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
    """Writes the three reports into the run's folder; returns the path of ``report.html``."""
    findings = find(read(folder))
    path = folder / "report.html"
    path.write_text(page.html(findings), encoding="utf-8")
    (folder / "report.md").write_text(page.markdown(findings), encoding="utf-8")
    data = json.dumps(as_json(findings), indent=1, ensure_ascii=False)
    (folder / "report.json").write_text(data + "\n", encoding="utf-8")
    return path
