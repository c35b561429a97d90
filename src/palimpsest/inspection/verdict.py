"""What the numbers say, by stated rules."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Literal

from palimpsest.inspection.changes import Change
from palimpsest.inspection.kinds import CROSS, FEED_FORWARD, TEXT
from palimpsest.inspection.zeros import Places, Zeros

Pruning = Literal["none", "few", "structured", "magnitude", "concept mask", "random", "unclear"]
Edit = Literal[
    "nothing",
    "pruning",
    "replaced",
    "text encoder",
    "closed form",
    "low rank",
    "keys and values",
    "cross-attention",
    "self-attention",
    "feed-forward",
    "all but cross-attention",
    "fine-tuning",
]

FEW = 30
"""Zeros beyond chance below which no pattern is read."""
GATHERED = 1.5
"""Scatter per column (row) from which zeros gather there; ``SURE`` deviations are needed as well."""
EVEN = 0.5
"""Scatter per row below which all rows have about as many."""
SURE = 5.0
"""Standard deviations that an effect must be from chance."""
SMALLEST_GONE = 0.5
"""Small survivors over what a flat density has, below which the smallest are gone."""
LARGEST_GONE = 0.7
"""Large survivors in the gathered columns over what is expected, below which the largest are gone."""
ONE_KIND = 0.95
"""Share of the zeros in one kind of layer, from which they are that kind's."""
SPARSE = 0.25
"""Share of a changed weight's entries up to which a change is a mask's."""
SAME_RANK = 0.9
"""Share of changed matrices of the same rank (or two), from which it is that of a LoRA and not of what was learnt."""
SHARED = 0.9
"""Share of a common row space from which changes of keys and values answer the same texts."""


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """The pattern of the zeros beyond chance: the numbers that decide, pooled over their matrices, and the verdict."""

    verdict: Pruning
    matrices: int
    zeros: int
    expected: float
    kinds: dict[str, int]
    """Zeros beyond chance by kind of layer."""
    in_whole: float = 0.0
    """Share of the zeros in whole rows and columns."""
    row_scatter: float = 0.0
    row_deviation: float = 0.0
    """Standard deviations of ``row_scatter`` from 1."""
    column_scatter: float = 0.0
    column_deviation: float = 0.0
    half_in: float = 0.0
    """Share of the columns that holds half of the zeros, weighted by zeros."""
    small_left: float = 0.0
    """Small survivors over expected ones: about 1 unless the smallest are gone."""
    large_left: float = 0.0
    """Large survivors in the fullest columns over expected ones: about 1 unless the largest are gone."""
    large_deviation: float = 0.0
    """Standard deviations of the missing large ones."""

    @property
    def in_columns(self) -> bool:
        """Whether zeros gather in columns beyond chance."""
        return self.column_scatter >= GATHERED and self.column_deviation >= SURE

    @property
    def in_rows(self) -> bool:
        """Whether zeros gather in rows beyond chance."""
        return self.row_scatter >= GATHERED and self.row_deviation >= SURE

    @property
    def even(self) -> bool:
        """Whether all rows have about as many zeros."""
        return self.row_scatter <= EVEN and self.row_deviation <= -SURE

    @property
    def one_kind(self) -> bool:
        """Whether they sit in one kind of layer."""
        return max(self.kinds.values(), default=0) >= ONE_KIND * self.zeros


def pattern_of(zeros: Sequence[Zeros]) -> Pattern:
    """The pattern of all matrices whose zeros are beyond chance."""
    found = [(one, one.places) for one in zeros if one.beyond and one.places is not None]
    total = sum(one.zeros for one, _ in found)
    kinds = Counter[str]()
    for one, _ in found:
        kinds[one.kind] += one.zeros
    bare = Pattern(
        verdict="few" if found else "none",
        matrices=len(found),
        zeros=total,
        expected=sum(one.expected for one, _ in found),
        kinds=dict(kinds.most_common()),
    )
    if total < FEW:
        return bare
    where = [place for _, place in found]
    pooled = replace(
        bare,
        in_whole=sum(place.in_whole for place in where) / total,
        half_in=sum(one.zeros * place.half_in for one, place in found) / total,
        small_left=_ratio(sum(place.small for place in where), sum(place.small_expected for place in where)),
        **_scatter(where),
        **_large(where),
    )
    return replace(pooled, verdict=_read(pooled))


def _read(pattern: Pattern) -> Pruning:
    """The rules, the first that holds."""
    if pattern.in_whole >= 0.5:
        return "structured"
    if pattern.small_left < SMALLEST_GONE:
        return "magnitude"
    largest_gone = pattern.large_left < LARGEST_GONE and pattern.large_deviation >= SURE
    if pattern.in_columns and largest_gone and pattern.one_kind:
        return "concept mask"
    if not pattern.in_columns and not pattern.in_rows and not largest_gone:
        return "random"
    return "unclear"


def _ratio(found: float, expected: float) -> float:
    return found / expected if expected else 1.0


