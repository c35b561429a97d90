"""What the measures of utility read off each victim, and how often the judge is wrong."""

from collections.abc import Sequence
from dataclasses import dataclass

from palimpsest.records import Reading
from palimpsest.report.ledger import BASE, Run
from palimpsest.stats import wilson

NEIGHBOURS = "neighbours"
FALSE_ALARMS = "false_alarms"


@dataclass(frozen=True, kw_only=True)
class Utility:
    """What one measure says of one victim, all that was looked for together or one thing of it."""

    concept: str
    eraser: str
    measure: str
    thing: str
    """What was looked for; empty: everything together."""
    value: float
    n: int
    base: float | None
    """The base's value for the same; None: not measured."""
    of: str

    @property
    def kept(self) -> float | None:
        """The value as a share of the base's."""
        return self.value / self.base if self.base else None


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
        if reading.measure != FALSE_ALARMS and not (
            reading.victim.plant or reading.victim.depth or reading.victim.revision
        ):
            key = (reading.victim.concept, reading.victim.eraser, reading.measure)
            groups.setdefault(key, {})[reading.concept] = reading
    rows = []
    for (concept, eraser, measure), readings in sorted(groups.items()):
        base = _base(run, concept, measure)
        measured = [base[thing] for thing in readings if thing in base]
        complete = len(measured) == len(readings)
        rows.append(
            Utility(
                concept=concept,
                eraser=eraser,
                measure=measure,
                thing="",
                value=_mean(list(readings.values())),
                n=sum(reading.n for reading in readings.values()),
                base=_mean(measured) if complete else None,
                of=next(iter(sorted({reading.of for reading in readings.values()}))),
            )
        )
        for thing, reading in sorted(readings.items()):
            rows.append(
                Utility(
                    concept=concept,
                    eraser=eraser,
                    measure=measure,
                    thing=thing,
                    value=reading.value,
                    n=reading.n,
                    base=base[thing].value if thing in base else None,
                    of=reading.of,
                )
            )
    return rows


def _base(run: Run, concept: str, measure: str) -> dict[str, Reading]:
    """What the base's readings say, thing by thing; it is one model, whichever concept it was read for."""
    found: dict[str, Reading] = {}
    for reading in run.readings:
        if reading.victim.eraser == BASE and not reading.victim.plant and reading.measure == measure:
            if reading.victim.concept == concept or reading.concept not in found:
                found[reading.concept] = reading
    return found


def _mean(readings: Sequence[Reading]) -> float:
    n = sum(reading.n for reading in readings)
    return sum(reading.value * reading.n for reading in readings) / n if n else 0.0


def false_alarms(run: Run, concept: str) -> FalseAlarms | None:
    """The chief judge's false alarms for a concept; None: nobody measured them."""
    own = [
        reading
        for reading in run.readings
        if reading.measure == FALSE_ALARMS and reading.victim.eraser == BASE and reading.concept == concept
    ]
    if own:
        return FalseAlarms(rate=_mean(own), n=sum(reading.n for reading in own), measured=True)
    calibrated = next(iter(run.judges), {}).get("false_alarms")
    known = calibrated.get(concept) if isinstance(calibrated, dict) else None
    if not isinstance(known, dict) or "rate" not in known:
        return None
    return FalseAlarms(rate=float(known["rate"]), n=int(known.get("n", 0)), measured=False)
