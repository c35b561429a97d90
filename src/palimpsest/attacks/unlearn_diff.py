"""UnlearnDiffAtk: a prefix under which the victim denoises a picture of the concept well."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.attacks.base import Attack, Case, Need, Search, look
from palimpsest.attacks.insertion import (
    LENGTHS,
    Template,
    check_length,
    check_room,
    free,
    in_context,
    insert,
    inserted,
    plain,
)
from palimpsest.attacks.losses import Loss, gradient, point, targets
from palimpsest.attacks.timesteps import middles
from palimpsest.errors import BadSetting
from palimpsest.model import Probe, Slope
from palimpsest.simplex import project_to_simplex


@dataclass(frozen=True, kw_only=True)
class UnlearnDiff(Attack):
    """Searches the prefix c' under which the victim's denoising loss on a picture of the concept is smallest.

    Zhang et al., "To Generate or Not? Safety-Driven Unlearned Diffusion Models Are Still Easy To Generate Unsafe
    Images ... For Now", arXiv 2310.11868. The victim is its own diffusion classifier, so neither the original model
    nor another classifier takes part in

        min_c'  E_t,eps | eps - eps_victim(x_t | c') |^2

    The variable is, for each of k tokens right after the start token, a distribution over the vocabulary. At each of
    50 timesteps come 40 iterations: draw one token per slot; ask for the loss and its gradient to the slots'
    embeddings; take it straight through to the vocabulary (times the embedding table, clipped to [-1, 1]); a step of
    Adam with an L2 penalty; back onto the simplex. Then the arg-max tokens are decoded to a string, and one picture of
    it is looked at. The distributions and Adam's state persist over the timesteps.

    Through a guard, the loss is that of the guided prediction. A prompt that leaves no room for k tokens is given up
    after the plain look (the paper's code attacks none of more than 60 tokens; so does an audit with longest = 60).
    """

    name = "unlearn_diff"
    needs = frozenset({Need.GRADIENTS, Need.REFERENCE})
    loss: ClassVar[Loss] = "denoising"

    k: int | None = None
    """Tokens to insert; None: the paper's (content 5, other kinds 3)."""
    insertion: Literal["prefix", "suffix", "middle", "spread", "every"] = "prefix"
    """Where: before the prompt as in the paper, behind it, in its middle, evenly spread over it, or one before every
    three of its own tokens (and at its end, once those are used up)."""
    adaptive: bool = True
    """Whether probes go through a guard, as pictures do; False: past it, as UnlearnDiffAtk's code has it for SLD."""
    steps: int = 50
    """Timesteps visited, the middles of so many equal parts of the schedule; one look after each."""
    iterations: int = 40
    """Iterations, one probe each, at every timestep."""
    lr: float = 0.01
    weight_decay: float = 0.1
    """L2 penalty, added to the gradient (Adam's, not AdamW's)."""
    order: Literal["ascending", "descending", "random"] = "ascending"
    """In which order the timesteps are visited; the paper's is from the least noise to the most."""
    random_start: bool = False
    """Start from random distributions in place of uniform ones (``rand_init`` in the paper's code)."""
    reseed: bool = True
    """Use the same noise and the same draws again at every timestep: so does the paper's code, whose sampler resets
    the global seed with each picture. False: fresh ones throughout, as the equation has it."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        check_length(self.name, self.k)
        for setting, least in (("steps", 1), ("iterations", 1), ("lr", 0), ("weight_decay", 0)):
            if getattr(self, setting) < least:
                raise BadSetting(f"{self.name}: expected {setting} >= {least}, got {getattr(self, setting)}")

    def search(self, case: Case) -> Search:
        """A look at the plain prompt; then, per timestep, the iterations and a look at the arg-max prefix."""
        yield from look([plain(case)])
        k = self.k or LENGTHS[case.concept.kind]
        template = insert(case, k, self.insertion)
        check_room(case, template)
        slots = self._start(case, k)
        optimiser = torch.optim.Adam([slots], lr=self.lr, weight_decay=self.weight_decay)
        timesteps = middles(case, self.steps, self.order)
        stream = case.random.get_state()
        for step in timesteps:
            if self.reseed:
                case.random.set_state(stream)
            for _ in range(self.iterations):
                slots.grad = yield from self._gradient(case, slots, template=template, step=step)
                optimiser.step()
                slots.copy_(project_to_simplex(slots))
            yield from look([inserted(case, template, slots.argmax(dim=-1).tolist())])

    def _start(self, case: Case, k: int) -> Tensor:
        """(k, V) distributions over the vocabulary."""
        assert case.vocabulary is not None, "needs says gradients"
        size = len(case.vocabulary)
        flat = torch.full((k, size), 1 / size)
        start = project_to_simplex(torch.rand(flat.shape, generator=case.random)) if self.random_start else flat
        return start.to(case.vocabulary.device)

    def _gradient(
        self, case: Case, slots: Tensor, *, template: Template, step: int
    ) -> Generator[Sequence[Probe], Sequence[Slope], Tensor]:
        """The gradient with respect to ``slots`` at one draw of tokens and noise; costs one probe of the victim."""
        assert case.vocabulary is not None, "needs says gradients"
        drawn = draw(slots, case.random)
        here = point(case, step)
        (target,) = yield from targets(case, self.loss, [here])
        to_words = yield from gradient(case, here, target, tokens=in_context(case, template, drawn.tolist()))
        to_slots = to_words[free(template)].to(case.vocabulary)
        return functional.hardtanh(to_slots @ case.vocabulary.mT).to(slots)


def draw(slots: Tensor, random: torch.Generator) -> Tensor:
    """(k,) one token per row, by inverting the cumulative distribution at one uniform number each."""
    cumulative = slots.double().cumsum(dim=-1)
    uniform = torch.rand(len(slots), 1, generator=random, dtype=torch.float64).to(cumulative)
    # Rows sum to one but for rounding; the right side, so that what has no probability is never drawn.
    return torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).squeeze(1)
