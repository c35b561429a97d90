"""Erased models: made once, kept in the run's folder, found again."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from palimpsest.erasers.checkpoint import Checkpoint
from palimpsest.erasers.nothing import Nothing
from palimpsest.jobs import Job
from palimpsest.model import Model
from palimpsest.protocol import derived_seed
from palimpsest.records import digest
from palimpsest.store import Store

SHIPPED = Path(__file__).parent / "erased"
"""Changed weights that come with the package, under the names that they have in a run's folder."""


def stream(*origin: Any) -> torch.Generator:
    """Random numbers that hang on all of ``origin`` and on nothing else."""
    return torch.Generator().manual_seed(derived_seed(*origin))


def erased(job: Job, base: Model, *, seed: int, store: Store, retrain: bool = False) -> Model:
    """The job's model: from the run's folder, from the package (unless ``retrain``), or else erased now."""
    if isinstance(job.eraser, Nothing | Checkpoint):  # there is nothing to keep that lies nowhere else
        return _erase(job, base, seed)
    name, about = _name(job, base, seed)
    changed = store.weights(name)
    if changed is None and not retrain and _shipped(name).exists():
        changed = load_file(_shipped(name))
        store.keep_weights(name, changed, about | {"made": "shipped with the package"})
    if changed is None:
        model = _erase(job, base, seed)
        if model.guarded:  # weights cannot hold a guard, and it is quickly made
            return model
        changed = difference(model, base)
        store.keep_weights(name, changed, about | {"made": "in this run"})
    return base.with_weights(changed)


def is_at_hand(job: Job, base: Model, *, seed: int, store: Store | None, retrain: bool = False) -> bool:
    """Whether the job's model need not be erased first."""
    if isinstance(job.eraser, Nothing | Checkpoint):
        return True
    name, _ = _name(job, base, seed)
    return (store is not None and store.has_weights(name)) or (not retrain and _shipped(name).exists())


def difference(model: Model, base: Model) -> dict[str, Tensor]:
    """The weights in which a model is not its base, those of adapters included."""
    before = base.weights()
    return {
        name: weight.detach()
        for name, weight in model.weights().items()
        if name not in before or (weight is not before[name] and not torch.equal(weight, before[name]))
    }


def _erase(job: Job, base: Model, seed: int) -> Model:
    return job.eraser.erase(base, [job.concept], random=stream(seed, "erase", job.eraser.label, job.concept.name))


def _name(job: Job, base: Model, seed: int) -> tuple[str, dict[str, str]]:
    """What the changed weights are stored as, and everything that they hang on."""
    concept = {key: value for key, value in asdict(job.concept).items() if key not in ("seeds", "guidances")}
    about = {
        "base": base.fingerprint,
        "eraser": json.dumps(job.eraser.spec),
        "concept": json.dumps(concept),  # all of it but what only its goals are drawn with
        "seed": str(seed),
    }
    words = re.sub(r"[^a-z0-9]+", "-", f"{job.eraser.name} {job.concept.name}".lower())
    return f"{words}-{digest(about)[:16]}", about


def _shipped(name: str) -> Path:
    return SHIPPED / f"{name}.safetensors"
