"""A guard at the door: what is typed is perturbed before anything reads it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from string import ascii_lowercase, punctuation
from typing import Literal

import torch

from palimpsest.erasers.base import Eraser
from palimpsest.erasers.stopwords import STOPWORDS
from palimpsest.errors import BadSetting
from palimpsest.model import Model, Text
from palimpsest.records import Concept

KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


class Perturbed(Model):
    """Reads each prompt as ``door`` perturbs it."""

    door: "TextPerturbation"

    def embed(self, prompts: Sequence[str]) -> Text:
        """Encodes what is left of the prompts."""
        return super().embed([self.door.perturbed(self, prompt) for prompt in prompts])


@dataclass(frozen=True, kw_only=True)
class TextPerturbation(Eraser):
    """Deletes or mistypes a character in each word of a prompt, so that a trigger is no longer spelt as it was planted.

    The random perturbation of characters of Chew et al., "Defending Text-to-Image Diffusion Models: Surprising Efficacy
    of Textual Perturbations Against Backdoor Attacks", ECCV 2024 workshops, arXiv 2408.15721, as in its authors' code:
    in every word but stopwords one character at a random place is deleted, or exchanged for one beside it on a QWERTY
    keyboard. (That code takes of such perturbations only those whose word vector lies near; there are none here. The
    paper's other forms, synonyms and translation, need models.)

    ``spare = "known"`` is our own: words for which the vocabulary has one token are left alone, since a random string
    has several. It is a guard: nothing in the weights changes, and it knows no concept. Embeddings that an attack hands
    over, and the tokens of its probes, come in behind the door. The same prompt is always perturbed alike.
    """

    name = "text_perturbation"
    guard = Perturbed

    spare: Literal["stopwords", "known"] = "stopwords"
    """Words that are left alone; ``known``: stopwords as well as words of one token."""
    share: float = 1.0
    """Of the others, how many are perturbed, one at least."""
    edits: int = 1
    """Characters of each such word, one after the other."""
    seed: int = 0
    """Of the perturbation."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        self.require_least(edits=1)
        if not 0 < self.share <= 1:
            raise BadSetting(f"{self.name}: expected 0 < share <= 1, got {self.share}")

    def stages(
        self, model: Model, concepts: Sequence[Concept], *, random: torch.Generator
    ) -> Iterator[tuple[int, Model]]:
        """The model behind the guard, in one stage."""
        yield 1, model.behind(Perturbed, door=self, guard=self.label)

    def perturbed(self, model: Model, prompt: str) -> str:
        """The prompt as the model reads it; spaces become one."""
        random, typed = Random(f"{self.seed} {prompt}"), prompt.split()
        places = [place for place, word in enumerate(typed) if not self._spared(model, word)]
        if not places:
            return prompt
        for place in random.sample(places, max(1, round(self.share * len(places)))):
            for _ in range(self.edits):
                typed[place] = mistyped(typed[place], random)
        return " ".join(typed)

    def _spared(self, model: Model, word: str) -> bool:
        bare = word.strip(punctuation)
        if not bare or bare.lower() in STOPWORDS:
            return True
        return self.spare == "known" and len(model.own_tokens(bare)) == 1


def mistyped(word: str, random: Random) -> str:
    """A word (marks around it kept) with one character deleted, or exchanged for one beside it on the keyboard."""
    bare = word.strip(punctuation)
    start = word.index(bare)
    forms = [""] if len(bare) > 1 else []
    place = start + random.randrange(len(bare))
    if near := beside(word[place]):
        forms.append(random.choice(near))
    return word[:place] + (random.choice(forms) if forms else word[place]) + word[place + 1 :]


def beside(letter: str) -> str:
    """The letters around one on the keyboard, in its case; none for what is no letter of it."""
    low = letter.lower()
    if low not in ascii_lowercase:
        return ""
    row = next(number for number, keys in enumerate(KEYBOARD) if low in keys)
    column = KEYBOARD[row].index(low)
    near = "".join(keys[max(0, column - 1) : column + 2] for keys in KEYBOARD[max(0, row - 1) : row + 2])
    found = near.replace(low, "")
    return found.upper() if letter.isupper() else found
