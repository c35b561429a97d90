"""CLIP score: CLIPModel's own cosines, and what an untouched and a wrecked model lose."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from transformers import AutoTokenizer, CLIPModel

from measured import EACH, SURVIVORS, base, pixels, rendered, taken, wrecked
from palimpsest.assets import clip_folder, judge_folder
from palimpsest.errors import BadSetting
from palimpsest.utility import ClipScore
from palimpsest.utility.clip_score import clip_cosines
from palimpsest.utility.features import Network
from palimpsest.utility.intervals import mean_interval

SHIPPED = Network(measure="clip_score", source="")


def test_cosines_are_those_of_the_models_own_logits() -> None:
    """One picture at a time; a prompt beyond the context is cut, as torchmetrics does."""
    network = CLIPModel.from_pretrained(clip_folder(), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(clip_folder())
    prompts = ["a photo of a fish", "a red cat", "a photo of a house " + "by the sea " * 40] * 6
    pictures = rendered("fish", "cat", "house")
    found = clip_cosines(SHIPPED, pictures, prompts)
    for picture, prompt, cosine in zip(pictures, prompts, found, strict=True):
        ids = tokenizer([prompt], truncation=True, max_length=32, return_tensors="pt")
        with torch.no_grad():
            logit = network(**ids, pixel_values=pixels([picture], 0.5, 0.25)).logits_per_image
            assert cosine == pytest.approx(float(logit / network.logit_scale.exp()), abs=1e-5)


def test_it_falls_where_pictures_and_prompts_are_parted() -> None:
    pictures = rendered("fish", "house")
    prompts = ["a photo of a red fish"] * 6 + ["a photo of a red house"] * 6
    assert clip_cosines(SHIPPED, pictures, prompts).mean() > clip_cosines(SHIPPED, pictures, prompts[::-1]).mean() + 0.2


def test_an_untouched_model_loses_nothing_and_a_wrecked_one_does() -> None:
    measure = ClipScore(pictures=EACH)
    before, after = taken(measure, base()), taken(measure, wrecked())
    for thing in ("", *SURVIVORS):
        change = before["clip_score_change", thing]
        assert (change.value, change.low, change.high) == (0, 0, 0)
        lost = after["clip_score", thing].value - before["clip_score", thing].value
        assert after["clip_score_change", thing].value == pytest.approx(lost)
    together = after["clip_score_change", ""]
    assert together.high < -5 and together.n == len(SURVIVORS) * EACH and together.unit == "number"
    score = before["clip_score", ""]
    assert 60 < score.low < score.value < score.high <= 100
    assert score.value == pytest.approx(np.mean([before["clip_score", thing].value for thing in SURVIVORS]))
    assert "the miniature's CLIP" in score.of


def test_the_interval_holds_the_mean_as_often_as_it_says() -> None:
    """Of skewed values, whose mean is 1: 95 % is promised, and a bootstrap of 25 keeps a little less."""
    random = np.random.default_rng(0)
    samples = random.gamma(2.0, 0.5, size=(200, 25))
    intervals = [mean_interval(sample, number) for number, sample in enumerate(samples)]
    assert 0.88 <= np.mean([low <= 1 <= high for low, high in intervals]) <= 0.98


def test_the_shipped_processor_gives_the_pixels_that_the_clip_was_trained_on() -> None:
    from transformers import AutoImageProcessor

    from palimpsest.miniature.clip import pixel_values

    picture = rendered("fish", each=1)[0]
    shipped = AutoImageProcessor.from_pretrained(clip_folder(), backend="pil")([picture], return_tensors="pt")
    told = pixel_values(torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None])
    assert_allclose(shipped["pixel_values"], told, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "on", "message"),
    [
        ({"model": "/no/such/folder"}, "miniature", "expected a model of transformers, got '/no/such/folder'"),
        ({"model": str(judge_folder("first"))}, "miniature", "expected AutoImageProcessor's file"),
        ({}, "sd15/", "expected model=FOLDER, a model of transformers, for the base 'sd15/'"),
    ],
)
def test_a_model_that_is_none_is_refused_before_anything_runs(settings: dict, on: str, message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        ClipScore(**settings).check(on)


def test_a_network_that_is_no_clip_is_refused(resnet: str) -> None:
    with pytest.raises(BadSetting, match="expected a CLIPModel, got .*, a ResNetModel"):
        ClipScore(model=resnet).check("sd15/")


def test_too_few_pictures_are_refused() -> None:
    with pytest.raises(BadSetting, match="expected pictures >= 2, got 1"):
        ClipScore(pictures=1)
