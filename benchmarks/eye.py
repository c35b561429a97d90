"""Draws concepts with a model, and says which of the pictures show them."""

from collections.abc import Sequence
from typing import NamedTuple

from PIL.Image import Image

from palimpsest.auditing import plan
from palimpsest.judges.miniature import as_tensor, classifier
from palimpsest.miniature.facts import kind_of
from palimpsest.miniature.goals import concept_record
from palimpsest.model import Model, Sampling
from palimpsest.records import Attempt

SAMPLING = Sampling(scheduler="ddim", steps=25, guidance=5.0)
SEED = 950_000
"""Of the first picture; these seeds occur nowhere in training or calibration."""


class Wanted(NamedTuple):
    """A picture that should show a concept."""

    concept: str
    attempt: Attempt


class Seen(NamedTuple):
    """A picture, and whether the judge sees in it what it should show."""

    picture: Image
    shown: bool
    score: float


def goals(name: str, n: int) -> list[Wanted]:
    """The first ``n`` goals that the shipped audits have for the concept."""
    planned = plan("standard", {"concepts": [name], "goals": n})
    return [
        Wanted(name, Attempt(prompt=goal.prompt, seed=goal.seed)) for goal in planned.goals_for(planned.concepts[0])
    ]


def neighbours(name: str, n: int) -> list[Wanted]:
    """``n`` pictures of the concept's neighbours, of each as many, by their first prompts."""
    names = concept_record(name).neighbours
    found = []
    for number in range(n):
        turn, place = divmod(number, len(names))
        prompt = concept_record(names[place]).prompts[turn]
        found.append(Wanted(names[place], Attempt(prompt=prompt, seed=SEED + number)))
    return found


def look(model: Model, wanted: Sequence[Wanted], sampling: Sampling = SAMPLING) -> list[Seen]:
    """Draws and judges."""
    judge = classifier("first")
    pictures = model.draw([one.attempt for one in wanted], sampling)
    rows = judge.probabilities(as_tensor(pictures))
    labels = [f"{kind_of(one.concept)}/{one.concept}" for one in wanted]
    scores = [float(row[judge.labels.index(label)]) for row, label in zip(rows, labels, strict=True)]
    return [
        Seen(picture, score >= judge.thresholds[label], score)
        for picture, label, score in zip(pictures, labels, scores, strict=True)
    ]


class Eye:
    """Looks at ``n`` pictures of each concept, always of the same prompts and seeds."""

    def __init__(self, n: int) -> None:
        self.n = n

    def shown(self, model: Model, names: list[str]) -> list[int]:
        """How many of the ``n`` show the concept, name by name."""
        prompts = {name: concept_record(name).prompts for name in names}
        seen = look(
            model,
            [
                Wanted(name, Attempt(prompt=prompts[name][i % len(prompts[name])], seed=SEED + i))
                for name in names
                for i in range(self.n)
            ],
        )
        return [sum(one.shown for one in seen[at : at + self.n]) for at in range(0, len(seen), self.n)]
