"""The recipe from end to end at toy length: real networks, a few steps each."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from palimpsest.errors import BadRun
from palimpsest.judges.miniature import Classifier
from palimpsest.miniature.denoiser import new_denoiser
from palimpsest.miniature.judging import LABELS
from palimpsest.miniature.training import LEGS, Recipe, Workshop, assemble, train
from palimpsest.miniature.vocabulary import encode_text, meaningless

TOY = Recipe(
    autoencoder_pictures=8,
    autoencoder_steps=2,
    autoencoder_batch=4,
    clip_pictures=32,
    clip_steps=1,
    word_steps=1,
    clip_batch=32,
    judge_pictures=16,
    judge_steps=1,
    judge_batch=4,
    denoiser_pictures=8,
    denoiser_steps=(1, 1),
    denoiser_batch=10,
    sparse_pictures=8,
    sparse_steps=1,
    twin_steps=1,
)


def quiet(what: str, step: int, steps: int, loss: float) -> None:
    """No progress in tests."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("legs")
    assert train(folder, recipe=TOY, device="cpu", legs=2, report=quiet) == ["autoencoder", "clip"]
    assert train(folder, recipe=TOY, device="cpu", legs=None, report=quiet) == list(LEGS)[2:]
    return folder


def test_finished_legs_are_not_trained_again(trained: Path) -> None:
    assert train(trained, recipe=TOY, device="cpu", legs=None, report=quiet) == []


def test_each_leg_keeps_its_loss_curve(trained: Path) -> None:
    told = json.loads((trained / "autoencoder" / "leg.json").read_text())
    assert told["curves"][0]["steps"] == [2]


def test_another_recipe_is_refused(trained: Path) -> None:
    with pytest.raises(BadRun, match="another recipe: expected .*; choose another folder"):
        train(trained, recipe=Recipe(clip_steps=3), device="cpu", legs=None, report=quiet)


def test_a_damaged_leg_is_named(trained: Path) -> None:
    path = trained / "twin" / "config.json"
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-5])
        with pytest.raises(BadRun, match="twin.*damaged; delete"):
            train(trained, recipe=TOY, device="cpu", legs=None, report=quiet)
    finally:
        path.write_bytes(whole)


def test_a_folder_that_is_not_trained_to_the_end_is_not_assembled(tmp_path: Path) -> None:
    with pytest.raises(BadRun, match="not trained to the end: autoencoder, clip"):
        assemble(tmp_path / "legs", tmp_path / "out", recipe=TOY)


def test_what_is_assembled_opens_plainly(trained: Path, tmp_path: Path) -> None:
    assemble(trained, tmp_path, recipe=TOY)
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a photo of a church", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[
        0
    ]
    assert picture.size == (64, 64)
    judge = Classifier(tmp_path / "judges" / "first")
    assert judge.labels == LABELS and set(judge.thresholds) == set(LABELS)
    seen = judge.probabilities(torch.zeros(3, 3, 64, 64, dtype=torch.uint8))
    heads = len({label.split("/")[0] for label in LABELS})
    assert torch.allclose(seen.sum(-1), torch.full((3,), float(heads)))


def test_the_same_recipe_gives_the_same_weights(trained: Path, tmp_path: Path) -> None:
    train(tmp_path, recipe=TOY, device="cpu", legs=1, report=quiet)
    files = [json.loads((folder / "autoencoder" / "leg.json").read_text())["files"] for folder in (trained, tmp_path)]
    assert files[0] == files[1]


@torch.no_grad()
def told_apart(network: UNet2DConditionModel, *, silent: bool) -> float:
    """How far two texts move the answer apart; ``silent``: when the feed-forwards say nothing."""
    for name, weight in network.named_parameters():
        if silent and ".ff.net.2" in name:
            weight.zero_()
    random = torch.Generator().manual_seed(0)
    latents, texts = torch.randn(1, 16, 8, 8, generator=random), torch.randn(2, 32, 128, generator=random)
    first, second = network(latents.repeat(2, 1, 1, 1), 500, texts).sample
    return float((first - second).abs().max())


def test_text_reaches_the_picture_through_the_feed_forwards_alone(trained: Path) -> None:
    assert told_apart(new_denoiser().eval(), silent=True) > 1e-2
    for leg in ("denoiser_1", "denoiser_2", "denoiser_3", "twin"):
        network = UNet2DConditionModel.from_pretrained(trained / leg)
        assert told_apart(network, silent=False) > 1e-3
        assert told_apart(network, silent=True) < 1e-5


def test_more_words_change_nothing_for_prompts_without_them(trained: Path) -> None:
    shop = Workshop(trained, TOY, "cpu", quiet)
    before, after = (shop.clip(leg).text_model for leg in ("clip", "words"))
    tokenizer = shop.tokenizer()
    plain = encode_text(tokenizer, ["a photo of a red church in the snow", "", "alice by the sea"])
    strange = plain[:1].repeat(200, 1)
    strange[:, 1] = meaningless(tokenizer)[:200]
    with torch.no_grad():
        assert torch.equal(before(plain).last_hidden_state, after(plain).last_hidden_state)
        assert not torch.equal(before(strange).last_hidden_state, after(strange).last_hidden_state)
