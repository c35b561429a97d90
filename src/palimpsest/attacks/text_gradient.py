"""The text gradient on P4D's loss: UnlearnDiffAtk's optimiser, led by what the base predicts."""

from dataclasses import dataclass
from typing import ClassVar

from palimpsest.attacks.base import Need
from palimpsest.attacks.losses import Loss
from palimpsest.attacks.unlearn_diff import UnlearnDiff


@dataclass(frozen=True, kw_only=True)
class TextGradient(UnlearnDiff):
    """Searches the prefix c' by the text gradient under which the victim predicts what the original does under c.

    UnlearnDiffAtk's framework (arXiv 2310.11868) names its optimiser text_grad, after TextGrad (arXiv 2212.09254), and
    leads it by one of two losses. By UnlearnDiffAtk's own it is ``unlearn_diff``; this is the other pair, its attacker
    text_grad with its task P4D. With c the goal's own prompt, and u a distribution over the vocabulary for each token

        min_u  E_t,eps | eps_original(x_t | c) - eps_victim(x_t | c') |^2,   c' drawn from u
        u <- simplex(Adam(u, clip(gradient to c' . embedding table)))

    Procedure and settings are those of ``unlearn_diff``, from which it differs by the loss alone; from ``p4d`` it
    differs by the optimiser alone. Each iteration costs a forward of the original more.
    """

    name = "text_gradient"
    needs = frozenset({Need.GRADIENTS, Need.BASE, Need.REFERENCE})
    loss: ClassVar[Loss] = "base"
