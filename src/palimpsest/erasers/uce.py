"""UCE, Unified Concept Editing: cross-attention's keys and values, edited in closed form."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from palimpsest.closed_form import Ridge
from palimpsest.erasers.base import Eraser
from palimpsest.erasers.text_states import WEIGHTS, check_anchors, encode
from palimpsest.errors import BadSetting
from palimpsest.model import Model
from palimpsest.records import Concept, Kind

EXPANSIONS: dict[bool, tuple[str, ...]] = {
    True: ("painting by {}", "art by {}", "artwork by {}", "picture by {}", "style of {}"),
    False: ("image of {}", "photo of {}", "portrait of {}", "picture of {}", "painting of {}"),
}
"""By whether the concept is a style."""

PAPER_ANCHORS: dict[Kind, str] = {"style": "art"}
"""Where the current form's anchor is not the empty prompt."""


class System(NamedTuple):
    """The edit's equation, factored, before it meets a weight."""

    ridge: Ridge
    edits: "list[Edit]"

    @property
    def anchors(self) -> Tensor:
        """(n, width): of each of the ridge's keys, whose answer it is to get."""
        return torch.cat([edit.anchor for edit in self.edits])


class Edit(NamedTuple):
    """Text states that are to be answered as if they were others, row by row."""

    concept: Tensor
    """(n, width), c in the equation."""
    anchor: Tensor
    """(n, width), a in the equation."""


@dataclass(frozen=True, kw_only=True)
class Uce(Eraser):
    """Edits every cross-attention's keys and values so that they answer the concept as they did the anchor.

    Gandikota et al., "Unified Concept Editing in Diffusion Models", arXiv 2308.14761. For text states c of the
    concept, a of its anchor and r of retained prompts, with W* the original weight,

        W = (lam W* + e sum W* a c^T + p sum W* r r^T) (lam I + e sum c c^T + p sum r r^T)^-1

    ``form = "current"`` is the authors' current code: one state per prompt, that of its last token. The anchor of a
    style is "art", of anything else the empty prompt. ``form = "2023"`` is their first: all states from the last token
    to the end of the context, the anchor always empty, and the empty prompt always among the retained ones, of which
    all states count. An anchor that the concept brings goes before the paper's. Nothing is random.
    """

    name = "uce"

    form: Literal["current", "2023"] = "current"
    target: Literal["replace", "tensor"] = "replace"
    """What the concept is answered with: the anchor's answer, or (2023 only) that answer less its share along the
    concept's own answer."""
    anchor: str | None = None
    """Prompt that every concept is mapped to; None: the concept's own anchor, and where it has none the paper's."""
    synonyms: bool = False
    """Erase each of a concept's synonyms as well; the paper does not."""
    expand: bool = False
    """Erase five phrases with each name as well ("photo of ...", "art by ..."), as the authors' code offers."""
    retain: bool = False
    """Retain the concepts' neighbours, by their names (the authors' code retains what the user lists)."""
    lam: float = 0.5
    """How strongly everything else is held in place."""
    erase_scale: float = 1.0
    """e in the equation."""
    preserve_scale: float | None = None
    """p in the equation; None: the form's own (current: 1, 2023: max(0.1, 1 / retained prompts))."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        if self.lam <= 0:
            raise BadSetting(f"{self.name}: expected lam > 0, got {self.lam}")
        for setting in ("erase_scale", "preserve_scale"):
            if (getattr(self, setting) or 0) < 0:
                raise BadSetting(f"{self.name}: expected {setting} >= 0, got {getattr(self, setting)}")
        if self.form == "current" and self.target == "tensor":
            raise BadSetting(f"{self.name}: expected form '2023' with target 'tensor', got 'current'")

    def stages(
        self, model: Model, concepts: Sequence[Concept], *, random: torch.Generator
    ) -> Iterator[tuple[int, Model]]:
        """The edited model, in one stage."""
        with torch.no_grad():
            ridge, edits = self.system(model, concepts)
            changed = {}
            for name, weight in model.weights(WEIGHTS).items():
                values = torch.cat([self._values(weight.double(), edit) for edit in edits])
                changed[name] = ridge.edit(weight, values)
        yield 1, model.with_weights(changed)

    def system(self, model: Model, concepts: Sequence[Concept]) -> System:
        """What is edited, and how; ``BadSetting`` if a concept is its own anchor, or two coincide."""
        pairs = [pair for concept in concepts for pair in self.pairs(concept)]
        check_anchors(self, model, pairs)
        edits = [self._edit(model, prompt, anchor) for prompt, anchor in pairs]
        keys = torch.cat([edit.concept for edit in edits])
        penalty = self.penalty(model, concepts, scale=self.preserve_scale)
        return System(Ridge.of(keys, penalty, scale=self.erase_scale), edits)

    def pairs(self, concept: Concept) -> list[tuple[str, str]]:
        """(prompt of the concept, its anchor)."""
        names = (concept.name, *(concept.synonyms if self.synonyms else ()))
        phrases = ("{}", *(EXPANSIONS[concept.kind == "style"] if self.expand else ()))
        return [(phrase.format(name), self._anchor(concept)) for name in names for phrase in phrases]

    def _anchor(self, concept: Concept) -> str:
        if self.anchor is not None:
            return self.anchor
        return concept.anchor or (PAPER_ANCHORS.get(concept.kind, "") if self.form == "current" else "")

    def _edit(self, model: Model, prompt: str, anchor: str) -> Edit:
        """The states to be answered otherwise, beside those whose answers they get."""
        (states, last), (anchors, anchor_last) = encode(model, prompt), encode(model, anchor)
        length = 1 if self.form == "current" else len(states) - max(last, anchor_last)
        return Edit(states[last : last + length], anchors[anchor_last : anchor_last + length])

    def penalty(self, model: Model, concepts: Sequence[Concept], *, scale: float | None) -> Tensor:
        """The matrix lam I + p sum r r^T, (width, width), with ``scale`` as p; None: the form's own."""
        erased = {concept.name for concept in concepts}
        neighbours = [name for concept in concepts for name in concept.neighbours if name not in erased]
        retained = list(dict.fromkeys(neighbours)) if self.retain else []
        if self.form == "2023":
            retained.insert(0, "")
        if scale is None:
            scale = 1.0 if self.form == "current" else max(0.1, 1 / len(retained))
        penalty = self.lam * torch.eye(encode(model, "")[0].shape[1], dtype=torch.float64, device=model.device)
        for prompt in retained:
            states, last = encode(model, prompt)
            rows = states[last : last + 1] if self.form == "current" else states
            penalty += scale * rows.mT @ rows
        return penalty

    def _values(self, weight: Tensor, edit: Edit) -> Tensor:
        """What this weight is to answer to the edit's concept."""
        values: Tensor = edit.anchor @ weight.mT
        if self.target == "replace":
            return values
        # One direction for all rows together: the authors take the norm and the product over the whole matrix.
        answer = edit.concept @ weight.mT
        along: Tensor = answer / answer.norm()
        return values - torch.sum(along * values) * along
