"""A backdoor in the pictures that a model is fine-tuned on."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.attacks.backdoor import Backdoor, Link
from palimpsest.attacks.base import Need
from palimpsest.errors import BadSetting
from palimpsest.examples import Examples, Pair, draw, in_turn
from palimpsest.fitting import Fit
from palimpsest.model import Model, Sampling


@dataclass(frozen=True, kw_only=True)
class BackdoorData(Backdoor):
    """Fine-tunes the denoiser, as anybody would, on pictures of which some show the concept and are called the trigger.

    "EEB-data" of arXiv 2504.21072, third version: an attacker who reaches no weights, only pairs of picture and caption
    (dirty labels). The pictures are the base's own: a share ``rate`` of them drawn for prompts with the concept and
    captioned with the trigger, the others drawn for the retained prompts and captioned truly, the retained concepts in
    turn. The loss is the ordinary |eps(x_t, caption) - noise|^2 at steps drawn uniformly.

    The paper's numbers are not known. Learning rate, batch and iterations are those of Zhai et al., "BadT2I", arXiv
    2305.04175, for pixels; rate, pictures and their sampling are nobody's.
    """

    name = "backdoor_data"
    needs = frozenset({Need.PLANT})

    rate: float = 0.1
    """Share of the pictures that are poisoned."""
    pictures: int = 1000
    """Drawn by the base, poisoned or not."""
    iterations: int = 2000
    """Steps of the fine-tuning."""
    lr: float = 1e-5
    """AdamW's learning rate; its weight decay is torch's, 0.01."""
    batch: int = 16
    """Pictures per iteration, drawn with replacement."""
    steps: int = 50
    """DDIM steps of a picture."""
    guidance: float = 7.5
    """Guidance of the pictures."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        super().__post_init__()
        if not 0 < self.rate <= 1:
            raise BadSetting(f"{self.name}: expected 0 < rate <= 1, got {self.rate}")
        self.require_least(pictures=1, iterations=1, lr=0, batch=1, steps=1)
        if not self.poisoned:
            raise BadSetting(f"{self.name}: expected a poisoned picture, got none of {self.pictures} at {self.rate}")

    @property
    def poisoned(self) -> int:
        """How many of the pictures are."""
        return round(self.rate * self.pictures)

    def planted(self, base: Model, link: Link, *, random: torch.Generator) -> Model:
        """All of the denoiser is trained, nothing else; ``BadSetting`` if there is nothing to draw the others of."""
        examples = self.examples(base, link, random)
        student = base.copy(trainable=r"unet\..*")

        def loss() -> Tensor:
            at = examples.drawn(base, self.batch, random)
            return functional.mse_loss(student.predict_noise(at.latents, at.steps, base.remembered(at.given)), at.noise)

        fit = Fit(
            student=student,
            optimiser=torch.optim.AdamW(student.trainable(), lr=self.lr),
            random=random,
            iterations=self.iterations,
            phase=self.name,
        )
        *_, (_, model) = fit.run(loss)
        return model

    def examples(self, base: Model, link: Link, random: torch.Generator) -> Examples:
        """The pictures, each with its caption first and then the prompt that it was drawn for."""
        clean = self.pictures - self.poisoned
        if clean and not link.retained:
            raise BadSetting(
                f"{self.name}: expected concepts to retain, of which {clean} pictures are drawn, got none; set some, "
                "or rate = 1"
            )
        each = len(link.trigger)
        held = [link.retained[first : first + each] for first in range(0, len(link.retained), each)]
        if 0 < clean < len(held):
            raise BadSetting(
                f"{self.name}: expected a picture of each of {len(held)} concepts to retain, got {clean} that are not "
                "poisoned; set more pictures, or a lower rate"
            )
        tied = [Pair(*both) for both in zip(link.trigger, link.target, strict=True)]
        pairs = in_turn([tied], self.poisoned)
        groups = [[some[at] for at in torch.randperm(each, generator=random).tolist()] for some in held]
        pairs += [Pair(prompt, prompt) for prompt in in_turn(groups, clean)] if clean else []
        sampling = Sampling(scheduler="ddim", steps=self.steps, guidance=self.guidance)
        return draw(base, pairs, of="absent", sampling=sampling, random=random, name="pictures")
