"""The autoencoder: 64 x 64 x 3 pictures to 8 x 8 x 16 latents and back."""

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn.functional import mse_loss

from palimpsest.miniature.optimise import Curve, Report, optimise
from palimpsest.miniature.pictures import signed
from palimpsest.model import computing

LATENT_CHANNELS = 16
"""Eight by eight positions hold as many values as 16 x 16 x 4 at a quarter of the denoiser's cost."""


def new_autoencoder() -> AutoencoderKL:
    """An untrained AutoencoderKL, narrow where the picture is large."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(16, 48, 96, 128),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=64,
    )


def _reconstruction(drawn: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error of the pixels and of their differences to the right and below, which are the texture."""
    loss = mse_loss(drawn, wanted)
    for axis in (-1, -2):
        loss = loss + 0.5 * mse_loss(drawn.diff(dim=axis), wanted.diff(dim=axis))
    return loss


def train_autoencoder(
    network: AutoencoderKL, bank: Tensor, *, steps: int, batch: int, rate: float, seed: int, report: Report
) -> Curve:
    """Trains on ``bank`` (n, 3, 64, 64) uint8 and sets the scaling factor so that latents have unit variance."""
    random = torch.Generator().manual_seed(seed)
    device = network.device

    def loss_of(step: int) -> Tensor:
        wanted = signed(bank[torch.randint(len(bank), (batch,), generator=random)]).to(device)
        with computing(device):
            posterior = network.encode(wanted).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=random).to(device)
            drawn = network.decode(posterior.mean + posterior.std * noise).sample
        divergence = (
            0.5 * (posterior.mean.float().square() + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        )
        loss: Tensor = _reconstruction(drawn.float(), wanted) + 3e-4 * divergence
        return loss

    network.train()
    curve = optimise("autoencoder", [network], loss_of, steps=steps, rate=rate, flat=0.4, average=0.995, report=report)
    network.eval()
    latents = encode(network, bank[:2048], scaled=False)
    network.register_to_config(scaling_factor=float(1 / latents.std()))
    return curve


@torch.no_grad()
def encode(network: AutoencoderKL, pictures: Tensor, *, scaled: bool = True, batch: int = 64) -> Tensor:
    """(n, 3, 64, 64) uint8 -> (n, 16, 8, 8), the mean of the posterior."""
    parts = []
    for part in pictures.split(batch):
        with computing(network.device):
            parts.append(network.encode(signed(part).to(network.device)).latent_dist.mean.float())
    latents = torch.cat(parts)
    return latents * network.config.scaling_factor if scaled else latents


@torch.no_grad()
def decode(network: AutoencoderKL, latents: Tensor, *, batch: int = 64) -> Tensor:
    """(n, 16, 8, 8) scaled latents -> (n, 3, 64, 64) uint8."""
    parts = []
    for part in latents.split(batch):
        with computing(network.device):
            drawn = network.decode(part.to(network.device) / network.config.scaling_factor).sample.float()
        parts.append(((drawn.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu())
    return torch.cat(parts)