def _scatter(where: Sequence[Places]) -> dict[str, Any]:
    """Scatter of rows and columns over all matrices, and how far from chance."""
    told = {}
    for axis in ("row", "column"):
        freedom = sum(getattr(place, f"{axis}_freedom") for place in where)
        square = sum(getattr(place, f"{axis}_scatter") * getattr(place, f"{axis}_freedom") for place in where)
        noise = sum(getattr(place, f"{axis}_noise") for place in where)
        told[f"{axis}_scatter"] = _ratio(square, freedom)
        told[f"{axis}_deviation"] = (square - freedom) / noise**0.5 if noise else 0.0
    return told


def _large(where: Sequence[Places]) -> dict[str, Any]:
    found, expected = sum(place.large for place in where), sum(place.large_expected for place in where)
    # Both the survivors and the bound, which comes from as many, vary.
    return {
        "large_left": _ratio(found, expected),
        "large_deviation": (expected - found) / (found + expected) ** 0.5 if expected else 0.0,
    }


@dataclass(frozen=True, kw_only=True)
class KindChange:
    """What changed in the layers of one kind."""

    kind: str
    weights: int
    touched: int
    """Weights in which an entry changed."""
    changed: float
    """Share of all entries."""
    relative: float
    """Norm of the change over that of the base."""
    stable_rank: float | None
    """Medians over the changed matrices."""
    rank_99: float | None
    rank: float | None
    full_rank: float | None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What changed against the base, and what that suggests."""

    verdict: Edit
    kinds: tuple[KindChange, ...]
    touched: int
    weights: int
    zeroed: float = 0.0
    """Share of the changed entries that are zero now."""
    density: float = 0.0
    """Share of the entries of the touched weights that changed."""
    low_rank: bool = False
    """Whether only matrices changed, each by at most half of its full rank."""
    rank: int | None = None
    """The largest, if it is low."""
    same_rank: float = 0.0
    """Share of the changed matrices that have one of the two commonest ranks (a LoRA may have one for linears and one
    for convolutions)."""
    shared_rows: float | None = None
    """The median share of a common row space of the changes of keys and values."""


def difference_of(changes: Sequence[Change]) -> Difference:
    """What all changes come to."""
    touched = [change for change in changes if change.changed]
    kinds = tuple(_kind(kind, changes) for kind in dict.fromkeys(change.kind for change in changes))
    if not touched:
        return Difference(verdict="nothing", kinds=kinds, touched=0, weights=len(changes))
    entries = sum(change.changed for change in touched)
    low = all(change.rank is not None and 2 * change.rank <= (change.full_rank or 0) for change in touched)
    ranks = Counter(change.rank for change in touched if change.rank is not None)
    shared = [change.shared_rows for change in touched if change.shared_rows is not None]
    told = Difference(
        verdict="fine-tuning",
        kinds=kinds,
        touched=len(touched),
        weights=len(changes),
        zeroed=sum(change.zeroed for change in touched) / entries,
        density=entries / sum(change.entries for change in touched),
        low_rank=low,
        rank=max(change.rank or 0 for change in touched) if low else None,
        same_rank=sum(count for _, count in ranks.most_common(2)) / max(1, ranks.total()),
        shared_rows=_median(shared),
    )
    return replace(told, verdict=_suggest(told))


def _suggest(difference: Difference) -> Edit:
    """The rules, the first that holds."""
    kinds = {one.kind for one in difference.kinds if one.touched}
    if difference.zeroed >= ONE_KIND:
        return "pruning"
    if difference.low_rank and kinds == {CROSS[0]} and (difference.shared_rows or 0) >= SHARED:
        return "closed form"
    if kinds <= set(TEXT):
        return "text encoder"
    if difference.low_rank and difference.same_rank >= SAME_RANK:
        return "low rank"
    if difference.density <= SPARSE:
        return "replaced"
    denoiser = kinds - set(TEXT) - {"autoencoder"}
    alone: tuple[tuple[set[str], Edit], ...] = (
        ({CROSS[0]}, "keys and values"),
        (set(CROSS), "cross-attention"),
        ({"self-attention"}, "self-attention"),
        (set(FEED_FORWARD), "feed-forward"),
    )
    for members, verdict in alone:
        if kinds <= members:
            return verdict
    return "all but cross-attention" if denoiser == kinds and not denoiser & set(CROSS) else "fine-tuning"


def _kind(kind: str, changes: Sequence[Change]) -> KindChange:
    members = [change for change in changes if change.kind == kind]
    touched = [change for change in members if change.changed]
    base = sum(change.base_norm**2 for change in members) ** 0.5
    norm = sum(change.norm**2 for change in touched) ** 0.5
    return KindChange(
        kind=kind,
        weights=len(members),
        touched=len(touched),
        changed=sum(change.changed for change in members) / sum(change.entries for change in members),
        relative=norm / base if base else float(norm > 0),
        stable_rank=_median([change.stable_rank for change in touched if change.stable_rank is not None]),
        rank_99=_median([change.rank_99 for change in touched if change.rank_99 is not None]),
        rank=_median([change.rank for change in touched if change.rank is not None]),
        full_rank=_median([change.full_rank for change in touched if change.full_rank is not None]),
    )


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None
