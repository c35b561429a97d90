"""AdvUnlearn: a text encoder, trained against the prompt that brings the concept back at the time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.erasers.base import Eraser
from palimpsest.erasers.words import require_words
from palimpsest.errors import BadSetting
from palimpsest.fitting import Fit
from palimpsest.inversion import Blanked
from palimpsest.model import Model, Text
from palimpsest.negative_guidance import below, done, point, points, predictions
from palimpsest.records import Concept

WEIGHTS = r"text_encoder\..*"

COCO = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, "
    "parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, "
    "handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, "
    "skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, "
    "sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, "
    "dining table, toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, "
    "refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush"
).split(", ")
"""The objects of COCO."""
RETAINED = "a photo of a {}"


@dataclass(frozen=True, kw_only=True)
class AdvUnlearn(Eraser):
    """Trains the text encoder by ESD's loss, on the concept's name behind a word that is sought to undo it.

    Zhang et al., "Defensive Unlearning with Adversarial Training for Robust Concept Erasure in Diffusion Models",
    arXiv 2405.15234. With c the concept's name, c_0 the empty prompt, eps* the original, c* the words (v, c) and r a
    batch of retained prompts, the loss is

        |eps(x_t, c*) - (eps*(x_t, c_0) - eta (eps*(x_t, c) - eps*(x_t, c_0)))|^2 + w |eps(y_t, r) - eps*(y_t, r)|^2

    eps is the original denoiser behind the text encoder that is trained, all of it; x_t and y_t are the original's
    points under c and r, as ESD takes them. The word embedding v begins as one of the vocabulary's and takes 30 steps
    to lower |eps(x_t, c*) - eps*(x_t, c)|^2, each at another x_t. During the warm-up c* is c. The erased encoder fits
    every pipeline with the same base.

    Where the authors' code differs from their paper: its argument for w defaults to 1.0, their instructions set 0.3; it
    can begin v where the last search ended; it sums up v's gradients over the steps, and its ``fast_at`` hands their
    signs to Adam. Here each gradient is its own, and a sign step is plain.
    """

    name = "advunlearn"

    iterations: int = 1000
    lr: float = 1e-5
    """Adam's learning rate of the text encoder."""
    warm_up: int = 200
    """Iterations before the first attack."""
    eta: float = 1.0
    """Strength of the negative guidance."""
    batch: int = 1
    """Trajectories of the concept per iteration."""
    steps: int = 50
    """DDIM steps of a whole trajectory."""
    guidance: float = 3.0
    """Guidance of the trajectories."""
    attack: Literal["pgd", "fast_at"] = "pgd"
    """How v is moved: by Adam, or by the sign of the gradient."""
    attack_steps: int = 30
    attack_lr: float = 1e-3
    k: int = 1
    """Word embeddings before the name."""
    w: float = 0.3
    """Weight of what is retained."""
    retain_batch: int = 5
    """Retained prompts per iteration, drawn without repetition."""
    retain: tuple[str, ...] | None = None
    """Retained prompts; None: a photo of each of COCO's objects. Those that name the concept are left out (which the
    authors leave to a language model)."""
    neighbours: bool = False
    """Retain the concepts' neighbours as well, by their names; the paper does not."""
    every: int = 0
    """Iterations between the stages that are kept for persistence curves; 0: the end alone."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        self.require_least(lr=0, warm_up=0, attack_steps=0, attack_lr=0, w=0, every=0)
        self.require_least(iterations=1, batch=1, steps=1, k=1, retain_batch=1)

    def stages(
        self, model: Model, concepts: Sequence[Concept], *, random: torch.Generator
    ) -> Iterator[tuple[int, Model]]:
        """The model with the trained text encoder after every ``every`` iterations, and at the end."""
        require_words(self.name, model, concepts)
        retained = self._retained(concepts)
        prompts = [Blanked.of(model, self.k, after=concept.name) for concept in concepts]
        with torch.no_grad():
            null = model.embed([""])
            texts = [model.embed([concept.name]) for concept in concepts]
        student = model.copy(trainable=WEIGHTS)
        optimiser = torch.optim.Adam(student.trainable(), lr=self.lr)

        def loss() -> Tensor:
            which = below(len(concepts), random)
            text = texts[which]
            if done(optimiser) < self.warm_up:
                asked = student.embed([concepts[which].name])
            else:
                words = self._attacked(model, student, prompts[which], text=text, random=random)
                asked = prompts[which].encode(student, words)
            kept = [retained[place] for place in torch.randperm(len(retained), generator=random)[: self.retain_batch]]
            rows = Text.join([text.repeat(self.batch), model.remembered(kept)])
            latents, steps = point(model, rows, random, steps=self.steps, guidance=self.guidance, within=True)
            both = Text.join([asked.repeat(self.batch), student.embed(kept)])
            found, held = student.predict_noise(latents, steps, both).split([self.batch, len(kept)])
            n = self.batch
            without, given = predictions(model, latents[:n], steps[:n], [null, text])
            with torch.no_grad():
                before = model.predict_noise(latents[n:], steps[n:], model.remembered(kept))
            erasing = functional.mse_loss(found, without - self.eta * (given - without))
            return erasing + self.w * functional.mse_loss(held, before)

        fit = Fit(
            student=student,
            optimiser=optimiser,
            random=random,
            iterations=self.iterations,
            every=self.every,
            phase=self.name,
        )
        yield from fit.run(loss)

    def _retained(self, concepts: Sequence[Concept]) -> list[str]:
        """The prompts to retain, without those that name an erased concept; raises ``BadSetting`` if none is left."""
        prompts = [RETAINED.format(thing) for thing in COCO] if self.retain is None else self.retain
        neighbours = [name for concept in concepts for name in concept.neighbours] if self.neighbours else []
        erased = {word.lower() for concept in concepts for word in (concept.name, *concept.synonyms)}
        found = [
            prompt
            for prompt in dict.fromkeys([*prompts, *neighbours])
            if not any(f" {word} " in f" {prompt.lower()} " for word in erased)
        ]
        if not found:
            raise BadSetting(f"{self.name}: expected prompts to retain that do not name the concept, got none")
        return found

    def _attacked(
        self, model: Model, student: Model, prompt: Blanked, *, text: Text, random: torch.Generator
    ) -> Tensor:
        """(k, d): the words before the concept's name that undo the student's erasure best."""
        drawn = torch.randint(len(model.vocabulary), (self.k,), generator=random)
        words = model.vocabulary[drawn.to(model.device)].clone().requires_grad_()
        optimiser = torch.optim.Adam([words], lr=self.attack_lr)
        rows = [text.repeat(self.batch)] * self.attack_steps
        walked, times = points(model, rows, random, steps=self.steps, guidance=self.guidance, within=True)
        (told,) = predictions(model, torch.cat(walked), torch.cat(times), [text])
        for latents, steps, wanted in zip(walked, times, told.split(self.batch), strict=True):
            found = student.predict_noise(latents, steps, prompt.encode(student, words).repeat(self.batch))
            (words.grad,) = torch.autograd.grad(functional.mse_loss(found, wanted), words)
            if self.attack == "pgd":
                optimiser.step()
            else:
                with torch.no_grad():
                    words -= self.attack_lr * words.grad.sign()
        return words.detach()
