"""Masks by a CLIPSeg, on a small one of transformers' own class."""

from pathlib import Path

import pytest
import torch
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, ViTImageProcessor

from cases import concept
from palimpsest.erasers import Mace
from palimpsest.erasers.segmentation import segmented
from palimpsest.errors import BadSetting
from tiny import tiny_model

CHURCH = concept("church", neighbours=("house",))
SMALL = {"iterations": 1, "lr": 1e-2, "pictures": 2, "steps": 1, "lam": 0.5}


@pytest.fixture(scope="module")
def model():
    return tiny_model(batch=2)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Network, tokenizer and image processor as others ship them."""
    torch.manual_seed(0)
    common = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    words = {"vocab_size": len(model.tokenizer), "eos_token_id": model.end_token, "max_position_embeddings": 77}
    config = CLIPSegConfig(
        text_config=common | words,
        vision_config=common | {"image_size": 32, "patch_size": 8},
        projection_dim=32,
        extract_layers=[0, 1],
        reduce_dim=16,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
    )
    made = tmp_path_factory.mktemp("clipseg")
    CLIPSegForImageSegmentation(config).save_pretrained(made)
    model.tokenizer.save_pretrained(made)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def pictures(model):
    noise = torch.randn(3, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    return model.decode(noise)


def test_is_what_the_network_says_of_the_name(model, folder, pictures):
    found = segmented("mace", str(folder), pictures, "church", size=(8, 8))
    network = CLIPSegForImageSegmentation.from_pretrained(folder).eval()
    pixels = ViTImageProcessor.from_pretrained(folder)(pictures, return_tensors="pt")["pixel_values"]
    words = model.tokenizer(["church"] * 3, return_tensors="pt")
    with torch.no_grad():
        shares = network(pixel_values=pixels, **words).logits.sigmoid()
    expected = shares.unflatten(1, (8, -1)).unflatten(3, (8, -1)).mean((2, 4))
    assert found.shape == (3, 1, 8, 8)
    torch.testing.assert_close(found[:, 0], expected, atol=1e-5, rtol=0)
    assert not torch.allclose(found, segmented("mace", str(folder), pictures, "fish", size=(8, 8)), atol=1e-5)


def test_mace_trains_where_the_segmenter_says(model, folder):
    """At a threshold that cuts through what it says; at 0 both kinds of masks are the whole picture."""

    def erased(**settings):
        return Mace(**(SMALL | settings)).erase(model, [CHURCH], random=torch.Generator().manual_seed(0)).fingerprint

    own = Mace(**(SMALL | {"segmenter": str(folder)}))
    latents, level = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(1)), 0.0
    found = own._found(model, latents, model.embed(["church"] * 2), torch.ones(2, 1), "church", torch.Generator())
    level = float(found.median())
    assert 0 < float((found >= level).float().mean()) < 1
    assert erased(segmenter=str(folder), threshold=level) != erased(threshold=level)
    assert erased(segmenter=str(folder), threshold=level) == erased(segmenter=str(folder), threshold=level)


def test_a_segmenter_that_finds_nothing_is_an_error(model, folder):
    eraser = Mace(**(SMALL | {"segmenter": str(folder), "threshold": 0.999}))
    with pytest.raises(BadSetting, match=r"to find 'church' in some of 2 pictures at a threshold of 0\.999, got none"):
        eraser.erase(model, [CHURCH], random=torch.Generator().manual_seed(0))


def test_a_segmenter_that_is_not_there_is_refused_before_anything_is_drawn(model, tmp_path):
    before = model.meter
    with pytest.raises(BadSetting, match="expected a model of transformers"):
        Mace(**(SMALL | {"segmenter": str(tmp_path)})).erase(model, [CHURCH], random=torch.Generator())
    assert (model.meter - before).passes == 0
