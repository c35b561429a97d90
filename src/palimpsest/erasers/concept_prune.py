"""ConceptPrune: the entries of the feed-forwards that a concept needs most, set to zero."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_

import torch
from torch import Tensor

from palimpsest.erasers.activations import prompts_of, squares
from palimpsest.erasers.base import Eraser
from palimpsest.errors import BadSetting
from palimpsest.model import Model, Sampling
from palimpsest.model.sampling import SchedulerName
from palimpsest.pruning import PATTERNS, Layers, Mask, chosen, largest, matrices
from palimpsest.records import Concept, Kind

PAPER_SHARES: dict[Kind, float] = {"object": 0.02, "style": 0.01, "identity": 0.01, "content": 0.01}
PAPER_STEPS: dict[Kind, int] = {"object": 10, "style": 10, "identity": 10, "content": 9}
"""Of what is called unsafe 9, else 10."""


@dataclass(frozen=True, kw_only=True)
class ConceptPrune(Eraser):
    """Zeroes, in the second linear of every feed-forward, what answers to the concept and not to its absence.

    Chavhan et al., "ConceptPrune: Concept Editing in Diffusion Models via Skilled Neuron Pruning", arXiv 2405.19237,
    as in the authors' code. While pictures of prompts with and of prompts without the concept are drawn, all from the
    noise of one seed, the input of the linear, z (rows: prompts x positions, both branches of the guidance), is taken
    at each of the first ``tau`` steps t with every row scaled to length 1:

        A_tj = sqrt(sum_rows z_rj^2)        S_tij = |W_ij| A_tj        (Wanda's score)

    Step t takes from each row i of W the floor(q columns) entries of largest S with the concept, and of those the ones
    whose S is larger than without it. What was taken in more than ``select_ratio`` of the steps is set to zero; the
    masks of several concepts are joined. Prompts are the concept's ``pairs``. Nothing is random.

    ``layers`` chooses other matrices, as the authors' code can: z is then the input of those. The text encoder's are
    looked at once, while it encodes the prompt and the empty one.
    """

    name = "concept_prune"

    q: float | None = None
    """Share of each row; None: the paper's for the concept's kind (objects 0.02, all others 0.01)."""
    tau: int | None = None
    """Steps that are looked at; None: the paper's for the concept's kind (content 9, all others 10)."""
    select_ratio: float = 0.0
    """Share of the steps in which an entry must be taken; 0: any of them."""
    layers: Layers = "ff2"
    """``ff2``: the feed-forwards' second linear; ``ff1``: their first (GEGLU's); ``keys``, ``values``: of the
    cross-attention; ``text``: the second linear of the text encoder's feed-forwards."""
    scheduler: SchedulerName = "pndm"
    steps: int = 50
    """Of a whole picture."""
    guidance: float = 7.5
    seed: int = 0
    """Of the noise that every prompt starts from."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        if self.q is not None and not 0 < self.q <= 1:
            raise BadSetting(f"{self.name}: expected 0 < q <= 1, got {self.q}")
        if not 0 <= self.select_ratio < 1:
            raise BadSetting(f"{self.name}: expected 0 <= select_ratio < 1, got {self.select_ratio}")
        if self.tau is not None and not 1 <= self.tau <= self.steps:
            raise BadSetting(f"{self.name}: expected tau from 1 to steps ({self.steps}), got {self.tau}")
        if self.guidance <= 1:
            raise BadSetting(f"{self.name}: expected guidance > 1, got {self.guidance}: both branches are looked at")

    def stages(
        self, model: Model, concepts: Sequence[Concept], *, random: torch.Generator
    ) -> Iterator[tuple[int, Model]]:
        """The pruned model, in one stage."""
        yield 1, self.mask(model, concepts).applied(model)

    def mask(self, model: Model, concepts: Sequence[Concept]) -> Mask:
        """What is to be pruned for the concepts; ``BadSetting`` for one without ``pairs``, or if it were nothing."""
        return reduce(or_, [self._mask(model, concept) for concept in concepts])

    def _mask(self, model: Model, concept: Concept) -> Mask:
        q = PAPER_SHARES[concept.kind] if self.q is None else self.q
        weights = matrices(model, PATTERNS[self.layers])
        given, absent = (self._norms(model, prompts, concept, weights) for prompts in prompts_of(concept, self.name))
        taken = {name: self._taken(weight, given[name], absent[name], q) for name, weight in weights.items()}
        return chosen(taken, self.name)

    def _taken(self, weight: Tensor, given: Tensor, absent: Tensor, q: float) -> Tensor:
        """(out, in) bool, from the norms (steps, in) with the concept and without."""
        size, count = weight.detach().abs(), torch.zeros_like(weight, dtype=torch.int64)
        for norms, others in zip(given, absent, strict=True):
            score = size * norms
            count += largest(score, q) & (score > size * others)
        return count > self.select_ratio * len(given)

    def _norms(
        self, model: Model, prompts: Sequence[str], concept: Concept, weights: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Weight's name -> (steps, in), A in the equation."""
        sampling = Sampling(scheduler=self.scheduler, steps=self.steps, guidance=self.guidance)
        tau = PAPER_STEPS[concept.kind] if self.tau is None else self.tau
        found = squares(model, prompts, weights, sampling=sampling, steps=tau, seed=self.seed)
        return {name: sums.sum(0).sqrt() for name, sums in found.items()}
