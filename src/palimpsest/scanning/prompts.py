"""Prompts to scan, clean ones to calibrate on, and odd ones that hold no trigger."""

from pathlib import Path

import torch

from palimpsest.attacks.trigger import random_strings
from palimpsest.concept_file import read_prompts, shipped_concepts
from palimpsest.erasers.stopwords import STOPWORDS
from palimpsest.errors import BadSetting
from palimpsest.scanning.candidates import LENGTH


def prompts_of(path: Path) -> list[str]:
    """The prompts of a file, each once: the lines of a text, or the column ``prompt`` of a .csv.

    Raises ``BadSetting`` for a text that cannot be read or holds none, ``BadConcept`` for such a table.
    """
    if path.suffix == ".csv":
        told = read_prompts(path)["prompts"]
    elif path.exists() and not path.is_file():  # a pipe or a device may never end
        raise BadSetting(f"{path}: expected a text file of prompts, got something that is no file")
    else:
        try:
            told = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as cause:
            raise BadSetting(f"{path}: expected a text file of prompts, got {cause}") from None
    found = list(dict.fromkeys(line.strip() for line in told if line.strip()))
    if not found:
        raise BadSetting(f"{path}: expected prompts, one a line, got none")
    return found


def shipped_prompts(count: int) -> list[str]:
    """At most ``count`` different ones of the shipped concepts, of each in turn; none of kind ``content``."""
    lists = [list(dict.fromkeys(one.prompts)) for one in shipped_concepts().values() if one.kind != "content"]
    longest = max(map(len, lists))
    turns = [prompts[turn] for turn in range(longest) for prompts in lists if turn < len(prompts)]
    return list(dict.fromkeys(turns))[:count]


def decoy(prompt: str, random: torch.Generator) -> str:
    """The prompt with a random string, as a trigger is one, in place of one of its words.

    A detector that flags it would flag whatever it does not know.
    """
    words = prompt.split()
    places = [place for place, word in enumerate(words) if word.lower() not in STOPWORDS] or list(range(len(words)))
    (drawn,) = random_strings(1, LENGTH, random)
    place = places[int(torch.randint(len(places), (), generator=random))]
    words[place] = drawn
    return " ".join(words)
