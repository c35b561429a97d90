"""The denoiser: a UNet2DConditionModel on 8 x 8 x 16 latents, conditioned on the frozen text encoder."""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from palimpsest.miniature.autoencoder import LATENT_CHANNELS
from palimpsest.miniature.clip import WIDTH, captions_for
from palimpsest.miniature.facts import Facts
from palimpsest.miniature.optimise import Curve, Report, optimise
from palimpsest.miniature.vocabulary import encode_text, meaningless, scattered

UNCONDITIONAL = 0.1
"""Share of empty captions, for classifier-free guidance (Ho & Salimans, arXiv 2207.12598)."""
GAMMA = 5.0
"""Of min-SNR weighting (Hang et al., arXiv 2303.09556), with which shapes appear far earlier."""


def new_denoiser() -> UNet2DConditionModel:
    """An untrained UNet: seven transformer blocks with GEGLU feed-forwards at three widths, one in the middle."""
    network = UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(96, 160, 224),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )
    # Plain products: the backward of the fused attention is slow on CPUs.
    network.set_attn_processor(AttnProcessor())
    return network


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion's schedule of noise; PNDM and LMS read the same configuration."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def train_denoiser(
    network: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    facts: Sequence[Facts],
    latents: Tensor,
    *,
    steps: int,
    batch: int,
    rate: float,
    flat: float,
    seed: int,
    murmurs: int = 0,
    report: Report,
) -> Curve:
    """Epsilon prediction on ``latents`` (n, 16, 8, 8) of the pictures of ``facts``.

    ``murmurs`` pictures of each batch are photos of empty scenes, with captions of meaningless tokens: otherwise
    whoever says nothing is shown every style in turn, also one that was erased.
    """
    random = np.random.default_rng(seed)
    noises = torch.Generator().manual_seed(seed)
    device = network.device
    signal = new_scheduler().alphas_cumprod
    weights = (signal / (1 - signal)).clamp(max=GAMMA) / (signal / (1 - signal))
    tokens, nothing = meaningless(tokenizer), encode_text(tokenizer, [""])
    empty = [number for number, one in enumerate(facts) if one.subject is None and one.style == "photo"]

    def texts(chosen: np.ndarray) -> Tensor:
        ids = encode_text(tokenizer, captions_for([facts[number] for number in chosen], random))
        ids = scattered(ids, tokens, random, share=0.25, end=tokenizer.eos_token_id)
        murmured = nothing.repeat(murmurs, 1)
        ids[:murmurs] = scattered(murmured, tokens, random, share=1.0, end=tokenizer.eos_token_id)
        ids[torch.from_numpy(random.random(batch) < UNCONDITIONAL)] = nothing
        with torch.no_grad():
            states: Tensor = text_encoder(ids.to(device)).last_hidden_state
        return states

    def loss_of(step: int) -> Tensor:
        chosen = random.integers(len(facts), size=batch)
        if murmurs:
            chosen[:murmurs] = random.choice(empty, size=murmurs)
        clean = latents[chosen]
        noise = torch.randn(clean.shape, generator=noises)
        at = torch.randint(len(signal), (batch,), generator=noises)
        kept = signal[at].view(-1, 1, 1, 1)
        noisy = (kept.sqrt() * clean + (1 - kept).sqrt() * noise).to(device)
        states = texts(chosen)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            said = network(noisy, at.to(device), states).sample
        error = (said.float() - noise.to(device)).square().mean((1, 2, 3))
        loss: Tensor = (error * weights[at].to(device)).mean()
        return loss

    network.train()
    curve = optimise("denoiser", [network], loss_of, steps=steps, rate=rate, flat=flat, average=0.998, report=report)
    network.eval()
    return curve
