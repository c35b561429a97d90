"""A model of Stable Diffusion 1.4's sizes, whose weights and vocabulary are made up."""

from itertools import chain, islice, product
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from palimpsest.model import Model
from palimpsest.model.loading import Parts


def sd14(device: str | None = None) -> Model:
    """The model; needs 4 GB of memory."""
    with torch.device("meta"):  # the usual first weights of so many layers take minutes
        unet = UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            cross_attention_dim=768,
            attention_head_dim=8,
        )
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
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", set_alpha_to_one=False, steps_offset=1
    )
    random = torch.Generator().manual_seed(0)
    parts = Parts(
        unet=filled(unet, random),
        text_encoder=filled(text_encoder, random),
        vae=filled(vae, random),
        tokenizer=tokenizer(49408, 77),
        scheduler=scheduler,
    )
    return Model(parts, device=device)


def filled(network: Any, random: torch.Generator) -> Any:
    """A network of shapes alone, with weights: norms that do nothing, all else small and random."""
    network = network.to_empty(device="cpu")
    for name, weight in network.named_parameters():
        torch.nn.init.ones_(weight) if "norm" in name else torch.nn.init.uniform_(weight, -0.02, 0.02, random)
    for name, buffer in network.named_buffers():
        assert name.endswith("position_ids"), f"expected no buffer but positions, got {name}"
        buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
    return network


def tokenizer(size: int, context: int) -> CLIPTokenizer:
    """CLIP's byte-pair encoding with pairs of letters, then triples."""
    letters = [chr(code) for code in range(33, 127)]
    last = [f"{letter}</w>" for letter in letters]
    pairs = [*product(letters, letters), *product(letters, last)]
    triples = ((first + second, third) for first, second, third in product(letters, letters, last))
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *last]
    merges = list(islice(chain(pairs, triples), size - len(tokens)))
    vocab = {token: number for number, token in enumerate([*tokens, *map("".join, merges)])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=context)
