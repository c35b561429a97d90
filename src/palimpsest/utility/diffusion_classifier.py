"""What the erased model still knows: its own denoiser as a classifier of the concept's pictures."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor

from palimpsest.errors import BadSetting
from palimpsest.model import Model
from palimpsest.records import Attempt, Concept, Reading, digest
from palimpsest.stats import wilson
from palimpsest.utility.base import Draws, Erasure, Measure, plain_attempts


class Noised(NamedTuple):
    """Where on its way to noise a picture is looked at."""

    step: int
    """Training timestep."""
    seed: int
    """Of the noise."""


@dataclass(frozen=True, kw_only=True)
class DiffusionClassifier(Measure):
    """The share of the base's pictures of the concept that the victim's own denoiser knows for what they show.

    Li et al., "Your Diffusion Model is Secretly a Zero-Shot Classifier", arXiv 2303.16203, eq. 7; UnlearnDiffAtk (arXiv
    2310.11868) rests on it. Of a picture x and candidate prompts c_1, ..., c_m, with x_t = x noised to t by eps,

        p(c_i | x) = exp(-E_t,eps |eps - eps_victim(x_t, c_i)|^2) / sum_j exp(-E_t,eps |eps - eps_victim(x_t, c_j)|^2)

    and the class is the likeliest. The same t and eps for all candidates: most of an error hangs on them and cancels.
    Candidates are the concept and its neighbours (or, where it names none, what should survive of its kind), each in
    the picture's own prompt in place of the concept's name; by their bare names where the prompt does not hold it.

    A network that knows nothing may still like one prompt best, whatever the picture. So the same is read off as many
    of the base's pictures of the others: ``diffusion_classifier_false_alarms`` is the share taken for the concept, and
    the model knows the concept only as far as the first share lies above the second.

    Nothing is drawn by the victim: a high share beside a low rate of ``direct`` is a model that no longer shows what it
    knows. Guidance takes no part, so behind a guard this is what the network knows.
    """

    name = "diffusion_classifier"

    pictures: int = 20
    """Of the concept, drawn by the base by its first prompts; as many of the other candidates, in turn."""
    steps: int = 8
    """Timesteps at which each picture is looked at, the middles of so many equal parts of the schedule."""
    noises: int = 1
    """Noises at each timestep."""
    keep: tuple[int, ...] = ()
    """How many candidates stay after each stage but the last, the paper's pruning; the looks are shared out equally
    over ``len(keep) + 1`` stages. Empty: all stay to the end."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        self.require_least(pictures=1, steps=1, noises=1)
        if min(self.keep, default=2) < 2 or sorted(self.keep, reverse=True) != list(self.keep):
            raise BadSetting(f"{self.name}: expected keep to fall, and at least 2 to stay, got {list(self.keep)}")
        if len(self.keep) >= self.steps * self.noises:
            raise BadSetting(f"{self.name}: expected steps * noises > {len(self.keep)}, got {self.steps * self.noises}")

    def draws(self, target: Concept, concepts: Sequence[Concept], *, seed: int) -> Draws:
        """The base's pictures of the concept, then those of the others, and a forward for each look and candidate."""
        others = rivals(target, concepts)
        stages = _stages(self.steps * self.noises, len(self.keep) + 1)
        left = [len(others) + 1, *(min(len(others) + 1, kept) for kept in self.keep)]
        passes = 2 * self.pictures * sum(n * len(looks) for n, looks in zip(left, stages, strict=True))
        own = plain_attempts([target], self.pictures, seed)
        strange = [
            replace(attempt, prompt=exchanged(attempt.prompt, target, others)[1 + number % len(others)])
            for number, attempt in enumerate(own)
        ]
        return Draws(base=[*own, *strange], passes=passes)

    def measure(self, erasure: Erasure) -> list[Reading]:
        """Of the pictures of the concept, and of those of others, how many are taken for the concept."""
        attempts = self.draws(erasure.target, erasure.concepts, seed=erasure.seed).base
        pictures, own = erasure.base_pictures(attempts), attempts[: self.pictures]
        readings = []
        for measure, first, of in (
            (self.name, 0, "the base's pictures of it that the victim's own denoiser takes for it"),
            (f"{self.name}_false_alarms", self.pictures, "the same, of the base's pictures of others of its kind"),
        ):
            before = erasure.model.meter
            some = pictures[first : first + self.pictures]
            taken = sum(self._is_taken(erasure, attempt, one) for attempt, one in zip(own, some, strict=True))
            interval = wilson(taken, self.pictures)
            readings.append(
                Reading(
                    victim=erasure.victim,
                    measure=measure,
                    concept="",
                    value=taken / self.pictures,
                    n=self.pictures,
                    low=interval.low,
                    high=interval.high,
                    of=of,
                    passes=(erasure.model.meter - before).passes,
                )
            )
        return readings

    def _is_taken(self, erasure: Erasure, attempt: Attempt, picture: Image) -> bool:
        """Whether the concept is likelier than every other candidate; the prompts are those around the attempt's."""
        model = erasure.model
        prompts = exchanged(attempt.prompt, erasure.target, rivals(erasure.target, erasure.concepts))
        noised = noised_at(model, self.steps, self.noises, seed=attempt.seed)
        found = classify(model, model.encode_picture(picture), prompts, noised, keep=self.keep)
        return bool(found[0] > found[1:].max())  # of what is no number, nothing is likelier


