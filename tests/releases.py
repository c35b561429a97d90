"""Stable Diffusion 1.4 and 2.1: folders and configs as they are published, only narrower, with random weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from palimpsest.model.sampling import SCHEDULERS
from palimpsest.records import Attempt
from tiny import tiny_tokenizer

CONTEXT = 77
DOWN = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
UP = ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
WIDTHS = [32, 64, 64, 64]
"""In place of 320, 640, 1280, 1280: norms have 32 groups, as published."""


# The published files, key by key; narrower are block_out_channels, sample_size, hidden and intermediate sizes and, so
# that heads are not, the numbers of heads of 2.1 (5, 10, 20, 20 in 320, 640, 1280, 1280: 64 to a head).
UNET: dict[str, Any] = {
    "act_fn": "silu",
    "block_out_channels": WIDTHS,
    "center_input_sample": False,
    "down_block_types": DOWN,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "up_block_types": UP,
}
UNET_14 = UNET | {"attention_head_dim": 8, "cross_attention_dim": 24, "sample_size": 8}
UNET_21 = UNET | {
    "attention_head_dim": [1, 2, 4, 4],
    "cross_attention_dim": 32,
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "sample_size": 16,
    "upcast_attention": True,
    "use_linear_projection": True,
}
VAE: dict[str, Any] = {
    "act_fn": "silu",
    "block_out_channels": [32, 32, 64, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "out_channels": 3,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
TEXT: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": CONTEXT,
    "model_type": "clip_text_model",
    "pad_token_id": 1,
    "torch_dtype": "float32",
}
TEXT_14 = TEXT | {
    "_name_or_path": "openai/clip-vit-large-patch14",
    "hidden_act": "quick_gelu",
    "hidden_size": 24,
    "intermediate_size": 96,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "transformers_version": "4.21.0.dev0",
}
TEXT_21 = TEXT | {
    "hidden_act": "gelu",
    "hidden_size": 32,
    "intermediate_size": 128,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "projection_dim": 512,
    "transformers_version": "4.25.0.dev0",
}
SCHEDULER: dict[str, Any] = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": ["transformers", "CLIPFeatureExtractor"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
PREPROCESSOR = {"crop_size": 224, "do_resize": True, "feature_extractor_type": "CLIPFeatureExtractor", "size": 224}


def write(path: Path, told: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told, indent=2))


def tokenizer(folder: Path, pad: str) -> None:
    """The files of 2022: words, merges, and special tokens twice; 2.1 pads with "!" in one of the two."""
    told = json.loads(tiny_tokenizer(CONTEXT).backend_tokenizer.to_str())["model"]
    write(folder / "vocab.json", told["vocab"])
    merges = "".join(f"{one} {other}\n" for one, other in told["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}")
    plain = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    start, end = ({"content": f"<|{which}oftext|>", **plain} for which in ("start", "end"))
    write(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "bos_token": {"__type": "AddedToken", **start},
            "do_lower_case": True,
            "eos_token": {"__type": "AddedToken", **end},
            "errors": "replace",
            "model_max_length": CONTEXT,
            "pad_token": "<|endoftext|>",
            "special_tokens_map_file": "./special_tokens_map.json",
            "tokenizer_class": "CLIPTokenizer",
            "unk_token": {"__type": "AddedToken", **end},
        },
    )
    special = {"bos_token": start, "eos_token": end, "pad_token": pad, "unk_token": end}
    write(folder / "special_tokens_map.json", special)


def networks(folder: Path, unet: dict[str, Any], text: dict[str, Any], vae: dict[str, Any]) -> None:
    """Random weights beside the published configs, by the names of 2022."""
    text = text | {"vocab_size": len(tiny_tokenizer(CONTEXT))}
    for name, config in (("unet", unet), ("text_encoder", text), ("vae", vae)):
        write(folder / name / "config.json", config)
    torch.manual_seed(0)
    denoiser = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet"))
    # The usual first weights make the output layer so small that a picture would hang on nothing but its noise.
    torch.nn.init.normal_(denoiser.conv_out.weight, std=0.1)
    encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder"))
    autoencoder = AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "vae"))
    words = {f"text_model.{key}": weight for key, weight in encoder.state_dict().items()}
    words["text_model.embeddings.position_ids"] = torch.arange(CONTEXT)[None]
    pixels = {}
    for key, weight in autoencoder.state_dict().items():
        for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        pixels[key] = weight
    for name, state in (
        ("unet/diffusion_pytorch_model", denoiser.state_dict()),
        ("vae/diffusion_pytorch_model", pixels),
        ("text_encoder/model", words),
    ):
        save_file(state, folder / f"{name}.safetensors", metadata={"format": "pt"})


def sd14(folder: Path) -> None:
    """CompVis/stable-diffusion-v1-4."""
    networks(folder, {"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.2.2"} | UNET_14, TEXT_14, VAE)
    tokenizer(folder / "tokenizer", pad="<|endoftext|>")
    write(folder / "scheduler/scheduler_config.json", {"_class_name": "PNDMScheduler"} | SCHEDULER)
    write(folder / "feature_extractor/preprocessor_config.json", PREPROCESSOR)
    write(folder / "safety_checker/config.json", {"architectures": ["StableDiffusionSafetyChecker"]})
    (folder / "safety_checker/pytorch_model.bin").write_bytes(b"not read")
    write(
        folder / "model_index.json",
        INDEX
        | {
            "_diffusers_version": "0.2.2",
            "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
            "scheduler": ["diffusers", "PNDMScheduler"],
        },
    )


def sd21(folder: Path) -> None:
    """stabilityai/stable-diffusion-2-1, the one of 768 pixels."""
    about = {"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.10.0.dev0"}
    networks(folder, about | UNET_21, TEXT_21, VAE | {"sample_size": 768})
    tokenizer(folder / "tokenizer", pad="!")
    told = {"_class_name": "DDIMScheduler", "_diffusers_version": "0.8.0", "prediction_type": "v_prediction"}
    write(folder / "scheduler/scheduler_config.json", told | SCHEDULER)
    write(folder / "feature_extractor/preprocessor_config.json", PREPROCESSOR)
    write(
        folder / "model_index.json",
        INDEX
        | {
            "_diffusers_version": "0.8.0",
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", "DDIMScheduler"],
        },
    )


RELEASES: dict[str, Callable[[Path], None]] = {"1.4": sd14, "2.1": sd21}


def opened(folder: Path, scheduler: str = "ddim") -> Any:
    """The folder in plain diffusers."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = SCHEDULERS[scheduler].from_config(pipeline.scheduler.config, skip_prk_steps=True)
    return pipeline


def drawn_by(pipeline: Any, attempt: Attempt, size: tuple[int, int]) -> Image.Image:
    """In plain diffusers; the size is said, because of files as old as 1.4's it assumes 512 pixels."""
    random, (width, height) = torch.Generator().manual_seed(attempt.seed), size
    drawn = pipeline(attempt.prompt, num_inference_steps=3, generator=random, height=height, width=width)
    picture: Image.Image = drawn.images[0]
    return picture


def differ(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of two pictures, in steps of 1/255."""
    return float(np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).mean())
