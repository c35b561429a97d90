"""Exact zeros: how many a matrix has, how many its numbers' type explains, and where the rest sits."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor

from palimpsest.inspection.kinds import kind_of
from palimpsest.stats import at_least, holm

LEVEL = 0.01
"""Adjusted p-value below which zeros are beyond chance."""
DRAWN = 2.0**-24
"""Share of zeros that is natural anywhere: a weight drawn in single precision takes one of 2^24 values."""
BACKGROUND = 1e-4
"""Share of zeros up to which that of the other matrices is taken as natural; above, they too may be pruned."""
LEVELS = 256
"""Distinct values in a row from which on it is not taken as rounded to 8 bits."""
TAIL = 0.1
"""Share of the sizes that counts as large, or the share of zeros in the columns in which they gather, if less."""
TELLING = 8
"""Survivors of a column that tell how its sizes are spread."""
WINDOWS = (8, 64, 512)
"""Half widths, in steps of the type, of the windows around zero in which the density of small weights is read."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The numbers that a type of floating point has around zero."""

    type: torch.dtype
    smallest: float
    """The least number above zero."""
    normal: float
    """The least that keeps its full precision; some conversions turn all below into zero."""


GRIDS = {
    "fp16": Grid(type=torch.float16, smallest=2.0**-24, normal=2.0**-14),
    "bf16": Grid(type=torch.bfloat16, smallest=2.0**-133, normal=2.0**-126),
    "fp32": Grid(type=torch.float32, smallest=2.0**-149, normal=2.0**-126),
}


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where the zeros of a matrix of m rows (outputs) and n columns (inputs) sit, and which sizes are left."""

    whole_rows: int
    """Rows of nothing but zeros."""
    whole_columns: int
    in_whole: int
    """Zeros in whole rows or columns."""
    row_scatter: float
    """Chi-square of the zeros per row against equal chances, over its degrees of freedom: 1 by chance, 0 if every row
    has as many."""
    column_scatter: float
    """The same per column: far above 1 where zeros gather in columns."""
    row_freedom: int
    column_freedom: int
    row_noise: float
    """Variance of ``row_scatter`` times the freedom, by chance."""
    column_noise: float
    half_in: float
    """The least share of the columns that holds half of the zeros."""
    small: int
    """Survivors of sizes up to b, where b is such that (b, 2b] holds ``small_expected``: 0 if the smallest are gone."""
    small_expected: int
    large: int
    """In the columns in which zeros gather: survivors above the size that the share ``TAIL`` exceeds elsewhere."""
    large_expected: float
    """As many as there would be, had sizes nothing to do with it."""


@dataclass(frozen=True, kw_only=True)
class Zeros:
    """The exact zeros of one matrix; of a convolution the rows are output channels."""

    name: str
    kind: str
    rows: int
    columns: int
    grid: str
    """The coarsest type that holds all values exactly: fp16, bf16 or fp32, whatever the file's own type."""
    zeros: int
    expected: float
    """Natural zeros by the matrix's own spread, its density around zero, and the other matrices."""
    tested: bool
    """False for a matrix that is rounded to few levels, or zero throughout."""
    p_value: float
    adjusted: float
    """By Holm, over all tested matrices."""
    places: Places | None = None
    """Only where zeros are beyond chance."""

    @property
    def entries(self) -> int:
        """Rows times columns."""
        return self.rows * self.columns

    @property
    def share(self) -> float:
        """Zeros per entry."""
        return self.zeros / self.entries

    @property
    def beyond(self) -> bool:
        """Whether there are more zeros than chance explains."""
        return self.tested and self.adjusted < LEVEL


def find_zeros(weights: Mapping[str, Tensor]) -> tuple[Zeros, ...]:
    """One record per matrix (and convolution), in the order given; one matrix is looked at at a time."""
    counted = list(_count(weights))
    tested = [one for one in counted if one.tested]
    typical = min(BACKGROUND, median([one.share for one in tested] or [0.0]))
    p_values = {}
    for index, one in enumerate(counted):
        if one.tested:
            expected = max(one.expected, one.entries * max(typical, DRAWN))
            p_value = at_least(one.zeros, one.entries, min(1.0, expected / one.entries))
            counted[index] = replace(one, expected=expected, p_value=p_value)
            p_values[index] = p_value
    for index, adjusted in zip(p_values, holm(list(p_values.values())), strict=True):
        one = replace(counted[index], adjusted=adjusted)
        counted[index] = replace(one, places=places(_matrix(weights[one.name])) if one.beyond else None)
    return tuple(counted)


