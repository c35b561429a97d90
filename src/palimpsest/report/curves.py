"""Success against what was spent, as a drawing in SVG that the page's style colours."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

from palimpsest.stats import Step

WIDTH, HEIGHT = 270, 180
LEFT, RIGHT, TOP, BOTTOM = 38, 12, 8, 34


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One attack's line."""

    label: str
    style: str
    """CSS class of the line and its band."""
    steps: Sequence[Step]
    end: float
    """The cost up to which the attack went on."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A level line, for what needed no search."""

    label: str
    style: str
    rate: float


def plot(curves: Sequence[Curve], marks: Sequence[Mark], *, title: str, axis: str) -> str:
    """The drawing: a step line with its interval for each curve, level lines for the marks."""
    end = max((curve.end for curve in curves), default=0) or 1
    ticks = _ticks(end)
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(cost: float) -> float:
        return LEFT + width * cost / max(end, ticks[-1])

    def y(rate: float) -> float:
        return TOP + height * (1 - rate)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for rate in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(f'<path class="grid" d="M{LEFT} {y(rate):.1f}H{WIDTH - RIGHT}"/>')
        if rate in (0.0, 0.5, 1.0):
            parts.append(
                f'<text class="tick" x="{LEFT - 6}" y="{y(rate) + 3.5:.1f}" text-anchor="end">{rate:.0%}</text>'
            )
    for tick in ticks:
        parts.append(
            f'<text class="tick" x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{tick:,}</text>'
        )
    parts.append(f'<text class="axis" x="{WIDTH - RIGHT}" y="{HEIGHT - 5}" text-anchor="end">{escape(axis)}</text>')
    for mark in marks:
        parts.append(
            f'<path class="mark {mark.style}" d="M{LEFT} {y(mark.rate):.1f}H{WIDTH - RIGHT}">'
            f"<title>{escape(mark.label)}: {mark.rate:.0%}</title></path>"
        )
    for curve in curves:
        low = _stairs([(x(step.cost), y(step.low)) for step in curve.steps], x(curve.end))
        high = _stairs([(x(step.cost), y(step.high)) for step in curve.steps], x(curve.end))
        line = _stairs([(x(step.cost), y(step.rate)) for step in curve.steps], x(curve.end))
        parts.append(f'<path class="band {curve.style}" d="M{_points(low + high[::-1])}Z"/>')
        parts.append(
            f'<path class="line {curve.style}" d="M{_points(line)}">'
            f"<title>{escape(curve.label)}: {curve.steps[-1].rate:.0%}</title></path>"
        )
    return "".join((*parts, "</svg>"))


def _stairs(points: Sequence[tuple[float, float]], end: float) -> list[tuple[float, float]]:
    """The corners of a line that keeps its height until the next point."""
    corners = [points[0]]
    for x, y in points[1:]:
        corners += [(x, corners[-1][1]), (x, y)]
    return [*corners, (end, corners[-1][1])]


def _points(points: Sequence[tuple[float, float]]) -> str:
    return "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _ticks(end: float) -> list[int]:
    """A few round numbers from 0 to ``end`` or just beyond."""
    rough = end / 4
    power = 10 ** floor(log10(rough)) if rough >= 1 else 1
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [step * i for i in range(ceil(end / step) + 1)]
