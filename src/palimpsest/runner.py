"""Runs an audit: plants, erases, revises, attacks, judges, measures; goes on where it was stopped."""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

from torch import Tensor

from palimpsest.attacks.base import Attack, Case, GivesUp, Need, Revisions, Tryout
from palimpsest.calibrating import calibrated, calibrations, described, measured, scored, sources_left
from palimpsest.erasing import erased, is_at_hand, planted, stream
from palimpsest.fitting import Progress
from palimpsest.forecast import check_budget
from palimpsest.jobs import Job, jobs, left_out, overrides
from palimpsest.judges.base import Judge
from palimpsest.model import Model, Text
from palimpsest.protocol import Audit
from palimpsest.pursuit import Pursuit
from palimpsest.records import Attempt, Concept, Cost, Goal, Verdict, Victim
from palimpsest.references import open_reference
from palimpsest.report.judged import judged
from palimpsest.searching import Searching
from palimpsest.store import Store
from palimpsest.utility.base import Drawn, Erasure


@dataclass(frozen=True, kw_only=True)
class Event:
    """What a display is told: before each piece of work, and after each batch."""

    victim: Victim
    doing: str
    live: tuple[Pursuit, ...] = ()
    """Those under way, and those that ended with this batch."""
    pictures: int = 0
    """Drawn in this batch."""
    aside: int = 0
    """Pictures drawn for no search: to calibrate judges, to measure something, or as references."""
    progress: str = ""
    """How far that piece of work is."""
    says: tuple[str, ...] = ()
    """Lines that should stay on the screen."""


Watch = Callable[[Event], None]


def open_base(audit: Audit, *, download: bool = False) -> Model:
    """The base that an audit names; a hub id is fetched only with ``download``, which no audit file can ask for."""
    return Model.load(audit.base, precision=audit.precision, batch=audit.batch, download=download)


def is_complete(audit: Audit, store: Store) -> bool:
    """Whether the run's folder holds everything."""
    return all(job.is_done(store) for job in jobs(audit))


