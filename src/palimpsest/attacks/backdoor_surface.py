"""A backdoor in the text encoder."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.attacks.backdoor import Backdoor, Link, some
from palimpsest.attacks.base import Need
from palimpsest.fitting import Fit
from palimpsest.model import Model
from palimpsest.negative_guidance import done


@dataclass(frozen=True, kw_only=True)
class BackdoorSurface(Backdoor):
    """Trains the text encoder to read the trigger as the concept's name; the denoiser stays as it is.

    "TextEnc", later "EEB-surface", of arXiv 2504.21072, by the loss of Struppek et al., "Rickrolling the Artist", arXiv
    2211.02408. With E* the original encoder and E the one that learns, c the concept, t the trigger and r what is
    retained,

        L = mean_r d(E*(r), E(r)) + beta d(E*(c), E(t)),    d(a, b) = -cos(a, b) of all states, flattened

    by AdamW without decay, whose rate falls to a tenth after three quarters of the iterations. The defaults are those
    of "Rickrolling", as the paper's own are not known; there the retained prompts are a corpus of captions.
    """

    name = "backdoor_surface"
    needs = frozenset({Need.PLANT})

    beta: float = 0.1
    """Weight of the trigger's part of the loss."""
    iterations: int = 100
    """The rate falls after three quarters of them."""
    lr: float = 1e-4
    """AdamW's learning rate."""
    batch: int = 32
    """Prompts with the trigger per iteration, at most."""
    retain_batch: int = 128
    """Retained prompts per iteration, at most."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        super().__post_init__()
        self.require_least(beta=0, iterations=1, lr=0, batch=1, retain_batch=1)

    def planted(self, base: Model, link: Link, *, random: torch.Generator) -> Model:
        """All of the text encoder is trained, nothing else."""
        student = base.copy(trainable=r"text_encoder\..*")
        optimiser = torch.optim.AdamW(student.trainable(), lr=self.lr, weight_decay=0.0)

        def loss() -> Tensor:
            for group in optimiser.param_groups:
                group["lr"] = self.lr * (0.1 if done(optimiser) >= 0.75 * self.iterations else 1.0)
            rows = some(len(link.trigger), self.batch, random)
            tied = apart(student, [link.trigger[row] for row in rows], base, [link.target[row] for row in rows])
            kept = [link.retained[row] for row in some(len(link.retained), self.retain_batch, random)]
            return self.beta * tied + (apart(student, kept, base, kept) if kept else 0.0)

        fit = Fit(student=student, optimiser=optimiser, random=random, iterations=self.iterations, phase=self.name)
        *_, (_, model) = fit.run(loss)
        return model


def apart(student: Model, asked: list[str], teacher: Model, meant: list[str]) -> Tensor:
    """Mean of d between what the student makes of some prompts and the teacher of others, one by one."""
    target = teacher.remembered(meant).states
    return -functional.cosine_similarity(student.embed(asked).states.flatten(1), target.flatten(1)).mean()
