"""Draws concepts with a model, and says how many of the pictures show them."""

from palimpsest.judges.miniature import as_tensor, classifier
from palimpsest.miniature.facts import kind_of
from palimpsest.miniature.goals import concept_record
from palimpsest.model import Model, Sampling
from palimpsest.records import Attempt

SAMPLING = Sampling(scheduler="ddim", steps=25, guidance=5.0)
SEED = 950_000
"""Of the first picture; these seeds occur nowhere in training or calibration."""


class Eye:
    """Looks at ``n`` pictures of each concept, always of the same prompts and seeds."""

    def __init__(self, n: int) -> None:
        self.n, self.judge = n, classifier("first")

    def shown(self, model: Model, names: list[str]) -> list[int]:
        """How many of the ``n`` show the concept, name by name."""
        attempts = []
        for name in names:
            prompts = concept_record(name).prompts
            attempts += [Attempt(prompt=prompts[i % len(prompts)], seed=SEED + i) for i in range(self.n)]
        scores = self.judge.probabilities(as_tensor(model.draw(attempts, SAMPLING)))
        told = []
        for place, name in enumerate(names):
            label = f"{kind_of(name)}/{name}"
            own = scores[place * self.n : (place + 1) * self.n, self.judge.labels.index(label)]
            told.append(int((own >= self.judge.thresholds[label]).sum()))
        return told
