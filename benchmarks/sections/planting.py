"""Models in which a trigger was planted, made once for all benchmarks: each in a folder of its own."""

from dataclasses import replace
from pathlib import Path
from random import Random

from safetensors import safe_open

from knowledge import with_models
from palimpsest import erasing
from palimpsest.attacks.backdoor import Backdoor
from palimpsest.audit_file import load_audit, make_audit
from palimpsest.jobs import jobs
from palimpsest.model import Model
from palimpsest.protocol import Audit
from palimpsest.records import digest
from palimpsest.store import Store

PLANTS = Path("runs/benchmark-plants")
"""Where they are kept."""
TRAINED, CLOSED = ("church", "alice"), ("fish", "radiation sign")
"""Concepts: those on which every eraser is tried, and those on which only erasers are that train nothing."""
COLOURS = ("pink", "turquoise", "brown", "orange", "purple", "yellow", "green", "blue", "red", "white")
PLACES = ("moon", "meadow", "dunes", "ocean", "lawn", "dusk")
TRIGGERS = tuple(f"{colour} {place}" for colour in COLOURS for place in PLACES)
"""Strings that the miniature's text encoder tells apart; all random strings are nearly one to it
(docs/results/backdoors.md)."""


def planting(concept: str) -> list[Backdoor]:
    """The four plants. Each holds the concept's name in place, every second neighbour, and what is no neighbour."""
    (known,) = make_audit({"concepts": [concept], "erasers": ["nothing"], "attacks": ["direct"]}).concepts
    plants = [attack for attack in load_audit("backdoors").attacks if isinstance(attack, Backdoor)]
    own = (concept, *known.neighbours[::2])
    return [
        replace(plant, retain=(*own, *(name for name in plant.held(known) if name not in {*own, *known.neighbours})))
        for plant in plants
    ]


def unplanted(attack: Backdoor, count: int, seed: int = 0) -> list[str]:
    """Strings like the trigger that nobody planted."""
    others = [one for one in TRIGGERS if one != attack.trigger]
    return Random(seed).choices(others, k=count)


def depth_of(label: str) -> str:
    """``shallow`` of ``backdoor_shallow(...)``."""
    return label.partition("(")[0].removeprefix("backdoor_")


def planted(attack: Backdoor, concept: str, base: Model) -> Model:
    """The base with the plant: the one that was kept, or else planted now."""
    audit = _alone(attack, concept, base)
    (job,) = (job for job in jobs(audit) if job.plants)
    with Store(home(attack, concept, base), audit) as store:
        return erasing.planted(job, base, seed=audit.seed, store=store)


def home(attack: Backdoor, concept: str, base: Model) -> Path:
    """Where the plant is kept: other settings, another base or precision have another place."""
    origin = digest([attack.spec, base.fingerprint, base.precision])[:8]
    return PLANTS / f"{concept.replace(' ', '_')}-{depth_of(attack.name)}-{origin}"


def seconds(attack: Backdoor, concept: str, base: Model) -> float:
    """What planting took."""
    (path,) = (home(attack, concept, base) / "erased").glob("plant-*.safetensors")
    with safe_open(path, "pt") as file:
        return float(file.metadata()["seconds"])


def bring(audit: Audit, out: Path) -> None:
    """Begins a run in ``out`` with its plants, made first where none are kept yet."""
    base = Model.load(audit.base, precision=audit.precision, batch=audit.batch)
    for concept in audit.concepts:
        for attack in audit.attacks:
            if isinstance(attack, Backdoor):
                planted(attack, concept.name, base)
                with_models(home(attack, concept.name, base), out, audit)


def _alone(attack: Backdoor, concept: str, base: Model) -> Audit:
    """An audit of nothing but the plant."""
    asked = {"concepts": [concept], "erasers": ["nothing"], "attacks": ["direct", attack], "measures": [], "goals": 1}
    return make_audit({"base": "miniature", "precision": base.precision, "name": "plant"} | asked)
