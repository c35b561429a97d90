"""SLD, Safe Latent Diffusion: guidance that steers away from a concept wherever the picture leans to it."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from palimpsest.erasers.base import Eraser
from palimpsest.erasers.negative_prompt import unwanted_prompt
from palimpsest.errors import BadSetting
from palimpsest.model import Model, Text
from palimpsest.records import Concept


class Numbers(NamedTuple):
    """The five numbers of the paper."""

    warmup: int
    scale: float
    threshold: float
    momentum: float
    beta: float


STRENGTHS: dict[str, Numbers] = {
    "weak": Numbers(warmup=15, scale=20.0, threshold=0.0, momentum=0.0, beta=0.0),
    "medium": Numbers(warmup=10, scale=1000.0, threshold=0.01, momentum=0.3, beta=0.4),
    "strong": Numbers(warmup=7, scale=2000.0, threshold=0.025, momentum=0.5, beta=0.7),
    "max": Numbers(warmup=0, scale=5000.0, threshold=1.0, momentum=0.5, beta=0.7),
}


class Memory(NamedTuple):
    """What goes from one step of a picture to the next."""

    done: int
    """Evaluations so far."""
    momentum: Tensor | None
    """(n, C, h, w), v in the equation; None: zero."""


class Safe(Model):
    """Steered away from ``unwanted``; see ``Sld``."""

    branches = 3
    outset = Memory(0, None)
    unwanted: str
    numbers: Numbers

    def guided_noise(
        self,
        latents: Tensor,
        step: float | Tensor,
        text: Text,
        guidance: float | Tensor,
        memory: Memory | None = None,
    ) -> tuple[Tensor, Memory]:
        """Guidance less the safety guidance, and the momentum; without a memory, past the warm-up and without one."""
        n = len(latents)
        steps = torch.as_tensor(step, device=latents.device).expand(n)
        texts = Text.join([self.remembered([""]).repeat(n), text, self.remembered([self.unwanted]).repeat(n)])
        noise = self.predict_noise(latents.repeat(3, 1, 1, 1), steps.repeat(3), texts)
        without, given, unwanted = noise.chunk(3)
        done, momentum = (self.numbers.warmup, None) if memory is None else memory
        safety = self._strength(given - unwanted) * (unwanted - without)
        if momentum is not None:
            safety = safety + self.numbers.momentum * momentum
        moved = (1 - self.numbers.beta) * safety
        if momentum is not None:
            moved = self.numbers.beta * momentum + moved
        direction = given - without
        if done >= self.numbers.warmup:
            direction = direction - safety
        scale = torch.as_tensor(guidance, device=latents.device, dtype=latents.dtype).reshape(-1, 1, 1, 1)
        return without + scale * direction, Memory(done + 1, moved)

    def _strength(self, gap: Tensor) -> Tensor:
        """What mu is where eps_c - eps_S is ``gap``."""
        strength = (self.numbers.scale * gap.abs()).clamp(max=1)
        return torch.where(gap < self.numbers.threshold, strength, torch.zeros_like(strength))


@dataclass(frozen=True, kw_only=True)
class Sld(Eraser):
    """Takes, from the guidance, what leads to the concept; changes no weight.

    Schramowski et al., "Safe Latent Diffusion: Mitigating Inappropriate Degeneration in Diffusion Models", arXiv
    2211.05105. With predictions eps_c of the prompt, eps_0 of the empty one and eps_S of the unwanted one, in each
    entry of the latents,

        eps = eps_0 + g ((eps_c - eps_0) - nu)             from the warm-up's end on; before it without nu
        nu  = mu (eps_S - eps_0) + s_m v
        mu  = min(1, s |eps_c - eps_S|)                    where eps_c - eps_S < lambda, else 0
        v  <- b v + (1 - b) nu                             from v = 0, during the warm-up too

    It is a guard of three branches: pictures are drawn and guided questions answered through it. It draws what
    diffusers' StableDiffusionPipelineSafe draws, whose numbers the ``strength`` stands for; that pipeline leaves the
    guard out at a guidance of 1 or below, which here is never done. Predictions are epsilon, as in the paper, whatever
    the network was trained to say. The warm-up is a number of evaluations of the denoiser, whatever their timesteps: a
    picture that starts half-way begins it there, and one of few steps may never leave it. A question about one timestep
    belongs to no picture: it is answered as past the warm-up with v = 0, so that an attack works through the guard,
    with all of it but the momentum. Nothing is random. A guard keeps in no weight, so it is made anew in every run
    and cannot be saved.
    """

    name = "sld"
    guard = Safe

    strength: Literal["weak", "medium", "strong", "max"] = "medium"
    """The paper's four sets of numbers; the default is the authors' code's."""
    text: str | None = None
    """What is steered away from; None: the names of the concepts, with commas between."""
    synonyms: bool = False
    """Each of a concept's synonyms as well."""
    warmup: int | None = None
    """Evaluations before the guard sets in; None: the strength's own (15, 10, 7, 0)."""
    scale: float | None = None
    """s in the equation; None: the strength's own (20, 1000, 2000, 5000)."""
    threshold: float | None = None
    """lambda in the equation; None: the strength's own (0, 0.01, 0.025, 1)."""
    momentum: float | None = None
    """s_m in the equation; None: the strength's own (0, 0.3, 0.5, 0.5)."""
    beta: float | None = None
    """b in the equation; None: the strength's own (0, 0.4, 0.7, 0.7)."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        for setting in ("warmup", "scale", "momentum"):
            if (getattr(self, setting) or 0) < 0:
                raise BadSetting(f"{self.name}: expected {setting} >= 0, got {getattr(self, setting)}")
        if self.beta is not None and not 0 <= self.beta < 1:
            raise BadSetting(f"{self.name}: expected 0 <= beta < 1, got {self.beta}")

    @property
    def numbers(self) -> Numbers:
        """The strength's, but for those that are set."""
        own = STRENGTHS[self.strength]
        return own._replace(
            **{name: value for name, value in asdict(self).items() if name in own._fields and value is not None}
        )

    def stages(
        self, model: Model, concepts: Sequence[Concept], *, random: torch.Generator
    ) -> Iterator[tuple[int, Model]]:
        """The model behind the guard, in one stage."""
        unwanted = unwanted_prompt(self, model, concepts, self.text, synonyms=self.synonyms)
        guard = f"{self.name} {unwanted!r} {tuple(self.numbers)}"
        yield 1, model.behind(Safe, unwanted=unwanted, numbers=self.numbers, guard=guard)
