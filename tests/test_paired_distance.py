"""The distance of activations: reckoned place by place, and 0 for the same picture."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ImageFilter
from transformers import AutoModel, CLIPTextConfig, CLIPTextModel

from measured import EACH, SURVIVORS, base, pixels, rendered, taken, wrecked
from palimpsest.assets import clip_folder
from palimpsest.errors import BadSetting
from palimpsest.utility import PairedDistance
from palimpsest.utility.features import Network
from palimpsest.utility.paired_distance import distances


def by_hand(layers: list[torch.Tensor]) -> float:
    """Of two pictures' (2, places, channels) in each layer."""
    means = []
    for layer in layers:
        first, second = layer.double().numpy()
        apart = [
            np.square(a / max(np.linalg.norm(a), 1e-12) - b / max(np.linalg.norm(b), 1e-12)).sum() / 2
            for a, b in zip(first, second, strict=True)
        ]
        means.append(np.mean(apart))
    return float(np.mean(means))


@pytest.mark.parametrize("which", ["clip", "resnet"])
def test_it_is_the_mean_over_layers_and_places(which: str, resnet: str) -> None:
    source = resnet if which == "resnet" else str(clip_folder())
    network = AutoModel.from_pretrained(source, dtype=torch.float32).eval()
    seeing = network if which == "resnet" else network.vision_model
    first, second = rendered("fish"), rendered("cat")
    found = distances(Network(measure="x", source=source), first * 3, second * 3)  # more than one batch
    for number, pair in enumerate(zip(first, second, strict=True)):
        with torch.no_grad():
            states = seeing(
                pixel_values=pixels(list(pair), 0.5, 0.5 if which == "resnet" else 0.25), output_hidden_states=True
            ).hidden_states[1:]
        layers = [layer if layer.ndim == 3 else layer.flatten(2).mT for layer in states]
        assert found[number] == pytest.approx(by_hand(layers), abs=1e-5)
    assert (found[:6] == found[6:12]).all()


def test_the_same_picture_is_nought_away_and_a_blurred_one_the_nearer_the_less_it_is_blurred(resnet: str) -> None:
    pictures = rendered("fish", "house")
    for source in ("miniature", resnet):
        network = Network(measure="x", source=source)
        assert (distances(network, pictures, pictures) == 0).all()
        little, much = (
            distances(network, pictures, [picture.filter(ImageFilter.GaussianBlur(by)) for picture in pictures])
            for by in (0.6, 3)
        )
        assert (0 < little).all() and (little < much).all() and (much < 2).all()


def test_an_untouched_model_has_not_moved_and_a_wrecked_one_has() -> None:
    measure = PairedDistance(pictures=EACH)
    before, after = taken(measure, base()), taken(measure, wrecked())
    assert before.keys() == {("paired_distance", thing) for thing in ("", *SURVIVORS)}
    for reading in before.values():
        assert (reading.value, reading.low, reading.high) == (0, 0, 0)
    for reading in after.values():
        assert 0.02 < reading.low < reading.value < reading.high < 2
    assert after["paired_distance", ""].n == len(SURVIVORS) * EACH


def test_a_network_that_does_not_see_is_refused(tmp_path: Path) -> None:
    config = CLIPTextConfig(
        vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    CLIPTextModel(config).save_pretrained(tmp_path)
    with pytest.raises(BadSetting, match="expected a CLIP or an image model of transformers, got .*, a CLIPTextModel"):
        PairedDistance(features=str(tmp_path)).check("sd15/")


@pytest.mark.parametrize(
    ("settings", "on", "message"),
    [
        ({"features": "/no/such/folder"}, "twin", "expected a model of transformers, got '/no/such/folder'"),
        ({}, "sd15/", "expected features=FOLDER, a model of transformers, for the base 'sd15/'"),
    ],
)
def test_features_that_are_none_are_refused_before_anything_runs(settings: dict, on: str, message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        PairedDistance(**settings).check(on)


def test_too_few_pictures_are_refused() -> None:
    with pytest.raises(BadSetting, match="expected pictures >= 2, got 1"):
        PairedDistance(pictures=1)
