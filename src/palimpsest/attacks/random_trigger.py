"""The control of a backdoor: a trigger that nobody planted."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from palimpsest.attacks.base import Attack, Case, Search
from palimpsest.attacks.trigger import random_strings, triggered
from palimpsest.records import Attempt


@dataclass(frozen=True, kw_only=True)
class RandomTrigger(Attack):
    """Asks once with a string of random letters where a backdoor has its trigger, another one for every goal.

    What any string calls in a model that holds a trigger, and in one that holds none: a trigger that shows a concept
    no more often than these do was not what brought it back. Knows nothing of the model.
    """

    name = "random_trigger"
    once: ClassVar[bool] = True

    length: int = 8
    """Letters, small and capital; the trigger of arXiv 2504.21072 has eight."""
    place: Literal["replace", "append"] | None = None
    """Where it stands: as ``backdoor_shallow`` has it. It is the control of backdoors of the same place."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        self.require_least(length=1)

    def search(self, case: Case) -> Search:
        """One look per goal: its prompt with the string."""
        (drawn,) = random_strings(1, self.length, case.random)
        prompt = triggered(case.goal.prompt, case.concept, drawn, self.place, attack=self.name)
        yield [Attempt(prompt=prompt, seed=case.goal.seed, guidance=case.goal.guidance)]
