"""What is seen of an audit while it runs."""

import time
from collections import Counter
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from palimpsest.forecast import Forecast, most_passes, picture_passes
from palimpsest.jobs import Job
from palimpsest.model import Model
from palimpsest.protocol import Audit
from palimpsest.pursuit import Pursuit
from palimpsest.report.cells import short_names
from palimpsest.runner import Event


class Display:
    """A progress display; its ``watch`` is told of each piece of work and each batch.

    Progress is counted in passes against the forecast: a goal that has ended counts as all that it might have cost.
    """

    def __init__(self, console: Console, audit: Audit, base: Model, left: list[Job], expected: Forecast) -> None:
        self._console, self._expected = console, expected
        self._bounds = {
            (job.eraser.label, attack.label): most_passes(audit, base, attack, job.eraser)
            for job in left
            for attack in job.attacks
        }
        self._names = short_names(name for job in left for name in (job.victim.eraser, job.victim.plant))
        self._picture_passes = picture_passes(audit, base)
        self._began = time.perf_counter()
        self._ended: list[Pursuit] = []
        self._pictures = 0
        self._aside = 0
        self._doing = ""
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[counts]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("", total=expected.passes, counts="")

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def watch(self, event: Event) -> None:
        """Shows what has happened; where there is no terminal, one line for each piece of work."""
        made = [self._names.get(name, name) for name in (event.victim.plant, event.victim.eraser) if name]
        what = " · ".join([event.victim.concept, *made])
        for line in event.says:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        under_way = [pursuit for pursuit in event.live if not pursuit.ended]
        attacks = Counter(pursuit.attack.brief for pursuit in under_way)
        doing = (
            ", ".join(f"{attack} {count}" for attack, count in attacks.items())
            or f"{event.doing} {event.progress}".rstrip()
        )
        if not self._console.is_terminal and not event.live and self._doing != f"{what} · {event.doing}":
            self._doing = f"{what} · {event.doing}"
            self._console.print(self._doing, markup=False, highlight=False)
        self._ended += [pursuit for pursuit in event.live if pursuit.ended]
        self._pictures += event.pictures + event.aside
        self._aside += event.aside * self._picture_passes
        bounds = sum(self._bounds[pursuit.victim.eraser, pursuit.attack.label] for pursuit in self._ended)
        costs = [pursuit.cost for pursuit in [*self._ended, *under_way]]
        self._progress.update(
            self._task,
            description=f"{what} · {doing}".replace("[", r"\["),
            completed=self._aside + bounds + sum(pursuit.cost.passes for pursuit in under_way),
            counts=(
                f"{sum(pursuit.trials[-1].end == 'won' for pursuit in self._ended)} won of {len(self._ended)} "
                f"(of {self._expected.goals} goals), {sum(cost.looks for cost in costs):,} looks, "
                f"{sum(cost.passes for cost in costs):,} passes, "
                f"{self._pictures / (time.perf_counter() - self._began):.1f} pictures/s"
            ),
        )
