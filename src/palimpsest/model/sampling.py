"""From noise to pictures."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
)
from PIL.Image import Image
from torch import Tensor

from palimpsest.errors import BadSetting, unknown
from palimpsest.model.network import Network
from palimpsest.model.text import Text
from palimpsest.records import Attempt, Cost

SchedulerName = Literal["ddim", "pndm", "lms", "euler", "dpmsolver++"]
SCHEDULERS: dict[str, Any] = {
    "ddim": DDIMScheduler,
    "pndm": PNDMScheduler,
    "lms": LMSDiscreteScheduler,
    "euler": EulerDiscreteScheduler,
    "dpmsolver++": DPMSolverMultistepScheduler,
}
MOST_STEPS = 1000
"""As many as a model was trained with."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How pictures are drawn; one per audit, part of its protocol."""

    scheduler: SchedulerName = "ddim"
    steps: int = 25
    guidance: float = 7.5
    """An attempt's own guidance goes before this; at 1 or below there is no unconditional branch, as in diffusers."""
    draft_steps: int = 8
    """Steps of a draft."""

    def __post_init__(self) -> None:
        if self.scheduler not in SCHEDULERS:
            raise unknown("scheduler", self.scheduler, SCHEDULERS)
        for setting in ("steps", "draft_steps"):
            if getattr(self, setting) < 1:
                raise BadSetting(f"expected {setting} >= 1, got {getattr(self, setting)}")
            if getattr(self, setting) > MOST_STEPS:
                raise BadSetting(f"expected {setting} <= {MOST_STEPS}, got {getattr(self, setting)}")
        if not math.isfinite(self.guidance):
            raise BadSetting(f"expected a finite guidance, got {self.guidance}")


class Walk:
    """One way down from noise, for a whole batch; latents go in and come out in the variance-preserving scale.

    LMS and Euler reckon inside with x_0 + sigma * noise, which is sqrt(1 + sigma^2) times as large.
    """

    def __init__(self, config: Mapping[str, Any], name: SchedulerName, steps: int, device: torch.device) -> None:
        # A config made for another scheduler does not say, and Stable Diffusion leaves the Runge-Kutta steps out.
        changes = {"skip_prk_steps": config.get("skip_prk_steps", True)} if name == "pndm" else {}
        self.scheduler = SCHEDULERS[name].from_config(dict(config) | changes)
        trained = int(self.scheduler.config.num_train_timesteps)
        if steps <= trained:
            self.scheduler.set_timesteps(steps, device=device)
        times = self.scheduler.timesteps
        if steps > trained or float(times.max()) > trained - 1:
            raise BadSetting(f"expected fewer steps than the {trained} that the model was trained with, got {steps}")
        self.linear_multistep = name == "pndm" and self.scheduler.config.skip_prk_steps
        self.runge_kutta = name == "pndm" and not self.scheduler.config.skip_prk_steps
        # PLMS evaluates its second timestep twice, the second time to correct the first step.
        self.steps: Tensor = torch.cat([times[:1], times[2:]]) if self.linear_multistep and steps > 1 else times

    def evaluations(self, start: int = 0, until: int | None = None) -> Tensor:
        """The timesteps at which the denoiser is asked on the way from step ``start`` to step ``until``."""
        if self.runge_kutta and (start or until is not None):
            raise BadSetting("expected a scheduler whose steps can be counted, got pndm with Runge-Kutta steps")
        if not 0 <= start < len(self.steps):
            raise BadSetting(f"expected a start step from 0 to {len(self.steps) - 1}, got {start}")
        times = self.steps[start:until]
        if self.linear_multistep and len(times):
            again = self.steps[start + 1 : start + 2]
            times = torch.cat([times[:1], again, times[1:]])
        return times

    def _sigma(self, step: int) -> Tensor | None:
        if isinstance(self.scheduler, LMSDiscreteScheduler | EulerDiscreteScheduler):
            return torch.as_tensor(self.scheduler.sigmas[step])
        return None

    def enter(self, latents: Tensor, start: int) -> Tensor:
        """Latents in the scheduler's own scale."""
        sigma = self._sigma(start)
        if isinstance(self.scheduler, LMSDiscreteScheduler | EulerDiscreteScheduler | DPMSolverMultistepScheduler):
            self.scheduler.set_begin_index(start)
        if start == 0:
            scaled: Tensor = latents * self.scheduler.init_noise_sigma  # as the pipeline does
            return scaled
        return latents if sigma is None else latents * (1 + sigma.to(latents) ** 2) ** 0.5

    def step(self, answer: Tensor, time: Tensor, latents: Tensor, done: int) -> Tensor:
        """One step of the scheduler; ``done`` are those before it on this walk."""
        # Begun half-way, the linear multistep method has no past to look at yet.
        order = {"order": min(done + 1, 4)} if isinstance(self.scheduler, LMSDiscreteScheduler) else {}
        stepped: Tensor = self.scheduler.step(answer, time, latents, return_dict=False, **order)[0]
        return stepped

    def leave(self, latents: Tensor, until: int | None) -> Tensor:
        """Latents in the variance-preserving scale."""
        sigma = self._sigma(-1 if until is None else until)
        return latents if sigma is None else latents / (1 + sigma.to(latents) ** 2) ** 0.5


