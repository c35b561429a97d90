"""The whole inspection: zeros, changes, and what both say."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from palimpsest.inspection.changes import Change, find_changes, require_alike
from palimpsest.inspection.verdict import Difference, Pattern, difference_of, pattern_of
from palimpsest.inspection.zeros import Zeros, find_zeros
from palimpsest.model import Model

SCHEMA = 1
"""Of the JSON, in docs/inspect.md."""


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What was found: numbers per weight, and verdicts by the rules of ``palimpsest.inspection.verdict``."""

    weights: int
    entries: int
    zeros: tuple[Zeros, ...]
    """One per matrix."""
    pattern: Pattern
    changes: tuple[Change, ...] = ()
    """One per weight, if there is a base."""
    difference: Difference | None = None

    def as_json(self) -> dict[str, Any]:
        """All of it, as docs/inspect.md describes."""
        told = {"schema": SCHEMA, **asdict(self)}
        for record, zeros in zip(told["zeros"], self.zeros, strict=True):
            record |= {"share": zeros.share, "beyond": zeros.beyond}
        for record, change in zip(told["changes"], self.changes, strict=True):
            record |= {"relative": change.relative}
        return told


def inspect(model: Model | Mapping[str, Tensor], base: Model | Mapping[str, Tensor] | None = None) -> Inspection:
    """Looks at the weights of a model, or given by qualified name, and at what changed against a base.

    Raises ``BadModel`` for a base of another architecture. Nothing is random, and one matrix is worked on at a time.
    """
    weights = model.weights() if isinstance(model, Model) else model
    old = base.weights() if isinstance(base, Model) else base
    if old is not None:
        require_alike(weights, old)
    zeros = find_zeros(weights)
    changes = () if old is None else find_changes(weights, old)
    return Inspection(
        weights=len(weights),
        entries=sum(weight.numel() for weight in weights.values()),
        zeros=zeros,
        pattern=pattern_of(zeros),
        changes=changes,
        difference=None if old is None else difference_of(changes),
    )
