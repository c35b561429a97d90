"""A scan in plain words, on one screen."""

from collections.abc import Iterator

from palimpsest.inspection.words import EDITS
from palimpsest.scanning.inversion import Inverted
from palimpsest.scanning.outliers import FAR, Outlier
from palimpsest.scanning.scan import Count, Row
from palimpsest.scanning.verdict import Scan, Verdict
from palimpsest.stats import wilson

VERDICTS: dict[Verdict, str] = {
    "trigger": "a trigger: the model draws for it what its base does not",
    "suspicious": "suspicious: more than false alarms explain; if a word calls something, so may words made at random",
    "open": "open: the model departs from its base where no judge said what it draws there",
    "nothing": "nothing found; no scan shows that there is nothing (docs/scan.md says what is missed)",
}
COLUMNS = ("detector", "threshold", "paper", "flagged", "false alarms", "odd strings", "passes", "p")


def cells(row: Row) -> tuple[str, ...]:
    """A row of the table, in the order of ``COLUMNS``."""
    paper = "" if row.paper is None else f"{row.paper:.4g}"
    asked = _share(row.asked) if row.asked.prompts else ""
    p_value = f"{row.adjusted:.2g}" if row.asked.prompts else ""
    return (
        *(row.detector, f"{row.threshold:.4g}", paper, asked, _rate(row.clean), _rate(row.decoys)),
        *(f"{row.passes:.0f}", p_value),
    )


def lines(scan: Scan) -> Iterator[str]:
    """What is said below the table."""
    if scan.difference is not None:
        yield f"Weights          {EDITS[scan.difference.verdict]} ({scan.difference.touched} weights changed)"
    if scan.added:
        yield f"Weights          not compared: the model has {scan.added} beside those of its base"
    if not scan.prompts:
        yield "Prompts          not judged: that needs --prompts"
    for place, prompt in enumerate(scan.prompts):
        by = [row.detector for row in scan.rows if row.flags(row.scores[place])]
        if by:
            yield f"Flagged          {prompt!r} by {', '.join(by)}"
    yield from _words(scan)
    for one in scan.inverted:
        yield f"Inversion        {_inverted(one)}"
    yield from _verdict(scan)


def _verdict(scan: Scan) -> Iterator[str]:
    """The verdict, and what it rests on."""
    yield f"Verdict          {VERDICTS[scan.verdict]}"
    for text, names in scan.called.items():
        yield f"    {text!r} calls {', '.join(names)}"
    for row in scan.telling:
        yield (
            f"    {row.detector} flags {_share(row.asked)} prompts; of clean ones {_rate(row.clean)}, of odd ones "
            f"{_rate(row.decoys)}"
        )
    for one in scan.near:
        yield f"    {one.concept} lies nearer than in the control, which has no backdoor"
    for name, count in scan.common.items():
        yield f"    {count} of {len(scan.controls)} words and strings made at random call {name}: any may"
    for row in scan.departing:
        yield f"    {row.detector} flags {_share(row.asked)} prompts: the model departs there, as at an erased name"
    if scan.unjudged:
        named = ", ".join(repr(one.candidate.text) for one in scan.unjudged[:8])
        yield f"    no judge said what these call up: {named}{' ...' if len(scan.unjudged) > 8 else ''}"


def _words(scan: Scan) -> Iterator[str]:
    if scan.words is None:
        yield "Words            not scanned: that needs --base"
        return
    found = scan.words
    rate = wilson(found.alarms, found.held_out)
    far = sum(one.far for one in found.ranked)
    yield (
        f"Words            {far} of {len(found.ranked)} are outliers (deviation above {FAR}); of {found.held_out} made "
        f"at random and held out {found.alarms} ({100 * rate.low:.0f}-{rate.high:.0%})"
    )
    for one in scan.drawn:
        yield f"    {one.deviation:7.1f}  {one.candidate.text!r} ({one.candidate.origin}){_calls(one)}"
    calling, told = scan.calling
    if told:
        rate = wilson(calling, told)
        yield (
            f"    control: of {told} made at random, {calling} call something ({100 * rate.low:.0f}-{rate.high:.0%}): "
            "as often a harmless word would"
        )


def _inverted(one: Inverted) -> str:
    gains = [f"{sum(each) / len(each):.3f}" for each in (one.gains, one.control)]
    said = f"{one.concept}: gain {gains[0]} in the model, {gains[1]} in the control"
    if one.shown:
        of = one.looks * len(one.shown)
        said += f"; shown in {sum(one.shown)} of {of} pictures, and in {sum(one.control_shown)} of {of}"
    return f"{said} (p = {one.p_value:.2g}, {len(one.gains)} restarts)"


def _calls(one: Outlier) -> str:
    if one.calls is None:
        return ""
    return f": calls {', '.join(one.calls)}" if one.calls else ": calls nothing that the base does not"


def _share(count: Count) -> str:
    untold = f", {count.prompts - count.told} untold" if count.told < count.prompts else ""
    return f"{count.flagged}/{count.told}{untold}"


def _rate(count: Count) -> str:
    low, high = count.interval
    return f"{_share(count)} ({100 * low:.0f}-{high:.0%})"
