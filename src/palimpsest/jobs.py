"""What an audit comes down to: one erased model after another, and what is left to do with each."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from palimpsest.attacks.backdoor import Backdoor
from palimpsest.attacks.base import Attack
from palimpsest.attacks.direct import Direct
from palimpsest.attacks.random_trigger import RandomTrigger
from palimpsest.erasers.base import Eraser
from palimpsest.erasers.nothing import Nothing
from palimpsest.protocol import Audit
from palimpsest.records import Concept, Goal, Victim
from palimpsest.store import Key, Store
from palimpsest.utility.base import Measure


@dataclass(frozen=True, kw_only=True)
class Job:
    """One erased model, and all that is done with it."""

    victim: Victim
    """Without its fingerprint: the model has not been made yet."""
    concept: Concept
    eraser: Eraser
    attacks: tuple[Attack, ...]
    goals: tuple[Goal, ...]
    """Of each attack."""
    measures: tuple[Measure, ...]
    retained: tuple[Concept, ...]
    """What the erasure should have left, for the measures."""

    @property
    def plants(self) -> Attack | None:
        """The attack that plants something in the base first; None: none does."""
        return next((attack for attack in self.attacks if overrides(attack, "plant")), None)

    def goals_left(self, store: Store | None, attacks: Iterable[Attack], victim: Victim) -> list[tuple[Attack, Goal]]:
        """The goals of these attacks on this victim that have not ended; without a store, all of them."""
        return [
            (attack, goal)
            for attack in attacks
            for goal in self.goals
            if store is None or not store.is_finished(Key.of(victim, attack.label, goal))
        ]

    def measures_left(self, store: Store | None) -> list[Measure]:
        """The measures that have not been taken."""
        return [
            measure for measure in self.measures if store is None or not store.is_measured(self.victim, measure.name)
        ]

    def is_done(self, store: Store) -> bool:
        """Whether nothing is left; what an attack makes of a victim is known only when it has been asked again."""
        return not (
            self.goals_left(store, self.attacks, self.victim)
            or self.measures_left(store)
            or any(overrides(attack, "revise") for attack in self.attacks)
        )


def jobs(audit: Audit) -> list[Job]:
    """All of an audit, concept by concept, the untouched base first.

    Attacks that plant nothing share one erased model; one that plants has a model of its own, which is also asked
    plainly: whatever was planted must leave the concept's own name alone, and the erasure must still reach it. A
    backdoor's model is asked with random strings as well, in the place of its trigger, and the untouched base with the
    trigger itself.
    """
    found = []
    named = {cell.eraser.label: cell.eraser for cell in audit.cells}
    erasers = sorted(named.values(), key=lambda eraser: not isinstance(eraser, Nothing))
    measures = tuple(measure for measure in audit.measures if not measure.lacking())
    for concept in audit.concepts:
        retained = audit.retained(concept)
        for eraser in erasers:
            planting: defaultdict[str, list[Attack]] = defaultdict(list, {"": []})
            for cell in audit.cells:
                if cell.eraser == eraser:
                    planting[cell.attack.label if overrides(cell.attack, "plant") else ""].append(cell.attack)
            for plant, attacks in planting.items():
                if plant:
                    attacks += [control for control in planting[""] if _is_asked_where(attacks[0], control)]
            if isinstance(eraser, Nothing):
                backdoors = [one for some in planting.values() for one in some if isinstance(one, Backdoor)]
                meant = dict.fromkeys(map(RandomTrigger.in_the_base, backdoors))
                planting[""] += [control for control in meant if control not in planting[""]]
            for plant, attacks in planting.items():
                found.append(
                    Job(
                        victim=Victim(base=audit.base, concept=concept.name, eraser=eraser.label, plant=plant),
                        concept=concept,
                        eraser=eraser,
                        attacks=tuple(attacks),
                        goals=audit.goals_for(concept),
                        measures=measures if retained else (),
                        retained=retained,
                    )
                )
    return found


def _is_asked_where(plants: Attack, control: Attack) -> bool:
    """Whether the control is asked in the model in which that attack plants, too."""
    if isinstance(control, RandomTrigger):
        return isinstance(plants, Backdoor) and (plants.place, plants.behind) == (control.place, control.behind)
    return isinstance(control, Direct)


def left_out(audit: Audit) -> list[tuple[Measure, str]]:
    """The measures that this machine cannot take, and what they lack."""
    return [(measure, why) for measure in audit.measures if (why := measure.lacking())]


def overrides(attack: Attack, move: str) -> bool:
    """Whether the attack has its own ``plant``, ``revise`` or ``search``."""
    return getattr(type(attack), move) is not getattr(Attack, move)
