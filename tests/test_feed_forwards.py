"""Feed-forwards are found by their structure, whatever a denoiser calls them."""

import pytest
import torch
from diffusers import LuminaNextDiT2DModel, SD3Transformer2DModel, UNet2DConditionModel
from diffusers.models.attention import FeedForward

from palimpsest.model.weights import feed_forwards
from tiny import tiny_model


@pytest.fixture(scope="module")
def denoisers():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sd3 = SD3Transformer2DModel(
            sample_size=8,
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            caption_projection_dim=16,
            pooled_projection_dim=16,
            out_channels=4,
        )
        lumina = LuminaNextDiT2DModel(
            sample_size=8, patch_size=2, hidden_size=32, num_layers=2, num_attention_heads=2, num_kv_heads=2,
            multiple_of=16, cross_attention_dim=16, scaling_factor=1.0,
        )  # fmt: skip
        plain = UNet2DConditionModel(
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            mid_block_type="UNetMidBlock2D",
            norm_num_groups=4,
            cross_attention_dim=8,
        )
    return {"sd3": sd3, "lumina": lumina, "plain": plain}


def test_of_the_unet_they_are_its_geglus_second_linears():
    model = tiny_model()
    found = model.feed_forwards()
    assert set(found) == set(model.weights(r"unet\..*\.ff\.net\.2\.weight"))
    assert all(firsts == (second.replace("net.2", "net.0.proj"),) for second, firsts in found.items())


def test_a_transformer_with_gelu(denoisers):
    found = feed_forwards(denoisers["sd3"])
    theirs = {name for name, module in denoisers["sd3"].named_modules() if isinstance(module, FeedForward)}
    assert {second.removesuffix(".net.2.weight") for second in found} == theirs
    assert len(theirs) == 3  # the last block says nothing of the text
    weights = dict(denoisers["sd3"].named_parameters())
    assert all(weights[second].mT.shape == weights[first].shape for second, (first,) in found.items())


def test_a_gate_of_its_own(denoisers):
    found = feed_forwards(denoisers["lumina"])
    assert found["layers.0.feed_forward.linear_2.weight"] == (
        "layers.0.feed_forward.linear_1.weight",
        "layers.0.feed_forward.linear_3.weight",
    )
    assert all("feed_forward" in second for second in found)


def test_none_where_there_are_none(denoisers):
    assert feed_forwards(denoisers["plain"]) == {}