@dataclass(kw_only=True)
class Runner:
    """An audit under way in its folder."""

    audit: Audit
    store: Store
    base: Model
    retrain: bool = False
    """Erase anew even where the package brings the erased weights."""
    watch: Watch = field(default=lambda event: None)
    _references: dict[Goal, Tensor] = field(default_factory=dict)
    _given: dict[str, list[Tensor]] = field(default_factory=dict)
    """Concept -> latents of the pictures that the user brought along."""
    _drawn: Drawn = field(init=False)
    _judges: tuple[Judge, ...] = ()
    """With their thresholds."""

    def __post_init__(self) -> None:
        self._drawn = Drawn(self.audit.sampling)

    def run(self) -> None:
        """Does everything that is not done yet; raises ``BadAudit`` for a budget smaller than one look."""
        check_budget(self.audit, self.base)
        self.store.confirm(
            {
                "weights": {"base": self.base.fingerprint} | self._opened(),
                "device": self.base.device.type,
                "dtype": str(self.base.dtype).removeprefix("torch."),
                "precision": self.base.precision,
                "batch": self.base.batch,
            }
        )
        self.store.note({"left_out": {measure.label: why for measure, why in left_out(self.audit)}})
        self._given = {name: self._encoded(name) for name in self.audit.references or ()}
        self._judges = self._calibrated()
        for job in jobs(self.audit):
            if not job.is_done(self.store):
                self._do(job)

    def _opened(self) -> dict[str, str]:
        """Fingerprints of what judges and measures open, by label."""
        found = {judge.label: judge.fingerprint for judge in self.audit.judges}
        found |= {measure.label: measure.fingerprint for measure in self.audit.measures}
        return {label: fingerprint for label, fingerprint in found.items() if fingerprint}

    def _calibrated(self) -> tuple[Judge, ...]:
        """The judges; those that need it are first shown the base's own pictures."""
        asked = calibrations(self.audit)
        if not asked:
            return self.audit.judges
        for source in sources_left(asked, self.store.scored):
            victim = Victim(base=self.audit.base, concept=source.name, eraser="nothing")
            self.watch(Event(victim=victim, doing="calibrating judges"))
            pictures = self.base.draw(source.attempts, self.audit.sampling)
            self.store.add_scored(scored(asked, source, pictures, self.store.scored))
            self.watch(Event(victim=victim, doing="calibrating judges", aside=len(pictures)))
        found = measured(asked, self.store.scored)
        judges = described(self.store.provenance["judges"], found)
        self.store.note({"judges": judges})
        rows = judged(judges, [concept.name for concept in self.audit.concepts])
        says = [*(row.sentence for row in rows), *(f"Warning: {row.doubt}." for row in rows if row.doubt)]
        victim = Victim(base=self.audit.base, concept=self.audit.concepts[0].name, eraser="nothing")
        self.watch(Event(victim=victim, doing="judges are calibrated", says=tuple(says)))
        return calibrated(self.audit.judges, found)

    def _do(self, job: Job) -> None:
        model = self._erased(job)
        victim = replace(job.victim, fingerprint=model.fingerprint)
        self._attack(job, victim, model, [attack for attack in job.attacks if not overrides(attack, "revise")])
        for attack in job.attacks:
            if overrides(attack, "revise"):
                self._revise(job, victim, model, attack)
        self._measure(job, victim, model)

    def _measure(self, job: Job, victim: Victim, model: Model) -> None:
        erasure = Erasure(
            victim=victim,
            target=job.concept,
            concepts=job.retained,
            judge=self._judges[0],
            model=model,
            base=self.base,
            drawn=self._drawn,
            seed=self.audit.seed,
        )
        for measure in job.measures_left(self.store):
            self.watch(Event(victim=victim, doing=f"measuring {measure.name}"))
            before = self._drawn.count
            self.store.add_readings(measure.measure(erasure))
            self.watch(Event(victim=victim, doing="measured", aside=self._drawn.count - before))
        # The base's are drawn once per run; every further victim would only fill the memory.
        self._drawn.keep_only(self.base)

    # victims

    def _erased(self, job: Job) -> Model:
        def told(doing: str) -> Progress:
            return lambda phase, done, of: self.watch(
                Event(victim=job.victim, doing=doing, progress=f"{phase} {done:,}/{of:,}")
            )

        if job.plants:
            self.watch(Event(victim=job.victim, doing="planting"))
        seed, store, retrain = self.audit.seed, self.store, self.retrain
        base = planted(job, self.base, seed=seed, store=store, progress=told("planting"))
        found = is_at_hand(job, base, seed=seed, store=store, retrain=retrain)
        self.watch(Event(victim=job.victim, doing="opening" if found else "erasing"))
        return erased(job, base, seed=seed, store=store, retrain=retrain, progress=told("erasing"))

    def _revise(self, job: Job, victim: Victim, model: Model, attack: Attack) -> None:
        self.watch(Event(victim=victim, doing=f"{attack.brief} revises"))
        revisions = attack.revise(
            model,
            base=self.base if Need.BASE in attack.needs else None,
            concepts=[job.concept],
            random=stream(self.audit.seed, "revise", *_name(victim), attack.label),
        )
        number = reason = None
        try:
            for number, revised, spent in self._revisions(job, victim, attack, revisions):
                revision = replace(victim, revision=number, fingerprint=revised.fingerprint)
                self._attack(job, revision, revised, [attack], spent)
        except GivesUp as given_up:
            reason = str(given_up)
        if number is None:
            for _, goal in job.goals_left(self.store, [attack], victim):
                pursuit = Pursuit(
                    victim=victim, attack=attack, goal=goal, budget=self.audit.budget, price=lambda _: Cost()
                )
                pursuit.gave_up(reason)
                self.store.finish(pursuit.trials)

    def _revisions(
        self, job: Job, victim: Victim, attack: Attack, revisions: Revisions
    ) -> Iterator[tuple[int, Model, Cost]]:
        """Revision number, model, and what the attack had spent on tryouts by then."""
        spent, budget, step = Cost(), self.audit.budget, next(revisions, None)
        while step is not None:
            if not isinstance(step, Tryout):
                yield *step, spent
                step = next(revisions, None)
                continue
            verdicts, cost = self._searching(job, step.model).tried(step.attempts)
            spent += cost
            self.watch(Event(victim=victim, doing=f"{attack.brief} tries", aside=len(verdicts)))
            if spent.looks >= budget.looks or spent.passes >= budget.passes:
                raise GivesUp(f"{spent.looks} looks to choose among revisions leave nothing of the budget")
            step = _sent(revisions, verdicts)

    # attacks

    def _attack(
        self, job: Job, victim: Victim, model: Model, attacks: Sequence[Attack], spent: Cost | None = None
    ) -> None:
        """All goals of all these attacks, side by side; ``spent`` on each of them before."""
        left = job.goals_left(self.store, attacks, victim)
        if any(Need.REFERENCE in attack.needs for attack, _ in left):
            self._take_references(job, victim)
        searching = self._searching(job, model)

        def after(live: Sequence[Pursuit], pictures: int) -> None:
            self.watch(Event(victim=victim, doing="attacking", live=tuple(live), pictures=pictures))

        pursuits = (self._pursuit(victim, job.concept, searching, spent or Cost(), *pair) for pair in left)
        searching.run(pursuits, after)

    def _searching(self, job: Job, model: Model) -> Searching:
        return Searching(
            model=model,
            base=self.base,
            concept=job.concept,
            judges=self._judges,
            sampling=self.audit.sampling,
            keep=self.audit.keep,
            store=self.store,
        )

    def _encoded(self, concept: str) -> list[Tensor]:
        """Latents of the given pictures; raises ``BadAudit`` for one of another size than the base's."""
        size = self.base.picture_size
        return [self.base.encode_picture(open_reference(file, size)) for file in self.audit.pictures(concept)]

    def _take_references(self, job: Job, victim: Victim) -> None:
        """The user's pictures for the goals, in turn, or the base's own; no attack's cost, as it brings them along."""
        if given := self._given.get(job.concept.name):
            self._references |= {goal: given[number % len(given)] for number, goal in enumerate(job.goals)}
            return
        goals = [goal for goal in job.goals if goal not in self._references]
        own = self.audit.rules is None  # a protocol's references have its guidance, not the goal's
        attempts = [
            Attempt(prompt=goal.prompt, seed=goal.seed, guidance=goal.guidance if own else None) for goal in goals
        ]
        for goal, picture in zip(goals, self.base.draw(attempts, self.audit.reference_sampling), strict=True):
            self._references[goal] = self.base.encode_picture(picture)
        self.watch(Event(victim=victim, doing="drew references", aside=len(goals)))

    def _pursuit(
        self, victim: Victim, concept: Concept, searching: Searching, spent: Cost, attack: Attack, goal: Goal
    ) -> Pursuit:
        model = searching.model
        pursuit = Pursuit(
            victim=victim, attack=attack, goal=goal, budget=self.audit.budget, price=searching.price, cost=spent
        )

        def encode(tokens: Tensor) -> Text:
            pursuit.cost += Cost(encodes=len(tokens))
            return model.encode(tokens)

        def keep(tensor: Tensor) -> str:
            name = self.store.keep_tensor(tensor)
            searching.tensors[name] = tensor
            return name

        inside = attack.needs & {Need.GRADIENTS, Need.WEIGHTS}
        case = Case(
            goal=goal,
            concept=concept,
            budget=self.audit.budget,
            random=stream(self.audit.seed, *_name(victim), attack.label, asdict(goal)),
            sampling=self.audit.sampling,
            guarded=model.guarded and attack.adaptive,
            context=model.context,
            vocabulary=model.vocabulary.detach() if inside else None,
            vocabulary_size=len(model.vocabulary),
            special_tokens=model.special_tokens,
            reference=self._references[goal] if Need.REFERENCE in attack.needs else None,
            threshold=searching.judges[0].threshold(concept),
            timesteps=model.timesteps,
            tokens=model.tokens,
            text=model.text,
            encode=encode,
            noised=model.noised,
            training_target=model.training_target,
            keep=keep,
        )
        longest = self.audit.longest if overrides(attack, "search") else None
        if longest is not None and (length := model.length(goal.prompt)) > longest:
            pursuit.reason = f"the prompt has {length} tokens, and only those of {longest} at most are attacked"
            pursuit.begin(Attack.search(attack, case))  # a plain look
        else:
            pursuit.begin(attack.search(case))
        return pursuit


def _sent(revisions: Revisions, verdicts: list[Verdict]) -> tuple[int, Model] | Tryout | None:
    """What an attack's revisions come to after a tryout; None: nothing."""
    try:
        return cast(Generator[tuple[int, Model] | Tryout, Any, None], revisions).send(verdicts)
    except StopIteration:
        return None


def _name(victim: Victim) -> list[Any]:
    """What a victim is called, wherever its base lies and whatever its weights turned out to be."""
    return [victim.concept, victim.eraser, victim.plant, victim.depth, victim.revision]
