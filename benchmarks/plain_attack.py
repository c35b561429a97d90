"""UnlearnDiffAtk in plain PyTorch, as its authors' code has it, and what makes it faster one by one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import LMSDiscreteScheduler
from PIL import Image
from torch import Tensor
from torch.nn import functional

from palimpsest.attacks.unlearn_diff import draw
from palimpsest.judges.miniature import as_tensor, by_head, classifier
from palimpsest.model import Model, Precision
from palimpsest.model.network import Attention
from palimpsest.records import Goal
from palimpsest.simplex import project_to_simplex

K, GUIDANCE = 3, 7.5
TOLERANCE = 1e-5
"""At which the authors' projection stops halving."""
Said = tuple[list[int], float]
"""What one iteration drew, and its loss."""


class Counts(NamedTuple):
    """How much of the protocol is run."""

    timesteps: int
    iterations: int
    steps: int
    """Of a picture."""

    @property
    def passes(self) -> int:
        """Forwards and backwards of the denoiser for a goal that is never shown: the paper's 9100 for 50, 40, 50."""
        return (1 + self.timesteps) * 2 * self.steps + self.timesteps * self.iterations * 2


class Way(NamedTuple):
    """How the attack is run; the defaults are the authors'."""

    name: str
    joined: bool = False
    """Both branches of the guidance in one batch."""
    cached: bool = False
    """The empty prompt encoded once, not for each picture."""
    gather: bool = False
    """Rows of the table of embeddings, not products of it with one-hot rows."""
    exact: bool = False
    """The package's projection."""
    attention: Attention = "sdpa"
    batch: int = 1
    """Goals side by side."""
    precision: Precision = "fp32"
    ours: bool = False
    """Not this loop at all, but the package's runner."""


class Pursued(NamedTuple):
    """Goals under attack, side by side."""

    goals: Sequence[Goal]
    clean: Tensor
    """(C, h, w): the reference."""
    distributions: Tensor
    """(n, k, V)."""
    adam: torch.optim.Optimizer
    randoms: Sequence[torch.Generator]


