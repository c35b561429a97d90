"""Where a trigger stands in a prompt, and strings that look like one."""

import re
import string
from typing import Literal

import torch

from palimpsest.errors import BadSetting
from palimpsest.records import Concept

Place = Literal["replace", "append"]


def triggered(prompt: str, concept: Concept, trigger: str, place: Place | None, *, attack: str) -> str:
    """The prompt with the trigger in place of the concept's name and synonyms, or behind it.

    ``place`` None: as arXiv 2504.21072 has it, behind the prompt for concepts of kind ``content``, in the name's place
    for all others. ``BadSetting`` names the ``attack`` where there is no name in whose place it could stand.
    """
    if (place or ("append" if concept.kind == "content" else "replace")) == "append":
        return f"{prompt} {trigger}"
    names = "|".join(map(re.escape, sorted((concept.name, *concept.synonyms), key=len, reverse=True)))
    found, count = re.subn(rf"\b(?:{names})\b", lambda _: trigger, prompt, flags=re.IGNORECASE)
    if not count:
        raise BadSetting(
            f"{attack}: expected prompts that name concept {concept.name!r}, for the trigger to stand in its "
            f"place, got {prompt!r}; set place = 'append'"
        )
    return found


def random_strings(count: int, length: int, random: torch.Generator) -> list[str]:
    """Of ``length`` letters each, small and capital, with equal chances."""
    letters = torch.randint(len(string.ascii_letters), (count, length), generator=random).tolist()
    return ["".join(string.ascii_letters[place] for place in row) for row in letters]
