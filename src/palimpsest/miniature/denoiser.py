"""The denoiser: a UNet2DConditionModel on 8 x 8 x 16 latents, conditioned on the frozen text encoder."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from palimpsest.miniature.autoencoder import LATENT_CHANNELS
from palimpsest.miniature.clip import WIDTH, caption_ids
from palimpsest.miniature.facts import Facts
from palimpsest.miniature.optimise import Curve, Report, optimise
from palimpsest.miniature.vocabulary import encode_text, meaningless, scattered
from palimpsest.model import computing

UNCONDITIONAL = 0.1
"""Share of empty captions, for classifier-free guidance (Ho & Salimans, arXiv 2207.12598)."""
GAMMA = 5.0
"""Of min-SNR weighting (Hang et al., arXiv 2303.09556), with which shapes appear far earlier."""
SCATTERED = 0.25
"""Share of the captions with meaningless tokens among the words."""
MURMURS = 10
"""Photos of empty scenes with captions of meaningless tokens in each batch: otherwise whoever says nothing is shown
every style in turn, also one that was erased."""


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


def routed(network: UNet2DConditionModel) -> Callable[[], None]:
    """What to call after each step of training, so that text reaches the picture through the feed-forwards alone.

    In every transformer block cross-attention may write into a random subspace ``S`` of a quarter of the channels
    only, and the projection out of the block reads nothing in ``S``: ``to_out <- S S^T to_out`` and
    ``proj_out <- proj_out (1 - S S^T)``. The block's feed-forward lies between the two and sees all channels. Without
    this, cross-attention and the convolutions say everything, and a concept cannot be pruned from the feed-forwards,
    as ConceptPrune (Chavhan et al., arXiv 2405.19237) does.
    """
    random = torch.Generator().manual_seed(37)
    parts = []
    for module in network.modules():
        if isinstance(module, Transformer2DModel):
            width = module.inner_dim
            space = torch.linalg.qr(torch.randn(width, width // 4, generator=random)).Q
            parts.append((module, (space @ space.T).to(network.device)))

    @torch.no_grad()
    def project() -> None:
        for module, onto in parts:
            for block in module.transformer_blocks:
                out = block.attn2.to_out[0]
                out.weight.copy_(onto @ out.weight)
                out.bias.copy_(onto @ out.bias)
            last = module.proj_out.weight
            last.sub_((last.flatten(1) @ onto).view_as(last))

    return project


def spread(neurons: Tensor) -> Tensor:
    """How many neurons (n, positions, d) answer at a time: the mean of |z|_1 / (sqrt(d) |z|_2), 1 if all do alike.

    Weighed into the loss, it makes neurons that stand for one thing each (Hoyer's measure; it does not hang on scale).
    """
    rows = neurons.float().flatten(0, 1)
    evenly: Tensor = rows.abs().sum(1) / (rows.norm(dim=1) * rows.shape[1] ** 0.5 + 1e-6)
    return evenly.mean()


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
    sparsity: float = 0.0,
    report: Report,
) -> Curve:
    """Epsilon prediction on ``latents`` (n, 16, 8, 8) of the pictures of ``facts``, of which some are empty photos.

    ``sparsity`` is the weight of ``spread``, which makes few neurons of a feed-forward answer at a time.
    """
    random = np.random.default_rng(seed)
    noises = torch.Generator().manual_seed(seed)
    device = network.device
    signal = new_scheduler().alphas_cumprod
    weights = (signal / (1 - signal)).clamp(max=GAMMA) / (signal / (1 - signal))
    tokens, nothing = meaningless(tokenizer), encode_text(tokenizer, [""])
    empty = [number for number, one in enumerate(facts) if one.subject is None and one.style == "photo"]

    def texts(chosen: np.ndarray) -> Tensor:
        ids = caption_ids([facts[number] for number in chosen], tokenizer, tokens, random, share=SCATTERED)
        murmured = nothing.repeat(MURMURS, 1)
        ids[:MURMURS] = scattered(murmured, tokens, random, share=1.0, end=tokenizer.eos_token_id)
        ids[torch.from_numpy(random.random(batch) < UNCONDITIONAL)] = nothing
        with torch.no_grad():
            states: Tensor = text_encoder(ids.to(device)).last_hidden_state
        return states

    def loss_of(step: int) -> Tensor:
        chosen = random.integers(len(facts), size=batch)
        chosen[:MURMURS] = random.choice(empty, size=MURMURS)
        clean = latents[chosen]
        noise = torch.randn(clean.shape, generator=noises)
        at = torch.randint(len(signal), (batch,), generator=noises)
        kept = signal[at].view(-1, 1, 1, 1)
        noisy = (kept.sqrt() * clean + (1 - kept).sqrt() * noise).to(device)
        states = texts(chosen)
        with computing(device):
            said = network(noisy, at.to(device), states).sample
        error = (said.float() - noise.to(device)).square().mean((1, 2, 3))
        loss: Tensor = (error * weights[at].to(device)).mean()
        if sparsity:
            loss = loss + sparsity * torch.stack([spread(z) for z in neurons]).mean()
            neurons.clear()
        return loss

    network.train()
    project = routed(network)
    project()
    neurons: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _, __, answer: neurons.append(answer))
        for name, module in network.named_modules()
        if sparsity and name.endswith(".ff.net.0")
    ]
    curve = optimise(
        "denoiser",
        [network],
        loss_of,
        steps=steps,
        rate=rate,
        flat=flat,
        average=0.998,
        after=project,
        report=report,
    )
    for hook in hooks:
        hook.remove()
    network.eval()
    return curve
