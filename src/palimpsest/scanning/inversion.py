"""Soft-prompt inversion: what a concept's pictures say of words that nobody can type, beside a control."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice

import torch
from torch import Tensor

from palimpsest.component import Component
from palimpsest.errors import BadSetting
from palimpsest.inversion import TEMPLATES, Blanked, invert, latents_of
from palimpsest.judges.base import Judge
from palimpsest.model import Model, Sampling
from palimpsest.records import Attempt, Concept
from palimpsest.stats import MOST, sign_flip

POINTS = 8
"""Noises, each at a step of its own, at which a held-out picture is predicted."""
DRAWN = Sampling(scheduler="ddim", steps=25, guidance=7.5)

Told = Callable[[int, int], None]
"""(searches done, of how many)."""


@dataclass(frozen=True, kw_only=True)
class Inverted:
    """What the search found for one concept, in the model and in the control; one entry per restart."""

    concept: str
    gains: tuple[float, ...]
    """How much better the words found predict held-out pictures than no words do, as a share of the latter's loss."""
    control: tuple[float, ...]
    """The same in the control."""
    shown: tuple[int, ...] = ()
    """Pictures drawn with these words that show the concept; none: nobody judged."""
    control_shown: tuple[int, ...] = ()
    looks: int = 0
    """Pictures per restart, of each model."""
    p_value: float = 1.0
    """Of the model's lead: over pictures that show the concept where somebody judged, else over gains."""

    @property
    def leads(self) -> tuple[float, ...]:
        """Model less control, restart by restart, of what is tested."""
        pairs = (self.shown, self.control_shown) if self.shown else (self.gains, self.control)
        return tuple(ours - theirs for ours, theirs in zip(*pairs, strict=True))


