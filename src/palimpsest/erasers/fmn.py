"""FMN, Forget-Me-Not: fine-tuning until the cross-attention no longer looks at the concept's words."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from palimpsest.erasers.attention_maps import CROSS_ATTENTION
from palimpsest.erasers.base import Eraser
from palimpsest.erasers.gradients import cutting
from palimpsest.erasers.losses import denoising
from palimpsest.erasers.words import learning_words
from palimpsest.errors import BadSetting
from palimpsest.examples import Examples, Pair, draw
from palimpsest.fitting import Fit
from palimpsest.model import Model, Sampling, Text
from palimpsest.records import Concept, Kind

Variant = Literal["full", "attn2"]

PATTERNS: dict[Variant, str] = {"full": r"unet\..*", "attn2": r"unet\..*\.attn2\..*"}
PROMPTS: dict[Kind, str] = {"style": "a photo in the style of {}"}
"""Where the concept's prompt is not "a photo of {}"."""


class Sight(NamedTuple):
    """Where the denoiser is to stop looking."""

    examples: Examples
    text: Text
    """One row."""
    positions: list[int]
    """Of the concept's words in the context."""


@dataclass(frozen=True, kw_only=True)
class Fmn(Eraser):
    """Trains the denoiser to look away from the concept's words.

    Zhang et al., "Forget-Me-Not: Learning to Forget in Text-to-Image Diffusion Models", arXiv 2303.17591. With A_l the
    attention probabilities (heads, positions, context) of the l-th cross-attention while the denoiser is given x_t, a
    noised picture of the concept, with the concept's prompt, and S the places of its words in that, the loss is

        sqrt(sum_l sum_{s in S} |A_l[:, :, s]|^2)

    with t uniform, by AdamW. Nothing is said of what is drawn instead. The pictures are the base's. One concept is
    drawn per iteration. With ``inversion``, words for what the pictures show are learnt first, by textual inversion
    (Gal et al., arXiv 2208.01618), MSE(eps(x_t, "a photo of" words), noise), and stand in the place of the name; the
    model that comes of it does not know them.
    """

    name = "fmn"

    variant: Variant = "full"
    """What is trained: ``full``, the denoiser; ``attn2``, its cross-attention."""
    prompt: str | None = None
    """The concept's prompt, {} its name; None: the authors' (styles "a photo in the style of {}", all others "a photo
    of {}")."""
    end: bool = True
    """Count end tokens among the concept's words, as the authors' configuration does; padding is one where the
    tokenizer pads with it."""
    inversion: int = 0
    """Iterations of textual inversion; 0: none. The authors' configuration has 500."""
    inversion_lr: float = 1e-3
    """Adam's, in textual inversion."""
    words: int = 4
    """That textual inversion learns; the first begin as those of the name, the others at random, as long as words are
    on average."""
    lr: float = 2e-6
    iterations: int = 35
    batch: int = 1
    pictures: int = 10
    """Of each concept."""
    norm: float = 1.0
    """The gradient is scaled down to this length."""
    steps: int = 50
    """DDIM steps of a picture."""
    guidance: float = 7.5
    """Of the pictures."""
    every: int = 0
    """Iterations between the stages that are kept for persistence curves; 0: the end alone."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        self.require_least(lr=0, inversion_lr=0, inversion=0, every=0)
        self.require_least(words=1, iterations=1, batch=1, pictures=1, steps=1)
        if self.norm <= 0:
            raise BadSetting(f"{self.name}: expected norm > 0, got {self.norm}")
        if self.prompt is not None and "{}" not in self.prompt:
            raise BadSetting(f"{self.name}: expected a prompt with {{}} for the concept's name, got {self.prompt!r}")

    def stages(
        self, model: Model, concepts: Sequence[Concept], *, random: torch.Generator
    ) -> Iterator[tuple[int, Model]]:
        """The student after every ``every`` iterations, and at the end."""
        sights = [self._sight(model, concept, at, random) for at, concept in enumerate(concepts)]
        student = model.copy(trainable=PATTERNS[self.variant])

        def loss() -> Tensor:
            return self._looks(student, sights[int(torch.randint(len(sights), (), generator=random))], random)

        optimiser = torch.optim.AdamW(student.trainable(), lr=self.lr)
        cutting(optimiser, self.norm)
        fit = Fit(
            student=student,
            optimiser=optimiser,
            random=random,
            iterations=self.iterations,
            every=self.every,
            phase=self.name,
        )
        yield from fit.run(loss)

    def _looks(self, student: Model, sight: Sight, random: torch.Generator) -> Tensor:
        """The loss on a batch of one concept's pictures."""
        at = sight.examples.drawn(student, self.batch, random)
        with student.watch(CROSS_ATTENTION, maps=True, keep=lambda maps: maps[..., sight.positions]) as seen:
            student.predict_noise(at.latents, at.steps, sight.text.repeat(self.batch))
        # The backward begins at the maps, where the answer's own count does not see it.
        student.count(backwards=self.batch)
        looks: Tensor = torch.cat([maps.flatten() for forwards in seen.values() for maps in forwards]).norm()
        return looks

    def _sight(self, model: Model, concept: Concept, at: int, random: torch.Generator) -> Sight:
        template = PROMPTS.get(concept.kind, "a photo of {}") if self.prompt is None else self.prompt
        prompt = template.format(concept.name)
        positions = self._positions(model, prompt, concept.name)
        sampling, pairs = Sampling(steps=self.steps, guidance=self.guidance), [Pair(prompt, "")] * self.pictures
        examples = draw(model, pairs, of="given", sampling=sampling, random=random, name=f"{self.name}-{at}")
        if not self.inversion:
            return Sight(examples, model.remembered([prompt]), positions)
        words = [f"<forget-{at}-{number}>" for number in range(self.words)]
        prompt = template.format(" ".join(words))
        inverted = self._inverted(model, concept, words, random)
        positions = self._positions(inverted, prompt, " ".join(words))
        learnt = self._learnt(inverted, words, prompt, examples, random)
        return Sight(examples, learnt.remembered([prompt]), positions)

    def _positions(self, model: Model, prompt: str, name: str) -> list[int]:
        """Where in the prompt's context the name's tokens stand, and, if asked, end tokens."""
        ids = model.tokens(prompt).tolist()
        words = [token for token in model.tokens(name).tolist() if token not in model.special_tokens]
        starts = [at for at in range(len(ids)) if words and ids[at : at + len(words)] == words]
        if not starts:
            raise BadSetting(
                f"{self.name}: expected a prompt of at most {model.context} tokens with {name!r} in it, got {prompt!r}"
            )
        found = {start + place for start in starts for place in range(len(words))}
        return sorted(found | {at for at, token in enumerate(ids) if self.end and token == model.end_token})

    @staticmethod
    def _inverted(model: Model, concept: Concept, words: Sequence[str], random: torch.Generator) -> Model:
        """The model with words of its own for the concept, as they begin."""
        table = model.vocabulary
        name = [token for token in model.tokens(concept.name).tolist() if token not in model.special_tokens]
        for place, word in enumerate(words):
            start = torch.randn(table.shape[1], generator=random).to(table)
            start *= table.norm(dim=1).mean() / start.norm()
            model = model.with_token(word, table[name[place]] if place < len(name) else start)
        return model

    def _learnt(
        self, model: Model, words: Sequence[str], prompt: str, examples: Examples, random: torch.Generator
    ) -> Model:
        """Textual inversion."""
        student = learning_words(model, {int(model.tokenizer.convert_tokens_to_ids(word)) for word in words})

        def loss() -> Tensor:
            at = examples.drawn(student, self.batch, random)
            return denoising(student, at, student.embed([prompt] * self.batch))

        fit = Fit(
            student=student,
            optimiser=torch.optim.Adam(student.trainable(), lr=self.inversion_lr),
            random=random,
            iterations=self.inversion,
            phase=f"{self.name}-{words[0].strip('<>')}",
        )
        *_, (_, learnt) = fit.run(loss)
        return learnt
