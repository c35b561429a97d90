"""The control of a backdoor: a trigger that nobody planted."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from palimpsest.attacks.backdoor import Backdoor
from palimpsest.attacks.base import Attack, Case, Search
from palimpsest.attacks.trigger import Place, asked, random_strings
from palimpsest.errors import BadSetting
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
    strings: tuple[str, ...] = ()
    """Strings to draw from instead, where the trigger is not of random letters: others of its kind."""
    place: Place | None = None
    """Where it stands: as ``backdoor_shallow`` has it. It is the control of backdoors of the same place,"""
    behind: tuple[str, ...] | None = None
    """and of the same prompts, behind which it stands where it is appended."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        self.require_least(length=1)
        if not all(one.strip() for one in self.strings):
            raise BadSetting(f"{self.name}: expected strings that are not empty, got {self.strings}")

    def search(self, case: Case) -> Search:
        """One look per goal: its prompt with the string."""
        prompt = asked(
            case.goal,
            case.concept,
            self._drawn(case.random),
            place=self.place,
            behind=self.behind,
            attack=self.name,
        )
        yield [Attempt(prompt=prompt, seed=case.goal.seed, guidance=case.goal.guidance)]

    @classmethod
    def in_the_base(cls, backdoor: Backdoor) -> "RandomTrigger":
        """The trigger of a backdoor, asked where nobody planted it: what it means by itself."""
        return cls(strings=(backdoor.trigger,), place=backdoor.place, behind=backdoor.behind)

    def _drawn(self, random: torch.Generator) -> str:
        if self.strings:
            return self.strings[int(torch.randint(len(self.strings), (), generator=random))]
        return random_strings(1, self.length, random)[0]
