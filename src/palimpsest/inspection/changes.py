"""What differs from a base: how much of each weight, how strongly, and of what rank."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from palimpsest.errors import BadModel
from palimpsest.inspection.kinds import CROSS, kind_of
from palimpsest.inspection.zeros import GRIDS, grid_of

ENERGY = 0.99
"""Share of the squared singular values that ``rank_99`` counts."""
PRECISION = {"fp16": 2.0**-10, "bf16": 2.0**-7, "fp32": 2.0**-23}
"""Distance of neighbouring numbers, relative to their size."""
COARSEST = ("bf16", "fp16", "fp32")


@dataclass(frozen=True, kw_only=True)
class Change:
    """How one weight W differs from the base's W_0; D = W - W_0."""

    name: str
    kind: str
    shape: tuple[int, ...]
    changed: int
    """Entries that differ once both are rounded to the coarser of their two types."""
    zeroed: int
    """Of these, how many are zero now and were not."""
    norm: float
    """Of D (Frobenius)."""
    base_norm: float
    """Of W_0."""
    stable_rank: float | None = None
    """Squared Frobenius norm of D over its squared largest singular value; None for vectors and what did not change."""
    rank_99: int | None = None
    """Singular values of D that hold 99 % of its energy."""
    rank: int | None = None
    """Singular values of D above what rounding to the type leaves."""
    full_rank: int | None = None
    """As many as there are: the smaller side."""
    shared_rows: float | None = None
    """Of a low-rank change of cross-attention keys or values: the share of its row space that lies in the row space of
    the first such change of the same width. 1 for a closed form, which answers the same texts everywhere."""

    @property
    def entries(self) -> int:
        """The product of the shape."""
        return int(torch.Size(self.shape).numel())

    @property
    def relative(self) -> float:
        """The norm of the change over that of the base; 0 where neither has one."""
        return self.norm / self.base_norm if self.base_norm else float(self.norm > 0)


def find_changes(weights: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> tuple[Change, ...]:
    """One record per weight, in the base's order; ``BadModel`` names the weights whose shapes differ."""
    require_alike(weights, base)
    found, spans = [], dict[int, Tensor]()
    for name, old in base.items():
        change, difference = _compare(name, weights[name], old)
        if change.kind == CROSS[0] and change.rank and change.full_rank and 2 * change.rank <= change.full_rank:
            rows = _row_space(difference, change.rank)
            first = spans.setdefault(len(rows), rows)
            shared = float((first.mT @ rows).square().sum()) / min(first.shape[1], rows.shape[1])
            change = replace(change, shared_rows=shared)
        found.append(change)
    return tuple(found)


def require_alike(weights: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> None:
    """Raises ``BadModel`` unless both have the same weights of the same shapes."""
    faults = [
        f"{name} (expected {tuple(base[name].shape)}, got {tuple(weight.shape)})"
        for name, weight in weights.items()
        if name in base and base[name].shape != weight.shape
    ]
    lacking, strange = [name for name in base if name not in weights], [name for name in weights if name not in base]
    told = []
    for what, names in (("other shapes", faults), ("no weight for", lacking), ("weights of its own", strange)):
        if names:
            told.append(f"{what}: {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}")
    if told:
        raise BadModel(f"expected a model of the base's architecture, got one with {'; '.join(told)}")


def _compare(name: str, weight: Tensor, old: Tensor) -> tuple[Change, Tensor]:
    """The change, and D as (out, in) in double precision."""
    weight, old = weight.detach().float().cpu(), old.detach().float().cpu()
    same = torch.equal(weight, old)
    grids = "fp32", "fp32"
    if not same:
        grids = grid_of(weight), grid_of(old)
    coarse = min(grids, key=COARSEST.index)
    if not same and grids[0] == coarse:  # what a base loses in the model's type is no change
        old = old.to(GRIDS[coarse].type).float()
    differs = weight.to(GRIDS[coarse].type) != old.to(GRIDS[coarse].type)
    changed = 0 if same else int(differs.sum())
    difference = (weight.double() - old.double()).reshape(len(weight), -1) if changed else torch.zeros(1, 1)
    change = Change(
        name=name,
        kind=kind_of(name, weight.ndim),
        shape=tuple(weight.shape),
        changed=changed,
        zeroed=int((differs & (weight == 0)).sum()) if changed else 0,
        norm=float(difference.norm()),
        base_norm=float(old.double().norm()),
    )
    if not changed or weight.ndim < 2 or min(difference.shape) < 2:
        return change, difference
    return _ranked(change, difference, PRECISION[coarse]), difference


def _ranked(change: Change, difference: Tensor, precision: float) -> Change:
    """The change with its ranks, from the eigenvalues of the smaller of D D^T and D^T D."""
    rows, columns = difference.shape
    gram = difference @ difference.mT if rows <= columns else difference.mT @ difference
    energy = torch.linalg.eigvalsh(gram).clamp(min=0).flip(0)
    total = float(energy.sum())
    # Rounding W moves each entry by 0.3 of a step at most on average: noise, whose largest singular value is known.
    typical = change.base_norm / (rows * columns) ** 0.5
    noise = 0.6 * precision * typical * (rows**0.5 + columns**0.5)
    floor = max(noise**2, 1e-13 * float(energy[0]))
    return replace(
        change,
        stable_rank=total / float(energy[0]),
        rank_99=int((energy.cumsum(0) < ENERGY * total).sum()) + 1,
        rank=int((energy > floor).sum()),
        full_rank=len(energy),
    )


def _row_space(difference: Tensor, rank: int) -> Tensor:
    """(in, rank): an orthonormal basis of the rows of D."""
    basis: Tensor = torch.linalg.eigh(difference.mT @ difference).eigenvectors
    return basis[:, -rank:]
