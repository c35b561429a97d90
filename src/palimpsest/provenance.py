"""How a run is made: versions, machine, and what its report needs to know of its parts."""

import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from palimpsest.attacks.backdoor import Backdoor
from palimpsest.attacks.base import Attack
from palimpsest.attacks.random_trigger import RandomTrigger
from palimpsest.protocol import Audit
from palimpsest.records import Concept, digest

LIBRARIES = ("palimpsest", "torch", "diffusers", "transformers", "safetensors", "numpy", "pillow")


def provenance(audit: Audit) -> dict[str, Any]:
    """All that is known before the model is opened; see docs/report-schema.md."""
    return {
        "version": 1,
        "protocol": audit.protocol,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in LIBRARIES},
        "platform": platform.platform(),
        "git": _git(),
        "command": _command(),
        "seed": audit.seed,
        "budget": {"name": audit.budget_name, "looks": audit.budget.looks, "passes": audit.budget.passes},
        "sampling": audit.table()["sampling"],
        "base": audit.base,
        "prompts": {concept.name: digest(list(concept.prompts)) for concept in audit.concepts},
        "concepts": {concept.name: _concept(audit, concept) for concept in audit.concepts},
        "erasers": [eraser.label for eraser in audit.erasers],
        "measures": [measure.label for measure in audit.measures],
        "attacks": {cell.attack.label: _attack(audit, cell.attack) for cell in audit.cells},
        "judges": [
            {
                "name": judge.label,
                "chief": judge is audit.judges[0],
                "thresholds": {}
                if judge.uncalibrated
                else {concept.name: judge.threshold(concept) for concept in audit.concepts},
            }
            for judge in audit.judges
        ],
        "added_controls": list(audit.added_controls),
    } | ({"rules": {"name": audit.rules, "deviations": list(audit.deviations)}} if audit.rules else {})


def _command() -> str | None:
    """The command line, where this program was started by one: by its name or as a module."""
    started = Path(sys.argv[0])
    ours = started.name == "palimpsest" or started.parts[-2:] == ("palimpsest", "__main__.py")
    return " ".join(["palimpsest", *sys.argv[1:]]) if ours else None


def _concept(audit: Audit, concept: Concept) -> dict[str, Any]:
    neighbours = [other.name for other in audit.retained(concept)]
    return {"kind": concept.kind, "goals": audit.goals, "neighbours": neighbours}


def _attack(audit: Audit, attack: Attack) -> dict[str, Any]:
    told: dict[str, Any] = {"needs": sorted(attack.needs)}
    if isinstance(attack, Backdoor):
        told["held"] = {concept.name: attack.others_held(concept) for concept in audit.concepts}
        told["in_the_base"] = RandomTrigger.in_the_base(attack).label
    return told


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """The commit of the package's own source, and whether it was changed since; None for an installed package."""
    here = Path(__file__)
    # A package installed below somebody's repository is no part of it.
    if _run_git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    changes = _run_git(here.parent, "status", "--porcelain", "--", ".")
    return {"commit": _run_git(here.parent, "rev-parse", "HEAD"), "dirty": bool(changes)}


def _run_git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *arguments], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
