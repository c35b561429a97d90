"""AC, Concept Ablation: fine-tuning until the concept's prompts give what its anchor's do."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from palimpsest.erasers.base import Eraser
from palimpsest.erasers.gradients import cutting
from palimpsest.erasers.losses import denoising, replacing
from palimpsest.erasers.words import learning_words
from palimpsest.errors import BadSetting
from palimpsest.examples import Examples, Pair, draw, in_turn, pairs_of
from palimpsest.fitting import Fit
from palimpsest.model import Model, Sampling
from palimpsest.records import Concept

Weights = Literal["kv", "attn", "full", "embedding"]

PATTERNS: dict[Weights, str] = {
    "kv": r"unet\..*\.attn2\.to_[kv]\..*",
    "attn": r"unet\..*\.attn2\..*",
    "full": r"unet\..*",
}


class Defaults(NamedTuple):
    """What the authors use for a kind of concept."""

    weights: Weights
    lr: float
    iterations: int
    """On one device."""
    prior: float


PAPER = Defaults(weights="kv", lr=2e-6, iterations=200, prior=0.0)
PAPER_CONTENT = Defaults(weights="attn", lr=4e-6, iterations=800, prior=1.0)


@dataclass(frozen=True, kw_only=True)
class Ac(Eraser):
    """Trains the denoiser to answer the concept's prompt c* as it answers the anchor's prompt c.

    Kumari et al., "Ablating Concepts in Text-to-Image Diffusion Models", arXiv 2303.13516. x_t are noised pictures that
    the base drew of c, t is uniform, sg stops the gradient, and eps is the network as it is by then:

        model-based: MSE(eps(x_t, c*), sg eps(x_t, c))        noise-based: MSE(eps(x_t, c*), noise)

    plus ``prior`` MSE(eps(x_t, c), noise), on pictures of their own. AdamW, at a learning rate of ``lr`` times
    ``batch``, as the authors scale it. c* and c are the concept's ``pairs``, with and without it; for one that has
    none, its name and its ``anchor``. The pictures are divided equally among several concepts, of which the first one's
    kind decides the defaults. (The authors ask a language model for the prompts, go through the pictures in order, and
    may flip them. Here each batch is drawn with replacement.)
    """

    name = "ac"

    form: Literal["model", "noise"] = "model"
    """The target: what the network says of the anchor, or the noise that was added."""
    weights: Weights | None = None
    """What is trained: ``kv``, keys and values of the cross-attention; ``attn``, all of it; ``full``, the denoiser;
    ``embedding``, the embeddings of the words of the concept's name. None: the paper's (content ``attn``, all others
    ``kv``)."""
    anchor: str | None = None
    """The anchor's prompt, for all of the concept's prompts; None: the concept's own pairs, or else its anchor."""
    lr: float | None = None
    """Before it is multiplied with ``batch``; None: the paper's (content 4e-6, all others 2e-6)."""
    iterations: int | None = None
    """None: the paper's on one device (content 800, all others 200)."""
    batch: int = 4
    pictures: int = 1000
    """Of anchors, all concepts together."""
    prior: float | None = None
    """Weight of the prior term; None: the paper's (content 1, all others 0)."""
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
        self.require_least(lr=0, iterations=1, batch=1, pictures=1, prior=0, steps=1, every=0)
        if self.norm <= 0:
            raise BadSetting(f"{self.name}: expected norm > 0, got {self.norm}")

    def stages(
        self, model: Model, concepts: Sequence[Concept], *, random: torch.Generator
    ) -> Iterator[tuple[int, Model]]:
        """The student after every ``every`` iterations, and at the end."""
        paper = PAPER_CONTENT if concepts[0].kind == "content" else PAPER
        trained = self.weights or paper.weights
        groups = pairs_of(concepts, self.name, anchor=self.anchor)
        examples = self._anchors(model, in_turn(groups, self.pictures), random)
        student = self._student(model, concepts, groups, trained)
        prior = paper.prior if self.prior is None else self.prior

        def loss() -> Tensor:
            at = examples.drawn(model, self.batch, random)
            text = student.embed(at.given) if trained == "embedding" else student.remembered(at.given)
            found = (replacing if self.form == "model" else denoising)(student, at, text)
            if prior:
                also = examples.drawn(model, self.batch, random)
                found = found + prior * denoising(student, also, student.remembered(also.absent))
            return found

        lr = (paper.lr if self.lr is None else self.lr) * self.batch
        # All rows of a table would decay, also those of other words.
        decay = 0.0 if trained == "embedding" else 0.01
        optimiser = torch.optim.AdamW(student.trainable(), lr=lr, weight_decay=decay)
        cutting(optimiser, self.norm)
        fit = Fit(
            student=student,
            optimiser=optimiser,
            random=random,
            iterations=paper.iterations if self.iterations is None else self.iterations,
            every=self.every,
            phase=self.name,
        )
        yield from fit.run(loss)

    def _anchors(self, model: Model, pairs: Sequence[Pair], random: torch.Generator) -> Examples:
        sampling = Sampling(steps=self.steps, guidance=self.guidance)
        return draw(model, pairs, of="absent", sampling=sampling, random=random, name=f"{self.name}-anchors")

    def _student(
        self, model: Model, concepts: Sequence[Concept], groups: Sequence[Sequence[Pair]], trained: Weights
    ) -> Model:
        if trained != "embedding":
            return model.copy(trainable=PATTERNS[trained])
        words: set[int] = set()
        for concept, pairs in zip(concepts, groups, strict=True):
            name = set(model.tokens(concept.name).tolist()) - model.special_tokens
            if not any(name & set(model.tokens(pair.given).tolist()) for pair in pairs):
                raise BadSetting(
                    f"{self.name}: expected prompts with a word of {concept.name!r}, got {pairs[0].given!r}"
                )
            words |= name
        return learning_words(model, words)