def classify(
    model: Model, clean: Tensor, prompts: Sequence[str], noised: Sequence[Noised], *, keep: Sequence[int] = ()
) -> Tensor:
    """(m,) probabilities, double, on the CPU: how likely each of m prompts is for a picture's latents (C, h, w).

    See ``DiffusionClassifier``. With ``keep`` the looks are taken in stages, and after each only so many prompts stay,
    those of the least error so far; the others get 0.
    """
    left = list(range(len(prompts)))
    sums = torch.zeros(len(prompts), dtype=torch.float64)
    for stage, some in enumerate(_stages(len(noised), len(keep) + 1)):
        errors = denoising_errors(model, clean, [prompts[at] for at in left], [noised[at] for at in some])
        sums[left] += errors.sum(1)
        if stage < len(keep):
            left = [left[at] for at in sums[left].argsort(stable=True)[: keep[stage]].tolist()]
    probabilities = torch.zeros_like(sums)
    probabilities[left] = (-sums[left] / len(noised)).softmax(0)
    return probabilities


@torch.no_grad()
def denoising_errors(model: Model, clean: Tensor, prompts: Sequence[str], noised: Sequence[Noised]) -> Tensor:
    """(prompts, noised) squared errors |eps - eps_model(x_t, c)|^2 of the conditional branch, in the model's batches.

    Double, on the CPU. ``clean``: a picture's latents (C, h, w).
    """
    rows = [(prompt, look) for look in noised for prompt in prompts]
    errors = []
    for first in range(0, len(rows), model.batch):
        chunk = rows[first : first + model.batch]
        real = len(chunk)
        chunk = chunk + chunk[-1:] * (model.batch - real)
        noise = torch.stack([model.noise(look.seed) for _, look in chunk]).to(model.device)
        steps = torch.tensor([look.step for _, look in chunk], device=model.device)
        text = model.remembered([prompt for prompt, _ in chunk])
        with model.padded(real):
            answer = model.predict_noise(model.noised(clean.expand_as(noise), noise, steps), steps, text)
        errors.append((noise - answer).double().square().sum((1, 2, 3))[:real].cpu())
    return torch.cat(errors).reshape(len(noised), len(prompts)).mT


def noised_at(model: Model, steps: int, noises: int, *, seed: int) -> list[Noised]:
    """``noises`` in the middle of each of ``steps`` equal parts of the schedule, with seeds derived from ``seed``."""
    times = [int((part + 0.5) * model.timesteps / steps) for part in range(steps)]
    return [
        Noised(step, int(digest([seed, "diffusion_classifier", step, number])[:8], 16))
        for number in range(noises)
        for step in times
    ]


def rivals(target: Concept, concepts: Sequence[Concept]) -> list[str]:
    """The names that a picture of the concept might be taken for."""
    return list(target.neighbours) or [concept.name for concept in concepts]


def exchanged(prompt: str, target: Concept, others: Sequence[str]) -> list[str]:
    """The prompt with the concept's name (or synonym), and with each other name in its place, its article set right.

    Where the prompt holds none of the concept's names: the bare names.
    """
    called = "|".join(re.escape(name) for name in sorted((target.name, *target.synonyms), key=len, reverse=True))
    said = re.compile(rf"(?i:\b(?P<article>an?) )?(?<!\w)(?i:{called})(?!\w)")
    if not said.search(prompt):
        return [target.name, *others]
    return [prompt, *(said.sub(partial(_with_article, name), prompt) for name in others)]


def _with_article(name: str, match: re.Match[str]) -> str:
    article = match["article"]
    if article is None:
        return name
    right = "an" if name[:1].lower() in tuple("aeiou") else "a"
    return f"{right.capitalize() if article[0].isupper() else right} {name}"


def _stages(count: int, stages: int) -> list[range]:
    """Each takes every so manyth of ``count`` looks, so that all stages see the whole schedule."""
    return [range(stage, count, stages) for stage in range(stages)]