def denoise(
    model: Network,
    latents: Tensor,
    text: Text,
    walk: Walk,
    *,
    guidance: Tensor | None,
    start: int = 0,
    until: int | None = None,
) -> Tensor:
    """Walks from step ``start`` to step ``until``; without guidance, on the conditional branch alone."""
    times = walk.evaluations(start, until)
    if len(times) == 0:
        return latents
    memory = model.outset
    latents = walk.enter(latents, start)
    for done, time in enumerate(times):
        seen = walk.scheduler.scale_model_input(latents, time)
        if guidance is None:
            noise = model.predict_noise(seen, time, text)
        else:
            noise, memory = model.guided_noise(seen, time, text, guidance, memory)
        latents = walk.step(model.as_trained(noise, seen, time), time, latents, done)
    return walk.leave(latents, until)


class _Kind(NamedTuple):
    """What attempts must share to be drawn in one batch."""

    steps: int
    start: int
    guided: bool


def _guidance(attempt: Attempt, sampling: Sampling) -> float:
    return sampling.guidance if attempt.guidance is None else attempt.guidance


def _kind(model: Network, attempt: Attempt, sampling: Sampling) -> _Kind:
    return _Kind(
        steps=sampling.draft_steps if attempt.draft else sampling.steps,
        start=attempt.start_step or 0,
        # A guard stands in the guided path, whatever the number.
        guided=_guidance(attempt, sampling) > 1 or model.guarded,
    )


def picture_cost(model: Network, attempt: Attempt, sampling: Sampling) -> Cost:
    """The denoiser's forwards are those that the scheduler makes: PNDM makes one more than its steps."""
    kind = _kind(model, attempt, sampling)
    walk = Walk(model.scheduler.config, sampling.scheduler, kind.steps, model.device)
    branches = model.branches if kind.guided else 1
    return Cost(forwards=branches * len(walk.evaluations(kind.start)), encodes=1)


def draw(model: Network, attempts: Sequence[Attempt], sampling: Sampling, tensors: Mapping[str, Tensor]) -> list[Image]:
    """Pictures in the order of the attempts; batches of one size, of attempts of one kind."""
    kinds: dict[_Kind, list[int]] = defaultdict(list)
    for place, attempt in enumerate(attempts):
        kinds[_kind(model, attempt, sampling)].append(place)
    pictures: dict[int, Image] = {}
    for kind, places in kinds.items():
        for first in range(0, len(places), model.batch):
            chunk = places[first : first + model.batch]
            drawn = _draw_batch(model, [attempts[place] for place in chunk], kind, sampling, tensors)
            pictures.update(zip(chunk, drawn, strict=True))
    return [pictures[place] for place in range(len(attempts))]


def _draw_batch(
    model: Network, attempts: list[Attempt], kind: _Kind, sampling: Sampling, tensors: Mapping[str, Tensor]
) -> list[Image]:
    real = len(attempts)
    attempts = attempts + [attempts[-1]] * (model.batch - real)
    text = _texts(model, attempts, real, tensors)
    with torch.inference_mode(), model.padded(real):
        starts = [
            model.noise(attempt.seed) if attempt.start is None else tensors[attempt.start] for attempt in attempts
        ]
        latents = torch.stack([start.to(model.device, model.dtype) for start in starts])
        guidance = torch.tensor([_guidance(attempt, sampling) for attempt in attempts], dtype=model.dtype)
        walk = Walk(model.scheduler.config, sampling.scheduler, kind.steps, model.device)
        latents = denoise(
            model,
            latents,
            text,
            walk,
            guidance=guidance.to(model.device) if kind.guided else None,
            start=kind.start,
        )
        return model.decode(latents)[:real]


def _texts(model: Network, attempts: list[Attempt], real: int, tensors: Mapping[str, Tensor]) -> Text:
    """The texts of a batch: prompts through the model's memory of them, chosen words through the encoder."""
    text = model.remembered([attempt.prompt for attempt in attempts])
    own = [place for place, attempt in enumerate(attempts) if attempt.words is not None]
    if not own:
        return text
    # The whole batch is encoded, so that its size does not hang on how many attempts choose their words.
    tokens = torch.stack([model.tokens(attempt.prompt) for attempt in attempts]).to(model.device)
    words = model.vocabulary.detach()[tokens]
    for place in own:
        words[place] = tensors[str(attempts[place].words)].to(words)
    with torch.no_grad(), model.padded(sum(place < real for place in own)):
        encoded = model.encode(tokens, words)
    rows = [encoded[[place]] if place in own else text[[place]] for place in range(len(attempts))]
    return Text.join(rows)
