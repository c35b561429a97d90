"""Audits concept erasure in text-to-image diffusion models."""

import importlib
import typing

if typing.TYPE_CHECKING:
    from palimpsest.attacks.base import Attack, Budget, Case, Need
    from palimpsest.auditing import audit
    from palimpsest.concept_file import shipped_concepts
    from palimpsest.erasers.base import Eraser
    from palimpsest.errors import PalimpsestError
    from palimpsest.inspection import Inspection, inspect
    from palimpsest.judges.base import Judge
    from palimpsest.model import Model, Probe, Sampling, Slope
    from palimpsest.protocol import Audit
    from palimpsest.records import Attempt, Concept, Cost, Goal, Reading, Trial, Verdict, Victim
    from palimpsest.run import Run
    from palimpsest.utility.base import Measure

__all__ = [
    "Attack",
    "Attempt",
    "Audit",
    "Budget",
    "Case",
    "Concept",
    "Cost",
    "Eraser",
    "Goal",
    "Inspection",
    "Judge",
    "Measure",
    "Model",
    "Need",
    "PalimpsestError",
    "Probe",
    "Reading",
    "Run",
    "Sampling",
    "Slope",
    "Trial",
    "Verdict",
    "Victim",
    "audit",
    "inspect",
    "shipped_concepts",
]

_HOMES = {
    "attacks.base": ("Attack", "Budget", "Case", "Need"),
    "auditing": ("audit",),
    "concept_file": ("shipped_concepts",),
    "erasers.base": ("Eraser",),
    "errors": ("PalimpsestError",),
    "inspection": ("Inspection", "inspect"),
    "judges.base": ("Judge",),
    "model": ("Model", "Probe", "Sampling", "Slope"),
    "protocol": ("Audit",),
    "records": ("Attempt", "Concept", "Cost", "Goal", "Reading", "Trial", "Verdict", "Victim"),
    "run": ("Run",),
    "utility.base": ("Measure",),
}


def __getattr__(name: str) -> typing.Any:
    """Imports a public name when it is first used: ``palimpsest --help`` must not wait for torch."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"palimpsest.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
