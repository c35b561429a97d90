"""An inspection in plain words, on one screen."""

from collections import Counter
from collections.abc import Iterator

from palimpsest.inspection.inspecting import Inspection
from palimpsest.inspection.verdict import Difference, Edit, KindChange, Pattern, Pruning
from palimpsest.inspection.zeros import Zeros

SHOWN = 8
"""Layers that are named; the rest is counted."""
PATTERNS: dict[Pruning, str] = {
    "none": "no zeros beyond chance: nothing was pruned, or what was pruned has been filled in",
    "few": "too few zeros beyond chance to read a pattern",
    "structured": "structured pruning: whole rows or columns are gone (or units that died in training)",
    "magnitude": "pruning by size: the smallest weights are gone, as for compression; no mark of a concept",
    "concept mask": "a concept mask: large weights of a few inputs are gone, in layers of one kind, as ConceptPrune "
    "and its kin leave them",
    "random": "pruning at random: neither places nor sizes matter",
    "unclear": "no pattern that is known here: see the evidence",
}
EDITS: dict[Edit, str] = {
    "nothing": "nothing changed",
    "pruning": "pruning: what changed is zero now",
    "replaced": "a mask whose values were replaced: few entries of each weight changed, and not to zero",
    "text encoder": "an eraser of the text encoder: the denoiser is the base's",
    "closed form": "a closed-form edit of cross-attention keys and values (UCE and its kin): low rank, and every layer "
    "answers the same few texts",
    "low rank": "a LoRA that was merged, or another edit of low rank",
    "keys and values": "fine-tuned keys and values of the cross-attention (as ESD-x-strict)",
    "cross-attention": "fine-tuned cross-attention (as ESD-x)",
    "self-attention": "fine-tuned self-attention (as ESD-self, Scissorhands)",
    "feed-forward": "fine-tuned feed-forwards",
    "all but cross-attention": "a fine-tuned denoiser without its cross-attention (as ESD-u)",
    "fine-tuning": "fine-tuning of many kinds of layers: no method by its places alone",
}


def lines(inspection: Inspection, *, model: str, base: str | None = None) -> Iterator[str]:
    """What is said on the screen; ``model`` and ``base`` are what they were called."""
    grids = Counter(one.grid for one in inspection.zeros)
    told = ", ".join(f"{count} in {grid}" for grid, count in grids.most_common())
    yield (
        f"{model}: {inspection.weights} weights, {inspection.entries:,} numbers; matrices whose numbers all lie "
        f"{told.replace(' in ', ' on the grid of ', 1)}"
    )
    yield from _zeros(inspection.zeros, inspection.pattern)
    yield f"Zeros look like  {PATTERNS[inspection.pattern.verdict]}"
    yield from (f"    {line}" for line in _evidence(inspection.pattern))
    if inspection.pattern.verdict in ("concept mask", "unclear"):
        yield (
            f"    next: palimpsest audit --base {base or 'BASE'} --concept CONCEPT --eraser checkpoint={model} "
            "--attack revive"
        )
    if inspection.difference is not None:
        yield from _difference(inspection.difference, base or "the base")


def _zeros(zeros: tuple[Zeros, ...], pattern: Pattern) -> Iterator[str]:
    tested = [one for one in zeros if one.tested]
    natural, expected = sum(one.zeros for one in tested if not one.beyond), sum(one.expected for one in tested)
    yield (
        f"Exact zeros      beyond chance: {pattern.zeros:,} in {pattern.matrices} of {len(tested)} matrices "
        f"({pattern.expected:.3g} expected there); in the others {natural:,} ({expected - pattern.expected:.3g} "
        "expected)"
    )
    found = sorted((one for one in tested if one.beyond), key=lambda one: -one.share)
    for one in found[:SHOWN]:
        yield f"    {one.share:7.2%}  {one.name}  {one.rows}x{one.columns}, p {max(one.adjusted, 1e-300):.0e}"
    if len(found) > SHOWN:
        yield f"    and {len(found) - SHOWN} more"
    empty = [one for one in zeros if one.zeros == one.entries]
    rounded = len(zeros) - len(tested) - len(empty)
    if empty:
        yield f"    zero throughout, so never trained or removed: {', '.join(one.name for one in empty[:3])}"
        yield from [f"    and {len(empty) - 3} more"] * (len(empty) > 3)
    if rounded:
        yield f"    not told of {rounded} matrices that are rounded to 8 bits or fewer: zero is one of their levels"


def _evidence(pattern: Pattern) -> Iterator[str]:
    if pattern.verdict in ("none", "few"):
        return
    yield f"layers: {', '.join(f'{kind} {zeros:,}' for kind, zeros in pattern.kinds.items())}"
    rows = "gather in rows" if pattern.in_rows else "about as many in every row" if pattern.even else "by chance"
    yield f"per row: {rows} (scatter {pattern.row_scatter:.2f}, by chance 1, all alike 0)"
    columns = "gather in few" if pattern.in_columns else "no more than by chance"
    yield (
        f"per column: {columns} (scatter {pattern.column_scatter:.1f}); half of them in {pattern.half_in:.1%} of the "
        f"columns; {pattern.in_whole:.0%} in whole rows or columns"
    )
    yield (
        f"survivors: of the smallest {pattern.small_left:.2f} of what is expected are left; of the largest, in the "
        f"columns with most zeros, {pattern.large_left:.2f}"
    )


def _difference(difference: Difference, base: str) -> Iterator[str]:
    yield f"Changed          {difference.touched} of {difference.weights} weights of {base}"
    if difference.touched:
        yield f"    {'kind':28} {'weights':>9} {'entries':>8} {'size':>7}  rank: stable, of 99 %, in all"
    yield from (_kind(one) for one in difference.kinds if one.touched)
    yield f"This suggests    {EDITS[difference.verdict]}"
    if difference.rank is not None:
        yield f"    rank {difference.rank} at most; {difference.same_rank:.0%} have one of two ranks (a LoRA: 100 %)"
    if difference.shared_rows is not None:
        yield f"    keys and values share {difference.shared_rows:.0%} of their row spaces (a closed form: 100 %)"
    if difference.zeroed:
        yield f"    {difference.zeroed:.1%} of the changed entries are zero now"


def _kind(one: KindChange) -> str:
    ranks = ""
    if one.stable_rank is not None:
        ranks = f"  {one.stable_rank:.1f}, {one.rank_99:g}, {one.rank:g} of {one.full_rank:g}"
    return f"    {one.kind:28} {f'{one.touched}/{one.weights}':>9} {one.changed:>8.1%} {one.relative:>7.1%}{ranks}"
