"""A whole pipeline in one .safetensors file, under the names of the original Stable Diffusion."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from palimpsest.errors import BadModel
from palimpsest.model import Model, Sampling
from palimpsest.records import Attempt
from tiny import tiny_model, tiny_pipeline

RESNET = (
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
)
OUTSIDE = (
    ("conv_in", "input_blocks.0.0"),
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
    ("mid_block.resnets.0", "middle_block.0"),
    ("mid_block.attentions.0", "middle_block.1"),
    ("mid_block.resnets.1", "middle_block.2"),
)


def _unet(key: str) -> str:
    """One name of a denoiser with one layer per block."""
    if "resnets" in key:
        for new, old in RESNET:
            key = key.replace(f".{new}.", f".{old}.")
    for new, old in OUTSIDE:
        if key.startswith(f"{new}."):
            return key.replace(new, old, 1)
    found = re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", key)
    assert found is not None, key
    way, block, kind, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    if way == "down":
        place = {
            "resnets": f"{1 + 2 * block}.0",
            "attentions": f"{1 + 2 * block}.1",
            "downsamplers": f"{2 + 2 * block}.0",
        }
        return f"input_blocks.{place[kind]}.{rest.replace('conv.', 'op.') if kind == 'downsamplers' else rest}"
    # Here the way up has two layers per block; its first block has no attention.
    place = {"resnets": 0, "attentions": 1, "upsamplers": 1 if block == 0 else 2}
    return f"output_blocks.{2 * block + (1 if kind == 'upsamplers' else layer)}.{place[kind]}.{rest}"


def _vae(key: str, weight: Tensor) -> tuple[str, Tensor]:
    """One name of an autoencoder with two blocks."""
    key = re.sub(r"encoder\.down_blocks\.(\d)\.resnets\.(\d)", r"encoder.down.\1.block.\2", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{1 - int(m[1])}.block.{m[2]}", key)
    key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{1 - int(m[1])}.upsample", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    if "mid_block.attentions.0" in key:
        key = key.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
        for new, old in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
            key = key.replace(f".{new}.", f".{old}.")
        weight = weight[:, :, None, None] if weight.ndim == 2 else weight
    return key, weight.contiguous()


def original(model: Model) -> dict[str, Tensor]:
    """The state dict as CompVis would have written it."""
    state = {}
    for name, weight in model.weights().items():
        network, _, key = name.partition(".")
        if network == "unet":
            state[f"model.diffusion_model.{_unet(key)}"] = weight.detach()
        elif network == "text_encoder":
            state[f"cond_stage_model.transformer.text_model.{key}"] = weight.detach()
        else:
            key, value = _vae(key, weight.detach())
            state[f"first_stage_model.{key}"] = value
    return state


def test_a_single_file_is_opened_with_the_config_of_a_folder(tmp_path: Path) -> None:
    model = tiny_model()
    other = tmp_path / "other"
    tiny_pipeline(other, seed=1)
    save_file(original(model), tmp_path / "one.safetensors")
    opened = Model.load(tmp_path / "one.safetensors", config=other, device="cpu", batch=4)
    attempt = [Attempt(prompt="a photo of a church", seed=1)]
    drawn = [one.draw(attempt, Sampling(steps=2))[0].tobytes() for one in (model, opened, Model.load(other, batch=4))]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("lost", ["model.diffusion_model.out.2.bias", "first_stage_model.quant_conv.bias"])
def test_a_single_file_that_lacks_weights_is_refused(tmp_path: Path, lost: str) -> None:
    tiny_pipeline(tmp_path / "other")
    state = original(tiny_model())
    del state[lost]
    save_file(state, tmp_path / "one.safetensors")
    with pytest.raises(BadModel):
        Model.load(tmp_path / "one.safetensors", config=tmp_path / "other")


def test_a_single_file_says_what_it_needs(tmp_path: Path) -> None:
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.ones(1)}, tmp_path / "one.safetensors")
    with pytest.raises(BadModel, match="one file holds neither tokenizer nor shapes"):
        Model.load(tmp_path / "one.safetensors")
