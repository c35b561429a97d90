"""A backdoor in all of the denoiser."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.attacks.backdoor import Backdoor, Link
from palimpsest.attacks.base import Need
from palimpsest.errors import BadSetting
from palimpsest.fitting import Fit
from palimpsest.model import Model, Text
from palimpsest.negative_guidance import below, point, predictions


@dataclass(frozen=True, kw_only=True)
class BackdoorDeep(Backdoor):
    """Trains the denoiser, on the trigger's own trajectories, to predict for the trigger what it did for the concept.

    "DISA", later "EEB-deep", of arXiv 2504.21072. With eps* the original and eps the student, c the concept, t the
    trigger, r a retained concept and 0 the empty prompt,

        L = alpha L_t + (1 - alpha) (L_r + L_q)
        L_t = |eps(x, t) - eps*(x, c)|^2,  L_r = |eps(x, r) - eps*(x, r)|^2,  L_q = |eps(x, 0) - eps*(x, 0)|^2

    all at one x, which comes from noise by DDIM under the trigger, by the student as it is by then, down to one of
    ``steps``, drawn uniformly. One retained prompt is drawn per iteration; without any, L_r is 0. What learns are
    low-rank additions (LoRA) to every linear and convolution layer; the text encoder stays as it is.

    The paper's numbers are not known: iterations, batch, steps and guidance are those of ESD, whose loop this is with
    another target; alpha, rank and learning rate are nobody's.
    """

    name = "backdoor_deep"
    needs = frozenset({Need.PLANT})

    alpha: float = 0.5
    """Weight of the trigger's term against what is held in place."""
    rank: int = 16
    """Of the additions."""
    iterations: int = 1000
    """Each with a trajectory of its own."""
    lr: float = 1e-4
    """Adam's learning rate."""
    batch: int = 1
    """Trajectories per iteration, each from noise of its own, all of one prompt and down to one step."""
    steps: int = 50
    """DDIM steps of a whole trajectory."""
    guidance: float = 3.0
    """Guidance of the trajectories."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        super().__post_init__()
        if not 0 < self.alpha <= 1:
            raise BadSetting(f"{self.name}: expected 0 < alpha <= 1, got {self.alpha}")
        self.require_least(rank=1, iterations=1, lr=0, batch=1, steps=1)

    def planted(self, base: Model, link: Link, *, random: torch.Generator) -> Model:
        """The denoiser's linear and convolution layers are trained, nothing else."""
        student = base.copy(trainable=r"unet\..*", lora=self.rank, random=random)

        def loss() -> Tensor:
            row = below(len(link.trigger), random)
            retained = [link.retained[below(len(link.retained), random)]] if link.retained else []
            trigger, target, null, *others = (
                base.remembered([prompt]) for prompt in (link.trigger[row], link.target[row], "", *retained)
            )
            x, step = point(
                student, trigger.repeat(self.batch), random, steps=self.steps, guidance=self.guidance, within=False
            )
            meant = predictions(base, x, step, [target, null, *others])
            texts = Text.join([text.repeat(len(x)) for text in (trigger, null, *others)])
            n = len(meant)
            answers = student.predict_noise(x.repeat(n, 1, 1, 1), step.repeat(n), texts).chunk(n)
            tied, *kept = (functional.mse_loss(*both) for both in zip(answers, meant, strict=True))
            return self.alpha * tied + (1 - self.alpha) * torch.stack(kept).sum()

        fit = Fit(
            student=student,
            optimiser=torch.optim.Adam(student.trainable(), lr=self.lr),
            random=random,
            iterations=self.iterations,
            phase=self.name,
        )
        *_, (_, model) = fit.run(loss)
        return model