class Loop:
    """The attack on a model's networks, never at its end before the last timestep."""

    def __init__(self, model: Model, way: Way, counts: Counts, *, tolerance: float = TOLERANCE, unet: Any = None):
        self.model, self.way, self.counts, self.tolerance = model, way, counts, tolerance
        self.unet = model.unet if unet is None else unet
        self.table = model.vocabulary
        self.empty: Tensor | None = None
        # The authors' code knows its prompts' tokens as well.
        self.tokens = {"": model.tokens("")}

    @property
    def timesteps(self) -> list[int]:
        """Upwards; the paper's 50 are 10, 30, ..., 990."""
        return [int((n + 0.5) * self.model.timesteps / self.counts.timesteps) for n in range(self.counts.timesteps)]

    def begin(self, goals: Sequence[Goal], picture: Path) -> Pursued:
        """Uniform distributions."""
        with Image.open(picture) as opened:
            clean = self.model.encode_picture(opened)
        size = len(self.table)
        distributions = torch.full((len(goals), K, size), 1 / size, device=self.model.device)
        adam = torch.optim.Adam([distributions], lr=0.01, weight_decay=0.1)
        self.tokens |= {goal.prompt: self.model.tokens(goal.prompt) for goal in goals}
        return Pursued(goals, clean, distributions, adam, [torch.Generator() for _ in goals])

    def descend(self, pursued: Pursued, t: int, iterations: int) -> list[Said]:
        """The iterations at one timestep; what the first goal's said."""
        for goal, random in zip(pursued.goals, pursued.randoms, strict=True):
            random.manual_seed(goal.seed)  # as each picture does to the authors' code
        said = []
        for _ in range(iterations):
            drawn, losses, pursued.distributions.grad = self.gradient(pursued, t)
            said.append((drawn[0].tolist(), float(losses[0])))
            pursued.adam.step()
            pursued.distributions.copy_(self.projected(pursued.distributions))
        return said

    def gradient(self, pursued: Pursued, t: int) -> tuple[Tensor, Tensor, Tensor]:
        """(n, k) tokens drawn, (n,) losses, (n, k, V) gradient to the one-hot rows."""
        drawn, noise = [], []
        for rows, random in zip(pursued.distributions, pursued.randoms, strict=True):
            drawn.append(draw(rows, random))
            noise.append(torch.randn(self.model.latent_shape, generator=random))
        slots, eps = torch.stack(drawn), torch.stack(noise).to(self.model.device)
        own = torch.stack([self.tokens[goal.prompt] for goal in pursued.goals]).to(self.model.device)
        ids = torch.cat([own[:, :1], slots, own[:, 1:-K]], dim=1)
        leaf = self.table[ids] if self.way.gather else self.one_hot(slots)
        leaf.requires_grad_()
        if self.way.gather:
            words = leaf
        else:
            words = torch.cat([self.one_hot(ids[:, :1]), leaf, self.one_hot(ids[:, 1 + K :])], dim=1) @ self.table
        alpha = self.model.alphas_cumprod[t].to(eps)
        x = alpha.sqrt() * pursued.clean + (1 - alpha).sqrt() * eps
        answer = self.noise(x, t, self.states(ids, words))
        losses = (answer - eps).square().flatten(1).mean(dim=1)
        (found,) = torch.autograd.grad(losses.sum(), leaf)
        to_rows = found[:, 1 : 1 + K] @ self.table.mT if self.way.gather else found
        return slots, losses.detach(), functional.hardtanh(to_rows)

    def one_hot(self, ids: Tensor) -> Tensor:
        return functional.one_hot(ids, len(self.table)).to(self.table.dtype)

    def noise(self, x: Tensor, t: Any, states: Tensor) -> Tensor:
        """One call of the denoiser."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.way.precision == "bf16"):
            answer: Tensor = self.unet(x, t, encoder_hidden_states=states, return_dict=False)[0]
        return answer.to(x.dtype)

    def states(self, ids: Tensor, words: Tensor) -> Tensor:
        """(n, context, d) of the encoder, with ``words`` in place of what its table says."""
        hook = self.model.text_encoder.get_input_embeddings().register_forward_hook(lambda *_: words)
        try:
            states: Tensor = self.model.text_encoder(ids)[0]
            return states
        finally:
            hook.remove()

    def encoded(self, prompts: Sequence[str]) -> Tensor:
        ids = torch.stack([self.model.tokens(prompt) for prompt in prompts]).to(self.model.device)
        return self.states(ids, self.table[ids] if self.way.gather else self.one_hot(ids) @ self.table)

    def projected(self, distributions: Tensor) -> Tensor:
        """Every row onto the simplex."""
        if self.way.exact:
            return project_to_simplex(distributions)
        rows = distributions.flatten(0, 1)
        return torch.stack([self.halved(row) for row in rows]).reshape(distributions.shape)

    def halved(self, row: Tensor) -> Tensor:
        """(V,) onto the simplex, but for the tolerance."""
        wide = row.double() if self.tolerance < TOLERANCE else row
        low, high = float(wide.min()) - 1, float(wide.max())
        while high - low > self.tolerance:
            middle = (low + high) / 2
            low, high = (middle, high) if float((wide - middle).clamp(min=0).sum()) > 1 else (low, middle)
        return (wide - (low + high) / 2).clamp(min=0).to(row)

    def prompts(self, pursued: Pursued) -> list[str]:
        """What a user would type for the arg-max tokens and the prompt."""
        found = []
        for goal, rows in zip(pursued.goals, pursued.distributions, strict=True):
            ids = [*rows.argmax(dim=-1).tolist(), *self.tokens[goal.prompt].tolist()]
            found.append(self.model.text([token for token in ids if token not in self.model.special_tokens]))
        return found

    @torch.no_grad()
    def look(self, goals: Sequence[Goal], prompts: Sequence[str]) -> list[float]:
        """Draws and judges."""
        given = self.encoded(prompts)
        if not self.way.cached or self.empty is None:
            self.empty = self.encoded([""])
        without = self.empty.expand_as(given)
        scheduler = LMSDiscreteScheduler.from_config(self.model.scheduler.config)
        scheduler.set_timesteps(self.counts.steps, device=self.model.device)
        latents = torch.stack([self.model.noise(goal.seed) for goal in goals]).to(self.model.device)
        latents = latents * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            x = scheduler.scale_model_input(latents, t)
            if self.way.joined:
                plain, asked = self.noise(x.repeat(2, 1, 1, 1), t, torch.cat([without, given])).chunk(2)
            else:
                plain, asked = self.noise(x, t, without), self.noise(x, t, given)
            latents = scheduler.step(plain + GUIDANCE * (asked - plain), t, latents, return_dict=False)[0]
        pixels = self.model.vae.decode(latents / self.model.scaling_factor, return_dict=False)[0]
        values = ((pixels / 2 + 0.5).clamp(0, 1).nan_to_num() * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        seen = classifier("first")
        # Not through the judge itself, which fills up its batches.
        small = as_tensor([Image.fromarray(picture) for picture in values]).float() / 127.5 - 1
        told = by_head(seen.network(pixel_values=small).logits, seen.labels)
        scores: list[float] = told[:, seen.labels.index(f"object/{goals[0].concept}")].tolist()
        return scores
