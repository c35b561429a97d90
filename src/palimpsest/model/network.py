"""The networks of a Stable Diffusion pipeline, and the elementary questions to them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from PIL import Image
from torch import Tensor

from palimpsest.model.loading import Parts
from palimpsest.model.precision import Precision, computing, default_device
from palimpsest.model.text import Text
from palimpsest.records import Cost

Attention = Literal["plain", "sdpa"]

NETWORKS = ("unet", "text_encoder", "vae")
REMEMBERED = 1024
"""Prompts whose tokens are kept, and prompts whose encoding is."""
SMALL = 100_000_000
"""Weights of a denoiser below which a pass is too small to fill a device on its own."""
PLAIN_UP_TO = 1024
"""Latent positions up to which plain products hold less than they save."""


class Meter:
    """Adds up costs, also for the meter of what its owner was copied from."""

    def __init__(self, origin: "Meter | None" = None) -> None:
        self.total, self._origin = Cost(), origin

    def add(self, cost: Cost) -> None:
        """Counts work."""
        self.total += cost
        if self._origin is not None:
            self._origin.add(cost)


class Network:
    """Text encoder, denoiser and autoencoder, taken out of their pipeline: what they are, and one pass of each."""

    branches: ClassVar[int] = 2
    """Denoiser forwards of one guided prediction."""
    guard: str = ""
    """What a guard does, with its settings: part of the fingerprint."""
    outset: ClassVar[Any] = None
    """What a guard's memory is before the first step of a picture; a lone question brings None."""
    batch: int
    """Samples per batch, of pictures and of probes; short batches are padded, so that it alone decides the last bit."""
    device: torch.device
    """Where the weights lie."""
    dtype: torch.dtype
    """The weights' type."""

    def __init__(
        self,
        parts: Parts,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        precision: Precision = "fp32",
        attention: Attention | None = None,
        batch: int | None = None,
    ) -> None:
        # Kept, because a diffusers network looks at all its weights to say what they are and where.
        self.device = torch.device(device) if device else default_device()
        self.dtype = dtype
        self.unet, self.text_encoder, self.vae = (
            (network if network.dtype == dtype else network.to(dtype)).to(self.device).eval().requires_grad_(False)
            for network in (parts.unet, parts.text_encoder, parts.vae)
        )
        self.tokenizer = parts.tokenizer
        # As StableDiffusionPipeline does to old configs.
        self.scheduler = parts.scheduler.from_config(
            dict(parts.scheduler.config) | {"steps_offset": 1, "clip_sample": False}
        )
        self.precision = precision
        small = sum(weight.numel() for weight in self.unet.parameters()) < SMALL
        self.batch = batch or {("cpu", True): 16, ("cpu", False): 1}.get((self.device.type, small), 64 if small else 8)
        if attention is None:
            positions = self.latent_shape[1] * self.latent_shape[2]
            attention = "plain" if self.device.type == "cpu" and positions <= PLAIN_UP_TO else "sdpa"
        self.attention = attention
        self.unet.set_attn_processor(AttnProcessor() if attention == "plain" else AttnProcessor2_0())
        self.text_encoder.set_attn_implementation("eager" if attention == "plain" else "sdpa")
        self._real: int | None = None
        self.forget()

    def forget(self) -> None:
        """Drops what was worked out from the weights, and sets the meter to zero."""
        self._meter = Meter()
        self._fingerprint: str | None = None
        self._texts: dict[tuple[int, str], Text] = {}
        self._tokens: dict[str, Tensor] = {}

    # Facts -----------------------------------------------------------------------------------------------------------

    @property
    def start_token(self) -> int:
        """The id before the first word."""
        return int(self.tokenizer.bos_token_id)

    @property
    def end_token(self) -> int:
        """The id after the last word."""
        return int(self.tokenizer.eos_token_id)

    @property
    def pad_token(self) -> int:
        """The id that fills the context."""
        return int(self.tokenizer.pad_token_id)

    @property
    def special_tokens(self) -> frozenset[int]:
        """Start, end and padding."""
        return frozenset({self.start_token, self.end_token, self.pad_token})

    @property
    def context(self) -> int:
        """Tokens in the text encoder's context, start and end included."""
        return min(int(self.tokenizer.model_max_length), int(self.text_encoder.config.max_position_embeddings))

    @property
    def vocabulary(self) -> Tensor:
        """(V, d) token embeddings."""
        table: Tensor = self.text_encoder.get_input_embeddings().weight
        return table.detach()

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w)."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return int(self.unet.config.in_channels), int(height), int(width)

    @property
    def picture_size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        scale = 2 ** (len(self.vae.config.block_out_channels) - 1)
        return self.latent_shape[2] * scale, self.latent_shape[1] * scale

    @property
    def prediction_type(self) -> Literal["epsilon", "v_prediction"]:
        """What the denoiser was trained to say."""
        return "epsilon" if self.scheduler.config.prediction_type == "epsilon" else "v_prediction"

    @property
    def scaling_factor(self) -> float:
        """The autoencoder's latents times this are the denoiser's."""
        return float(self.vae.config.scaling_factor)

    @property
    def timesteps(self) -> int:
        """Training timesteps of the noise schedule."""
        return int(self.scheduler.config.num_train_timesteps)

    @property
    def alphas_cumprod(self) -> Tensor:
        """(timesteps,): the share of the signal's variance at each timestep."""
        alphas: Tensor = self.scheduler.alphas_cumprod
        return alphas

    @property
    def guarded(self) -> bool:
        """Whether a subclass overrides how text or noise are made."""
        return any(
            getattr(type(self), name) is not getattr(Network, name) for name in ("guided_noise", "encode", "embed")
        )

    @property
    def meter(self) -> Cost:
        """Work of this object and of all copies made of it, in samples without padding; what is remembered is none."""
        return self._meter.total

    @contextmanager
    def padded(self, real: int) -> Iterator[None]:
        """Within, only ``real`` samples of each batch are counted; the rest is padding."""
        outer, self._real = self._real, real
        try:
            yield
        finally:
            self._real = outer

    def count(self, *, forwards: int = 0, backwards: int = 0, encodes: int = 0) -> None:
        """Adds to the meter, given the sizes of whole batches."""
        real, size = (1, 1) if self._real is None else (self._real, self.batch)
        self._meter.add(
            Cost(forwards=forwards * real // size, backwards=backwards * real // size, encodes=encodes * real // size)
        )

    def _count_backward(self, output: Tensor) -> None:
        """Counts a backward when, and if, one goes through this answer of the denoiser."""
        if output.requires_grad:
            output.register_hook(lambda gradient: self.count(backwards=len(gradient)))

    # Text ------------------------------------------------------------------------------------------------------------

    def tokens(self, prompt: str) -> Tensor:
        """(context,) int64 ids on the CPU, with start, end and padding, cut to the context."""
        if prompt not in self._tokens:
            if len(self._tokens) >= REMEMBERED:
                self._tokens.clear()
            self._tokens[prompt] = self.tokenizer(
                prompt, padding="max_length", max_length=self.context, truncation=True, return_tensors="pt"
            ).input_ids[0]
        # Attacks ask in every iteration, and may write into what they get.
        return self._tokens[prompt].clone()

    def length(self, prompt: str) -> int:
        """The prompt's tokens, start and end included, whether or not they fit the context."""
        return len(self.tokenizer(prompt, verbose=False).input_ids)

    def own_tokens(self, prompt: str) -> list[int]:
        """The prompt's tokens in the context, without start, end and padding.

        An end token that somebody typed is one of them: the denoiser attends to what stands behind it.
        """
        ids: list[int] = self.tokens(prompt).tolist()
        return ids[1 : min(self.length(prompt), self.context) - 1]

    def dropped(self, prompt: str) -> int:
        """How many of the prompt's tokens do not fit the context."""
        return max(0, self.length(prompt) - self.context)

    def text(self, ids: Sequence[int] | Tensor) -> str:
        """The string that a user would type for these ids, start and end left out.

        Padding is a word like others where it is not the end: Stable Diffusion 2 pads with "!".
        """
        added = set(self.tokenizer.get_added_vocab().values())
        ends = {self.start_token, self.end_token}
        words: list[str] = []
        for alone, run in groupby((int(token) for token in ids), key=added.__contains__):
            if alone:
                words += self.tokenizer.convert_ids_to_tokens([token for token in run if token not in ends])
            else:
                # A copied tokenizer forgets that the mark of a word's end is a space.
                words.append(self.tokenizer.decode(list(run)).replace("</w>", " ").strip())
        return " ".join(words)

    def words(self, tokens: Tensor) -> Tensor:
        """(n, context) ids -> (n, context, d), their embeddings; differentiable."""
        embedded: Tensor = self.text_encoder.get_input_embeddings()(tokens.to(self.device))
        return embedded

    def encode(self, tokens: Tensor, words: Tensor | None = None) -> Text:
        """(n, context) ids, and if given (n, context, d) in place of their embeddings -> text; differentiable."""
        tokens = tokens.to(self.device)
        if words is None:
            output = self.text_encoder(tokens)
        else:
            # The encoder takes ids alone, so their embeddings are exchanged as they come out of the table.
            table = self.text_encoder.get_input_embeddings()
            exchange = table.register_forward_hook(lambda module, inputs, output: words)
            try:
                output = self.text_encoder(tokens)
            finally:
                exchange.remove()
        self.count(encodes=len(tokens))
        return Text(states=output.last_hidden_state, pooled=output.pooler_output)

    def embed(self, prompts: Sequence[str]) -> Text:
        """Encodes prompts; differentiable."""
        return self.encode(torch.stack([self.tokens(prompt) for prompt in prompts]))

    def remembered(self, prompts: Sequence[str]) -> Text:
        """Encodes prompts without gradient, each only once, in batches of the model's size."""
        learning = any(weight.requires_grad for weight in self.text_encoder.parameters())
        texts = {} if learning else self._texts
        new = [prompt for prompt in dict.fromkeys(prompts) if (self.batch, prompt) not in texts]
        with torch.no_grad():
            for first in range(0, len(new), self.batch):
                chunk = new[first : first + self.batch]
                with self.padded(len(chunk)):
                    text = self.embed(chunk + chunk[-1:] * (self.batch - len(chunk)))
                texts |= {(self.batch, prompt): text[[row]] for row, prompt in enumerate(chunk)}
            # Joining copies, so that a probe's gradient may flow past what was made in a picture's inference mode.
            joined = Text.join([texts[self.batch, prompt] for prompt in prompts])
        if len(texts) > REMEMBERED:
            texts.clear()
        return joined

    # Noise -----------------------------------------------------------------------------------------------------------

    def predict_noise(self, latents: Tensor, step: float | Tensor, text: Text) -> Tensor:
        """(n, C, h, w), a training timestep (one, or (n,)) and n texts -> epsilon of one branch; differentiable."""
        steps = torch.as_tensor(step, device=latents.device).expand(len(latents))
        with computing(self.device, self.precision):
            output: Tensor = self.unet(latents, steps, encoder_hidden_states=text.states, return_dict=False)[0]
        self.count(forwards=len(latents))
        self._count_backward(output)
        output = output.to(latents.dtype)
        if self.prediction_type == "epsilon":
            return output
        alpha = self._alpha(steps, latents)
        return alpha**0.5 * output + (1 - alpha) ** 0.5 * latents

    def guided_noise(
        self, latents: Tensor, step: float | Tensor, text: Text, guidance: float | Tensor, memory: Any = None
    ) -> tuple[Tensor, Any]:
        """Epsilon with classifier-free guidance (one scale, or (n,)), and what a guard carries to the next step."""
        n = len(latents)
        steps = torch.as_tensor(step, device=latents.device).expand(n)
        both = Text.join([self.remembered([""]).repeat(n), text])
        without, given = self.predict_noise(latents.repeat(2, 1, 1, 1), steps.repeat(2), both).chunk(2)
        scale = torch.as_tensor(guidance, device=latents.device, dtype=latents.dtype).reshape(-1, 1, 1, 1)
        return without + scale * (given - without), memory

    def as_trained(self, noise: Tensor, latents: Tensor, step: float | Tensor) -> Tensor:
        """The inverse of what ``predict_noise`` makes of the denoiser's answer: epsilon of x_t -> epsilon or v."""
        if self.prediction_type == "epsilon":
            return noise
        alpha = self._alpha(torch.as_tensor(step), latents)
        return (noise - (1 - alpha) ** 0.5 * latents) / alpha**0.5

    def noised(self, clean: Tensor, noise: Tensor, step: float | Tensor) -> Tensor:
        """x_t of the forward process."""
        alpha = self._alpha(torch.as_tensor(step), clean)
        return alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise

    def training_target(self, clean: Tensor, noise: Tensor, step: float | Tensor) -> Tensor:
        """What the denoiser was trained to say of x_t: epsilon or v."""
        if self.prediction_type == "epsilon":
            return noise
        alpha = self._alpha(torch.as_tensor(step), clean)
        return alpha**0.5 * noise - (1 - alpha) ** 0.5 * clean

    def _alpha(self, step: Tensor, like: Tensor) -> Tensor:
        """The cumulative alpha at one timestep or one per sample, shaped to multiply latents."""
        table = self.alphas_cumprod.to(like.device, like.dtype)
        step = step.to(like.device)
        if step.is_floating_point():
            # Between two timesteps some samplers interpolate the ratio of noise to signal, and so it must be here.
            sigma = ((1 - table) / table) ** 0.5
            low = step.floor().long().clamp(0, len(table) - 1)
            above = sigma[(low + 1).clamp(max=len(table) - 1)]
            alpha = 1 / (1 + torch.lerp(sigma[low], above, (step - low).to(like.dtype)) ** 2)
        else:
            alpha = table[step]
        return alpha if alpha.ndim == 0 else alpha.reshape(-1, 1, 1, 1)

    # Pictures --------------------------------------------------------------------------------------------------------

    def noise(self, seed: int) -> Tensor:
        """(C, h, w) on the CPU: the noise that diffusers draws for this seed."""
        random = torch.Generator().manual_seed(seed)
        return torch.randn(self.latent_shape, generator=random, dtype=self.dtype)

    @torch.no_grad()
    def encode_picture(self, picture: Image.Image) -> Tensor:
        """(C, h, w): the mean of what the autoencoder makes of a picture, scaled."""
        if picture.size != self.picture_size:
            raise ValueError(f"expected a picture of {self.picture_size}, got {picture.size}")
        values = torch.from_numpy(np.array(picture.convert("RGB"))).to(self.device, self.dtype)
        pixels = values.permute(2, 0, 1)[None] / 127.5 - 1
        latents: Tensor = self.vae.encode(pixels).latent_dist.mean[0]
        return latents * self.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        """(n, C, h, w) scaled latents -> pictures, in batches of the model's size."""
        pictures: list[Image.Image] = []
        for chunk in (latents.to(self.device, self.dtype) / self.scaling_factor).split(self.batch):
            padding = chunk[-1:].expand(self.batch - len(chunk), -1, -1, -1)
            pixels = self.vae.decode(torch.cat([chunk, padding]), return_dict=False)[0][: len(chunk)]
            values = (pixels / 2 + 0.5).clamp(0, 1).nan_to_num().permute(0, 2, 3, 1).float().cpu().numpy()
            pictures += [Image.fromarray(picture) for picture in (values * 255).round().astype(np.uint8)]
        return pictures
