"""RECE: closed-form edits of cross-attention, each against the text states that the last one left open."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from palimpsest.closed_form import Ridge, solved
from palimpsest.erasers.base import Eraser
from palimpsest.erasers.text_states import WEIGHTS, encode, gram, turned
from palimpsest.erasers.uce import Uce
from palimpsest.errors import BadSetting
from palimpsest.model import Model
from palimpsest.records import Concept, Kind


class Defaults(NamedTuple):
    """What the paper takes for a kind of concept."""

    epochs: int
    rho: float


PAPER: dict[Kind, Defaults] = {
    "object": Defaults(epochs=1, rho=1e-1),
    "style": Defaults(epochs=1, rho=1e-3),
    "identity": Defaults(epochs=1, rho=1e-3),
    "content": Defaults(epochs=3, rho=1e-1),
}
"""Objects that are easy to erase; for hard ones the paper takes the rho of styles. It erases no people."""


class Come(NamedTuple):
    """Where the weights have come: every one of them is its original W* times the same 1 + D."""

    change: Tensor
    """(width, width), D."""
    gram: Tensor
    """(width, width), sum W*^T W* over the weights."""

    def followed_by(self, change: Tensor) -> "Come":
        """After one more W <- W (1 + change)."""
        return self._replace(change=self.change + change + self.change @ change)

    def adversarial(self, states: Tensor, rho: float) -> Tensor:
        """(n, width) states that now come closest to being answered as ``states`` once were; c' in the equation."""
        turn = torch.eye(len(self.gram)).to(self.gram) + self.change
        mixed = turn.mT @ self.gram  # sum W^T W*
        ridge = rho * torch.eye(len(self.gram)).to(self.gram)
        return solved(ridge + mixed @ turn, mixed @ states.mT).mT


@dataclass(frozen=True, kw_only=True)
class Rece(Eraser):
    """Edits as UCE does; looks for the states that still mean the concept to the edited weights; edits those as well.

    Gong et al., "Reliable and Efficient Concept Erasure of Text-to-Image Diffusion Models", arXiv 2407.12383. After
    UCE's 2023 form, in each epoch, for the text states c of the concept's name at all positions of the context, the
    weights W_i as they are and the originals W_i*,

        c' = (rho 1 + sum_i W_i^T W_i)^-1 (sum_i W_i^T W_i*) c

        W_i <- (lam W_i + sum W_i a c'^T + p sum W_i r r^T) (lam 1 + sum c' c'^T + p sum r r^T)^-1

    with the empty prompt's states a, position by position, and the retained ones r: the empty prompt's, as the
    authors' code has it, and with ``retain`` the neighbours'. W_i are all cross-attention keys and values. Each epoch
    is a stage, and the last is the result; the authors' scripts for nudity choose, of all epochs, the one with fewest
    detections. Nothing is random.
    """

    name = "rece"

    epochs: int | None = None
    """None: the paper's for the concept's kind (content 3, all others 1)."""
    rho: float | None = None
    """How small c' is kept; None: the paper's for the concept's kind (objects and content 0.1, others 0.001; objects
    that are hard to erase also 0.001)."""
    lam: float = 0.1
    """How strongly everything else is held in place, in UCE's edit too."""
    p: float = 0.1
    """Weight of the retained states; in UCE's edit it is max(0.1, 1 / retained prompts)."""
    anchor: str | None = None
    """Prompt that every concept is mapped to; None: the concept's own anchor, else the empty prompt."""
    synonyms: bool = False
    """Erase each of a concept's synonyms as well; the paper does not."""
    retain: bool = False
    """Retain the concepts' neighbours, by their names (the paper retains other artists with an artist)."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        if self.epochs is not None and self.epochs < 1:
            raise BadSetting(f"{self.name}: expected epochs >= 1, got {self.epochs}")
        for setting in ("rho", "lam"):
            value = getattr(self, setting)
            if value is not None and value <= 0:
                raise BadSetting(
                    f"{self.name}: expected {setting} > 0, got {value}: the equation would have no solution"
                )
        if self.p < 0:
            raise BadSetting(f"{self.name}: expected p >= 0, got {self.p}")

    def stages(
        self, model: Model, concepts: Sequence[Concept], *, random: torch.Generator
    ) -> Iterator[tuple[int, Model]]:
        """The edited model after every epoch."""
        uce = Uce(form="2023", lam=self.lam, anchor=self.anchor, synonyms=self.synonyms, retain=self.retain)
        with torch.no_grad():
            first = uce.system(model, concepts)
            come = Come(first.ridge.turn(first.anchors), gram(model.weights(WEIGHTS)))
            penalty = uce.penalty(model, concepts, scale=self.p)
        names = [(concept, prompt, anchor) for concept in concepts for prompt, anchor in uce.pairs(concept)]
        for epoch in range(1, 1 + max(self._own(concept).epochs for concept in concepts)):
            with torch.no_grad():
                keys, anchors = [], []
                for concept, prompt, anchor in names:
                    if epoch <= self._own(concept).epochs:
                        keys.append(come.adversarial(encode(model, prompt)[0], self._own(concept).rho))
                        anchors.append(encode(model, anchor)[0])
                come = come.followed_by(Ridge.of(torch.cat(keys), penalty).turn(torch.cat(anchors)))
                edited = turned(model, come.change)
            yield epoch, edited

    def _own(self, concept: Concept) -> Defaults:
        paper = PAPER[concept.kind]
        return Defaults(self.epochs or paper.epochs, paper.rho if self.rho is None else self.rho)
