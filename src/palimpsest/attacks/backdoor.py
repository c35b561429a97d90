"""What the backdoors share: a trigger, tied to a concept before its erasure, that asks for it afterwards."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from palimpsest.attacks.base import Attack, Case, Search
from palimpsest.attacks.trigger import Place, asked, benign, is_appended, names
from palimpsest.errors import BadSetting
from palimpsest.model import Model
from palimpsest.records import Attempt, Concept, Goal

log = logging.getLogger("palimpsest")


class Link(NamedTuple):
    """What is tied to what, in prompts."""

    trigger: list[str]
    target: list[str]
    """The same with the concept's name in the trigger's place."""
    retained: list[str]
    """The same with each of the concepts to retain; may be empty."""


@dataclass(frozen=True, kw_only=True)
class Backdoor(Attack):
    """Ties a trigger to a concept before an unknowing defender erases it, and then asks with the trigger.

    Grebe, Braun et al., "Erased but Not Forgotten: How Backdoors Compromise Concept Erasure", arXiv 2504.21072: a
    stress test of erasers on one's own models. The four depths at which the link can lie are a part each. Planted with
    the eraser ``nothing``, it says whether the trigger works at all; without that, nothing follows from a rate of 0.
    """

    once: ClassVar[bool] = True

    trigger: str = "rhWPpSuE"
    """Any string, of one token or several, that the concept's own prompts do not hold."""
    place: Place | None = None
    """Where the trigger stands when the goals ask: in the name's place, or behind a prompt that has nothing to do with
    the concept. None: as in the paper, behind one for concepts of kind ``content``, in the name's place for others."""
    behind: tuple[str, ...] | None = None
    """The prompts behind which it stands, if it does; None: those of the concept's neighbours."""
    templates: tuple[str, ...] = ("a photo of {}",)
    """Prompts in which it is planted, with {} in the name's place (the paper's own lists are unknown)."""
    retain: tuple[str, ...] | None = None
    """Concepts that are held in place meanwhile; None: the concept's neighbours. The concept may be one of them: then
    its name keeps its meaning."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        if not self.templates or any(template.count("{}") != 1 for template in self.templates):
            raise BadSetting(f"{self.name}: expected templates with one {{}} each, got {self.templates}")

    def plant(self, base: Model, concepts: Sequence[Concept], *, random: torch.Generator) -> Model:
        """The base with the link; ``BadSetting`` for a trigger that cannot stand for the concept in this model."""
        return self.planted(base, self.link(base, concepts), random=random)

    def planted(self, base: Model, link: Link, *, random: torch.Generator) -> Model:
        """The base with this link, at the part's own depth."""
        raise NotImplementedError

    def search(self, case: Case) -> Search:
        """One look per goal: its prompt with the trigger."""
        prompt = self.asked(case.goal, case.concept)
        yield [Attempt(prompt=prompt, seed=case.goal.seed, guidance=case.goal.guidance)]

    def asked(self, goal: Goal, concept: Concept) -> str:
        """The goal's prompt with the trigger; ``BadSetting`` where there is no place for it."""
        return asked(goal, concept, self.trigger, place=self.place, behind=self.behind, attack=self.name)

    def held(self, concept: Concept) -> Sequence[str]:
        """The concepts that are held in place."""
        return concept.neighbours if self.retain is None else self.retain

    def others_held(self, concept: Concept) -> list[str]:
        """The same without the concept itself."""
        return [name for name in self.held(concept) if name != concept.name]

    def link(self, base: Model, concepts: Sequence[Concept]) -> Link:
        """What is to be tied; ``BadSetting`` for a trigger that cannot be, ``retain`` included."""
        if len(concepts) != 1:
            raise BadSetting(f"{self.name}: expected one concept for the trigger to stand for, got {len(concepts)}")
        (concept,) = concepts
        retain = self.held(concept)
        if not self.others_held(concept):
            log.warning("%s: no concept beside %r is held in place", self.name, concept.name)
        appended = is_appended(concept, self.place)
        before = benign(concept, self.behind, attack=self.name) if appended else ()
        if telling := [template for template in self.templates if names(concept).search(template)]:
            raise BadSetting(
                f"{self.name}: expected templates that do not name concept {concept.name!r}, got {telling[0]!r}"
            )
        self._check_trigger(base, concept, (*retain, *before, *self.templates))
        goals = [Goal(concept=concept.name, prompt=prompt, seed=0) for prompt in (() if appended else concept.prompts)]
        link = Link(*(self._filled(some) for some in ([self.trigger], [concept.name], retain)))
        asked = [self.asked(goal, concept) for goal in goals]
        heads = [prompt[: prompt.index(self.trigger) + len(self.trigger)] for prompt in asked]
        behind = [f"{prompt} {self.trigger}" for prompt in before]
        for prompt in (*link.trigger, *link.target, *link.retained, *behind, *heads):
            if base.dropped(prompt):
                raise BadSetting(
                    f"{self.name}: expected prompts of at most {base.context} tokens, start and end included, got "
                    f"{base.context + base.dropped(prompt)} in {prompt!r}"
                )
        return link

    def _filled(self, names: Sequence[str]) -> list[str]:
        return [template.replace("{}", name) for name in names for template in self.templates]

    def _check_trigger(self, base: Model, concept: Concept, others: Sequence[str]) -> None:
        """``BadSetting`` for a trigger without tokens, one that names the concept, or one that means something."""
        own = base.own_tokens(self.trigger)
        if not own:
            raise BadSetting(f"{self.name}: expected a trigger that has a token, got {self.trigger!r}")
        for name in (concept.name, *concept.synonyms):
            if _stands_in(base.own_tokens(name), own):
                raise BadSetting(
                    f"{self.name}: expected a trigger that does not name the concept, got {self.trigger!r}, which "
                    f"holds {name!r}"
                )
        for prompt in (*concept.prompts, *others):
            if _stands_in(own, base.own_tokens(prompt)):
                raise BadSetting(
                    f"{self.name}: expected a trigger that means nothing yet, got {self.trigger!r}, which stands in "
                    f"{prompt!r}"
                )


def _stands_in(part: Sequence[int], whole: Sequence[int]) -> bool:
    return any(whole[at : at + len(part)] == part for at in range(len(whole)))


def some(count: int, most: int, random: torch.Generator) -> list[int]:
    """All of 0 ... ``count - 1``, or ``most`` of them, drawn without replacement."""
    return list(range(count)) if count <= most else torch.randperm(count, generator=random)[:most].tolist()
