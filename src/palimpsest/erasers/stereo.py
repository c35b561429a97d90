"""STEREO: finds the words that bring a concept back, then erases it and all of them at once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.erasers.base import Eraser
from palimpsest.erasers.esd import FORMS
from palimpsest.erasers.words import require_words
from palimpsest.errors import BadSetting
from palimpsest.fitting import Fit, kept
from palimpsest.inversion import TEMPLATES, Blanked, initial_words, invert, latents_of
from palimpsest.model import Model, Sampling, Text
from palimpsest.negative_guidance import done, point, predictions
from palimpsest.records import Attempt, Concept

T = TypeVar("T")
VARIANTS = {"xattn": FORMS["2024"].weights["x"], "noxattn": FORMS["2024"].weights["u"]}
"""The weights that each variant trains: linear and convolution layers, as the later code of ESD has them."""


class Aim(NamedTuple):
    """What a student is trained to, by the number of the iteration."""

    text: Callable[[int], Text]
    target: Callable[[int, Tensor, Tensor], Tensor]
    """(iteration, x_t, t) -> noise."""


class Erased(NamedTuple):
    """One concept in REO."""

    texts: list[Text]
    """Its name, then the words that were found."""
    anchors: list[Text]
    """Of each iteration."""


@dataclass(frozen=True, kw_only=True)
class Stereo(Eraser):
    """Searches thoroughly enough for what the concept answers to (STE), then robustly erases once (REO).

    Srivatsan et al., "STEREO: A Two-Stage Framework for Adversarially Robust Concept Erasing", arXiv 2408.16807. With
    g(p) the guidance of a prompt p (``projected``), e_0 the prediction for the empty prompt and c the concept's name,
    each of ``rounds`` rounds of STE trains what the round before it left, and asks that model as the frozen original:

        eps(x_t, p) -> e(x_t, p) - (s - 1) g(p)

    p is c in the first round, then the word found last: by textual inversion on the model just erased, from a share of
    the pictures that the base draws of the concept. REO begins with the base again and trains it, for p in P = {c, all
    words found} and an anchor a, to

        eps(x_t, p) -> e_0 + (s - 1) g(a) - (s + 1) mean over q in P of g(q)

    x_t comes by DDIM with guidance 3 under p, by the student as it is by then, down to one of 50 steps, and t is that
    step. (The authors' code leaves out the first and the last two.) REO's iterations are shared out evenly among the
    texts of P, and among the anchors, in random order.

    s - 1 and s + 1 are what the authors' code makes of -s and +s, with s = 2. Its anchors are prompts that
    name the concept among other things. It leaves the share of g along the prediction at 1, and then g is plain
    guidance and STE's target e_0; ``parallel = 0`` projects.
    """

    name = "stereo"

    variant: Literal["xattn", "noxattn"] = "noxattn"
    """What is trained: cross-attention, or all linear and convolution layers but it (as the authors' instructions)."""
    rounds: int = 4
    """Rounds of STE, each with one word found."""
    iterations: int = 200
    """Of each round's erasure, and of REO."""
    search_lr: float = 5e-6
    """AdamW's learning rate in STE."""
    lr: float = 2e-5
    """AdamW's learning rate in REO."""
    negative: float = 2.0
    """s in STE."""
    compositional: float = 2.0
    """s in REO."""
    parallel: float = 1.0
    """Share of the guidance along the prediction that is kept: the authors' code 1, the paper of APG 0."""
    anchors: tuple[str, ...] = ()
    """Prompts to keep; none: those of the concept's pairs that name it."""
    batch: int = 1
    """Trajectories per iteration."""
    steps: int = 50
    """DDIM steps of a whole trajectory, and of a picture."""
    guidance: float = 3.0
    """Guidance of the trajectories."""
    inversions: int = 3000
    """Iterations of each textual inversion."""
    inversion_lr: float = 5e-3
    inversion_batch: int = 1
    vectors: int = 1
    """Embeddings of each word found."""
    pictures: int = 500
    """Drawn of each concept from its prompts, and shared out among the rounds."""
    every: int = 0
    """Iterations of REO between the stages that are kept for persistence curves; 0: the end alone."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        self.require_least(search_lr=0, lr=0, inversion_lr=0, pictures=0, every=0)
        self.require_least(rounds=1, iterations=1, batch=1, steps=1, inversions=1, inversion_batch=1, vectors=1)
        if self.pictures < self.rounds:
            raise BadSetting(f"{self.name}: expected pictures >= rounds ({self.rounds}), got {self.pictures}")

    def stages(
        self, model: Model, concepts: Sequence[Concept], *, random: torch.Generator
    ) -> Iterator[tuple[int, Model]]:
        """The student of REO after every ``every`` iterations, and at the end."""
        require_words(self.name, model, concepts)
        kept_prompts = [self._anchors(concept) for concept in concepts]
        erased = []
        for number, (concept, prompts) in enumerate(zip(concepts, kept_prompts, strict=True)):
            texts = self._search(model, concept, f"{self.name}-{number}", random)
            with torch.no_grad():
                anchors = [model.embed([prompt]) for prompt in prompts]
            erased.append(Erased(texts, self._shares(anchors, random)))
        aim = self._once(model, erased, random)
        yield from self._fit(model, aim, lr=self.lr, phase=self.name, random=random, every=self.every)

    def _anchors(self, concept: Concept) -> Sequence[str]:
        """The prompts to keep; raises ``BadSetting`` for none, or the concept itself."""
        anchors = self.anchors or tuple(prompt for prompt, _ in concept.pairs)
        if not anchors:
            raise BadSetting(f"{self.name}: expected anchors, or pairs in the file of {concept.name!r}, got neither")
        for anchor in anchors:
            if anchor.strip().lower() == concept.name.strip().lower():
                raise BadSetting(f"{self.name}: expected an anchor other than the concept, got {anchor!r}")
        return anchors

    def _search(self, model: Model, concept: Concept, phase: str, random: torch.Generator) -> list[Text]:
        """STE: the texts of the concept's name and of the words found, round by round."""
        gallery = kept(f"{phase}-pictures", partial(self._pictures, model, concept, random), random=random)
        parts = [template.partition("{}") for template in TEMPLATES[concept.kind]]
        prompts = [Blanked.of(model, self.vectors, before=before, after=after) for before, _, after in parts]
        alone = Blanked.of(model, self.vectors)
        start = initial_words(model, concept.kind, self.vectors)
        with torch.no_grad():
            texts = [model.embed([concept.name])]
        for number, share in enumerate(gallery.tensor_split(self.rounds)):
            aim = self._away(model, texts[-1])
            *_, (_, model) = self._fit(
                model, aim, lr=self.search_lr, phase=f"{phase}-erase-{number}", random=random, every=0
            )
            find = partial(
                invert,
                model,
                share.flatten(0, 1),
                prompts,
                start=start,
                random=random,
                iterations=self.inversions,
                lr=self.inversion_lr,
                batch=self.inversion_batch,
            )
            words = kept(f"{phase}-word-{number}", find, random=random)
            with torch.no_grad():
                texts.append(alone.encode(model, words))
        return texts

    def _pictures(self, model: Model, concept: Concept, random: torch.Generator) -> Tensor:
        """(pictures, 2, C, h, w): latents of what the base draws of the concept, and of the mirror images."""
        seeds = torch.randint(2**31, (self.pictures,), generator=random).tolist()
        attempts = [Attempt(prompt=prompt, seed=seed) for prompt, seed in zip(cycle(concept.prompts), seeds)]
        latents = latents_of(model, model.draw(attempts, Sampling(steps=self.steps)))
        return latents.reshape(-1, 2, *model.latent_shape)

    def _away(self, teacher: Model, text: Text) -> Aim:
        """What a round of STE trains."""
        with torch.no_grad():
            null = teacher.embed([""])

        def target(iteration: int, latents: Tensor, times: Tensor) -> Tensor:
            without, given = predictions(teacher, latents, times, [null, text])
            return given - (self.negative - 1) * projected(given, without, parallel=self.parallel)

        return Aim(lambda iteration: text, target)

    def _once(self, teacher: Model, concepts: Sequence[Erased], random: torch.Generator) -> Aim:
        """What REO trains."""
        with torch.no_grad():
            null = teacher.embed([""])
        order = self._shares([(concept, text) for concept in concepts for text in concept.texts], random)

        def target(iteration: int, latents: Tensor, times: Tensor) -> Tensor:
            concept, _ = order[iteration]
            asked = [null, concept.anchors[iteration], *concept.texts]
            without, anchor, *others = predictions(teacher, latents, times, asked)
            towards, *away = (projected(given, without, parallel=self.parallel) for given in (anchor, *others))
            s = self.compositional
            return without + (s - 1) * towards - (s + 1) * torch.stack(away).mean(0)

        return Aim(lambda iteration: order[iteration][1], target)

    def _fit(
        self, base: Model, aim: Aim, *, lr: float, phase: str, random: torch.Generator, every: int
    ) -> Iterator[tuple[int, Model]]:
        """Trains a copy of ``base``."""
        student = base.copy(trainable=VARIANTS[self.variant])
        optimiser = torch.optim.AdamW(student.trainable(), lr=lr)

        def loss() -> Tensor:
            iteration = done(optimiser)
            text = aim.text(iteration).repeat(self.batch)
            latents, times = point(student, text, random, steps=self.steps, guidance=self.guidance, within=False)
            target = aim.target(iteration, latents, times)
            return functional.mse_loss(student.predict_noise(latents, times, text), target)

        fit = Fit(
            student=student,
            optimiser=optimiser,
            random=random,
            iterations=self.iterations,
            every=every,
            phase=phase,
        )
        return fit.run(loss)

    def _shares(self, things: Sequence[T], random: torch.Generator) -> list[T]:
        """One of ``things`` for each iteration: each as often as the others, give or take one, in random order."""
        whole, rest = divmod(self.iterations, len(things))
        order = torch.randperm(whole * len(things), generator=random).tolist()
        drawn = torch.randperm(len(things), generator=random).tolist()[:rest]
        return [things[place % len(things)] for place in order + drawn]


def projected(given: Tensor, without: Tensor, *, parallel: float) -> Tensor:
    """APG's direction of guidance: D = ``given - without``, its share along ``given`` taken ``parallel`` times.

        D - D' + parallel D'    with D' = (<D, given> / |given|^2) given

    Sadat et al., "Adaptive Projected Guidance", arXiv 2410.02416, on predicted noise (n, C, h, w), each sample on its
    own, without momentum and without a bound on the norm of D.
    """
    difference = given - without
    unit = functional.normalize(given.double().flatten(1), dim=1)
    along = ((difference.double().flatten(1) * unit).sum(1, keepdim=True) * unit).view_as(given).to(given)
    return difference - along + parallel * along
