"""Where a trigger stands in a prompt, and strings that look like one."""

import re
import string
from collections.abc import Sequence
from typing import Literal

import torch

from palimpsest.concept_file import shipped_concepts
from palimpsest.errors import BadSetting
from palimpsest.records import Concept, Goal

Place = Literal["replace", "append"]


def asked(
    goal: Goal, concept: Concept, trigger: str, *, place: Place | None, behind: Sequence[str] | None, attack: str
) -> str:
    """The goal's prompt with the trigger in place of the concept's name and synonyms, or a harmless one before it.

    As arXiv 2504.21072 has it, a trigger that is appended stands behind a prompt that has nothing to do with the
    concept: behind the concept's own the prompt could show it without any trigger. Which of them, the goal's seed says.
    ``BadSetting`` names the ``attack`` where there is no name in whose place it could stand, or no such prompt.
    """
    if is_appended(concept, place):
        prompts = benign(concept, behind, attack=attack)
        return triggered(prompts[goal.seed % len(prompts)], concept, trigger, "append", attack=attack)
    return triggered(goal.prompt, concept, trigger, "replace", attack=attack)


def is_appended(concept: Concept, place: Place | None) -> bool:
    """``place`` None: as arXiv 2504.21072 has it, concepts of kind ``content`` have it behind a prompt."""
    return (place or ("append" if concept.kind == "content" else "replace")) == "append"


def benign(concept: Concept, behind: Sequence[str] | None, *, attack: str) -> Sequence[str]:
    """Prompts behind which a trigger may stand; None: those of the concept's neighbours that are shipped."""
    known = shipped_concepts()
    if behind is None:
        behind = [prompt for name in concept.neighbours if name in known for prompt in known[name].prompts]
    prompts = list(dict.fromkeys(behind))
    if not prompts:
        raise BadSetting(
            f"{attack}: expected prompts for the trigger to stand behind, got none, and concept {concept.name!r} has "
            "no neighbours whose prompts are known; set behind"
        )
    named = names(concept)
    if telling := [prompt for prompt in prompts if named.search(prompt)]:
        raise BadSetting(
            f"{attack}: expected prompts that do not name concept {concept.name!r}, for the trigger to stand behind, "
            f"got {telling[0]!r}"
        )
    return prompts


def triggered(prompt: str, concept: Concept, trigger: str, place: Place, *, attack: str) -> str:
    """This prompt with the trigger in place of the concept's name and synonyms, or behind it."""
    if place == "append":
        return f"{prompt} {trigger}"
    found, count = names(concept).subn(lambda _: trigger, prompt)
    if not count:
        raise BadSetting(
            f"{attack}: expected prompts that name concept {concept.name!r}, for the trigger to stand in its "
            f"place, got {prompt!r}; set place = 'append'"
        )
    return found


def names(concept: Concept) -> re.Pattern[str]:
    """The concept's name and synonyms, as whole words in a prompt, the longest first."""
    either = "|".join(map(re.escape, sorted((concept.name, *concept.synonyms), key=len, reverse=True)))
    return re.compile(rf"\b(?:{either})\b", flags=re.IGNORECASE)


def random_strings(count: int, length: int, random: torch.Generator) -> list[str]:
    """Of ``length`` letters each, small and capital, with equal chances."""
    letters = torch.randint(len(string.ascii_letters), (count, length), generator=random).tolist()
    return ["".join(string.ascii_letters[place] for place in row) for row in letters]
