"""What the measures of utility read off each victim, and how often the judge is wrong."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import NamedTuple

from palimpsest.records import Reading, Unit
from palimpsest.report.ledger import BASE, Run, marked
from palimpsest.stats import wilson

NEIGHBOURS = "neighbours"
FALSE_ALARMS = "false_alarms"
TOGETHER = ""
"""The concept of a reading of all that was measured."""


@dataclass(frozen=True, kw_only=True)
class Utility:
    """What one measure says of one victim, all that was looked for together or one thing of it."""

    concept: str
    eraser: str
    measure: str
    thing: str
    """What was looked for; empty: everything together."""
    value: float
    low: float | None
    """Of the 95 % interval; None: not known for all things together."""
    high: float | None
    n: int
    base: float | None
    """The base's value for the same; None: not measured."""
    of: str
    unit: Unit

    @property
    def kept(self) -> float | None:
        """A share as a share of the base's; of any other number nobody can say how much of it was kept."""
        return self.value / self.base if self.base and self.unit == "share" else None

    @property
    def text(self) -> str:
        """The value as it is printed."""
        return number(self.value, self.unit)

    @property
    def interval(self) -> str:
        """Its interval as it is printed; empty where none is known."""
        if self.low is None or self.high is None:
            return ""
        return f"{number(self.low, self.unit)} to {number(self.high, self.unit)}"

    @property
    def base_text(self) -> str:
        """The base's value as it is printed; empty where it was not measured."""
        return "" if self.base is None else number(self.base, self.unit)


class LeftOut(NamedTuple):
    """A measure that the machine of the run could not take."""

    measure: str
    why: str


def number(value: float, unit: str) -> str:
    """A value as it is printed: shares in per cent, others with three digits that count, or with two places."""
    if unit == "share":
        return f"{value:.0%}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"


def left_out(run: Run) -> list[LeftOut]:
    """The measures that were asked for and could not be taken, unless that was made good later."""
    told = run.provenance.get("left_out")
    taken = {reading.measure for reading in run.readings}
    return [
        LeftOut(str(measure), str(why))
        for measure, why in (sorted(told.items()) if isinstance(told, dict) else ())
        if str(measure).partition("(")[0] not in taken
    ]


@dataclass(frozen=True, kw_only=True)
class FalseAlarms:
    """How often the chief judge sees a concept in pictures that do not show it."""

    rate: float
    n: int
    measured: bool
    """On this run's own pictures; else by the judge's calibration, on separate data."""

    @property
    def high(self) -> float:
        """The upper end of the rate's interval."""
        return wilson(round(self.rate * self.n), self.n).high

    @property
    def source(self) -> str:
        """What they were counted on, in words."""
        return f"{self.n:,} pictures, {'of this run' if self.measured else 'in its calibration'}"


def utility(run: Run) -> list[Utility]:
    """Every measure of every victim: all that was looked for together, then thing by thing."""
    groups: dict[tuple[str, str, str], dict[str, Reading]] = {}
    for reading in run.readings:
        if reading.measure != FALSE_ALARMS and not (reading.victim.depth or reading.victim.revision):
            plant = f"plant {reading.victim.plant}" if reading.victim.plant else ""
            key = (reading.victim.concept, marked(reading.victim.eraser, plant), reading.measure)
            groups.setdefault(key, {})[reading.concept] = reading
    rows = []
    for (concept, eraser, measure), readings in sorted(groups.items()):
        base = _base(run, concept, measure)
        if TOGETHER not in readings:
            readings[TOGETHER] = _together(list(readings.values()))
            if all(thing in base for thing in readings if thing != TOGETHER):
                base[TOGETHER] = _together([base[thing] for thing in readings if thing != TOGETHER])
        for thing, reading in sorted(readings.items()):
            rows.append(
                Utility(
                    concept=concept,
                    eraser=eraser,
                    measure=measure,
                    thing=thing,
                    value=reading.value,
                    low=reading.low if isfinite(reading.low) else None,
                    high=reading.high if isfinite(reading.high) else None,
                    n=reading.n,
                    base=base[thing].value if thing in base else None,
                    of=reading.of,
                    unit=reading.unit,
                )
            )
    return rows


def _base(run: Run, concept: str, measure: str) -> dict[str, Reading]:
    """What the base's readings say, thing by thing; it is one model, whichever concept it was read for."""
    found: dict[str, Reading] = {}
    for reading in run.readings:
        if reading.victim.eraser == BASE and not reading.victim.plant and reading.measure == measure:
            same = reading.victim.concept == concept
            # What was measured together hangs on the concept: another has other neighbours.
            if same or reading.concept not in (*found, TOGETHER):
                found[reading.concept] = reading
    return found


def _together(readings: Sequence[Reading]) -> Reading:
    """Readings of single things as one: the mean over their pictures; an interval only of a share."""
    n, value = sum(reading.n for reading in readings), _mean(readings)
    low, high = (-inf, inf) if readings[0].unit != "share" else wilson(round(value * n), n)
    of = min(reading.of for reading in readings)
    return replace(readings[0], concept=TOGETHER, value=value, n=n, low=low, high=high, of=of)


def _mean(readings: Sequence[Reading]) -> float:
    n = sum(reading.n for reading in readings)
    return sum(reading.value * reading.n for reading in readings) / n if n else 0.0


def false_alarms(run: Run, concept: str) -> FalseAlarms | None:
    """The chief judge's false alarms for a concept; None: nobody measured them."""
    own = [
        reading
        for reading in run.readings
        if reading.measure == FALSE_ALARMS
        and reading.victim.eraser == BASE
        and not reading.victim.plant
        and reading.concept == concept
    ]
    if own:
        return FalseAlarms(rate=_mean(own), n=sum(reading.n for reading in own), measured=True)
    calibrated = next(iter(run.judges), {}).get("false_alarms")
    known = calibrated.get(concept) if isinstance(calibrated, dict) else None
    if not isinstance(known, dict) or "rate" not in known:
        return None
    return FalseAlarms(rate=float(known["rate"]), n=int(known.get("n", 0)), measured=False)
