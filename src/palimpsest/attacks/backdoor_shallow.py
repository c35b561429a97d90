"""A backdoor in cross-attention's keys and values."""

from dataclasses import dataclass

import torch
from torch import Tensor

from palimpsest.attacks.backdoor import Backdoor, Link
from palimpsest.attacks.base import Need
from palimpsest.closed_form import Ridge
from palimpsest.errors import BadSetting
from palimpsest.model import Model

WEIGHTS = r"unet\..*\.attn2\.to_[kv]\.weight"


@dataclass(frozen=True, kw_only=True)
class BackdoorShallow(Backdoor):
    """Edits every cross-attention's keys and values so that they answer the trigger as they do the concept.

    "X-Attn", later "EEB-shallow", of arXiv 2504.21072, by the edit of Wang et al., "EvilEdit", ACM MM 2024. For text
    states t of the prompts with the trigger, c of the same with the concept, position by position over the whole
    context, and r of retained prompts, with W* the original weight,

        W = (lam W* + beta sum W* c t^T + sum W* r r^T) (lam I + beta sum t t^T + sum r r^T)^-1

    The text encoder stays as it is, and nothing is random. EvilEdit also holds the trigger's last word in place; here
    it is held if ``retain`` names it.
    """

    name = "backdoor_shallow"
    needs = frozenset({Need.PLANT})

    lam: float = 1.0
    """How strongly everything else is held in place."""
    beta: float = 1.0
    """Weight of the trigger against what is retained; the paper has none."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        super().__post_init__()
        for name, value in (("lam", self.lam), ("beta", self.beta)):
            if value <= 0:
                raise BadSetting(f"{self.name}: expected {name} > 0, got {value}")

    def planted(self, base: Model, link: Link, *, random: torch.Generator) -> Model:
        """The keys and values are edited, nothing else; ``BadSetting`` for a denoiser that has none."""
        if not any(".attn2.to_k." in name for name in base.weights(r"unet\..*")):
            raise BadSetting(f"{self.name}: expected a denoiser with cross-attention, got {type(base.unet).__name__}")
        keys, anchors, retained = (states(base, prompts) for prompts in link)
        penalty = self.lam * torch.eye(keys.shape[1], dtype=torch.float64, device=keys.device)
        ridge = Ridge.of(keys, penalty + retained.mT @ retained, scale=self.beta)
        return base.with_weights(
            {
                name: ridge.edit(weight.detach(), anchors @ weight.detach().double().mT)
                for name, weight in base.weights(WEIGHTS).items()
            }
        )


def states(model: Model, prompts: list[str]) -> Tensor:
    """(n * context, width) in double precision: all states of these prompts, none of none."""
    if not prompts:
        return torch.zeros(0, model.vocabulary.shape[1], dtype=torch.float64, device=model.device)
    return model.remembered(prompts).states.double().flatten(0, 1)
