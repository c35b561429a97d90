"""The main job as one function."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from palimpsest.audit_file import load_audit, make_audit
from palimpsest.protocol import Audit
from palimpsest.run import Run
from palimpsest.runner import Runner, Watch, is_complete, open_base
from palimpsest.store import Store

QUICK = "quick"
"""The shipped audit that runs where nothing is said."""
RUNS = Path("runs")


def audit(
    source: str | Path | None = None,
    *,
    out: str | Path | None = None,
    download: bool = False,
    retrain: bool = False,
    watch: Watch = lambda event: None,
    **settings: Any,
) -> Run:
    """Runs an audit, or goes on with it, and writes its report.

    ``source`` is a TOML file or the name of a shipped audit, and ``settings`` go before what it says; without it they
    are the whole audit (``concepts=["church"], erasers=["uce"], attacks=[...], ...``). Without either: the quick audit.
    """
    planned = plan(source, settings)
    folder = Path(out) if out is not None else folder_of(planned)
    with Store(folder, planned) as store:
        if not is_complete(planned, store):
            base = open_base(planned, download=download)
            Runner(audit=planned, store=store, base=base, retrain=retrain, watch=watch).run()
        run = Run(folder)
        run.write_report()
    return run


def plan(source: str | Path | None, settings: Mapping[str, Any]) -> Audit:
    """The audit of a file and settings; what only chooses how much is run stands for the quick audit, changed so."""
    if source is None and settings.keys() & {"base", "concepts", "erasers", "attacks", "judges"}:
        return make_audit(settings)
    return load_audit(source or QUICK, settings)


def folder_of(planned: Audit) -> Path:
    """``runs/DATE-NAME-HASH``; one that holds the same audit already, so that the same command goes on with it."""
    # A name may hold what leads elsewhere in a path.
    name = re.sub(r"[^\w.-]+", "-", planned.name).strip(".-")[:60]
    ending = f"-{name}-{planned.protocol[:8]}"
    known = sorted(path for path in RUNS.glob(f"*{ending}") if path.is_dir())
    return known[-1] if known else RUNS / f"{datetime.now(UTC):%Y-%m-%d}{ending}"
