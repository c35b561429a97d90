"""FIA, Forget-It-All: the entries of the feed-forwards that concepts need and the rest of the world does not."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from palimpsest.erasers.activations import chunks, prompts_of, squares, walk, watching
from palimpsest.erasers.base import Eraser
from palimpsest.errors import BadSetting
from palimpsest.model import Model, Sampling
from palimpsest.model.sampling import SchedulerName
from palimpsest.pruning import PATTERNS, Mask, chosen, largest, matrices
from palimpsest.records import Concept, Kind

PAPER_R2: dict[Kind, float] = {"object": 0.007, "style": 0.02, "identity": 0.02, "content": 0.01}
"""The paper has no identities: they are taken as styles."""
HARD = frozenset({"parachute", "golf ball", "gas pump", "van gogh"})
PAPER_R2_HARD = 0.03
"""Of the concepts that the paper found hard to forget."""
PAPER_ALPHA: dict[Kind, float] = {"object": 0.6, "style": 0.8, "identity": 0.8, "content": 0.6}
EPS = 1e-8


@dataclass(frozen=True, kw_only=True)
class Fia(Eraser):
    """Zeroes, in the second linear of every feed-forward, what answers to the concepts beyond what others make of it.

    Deng et al., "Forget-It-All: Multi-Concept Machine Unlearning via Concept-Aware Neuron Masking", arXiv 2601.06163.
    While a prompt's picture takes its first ``tau`` steps t, all from the noise of one seed, the linear W has inputs X
    and outputs Y (rows: positions of both branches of the guidance). Over the prompts with the concept (c) and without
    it (b)

        U_tij = |W_ij| |X_j|                                       (form "released"; rows of X of length 1)
        U_tij = |W_ij| |X_j| |<X_j, Y_i>| / (|X_j| |Y_i| + eps)    (form "paper")
        S = max(0, mean_c U - mean_b U - std_b U)
        A = 1/2 mean_t S_t + 1/2 mean_t 1[S_t > tau_t]             (tau_t: the share r1 of S_t reaches it)
        Q = top r2 of each row of A, and top r2 of A

    The released code divides the first term of A by its maximum; the form "paper" does not. What has A = 0 is never
    taken. Of C > 1 concepts, entries that at least ceil(alpha C) of them take (s = sum_c Q_c) are agnostic and kept;
    those with 0 < s < ceil(alpha C) are set to zero. **A single concept bypasses this fusion**: ceil(alpha) is 1, so
    all that it takes would count as agnostic and nothing would be pruned; here Q itself is. For the same reason an
    alpha with ceil(alpha C) = 1 is refused. Prompts are the concepts' ``pairs``. Nothing is random. The form "paper"
    holds 4 ``tau`` matrices for each of the model's.
    """

    name = "fia"

    form: Literal["released", "paper"] = "released"
    """As the authors' code computes U and A, or as the paper writes them."""
    r1: float = 0.05
    """Share of each matrix that counts as active in a step (the paper takes 0.06 for one content concept)."""
    r2: float | None = None
    """Share of each row and matrix; None: the paper's for the concept (objects 0.007, styles 0.02, content 0.01; 0.03
    for parachute, golf ball, gas pump and van gogh)."""
    alpha: float | None = None
    """Share of the concepts from which on an entry is agnostic; None: the paper's for their kind (objects and content
    0.6, styles 0.8), the largest where kinds differ."""
    tau: int = 10
    """Steps that are looked at."""
    scheduler: SchedulerName = "pndm"
    steps: int = 50
    """Of a whole picture."""
    guidance: float = 7.5
    seed: int = 1244
    """Of the noise that every prompt starts from."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        for setting in ("r1", "r2", "alpha"):
            value = getattr(self, setting)
            if value is not None and not 0 < value <= 1:
                raise BadSetting(f"{self.name}: expected 0 < {setting} <= 1, got {value}")
        if not 1 <= self.tau <= self.steps:
            raise BadSetting(f"{self.name}: expected tau from 1 to steps ({self.steps}), got {self.tau}")
        if self.guidance <= 1:
            raise BadSetting(f"{self.name}: expected guidance > 1, got {self.guidance}: both branches are looked at")

    def stages(
        self, model: Model, concepts: Sequence[Concept], *, random: torch.Generator
    ) -> Iterator[tuple[int, Model]]:
        """The pruned model, in one stage."""
        yield 1, self.mask(model, concepts).applied(model)

    def mask(self, model: Model, concepts: Sequence[Concept]) -> Mask:
        """What is to be pruned for the concepts together.

        Raises ``BadSetting`` for a concept without ``pairs`` or with a single prompt without it (of which there is no
        standard deviation), for an ``alpha`` that prunes nothing, and if nothing is left to prune.
        """
        bound = self._bound(concepts)
        masks = [self._mask(model, concept) for concept in concepts]
        if len(masks) == 1:
            return masks[0]
        taken = {name: torch.stack([mask.entries[name] for mask in masks]).sum(0) for name in masks[0].entries}
        return chosen({name: (count > 0) & (count < bound) for name, count in taken.items()}, self.name)

    def _bound(self, concepts: Sequence[Concept]) -> int:
        """By how many of the concepts an entry is taken that is agnostic."""
        alpha = max(PAPER_ALPHA[concept.kind] for concept in concepts) if self.alpha is None else self.alpha
        # Rounded, because 0.7 * 10 is a little above 7.
        bound = math.ceil(round(alpha * len(concepts), 9))
        if bound == 1 and len(concepts) > 1:
            raise BadSetting(
                f"{self.name}: expected alpha > 1 / {len(concepts)} for {len(concepts)} concepts, got {alpha}: "
                "all that any of them takes would be kept"
            )
        return bound

    def _mask(self, model: Model, concept: Concept) -> Mask:
        """Q of one concept."""
        given, absent = prompts_of(concept, self.name)
        if len(set(absent)) < 2:
            raise BadSetting(
                f"{self.name}: expected concept {concept.name!r} to have at least 2 prompts without it, "
                f"for their standard deviation, got {len(set(absent))}"
            )
        r2 = self.r2
        if r2 is None:
            r2 = PAPER_R2_HARD if concept.name.lower() in HARD else PAPER_R2[concept.kind]
        weights = {name: weight.detach() for name, weight in matrices(model, PATTERNS["ff2"]).items()}
        found = self._released if self.form == "released" else self._paper
        taken = {}
        for name, saliency in found(model, weights, given, absent):
            score = self._sensitivity(saliency)
            both = [largest(score, r2, per="row", least=1), largest(score, r2, per="matrix", least=1)]
            taken[name] = both[0] & both[1] & (score > 0)
        return chosen(taken, self.name)

    def _sensitivity(self, saliency: Tensor) -> Tensor:
        """(out, in), A, from S (tau, out, in)."""
        strength = saliency.mean(0)
        if self.form == "released":
            strength = strength / strength.max().clamp(min=1e-12)
        flat = saliency.flatten(1)
        least = flat.topk(max(1, int(self.r1 * flat.shape[1])), dim=1).values[:, -1]
        persistence = (saliency > least[:, None, None]).float().mean(0)
        return (strength + persistence) / 2

    @property
    def _sampling(self) -> Sampling:
        return Sampling(scheduler=self.scheduler, steps=self.steps, guidance=self.guidance)

    def _released(
        self, model: Model, weights: Mapping[str, Tensor], given: Sequence[str], absent: Sequence[str]
    ) -> Iterator[tuple[str, Tensor]]:
        """Weight's name and its S (tau, out, in); |W| is the same for all prompts and stands outside."""
        norms, others = (
            squares(model, prompts, weights, sampling=self._sampling, steps=self.tau, seed=self.seed)
            for prompts in (given, absent)
        )
        for name, weight in weights.items():
            mine, base = norms[name].sqrt(), others[name].sqrt()
            excess = mine.mean(0) - base.mean(0) - base.std(0, correction=0)
            yield name, weight.abs().float() * excess.clamp(min=0)[:, None, :]

    def _paper(
        self, model: Model, weights: Mapping[str, Tensor], given: Sequence[str], absent: Sequence[str]
    ) -> Iterator[tuple[str, Tensor]]:
        """Weight's name and its S (tau, out, in)."""
        mine, base = (self._saliencies(model, weights, prompts) for prompts in (given, absent))
        for name in weights:
            of_mine, of_base = mine.pop(name), base.pop(name)
            spread = (of_base.squares / len(absent) - of_base.mean(len(absent)).square()).clamp(min=0).sqrt()
            yield name, (of_mine.mean(len(given)) - of_base.mean(len(absent)) - spread).clamp(min=0)

    @torch.no_grad()
    def _saliencies(
        self, model: Model, weights: Mapping[str, Tensor], prompts: Sequence[str]
    ) -> "dict[str, _Saliencies]":
        """Weight's name -> sums of U over the prompts."""
        biases = model.weights()
        sums = {
            name: _Saliencies(weight, biases.get(f"{name.removesuffix('weight')}bias"), self.tau)
            for name, weight in weights.items()
        }
        for chunk in chunks(model, prompts):
            for one in sums.values():
                one.begin(len(chunk))
            with watching(model, {name: one.add for name, one in sums.items()}):
                walk(model, chunk, sampling=self._sampling, steps=self.tau, seed=self.seed)
        return sums


