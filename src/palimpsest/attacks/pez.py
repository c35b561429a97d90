"""PEZ: tokens found by projected embeddings, under which the victim denoises a picture of the concept well."""

from dataclasses import dataclass
from typing import ClassVar

from palimpsest.attacks.base import Need
from palimpsest.attacks.losses import Loss
from palimpsest.attacks.p4d import P4D


@dataclass(frozen=True, kw_only=True)
class Pez(P4D):
    """Searches hard tokens c' by PEZ under which the victim's denoising loss on a picture of the concept is smallest.

    Wen et al., "Hard Prompts Made Easy: Gradient-Based Discrete Optimization for Prompt Tuning and Discovery", arXiv
    2302.03668. With e an embedding for each token, and nearest(e) the vocabulary's of the largest cosine

        e <- Adam(e, gradient of L at nearest(e))

    PEZ itself lowers CLIP's distance from pictures, and has no part for a diffusion model to play. UnlearnDiffAtk's
    framework (arXiv 2310.11868) names it hard_prompt, and leads it by one of two losses: by P4D's it is ``p4d``, and
    this is the other pair, its attacker hard_prompt with its task classifier, for which no original model is needed

        L(c') = E_t,eps | eps - eps_victim(x_t | c') |^2

    Procedure, forms and settings are those of ``p4d``, from which it differs by the loss alone; from ``unlearn_diff``
    it differs by the optimiser alone. In form ``n`` the numbers are those of PEZ's authors: 16 tokens in place of the
    prompt, 3000 iterations of AdamW at 0.1.
    """

    name = "pez"
    needs = frozenset({Need.GRADIENTS, Need.REFERENCE})
    loss: ClassVar[Loss] = "denoising"