def _count(weights: Mapping[str, Tensor]) -> Iterator[Zeros]:
    for name, weight in weights.items():
        if weight.ndim < 2 or "norm" in name.rpartition(".")[0].rpartition(".")[2] or weight.numel() == 0:
            continue
        matrix = _matrix(weight)
        zeros = matrix.numel() - int(matrix.count_nonzero())
        grid = "fp16" if weight.dtype == torch.float16 else grid_of(matrix)
        tested = 0 < zeros < matrix.numel() and not is_rounded(matrix, grid) or zeros == 0
        yield Zeros(
            name=name,
            kind=kind_of(name, weight.ndim),
            rows=matrix.shape[0],
            columns=matrix.shape[1],
            grid=grid,
            zeros=zeros,
            expected=natural(matrix, grid) if tested else 0.0,
            tested=tested,
            p_value=1.0,
            adjusted=1.0,
        )


def _matrix(weight: Tensor) -> Tensor:
    """(out, in) in single precision, which holds every type that weights come in."""
    return weight.detach().flatten(1).float().cpu()


def grid_of(matrix: Tensor) -> str:
    """The coarsest type that holds all values: half precision leaves its zeros in a file of single precision too."""
    head = matrix.flatten()[:4096]
    for name, grid in GRIDS.items():
        if all(torch.equal(part.to(grid.type).float(), part) for part in (head, matrix)):
            return name
    return "fp32"