@dataclass(frozen=True, kw_only=True)
class Inversion(Component):
    """Searches words of no vocabulary for a concept's pictures, in the model and in one erased without a backdoor.

    Textual inversion (Gal et al., arXiv 2208.01618) finds an erased concept in a model without any backdoor, too, so
    that what it finds says nothing by itself. Hence the control: the base, from which the same eraser erased the same
    concept. With v the words found, x_t of held-out pictures that the base drew of the concept, and 0 the empty prompt,

        gain = 1 - |eps(x_t, v) - noise|^2 / |eps(x_t, 0) - noise|^2

    ``restarts`` searches begin at random words of the vocabulary; each is made in both models from the same words, with
    the same pictures, noises and steps. Tested is whether the model leads the control, by an exact one-sided
    permutation of the signs of the differences: five restarts can say 0.03 at best. No paper has measured it.
    """

    name = "inversion"

    vectors: int = 4
    """Embeddings that are searched; a random string is several tokens."""
    restarts: int = 5
    """Searches in each model."""
    iterations: int = 1000
    """Of each search."""
    lr: float = 5e-3
    """AdamW's learning rate."""
    batch: int = 4
    """Pictures per iteration."""
    pictures: int = 20
    """Drawn by the base, half of them held out."""
    looks: int = 8
    """Pictures that are drawn with what each search found, where there is a judge."""
    seed: int = 0
    """Of all of it."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        if self.restarts > MOST:
            raise BadSetting(f"{self.name}: expected restarts <= {MOST}, got {self.restarts}")
        self.require_least(vectors=1, restarts=1, iterations=1, lr=0, batch=1, pictures=2, looks=1, seed=0)

    def passes(self) -> int:
        """Forward-equivalents for one concept, erasing and the base's pictures not counted."""
        searched = 2 * self.iterations * self.batch
        held_out = 2 * (self.pictures // 2) * POINTS
        return 2 * self.restarts * (searched + held_out + 2 * DRAWN.steps * self.looks)

    def inverted(
        self,
        model: Model,
        control: Model,
        base: Model,
        concept: Concept,
        *,
        judge: Judge | None = None,
        told: Told = lambda done, of: None,
    ) -> Inverted:
        """Both models' searches; raises ``BadSetting`` where the context has no room for the words."""
        clean = self._pictures(base, concept)
        learnt = 2 * (self.pictures - self.pictures // 2)  # every picture beside its mirror
        found: list[list[tuple[float, int]]] = [[], []]
        for restart in range(self.restarts):
            for place, one in enumerate((model, control)):
                words = self._search(one, concept, clean[:learnt], restart)
                gain = self._gain(one, concept, clean[learnt:], words)
                found[place].append((gain, self._shown(one, concept, words, judge)))
                told(2 * restart + place + 1, 2 * self.restarts)
        ours, theirs = (list(zip(*each, strict=True)) for each in found)
        judged = judge is not None
        result = Inverted(
            concept=concept.name,
            gains=ours[0],
            control=theirs[0],
            shown=ours[1] if judged else (),
            control_shown=theirs[1] if judged else (),
            looks=self.looks if judged else 0,
        )
        return Inverted(**{**vars(result), "p_value": sign_flip(result.leads)})

    def _pictures(self, base: Model, concept: Concept) -> Tensor:
        """(2 pictures, C, h, w): what the base draws of the concept, the held-out half last; each with its mirror."""
        prompts = islice(cycle(concept.prompts), self.pictures)
        attempts = [Attempt(prompt=prompt, seed=self.seed + place) for place, prompt in enumerate(prompts)]
        return latents_of(base, base.draw(attempts, DRAWN))

    def _blanks(self, model: Model, concept: Concept) -> list[Blanked]:
        parts = [template.partition("{}") for template in TEMPLATES[concept.kind]]
        return [Blanked.of(model, self.vectors, before=before, after=after) for before, _, after in parts]

    def _search(self, model: Model, concept: Concept, clean: Tensor, restart: int) -> Tensor:
        """(vectors, d), from random words on."""
        random = torch.Generator().manual_seed(self.seed * 1000 + restart)
        allowed = [number for number in range(len(model.vocabulary)) if number not in model.special_tokens]
        drawn = torch.randint(len(allowed), (self.vectors,), generator=random).tolist()
        return invert(
            model,
            clean,
            self._blanks(model, concept),
            start=model.vocabulary[[allowed[place] for place in drawn]],
            random=random,
            iterations=self.iterations,
            lr=self.lr,
            batch=self.batch,
        )

    @torch.no_grad()
    def _gain(self, model: Model, concept: Concept, clean: Tensor, words: Tensor) -> float:
        """The same pictures, noises and steps for all words and models."""
        random = torch.Generator().manual_seed(self.seed)
        texts = (self._blanks(model, concept)[0].encode(model, words), model.embed([""]))
        losses = [0.0, 0.0]
        for picture in clean[::2]:  # without the mirror images
            noise = torch.randn(POINTS, *model.latent_shape, generator=random).to(picture)
            steps = torch.randint(model.timesteps, (POINTS,), generator=random)
            latents = model.noised(picture[None].repeat(POINTS, 1, 1, 1), noise, steps)
            for place, text in enumerate(texts):
                answers = model.predict_noise(latents, steps, text.repeat(POINTS))
                losses[place] += float((answers - noise).square().mean())
        return 1 - losses[0] / losses[1]

    def _shown(self, model: Model, concept: Concept, words: Tensor, judge: Judge | None) -> int:
        """Pictures drawn with the words in which the judge sees the concept."""
        if judge is None:
            return 0
        with torch.no_grad():
            text = self._blanks(model, concept)[0].encode(model, words)
        # Not the noises of the pictures that were learnt from.
        noise = torch.stack([model.noise(self.seed + self.pictures + number) for number in range(self.looks)])
        parts = [model.trajectory(some, text.repeat(len(some)), DRAWN) for some in noise.split(model.batch)]
        scores = judge.score(model.decode(torch.cat(parts)), concept)
        return sum(score is not None and score >= judge.threshold(concept) for score in scores)
