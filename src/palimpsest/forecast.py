"""What an audit will cost at most, before it begins."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from palimpsest.attacks.base import Attack, Need
from palimpsest.calibrating import calibrations, sources_left
from palimpsest.erasers.base import Eraser
from palimpsest.erasers.nothing import Nothing
from palimpsest.erasing import is_at_hand, is_quick, kept_plant
from palimpsest.errors import BadAudit
from palimpsest.jobs import Job
from palimpsest.model import Model, Probe
from palimpsest.protocol import Audit
from palimpsest.records import Attempt
from palimpsest.store import Store

BYTES_PER_VALUE = 0.7
"""Of a PNG; a photograph takes about this."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Upper bounds: searches stop at their first success."""

    goals: int
    looks: int
    pictures: int
    """Drawn to calibrate judges, to measure utility, and as references for attacks."""
    passes: int
    passes_per_second: float
    erasing: int
    """Models still to be planted or erased; how long that takes is not known beforehand."""
    bytes: int

    @property
    def seconds(self) -> float:
        """Of all but erasing."""
        return self.passes / self.passes_per_second


def forecast(
    audit: Audit, model: Model, left: Sequence[Job], *, store: Store | None = None, retrain: bool = False
) -> Forecast:
    """The bounds of what is left to do; raises ``BadAudit`` for a budget smaller than one look."""
    check_budget(audit, model)
    goals = [(job, attack) for job in left for attack, _ in job.goals_left(store, job.attacks, job.victim)]
    looks = sum(most_looks(audit, attack) for _, attack in goals)
    referring = {
        job.concept.name: len(job.goals)
        for job, attack in goals
        if Need.REFERENCE in attack.needs and job.concept.name not in (audit.references or ())
    }
    sources = sources_left(calibrations(audit), store.scored if store else []) if left else []
    calibrating = sum(len(source.attempts) for source in sources)
    drawn, measured, asked = _measured(audit, left, store)
    bases, references = calibrating + drawn, sum(referring.values())
    of_reference = model.picture_cost(Attempt(prompt="", seed=0), audit.reference_sampling).passes
    width, height = model.decode(torch.zeros(1, *model.latent_shape))[0].size
    kept = {"none": 0, "hits": 2 * len(goals), "all": looks}[audit.keep]
    erasing = _unmade(audit, model, left, store=store, retrain=retrain)
    weights = sum(weight.numel() * weight.element_size() for weight in model.weights(r"unet\..*").values())
    return Forecast(
        goals=len(goals),
        looks=looks,
        pictures=bases + references + sum(count for _, count in measured),
        passes=sum(most_passes(audit, model, attack, job.eraser) for job, attack in goals)
        + bases * picture_passes(audit, model)
        + references * of_reference
        + sum(count * picture_passes(audit, model, eraser) for eraser, count in measured)
        + asked,
        passes_per_second=speed(model),
        erasing=erasing,
        bytes=int(kept * 3 * width * height * BYTES_PER_VALUE) + erasing * weights,
    )


def _unmade(audit: Audit, model: Model, left: Sequence[Job], *, store: Store | None, retrain: bool) -> int:
    """How many models there are still to make."""
    plants, count = set(), 0
    for job in left:
        base = kept_plant(job, model, seed=audit.seed, store=store)
        if base is None:
            plants.add((job.victim.concept, job.victim.plant))
            count += not is_quick(job)
        else:
            count += not is_at_hand(job, base, seed=audit.seed, store=store, retrain=retrain)
    return len(plants) + count


def _measured(audit: Audit, left: Sequence[Job], store: Store | None) -> tuple[int, list[tuple[Eraser, int]], int]:
    """Pictures drawn for measures: the base's, for all of them, and each victim's; and further passes."""
    base, victims, passes = set[Attempt](), list[tuple[Eraser, int]](), 0
    for job in left:
        draws = [measure.draws(job.concept, job.retained, seed=audit.seed) for measure in job.measures_left(store)]
        passes += sum(each.passes for each in draws)
        own = {attempt for each in draws for attempt in each.victim}
        base.update(attempt for each in draws for attempt in each.base)
        if isinstance(job.eraser, Nothing) and not job.victim.plant:
            base |= own
        else:
            victims.append((job.eraser, len(own)))
    return len(base), victims, passes


def check_budget(audit: Audit, model: Model) -> None:
    """Raises ``BadAudit`` where a goal's budget does not reach one look: no picture would be drawn, and none shown."""
    for eraser in audit.erasers:
        least = picture_passes(audit, model, eraser)
        if audit.budget.passes < least:
            raise BadAudit(
                f"expected a budget of at least one look, which takes {least} passes under {eraser.brief}, "
                f"got {audit.budget.passes}"
            )


def picture_passes(audit: Audit, model: Model, eraser: Eraser | None = None) -> int:
    """Of a picture in full steps, by the model or by what the eraser makes of it."""
    attempt = Attempt(prompt="", seed=0)
    guard = eraser.parts[-1].guard if eraser else None
    if guard is None:
        return model.picture_cost(attempt, audit.sampling).passes
    alone = replace(audit.sampling, guidance=1.0)  # one branch; a guard asks all of its own at any guidance
    return guard.branches * model.picture_cost(attempt, alone).passes


def most_looks(audit: Audit, attack: Attack) -> int:
    """At one goal."""
    return 1 if attack.once else audit.budget.looks


def most_passes(audit: Audit, model: Model, attack: Attack, eraser: Eraser | None = None) -> int:
    """At one goal: the budget, or for an attack that only looks, its looks."""
    if attack.needs - {Need.PLANT}:  # what was planted is there before the search begins
        return audit.budget.passes
    return min(audit.budget.passes, most_looks(audit, attack) * picture_passes(audit, model, eraser))


def speed(model: Model, *, seconds: float = 1.0) -> float:
    """Passes per second, measured on the denoiser in full batches for about so long."""
    latents = torch.zeros(model.latent_shape)
    probe = Probe(tokens=model.tokens(""), latents=latents, step=model.timesteps // 2)
    model.ask([probe])  # the first is always slower
    began, passes = time.perf_counter(), 0
    while passes == 0 or time.perf_counter() - began < seconds:
        model.ask([probe] * model.batch)
        passes += model.batch
    return passes / (time.perf_counter() - began)
