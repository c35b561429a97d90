"""Stable Diffusion 1.4's full config, random weights: it opens, answers and draws within the memory of a desktop."""

import multiprocessing
import resource
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from palimpsest.model import Model, Probe, Sampling
from palimpsest.records import Attempt
from tiny import tiny_tokenizer

GIBIBYTE = 2**30


def write(folder: Path) -> None:
    """The pipeline of Stable Diffusion 1.4, but for its weights and its vocabulary."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            layers_per_block=2,
            cross_attention_dim=768,
            attention_head_dim=8,
        )
    unet = unet.to_empty(device="cpu")
    for name, weight in unet.named_parameters():
        # One by one, because the usual first weights of so many layers take longer than all the rest of the test.
        torch.nn.init.ones_(weight) if "norm" in name else torch.nn.init.uniform_(weight, -0.02, 0.02)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            max_position_embeddings=77,
        )
    )
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
    )
    StableDiffusionPipeline(
        unet=unet,
        text_encoder=text_encoder,
        vae=vae,
        tokenizer=tiny_tokenizer(context=77),
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            set_alpha_to_one=False,
            skip_prk_steps=True,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


class Found(NamedTuple):
    gradient: float
    size: tuple[int, int]
    forwards: int
    peak: int


def use(folder: Path) -> Found:
    """Opens it, takes one gradient, draws one picture, and says how much memory that took at its highest."""
    model = Model.load(folder, device="cpu")
    probe = Probe(
        tokens=model.tokens("a photo of a church"),
        latents=model.noise(0),
        step=500,
        loss=lambda answer, latents: answer.square().mean(),
        wrt="words",
    )
    gradient = model.ask([probe])[0].gradient
    assert gradient is not None
    picture = model.draw([Attempt(prompt="a photo of a church", seed=0)], Sampling(scheduler="ddim", steps=4))[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Found(float(gradient.abs().max()), picture.size, model.meter.forwards, peak)


@pytest.mark.slow
def test_the_real_size_fits_on_a_desktop(tmp_path: Path) -> None:
    # Each in a process of its own, so that the peak is that of using the model alone.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1) as alone:
        alone.submit(write, tmp_path).result()
        found = alone.submit(use, tmp_path).result()
    assert found.gradient > 0
    assert found.size == (512, 512)
    assert found.forwards == 1 + 2 * 4
    assert found.peak < 16 * GIBIBYTE, f"{found.peak / GIBIBYTE:.1f} GiB"