def is_rounded(matrix: Tensor, grid: str) -> bool:
    """Whether rows hold so few values as rounding to 8 bits, or blocks of 64 as few as rounding to 4 bits leaves.

    Zero is then a level like any other. Eight rows are looked at; each kind needs rows that are long enough to tell.
    Few values because all are among the least that the type has are the type's own rounding, which is counted.
    """
    rows = matrix[torch.linspace(0, len(matrix) - 1, min(8, len(matrix))).long()]
    eight, four = [], []
    for row in rows:
        left = row[row != 0]
        if (left.abs() <= 2 * GRIDS[grid].smallest).any():
            return False
        if len(left) >= 320:
            eight.append(len(left.unique()) <= min(LEVELS, 0.8 * len(left)))
        for block in left[: len(left) // 64 * 64].reshape(-1, 64)[:8]:
            four.append(len(block.unique()) <= 16)
    return any(found and sum(found) > len(found) / 2 for found in (eight, four))


def natural(matrix: Tensor, grid: str) -> float:
    """Zeros that the type's rounding explains: the most by rows or columns as normal, and by the density at zero.

    Rounded to zero is what lies within half a step of it. For a row (column) of mean square s^2 + step^2 / 12 (the
    latter is the rounding's) that is erf(step / (2 sqrt(2) s)) of its entries, unless it is zero throughout; by density
    it is the number of non-zero entries within h of zero, times step / 2h. Half precision without a single number below
    its normal ones has been flushed: its step is twice the smallest normal number.
    """
    least = GRIDS[grid]
    step, size = least.smallest, matrix.abs()
    close = size[size <= WINDOWS[-1] * least.smallest]
    close = close[close > 0]
    square = matrix.square()
    if grid == "fp16" and not len(close) and _is_flushed(matrix, size):
        step = 2 * least.normal
        close = size[(size > 0) & (size <= WINDOWS[-1] * step)]
    found = [int((close <= window * step).sum()) / (2 * window) for window in WINDOWS]
    for axis in (0, 1):
        mean = square.mean(axis).double()
        spread = (mean[mean > 0] - step**2 / 12).clamp(min=step**2 / 1e4).sqrt()
        found.append(float(torch.erf(step / (2 * 2**0.5 * spread)).sum()) * matrix.shape[axis])
    return max(found)


def _is_flushed(matrix: Tensor, size: Tensor) -> bool:
    """Whether half precision lacks all of its smallest numbers where at least ten should be."""
    normal = GRIDS["fp16"].normal
    left = size[size > 0]
    if not len(left) or float(left.min()) < normal:
        return False
    spread = max(float(left.square().mean().sqrt()), normal)
    return len(left) * math.erf(normal / (2**0.5 * spread)) >= 10


def places(matrix: Tensor) -> Places:
    """Where the zeros of (m, n) sit."""
    gone = matrix == 0
    rows, columns = gone.sum(1), gone.sum(0)
    whole_rows, whole_columns = rows == matrix.shape[1], columns == matrix.shape[0]
    row, column = _scatter(rows, matrix.shape[1]), _scatter(columns, matrix.shape[0])
    falling = columns.sort(descending=True).values
    fullest = int((falling.cumsum(0) < int(columns.sum()) / 2).sum()) + 1
    small, small_expected = small_left(matrix[~gone].abs(), int(gone.sum()))
    large, large_expected = large_left(matrix)
    return Places(
        whole_rows=int(whole_rows.sum()),
        whole_columns=int(whole_columns.sum()),
        in_whole=int((gone & (whole_rows[:, None] | whole_columns)).sum()),
        row_scatter=row[0],
        column_scatter=column[0],
        row_freedom=len(rows) - 1,
        column_freedom=len(columns) - 1,
        row_noise=row[1],
        column_noise=column[1],
        half_in=fullest / matrix.shape[1],
        small=small,
        small_expected=small_expected,
        large=large,
        large_expected=large_expected,
    )


def _scatter(counts: Tensor, tries: int) -> tuple[float, float]:
    """Chi-square over freedom of counts of ``tries`` each, and the variance of the chi-square by chance."""
    freedom, mean = max(1, len(counts) - 1), float(counts.double().mean())
    spread = mean * (1 - mean / tries)
    if spread == 0:
        return 0.0, 2.0 * freedom
    # Of small counts the chi-square varies more than its distribution says.
    return float((counts - mean).square().sum()) / spread / freedom, freedom * (2 + 1 / spread)


def small_left(sizes: Tensor, pruned: int) -> tuple[int, int]:
    """Survivors up to b and in (b, 2b], b being the first at which the latter are as many as were pruned.

    Around zero a density is flat, so the two are alike unless the smallest are gone. At most a quarter of the survivors
    is asked for: beyond, no density is flat.
    """
    ordered = sizes.sort().values
    wanted = max(1, min(pruned, len(ordered) // 4))
    starts = torch.arange(0, len(ordered), max(1, wanted // 64))
    reach = torch.searchsorted(ordered, 2 * ordered[starts], right=True) - starts - 1
    enough = (reach >= wanted).nonzero()
    at = int(enough[0]) if len(enough) else int(reach.argmax())
    return int(starts[at]), int(reach[at])


def large_left(matrix: Tensor) -> tuple[int, float]:
    """Of (m, n), large survivors in the columns in which zeros gather; and how many there should be.

    Sizes are told by the root mean square of the row and the median of the column's survivors, both without what is
    gone. Where the largest of a column are gone, the rest reaches less far beyond its own median than in the columns
    without zeros: if few are gone because just these are missing, if most are because what is left is the flat middle
    of the density.
    """
    gone = matrix == 0
    counts = gone.sum(0)
    mean = float(counts.double().mean())
    gathered = counts >= max(4.0, mean + 4 * mean**0.5)
    inside, outside = gathered & (counts <= len(matrix) - TELLING), ~gathered & (counts < len(matrix))
    if not inside.any() or not outside.any():
        return 0, 0.0
    size = torch.where(gone, torch.nan, matrix.abs())
    size = size / size[:, outside].square().nanmean(1, keepdim=True).sqrt()
    size = size / size.nanmedian(0).values
    others, ours = (part[part.isfinite()] for part in (size[:, outside], size[:, inside]))
    if not len(others) or not len(ours):
        return 0, 0.0
    share = min(TAIL, float(gone[:, inside].float().mean()))
    bound = others.kthvalue(max(1, int((1 - share) * len(others)))).values
    return int((ours > bound).sum()), share * len(ours)