class _Saliencies:
    """Sums over prompts of one linear's U and of its square, step by step."""

    def __init__(self, weight: Tensor, bias: Tensor | None, steps: int) -> None:
        self.weight, self.bias = weight.float(), None if bias is None else bias.detach().float()
        self.sums = weight.new_zeros(steps, *weight.shape, dtype=torch.float32)
        self.squares = torch.zeros_like(self.sums)
        self.begin(0)

    def begin(self, n: int) -> None:
        """A batch of n prompts sets out."""
        self.n, self.step = n, 0

    def add(self, inputs: Tensor) -> Tensor:
        """Takes X of one step: (branches * n, positions, in)."""
        if self.step < len(self.sums):
            for x in inputs.float().unflatten(0, (-1, self.n)).unbind(1):
                x = x.flatten(0, 1)
                y = torch.nn.functional.linear(x, self.weight, self.bias)
                sizes = x.norm(dim=0)
                saliency = self.weight.abs() * sizes * (y.mT @ x).abs() / (y.norm(dim=0)[:, None] * sizes + EPS)
                self.sums[self.step] += saliency
                self.squares[self.step] += saliency.square()
        self.step += 1
        return inputs.new_zeros(0)

    def mean(self, prompts: int) -> Tensor:
        """(steps, out, in)."""
        return self.sums / prompts
