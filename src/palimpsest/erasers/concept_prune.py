"""ConceptPrune: the entries of the feed-forwards that a concept needs most, set to zero."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from palimpsest.erasers.base import Eraser
from palimpsest.errors import BadSetting
from palimpsest.model import Model, Sampling
from palimpsest.model.sampling import SchedulerName
from palimpsest.records import Concept, Kind

ACTIVATIONS = r"unet\..*\.ff\.net\.0"
"""GEGLU: what the pruned linear reads."""
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
    """

    name = "concept_prune"

    q: float | None = None
    """Share of each row; None: the paper's for the concept's kind (objects 0.02, all others 0.01)."""
    tau: int | None = None
    """Steps that are looked at; None: the paper's for the concept's kind (content 9, all others 10)."""
    select_ratio: float = 0.0
    """Share of the steps in which an entry must be taken; 0: any of them."""
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
        masks = [self.mask(model, concept) for concept in concepts]
        weights = model.weights()
        changed = {
            name: weights[name].detach().masked_fill(torch.stack([mask[name] for mask in masks]).any(0), 0.0)
            for name in masks[0]
        }
        yield 1, model.with_weights(changed)

    def mask(self, model: Model, concept: Concept) -> dict[str, Tensor]:
        """Weight's name -> (out, in) bool: what is to be pruned for one concept. ``BadSetting`` without ``pairs``."""
        if not concept.pairs:
            raise BadSetting(
                f"{self.name}: expected concept {concept.name!r} to have pairs of prompts (with, without), got none"
            )
        q = PAPER_SHARES[concept.kind] if self.q is None else self.q
        tau = PAPER_STEPS[concept.kind] if self.tau is None else self.tau
        given, absent = (self._norms(model, prompts, tau) for prompts in zip(*concept.pairs, strict=True))
        return {name: self._taken(model.weights()[name], given[name], absent[name], q) for name in given}

    def _taken(self, weight: Tensor, given: Tensor, absent: Tensor, q: float) -> Tensor:
        """(out, in) bool, from the norms (tau, in) with the concept and without."""
        size, count = weight.detach().abs(), torch.zeros_like(weight, dtype=torch.int64)
        kept = int(q * weight.shape[1])
        for norms, others in zip(given, absent, strict=True):
            score = size * norms
            top = torch.zeros_like(count).scatter_(1, score.topk(kept, dim=1).indices, 1)
            count += top * (score > size * others)
        return count > self.select_ratio * len(given)

    @torch.no_grad()
    def _norms(self, model: Model, prompts: Sequence[str], tau: int) -> dict[str, Tensor]:
        """Weight's name -> (tau, in), A in the equation."""
        sampling = Sampling(scheduler=self.scheduler, steps=self.steps, guidance=self.guidance)
        squares: dict[str, Tensor] = {}
        for first in range(0, len(prompts), model.batch):
            chunk = prompts[first : first + model.batch]
            noise = model.noise(self.seed).expand(len(chunk), *model.latent_shape)
            with model.watch(ACTIVATIONS, keep=_squares) as seen:
                model.trajectory(noise, model.embed(chunk), sampling, until=tau)
            for name, steps in seen.items():
                weight = f"{name.removesuffix('0')}2.weight"
                # PNDM asks once more than it steps.
                squares[weight] = squares.get(weight, torch.zeros(())) + torch.stack(steps[:tau]).cpu()
        return {name: value.sqrt().to(model.device) for name, value in squares.items()}


def _squares(activations: Tensor) -> Tensor:
    """(n, positions, width) -> (width,): squares summed over rows of length 1."""
    rows = torch.nn.functional.normalize(activations.flatten(0, 1).float(), dim=1)
    return rows.square().sum(0)
