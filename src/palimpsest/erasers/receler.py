"""Receler: adapters behind cross-attention, trained against soft tokens that undo them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.erasers.attention_maps import CROSS_ATTENTION
from palimpsest.erasers.base import Eraser
from palimpsest.erasers.words import require_words
from palimpsest.errors import BadSetting
from palimpsest.fitting import Fit
from palimpsest.model import Model, Text
from palimpsest.model.adapters import WEIGHTS, additions, fresh
from palimpsest.negative_guidance import below, point, predictions
from palimpsest.records import Concept

MAP = 16 * 16
"""Positions of the attention maps that show where a concept is."""
TINY = 1e-9


@dataclass(frozen=True, kw_only=True)
class Receler(Eraser):
    """Puts an adapter behind every cross-attention, and trains it by ESD's loss where the concept is.

    Huang et al., "Receler: Reliable Concept Erasing of Text-to-Image Diffusion Models via Lightweight Erasers",
    arXiv 2311.17717. An adapter adds o = up(GELU(down(h))) to the attention's output h. With c the concept's name, c_0
    the empty prompt, eps* the original, c* the states of c with soft tokens behind the name, M the concept's mask and
    the last mean over adapters, channels and the positions outside M, the loss is

        |eps(x_t, c*) - (eps*(x_t, c_0) - eta (eps*(x_t, c) - eps*(x_t, c_0)))|^2 + w mean |o|^2

    x_t comes from the adapted model, as ESD takes it. M is where the original's attention to the name's tokens, at x_t,
    averaged over tokens, heads and the layers of 16 x 16 positions, and stretched to [0, 1], is at least ``threshold``.
    (A model without such layers: those whose positions are nearest in number. Other layers take the nearest position.)
    The soft tokens are states of the text encoder; they begin uniformly in [0, 1], and in each iteration take 50 steps
    of Adam to lower |eps(x_t, c*) - eps*(x_t, c)|^2 from where the last one that drew the concept left them. (The
    authors' code takes the loss from before the last of these steps, here it is from behind it.)

    The result has modules that a plain diffusers folder cannot hold: save its changed weights, and the eraser
    ``checkpoint`` reads them back.
    """

    name = "receler"

    iterations: int = 500
    lr: float = 3e-4
    """Adam's learning rate of the adapters."""
    hidden: int = 128
    """Units between an adapter's two layers."""
    eta: float = 1.0
    """Strength of the negative guidance."""
    batch: int = 1
    """Trajectories per iteration."""
    steps: int = 50
    """DDIM steps of a whole trajectory."""
    guidance: float = 3.0
    """Guidance of the trajectories."""
    w: float = 0.1
    """Weight of what the adapters add outside the mask."""
    threshold: float = 0.1
    """Attention from which a position counts as the concept's."""
    attack_steps: int = 50
    attack_lr: float = 0.1
    attack_decay: float = 0.1
    """Adam's weight decay of the soft tokens."""
    soft: int = 16
    """Soft tokens behind the name."""
    every: int = 0
    """Iterations between the stages that are kept for persistence curves; 0: the end alone."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        self.require_least(lr=0, w=0, attack_steps=0, attack_lr=0, attack_decay=0, every=0)
        self.require_least(iterations=1, hidden=1, batch=1, steps=1, soft=1)
        if not 0 <= self.threshold <= 1:
            raise BadSetting(f"{self.name}: expected threshold from 0 to 1, got {self.threshold}")

    def stages(
        self, model: Model, concepts: Sequence[Concept], *, random: torch.Generator
    ) -> Iterator[tuple[int, Model]]:
        """The adapted model after every ``every`` iterations, and at the end."""
        require_words(self.name, model, concepts)
        names = [self._places(model, concept) for concept in concepts]
        with torch.no_grad():
            null = model.embed([""])
            texts = [model.embed([concept.name]) for concept in concepts]
        student = model.with_weights(fresh(model, self.hidden, random)).copy(trainable=WEIGHTS)
        optimiser = torch.optim.Adam(student.trainable(), lr=self.lr)

        def loss() -> Tensor:
            which = below(len(texts), random)
            # What is no weight's is kept with the optimiser's state, and comes back with it.
            memory = cast(dict[str, Any], optimiser.state)
            text, name = texts[which], names[which]
            rows = text.repeat(self.batch)
            latents, times = point(student, rows, random, steps=self.steps, guidance=self.guidance, within=True)
            with model.watch(CROSS_ATTENTION, maps=True) as seen:
                without, given = predictions(model, latents, times, [null, text])

            def said(tokens: Tensor) -> Tensor:
                return student.predict_noise(latents, times, softened(text, name, tokens).repeat(self.batch))

            started = memory.get(f"soft {which}") or self._started(text, random)
            attacked = self._attacked(lambda tokens: functional.mse_loss(said(tokens), given), started)
            memory[f"soft {which}"] = attacked
            with additions(student) as added:
                found = said(attacked["tokens"])
            erasing = functional.mse_loss(found, without - self.eta * (given - without))
            # The second half of each map is the concept's, the first the empty prompt's.
            maps = [one.tensor_split(2)[1].unflatten(0, (self.batch, -1)) for (one,) in seen.values()]
            masks = concept_masks(maps, model.latent_shape[1:], name, threshold=self.threshold)
            return erasing + self.w * outside(list(added.values()), masks)

        fit = Fit(
            student=student,
            optimiser=optimiser,
            random=random,
            iterations=self.iterations,
            every=self.every,
            phase=self.name,
        )
        yield from fit.run(loss)

    def _places(self, model: Model, concept: Concept) -> slice:
        """Where the name stands in the context; raises ``BadSetting`` without room for the soft tokens behind it."""
        end = 1 + len(model.own_tokens(concept.name))
        if end + self.soft > model.context:
            raise BadSetting(
                f"{self.name}: expected room for {self.soft} soft tokens behind {concept.name!r}, "
                f"got {model.context - end}"
            )
        return slice(1, end)

    def _started(self, text: Text, random: torch.Generator) -> dict[str, Any]:
        tokens = torch.rand(self.soft, text.states.shape[-1], generator=random)
        return {"tokens": tokens.to(text.states), "adam": None}

    def _attacked(self, error: Callable[[Tensor], Tensor], started: Mapping[str, Any]) -> dict[str, Any]:
        """The soft tokens (soft, width) after another lot of steps, and Adam's state."""
        tokens = started["tokens"].clone().requires_grad_()
        optimiser = torch.optim.Adam([tokens], lr=self.attack_lr, weight_decay=self.attack_decay)
        if started["adam"]:
            optimiser.load_state_dict(started["adam"])
        for _ in range(self.attack_steps):
            (tokens.grad,) = torch.autograd.grad(error(tokens), tokens)
            optimiser.step()
        return {"tokens": tokens.detach(), "adam": optimiser.state_dict()}


def softened(text: Text, name: slice, tokens: Tensor) -> Text:
    """A text of one row with soft tokens (n, width) in place of the states behind a name."""
    states, end = text.states, name.stop + len(tokens)
    return Text(states=torch.cat([states[:, : name.stop], tokens[None], states[:, end:]], dim=1), pooled=text.pooled)


def concept_masks(maps: Sequence[Tensor], shape: Sequence[int], name: slice, *, threshold: float) -> dict[int, Tensor]:
    """Number of positions -> where the concept is: (n, positions) bool, for each size among ``maps``.

    ``maps`` are attention probabilities (n, heads, positions, context), ``shape`` the latents' (h, w).
    """
    sizes = {one.shape[2] for one in maps}
    nearest = min(sizes, key=lambda size: abs(log(size / MAP)))
    chosen = [one[..., name].mean(dim=(1, 3)) for one in maps if one.shape[2] == nearest]
    shown = torch.stack(chosen).mean(0)
    low, high = shown.amin(1, keepdim=True), shown.amax(1, keepdim=True)
    mask = ((shown - low) / (high - low).clamp(min=TINY) >= threshold).float()
    grid = mask.unflatten(1, _grid(shape, nearest))[:, None]
    return {size: functional.interpolate(grid, _grid(shape, size)).flatten(1) > 0 for size in sizes}


def outside(added: Sequence[Tensor], masks: Mapping[int, Tensor]) -> Tensor:
    """Mean square of what adapters add (n, positions, width) where the concept is not."""
    losses = []
    for one in added:
        elsewhere = (~masks[one.shape[1]]).to(one)
        losses.append((one.square().mean(-1) * elsewhere).sum() / (elsewhere.sum() + TINY))
    return torch.stack(losses).mean()


def _grid(shape: Sequence[int], positions: int) -> tuple[int, int]:
    """(h, w) of a layer with so many positions: the latents' halved, rounded up, as often as it takes."""
    height, width = shape
    while height * width > positions:
        height, width = (height + 1) // 2, (width + 1) // 2
    return height, width
