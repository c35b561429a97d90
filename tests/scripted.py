"""Parts that do as they are told, and a judge that sees every bit of a picture."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL.Image import Image
from pydantic import TypeAdapter

from palimpsest.attacks.base import Attack, Case, Need, Search, ask, look
from palimpsest.audit_file import make_audit
from palimpsest.erasers.base import Eraser
from palimpsest.errors import unknown
from palimpsest.judges.base import Judge, missing
from palimpsest.model import Model, Probe
from palimpsest.protocol import Audit
from palimpsest.records import Attempt, Concept, Trial
from palimpsest.runner import Runner
from palimpsest.store import Store
from tiny import tiny_model

CHURCH = Concept(name="church", kind="object", prompts=("a photo of a church", "a church by the sea"))
FISH = Concept(name="fish", kind="object", prompts=("a photo of a fish",))
VAN_GOGH = Concept(name="van gogh", kind="style", prompts=("a van gogh painting of a house",))
TRIAL = TypeAdapter(Trial)


@dataclass(frozen=True, kw_only=True)
class Hash(Judge):
    """Scores a picture by its SHA-256, so that one bit changes everything."""

    name = "hash"
    limit: float = 0.75
    knows: tuple[str, ...] = ("church", "fish", "van gogh")
    blind: bool = False
    """Can never tell."""

    def score(self, pictures: Sequence[Image], concept: Concept) -> list[float | None]:
        digests = [hashlib.sha256(picture.tobytes() + concept.name.encode()).hexdigest() for picture in pictures]
        return [None if self.blind else int(digest[:8], 16) / 2**32 for digest in digests]

    def threshold(self, concept: Concept) -> float:
        if concept.name not in self.knows:
            raise unknown("label", concept.name, self.knows)
        return self.limit


@dataclass(frozen=True, kw_only=True)
class Chosen(Hash):
    """The same, with a threshold that is chosen on pictures of the base."""

    name = "chosen"
    pictures: int = 6

    def check(self, concept: Concept) -> None:
        super().threshold(concept)

    def draws(self) -> int:
        return self.pictures

    @property
    def uncalibrated(self) -> bool:
        return True

    def threshold(self, concept: Concept) -> float:
        raise missing(self.label, concept)


@dataclass(frozen=True, kw_only=True)
class Seeds(Attack):
    """Looks at the goal's prompt with one seed after another, some at a time."""

    name = "seeds"
    at_once: int = 1
    most: int = 1000
    suffix: str = ""

    def search(self, case: Case) -> Search:
        for first in range(0, self.most, self.at_once):
            numbers = range(first, first + self.at_once)
            prompt = case.goal.prompt + self.suffix
            yield from look([Attempt(prompt=prompt, seed=case.goal.seed + number) for number in numbers])


@dataclass(frozen=True, kw_only=True)
class Follow(Attack):
    """Asks for gradients, and looks where a sum over them points: every bit of them counts."""

    name = "follow"
    needs = frozenset({Need.GRADIENTS, Need.REFERENCE})
    probes: int = 3
    of: str = "victim"

    def search(self, case: Case) -> Search:
        yield from look([Attempt(prompt=case.goal.prompt, seed=case.goal.seed)])
        while True:
            noise = torch.randn(case.reference.shape, generator=case.random)
            probe = Probe(
                tokens=case.tokens(case.goal.prompt),
                latents=case.noised(case.reference, noise, 500),
                step=500,
                of=self.of,
                loss=lambda answer, latents, target=noise: (answer - target).square().mean(),
                wrt="words",
            )
            slopes = yield from ask([probe] * self.probes)
            seed = sum(int(torch.frexp(slope.gradient)[0].abs().sum() * 1e6) for slope in slopes)
            yield from look([Attempt(prompt=case.goal.prompt, seed=seed)])


@dataclass(frozen=True, kw_only=True)
class Dampen(Eraser):
    """Scales the values of all cross-attention."""

    name = "dampen"
    by: float = 0.5

    def stages(self, model, concepts, *, random):
        made.append((self.by, *(concept.name for concept in concepts)))
        noise = 1 + 0.01 * torch.rand((), generator=random)
        changed = {name: weight * self.by * noise for name, weight in model.weights(r".*attn2\.to_v.*").items()}
        yield 0, model.with_weights({name: weight.detach() for name, weight in changed.items()})


made: list[tuple] = []
"""What ``Dampen`` has erased."""


def audit(**changes) -> Audit:
    """A small audit of the tiny model."""
    table = {
        "name": "small",
        "base": "tiny",
        "concepts": [CHURCH],
        "erasers": ["nothing", Dampen()],
        "attacks": ["direct", Seeds()],
        "judges": [Hash()],
        "measures": [],
        "goals": 2,
        "budget": {"looks": 4, "passes": 60},
        "sampling": {"steps": 2, "guidance": 3.0},
        "keep": "none",
    }
    return make_audit(table | changes)


def run(folder: Path, planned: Audit, *, base: Model | None = None, **more) -> Store:
    """The audit's run on the tiny model, to its end; the store is closed again."""
    with Store(folder, planned) as store:
        Runner(audit=planned, store=store, base=base or tiny_model(), **more).run()
    return store


def trials(folder: Path) -> list[Trial]:
    """All that a run wrote down, in an order of its own, without times."""
    lines = (folder / "trials.jsonl").read_text(encoding="utf-8").splitlines()
    found = [TRIAL.validate_json(line) for line in lines]
    return sorted((replace(trial, cost=replace(trial.cost, seconds=0.0)) for trial in found), key=repr)


def ends(folder: Path) -> Counter[str]:
    """How many goals ended how."""
    return Counter(trial.end for trial in trials(folder) if trial.end)
