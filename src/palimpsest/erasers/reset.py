"""Takes a low-rank difference from the base out of the weights again."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from palimpsest.erasers.base import Eraser
from palimpsest.errors import BadSetting
from palimpsest.model import Model
from palimpsest.records import Concept

log = logging.getLogger("palimpsest")


@dataclass(frozen=True, kw_only=True)
class Reset(Eraser):
    """Resets to the base, in each matrix, the few directions that hold nearly all of its difference from the base.

    A remedy for what was hidden by an edit or a LoRA in a model that was trained further as well. With W a matrix of
    the denoiser or the text encoder (a convolution as out x rest), W_0 the base's, and D = W - W_0 = sum s_i u_i v_i^T,
    s_1 >= s_2 >= ...,

        W <- W - sum_{i <= k} s_i u_i v_i^T    with k the least of which sum_{i <= k} s_i^2 >= energy sum s_i^2

    where k is at most ``low`` times the number of singular values. A difference of higher rank is training of all of
    the matrix, and is left, as are vectors. No paper's. It erases nothing: put it before or behind an eraser by
    ``chain``. Behind one that edits in few directions it undoes the erasure, too. Nothing is random.
    """

    name = "reset"

    base: str = "miniature"
    """What the model was before: ``miniature``, ``twin``, a diffusers folder or a hub id in the local cache."""
    energy: float = 0.99
    """Share of the squared difference that is taken out."""
    low: float = 0.5
    """Share of the full rank up to which a difference counts as one of low rank."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        for setting in ("energy", "low"):
            if not 0 < getattr(self, setting) <= 1:
                raise BadSetting(f"{self.name}: expected 0 < {setting} <= 1, got {getattr(self, setting)}")

    @property
    def reads(self) -> tuple[str, ...]:
        """The base, if it is a folder or a file."""
        return (self.base,) if Path(self.base).exists() else ()

    def stages(
        self, model: Model, concepts: Sequence[Concept], *, random: torch.Generator
    ) -> Iterator[tuple[int, Model]]:
        """The model with its matrices reset, in one stage; ``BadSetting`` for a base of another architecture."""
        base = Model.load(self.base, device=model.device, dtype=model.dtype, batch=model.batch)
        old = base.weights(r"(unet|text_encoder)\..*")
        now = {name: weight for name, weight in model.weights().items() if name in old}
        if strange := [name for name in old if name not in now or now[name].shape != old[name].shape]:
            raise BadSetting(f"{self.name}: expected a base of the model's architecture, got another {strange[0]}")
        reset = {}
        for name, weight in now.items():
            if weight.ndim > 1 and not torch.equal(weight, old[name]):
                found = self.low_rank((weight - old[name]).detach().double().flatten(1))
                if found is not None:
                    reset[name] = (weight.detach().double() - found.view_as(weight)).to(weight.dtype)
        if not reset:
            log.warning("%s: no matrix differs from %s in few directions", self.name, self.base)
        yield 1, model.with_weights(reset)

    def low_rank(self, difference: Tensor) -> Tensor | None:
        """The part of a difference (out, in) that is taken out; None for one that is not of low rank."""
        energy = torch.linalg.svdvals(difference).square().cumsum(0)
        rank = int((energy < self.energy * energy[-1]).sum()) + 1
        if rank > self.low * len(energy):
            return None
        u, s, vh = torch.linalg.svd(difference, full_matrices=False)
        part: Tensor = (u[:, :rank] * s[:rank]) @ vh[:rank]
        return part
