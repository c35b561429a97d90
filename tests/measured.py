"""The miniature, as it is and with noise in its weights, as measures hold it: every picture is drawn once for all."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import ViTImageProcessor

from palimpsest.concept_file import find_concept
from palimpsest.judges import Miniature
from palimpsest.miniature.facts import Facts
from palimpsest.miniature.pictures import render_many
from palimpsest.model import Model, Sampling
from palimpsest.records import Reading, Victim
from palimpsest.utility.base import Drawn, Erasure, Measure

SURVIVORS = ("fish", "cat", "house")
EACH = 4
DRAWN = Drawn(Sampling(scheduler="ddim", steps=8, guidance=5.0))


@cache
def base() -> Model:
    return Model.load("miniature", batch=len(SURVIVORS) * EACH)


@cache
def wrecked() -> Model:
    """Every matrix of the denoiser with noise of 0.6 of its own spread."""
    random = torch.Generator().manual_seed(0)
    weights = {name: weight.detach() for name, weight in base().weights(r"unet\..*").items() if weight.ndim > 1}
    noise = {name: weight.std() * torch.randn(weight.shape, generator=random) for name, weight in weights.items()}
    return base().with_weights({name: weight + 0.6 * noise[name] for name, weight in weights.items()})


def taken(measure: Measure, model: Model) -> dict[tuple[str, str], Reading]:
    """The readings of a model by measure and thing."""
    erasure = Erasure(
        victim=Victim(base="miniature", concept="church", eraser="x"),
        target=find_concept("church"),
        concepts=tuple(find_concept(name) for name in SURVIVORS),
        judge=Miniature(),
        model=model,
        base=base(),
        drawn=DRAWN,
        seed=0,
    )
    return {(reading.measure, reading.concept): reading for reading in measure.measure(erasure)}


def rendered(*names: str, each: int = 6) -> list[Image.Image]:
    facts = [Facts(subject=name, style="photo", colour="red", seed=seed) for name in names for seed in range(each)]
    return [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in render_many(facts)]


def processor(folder: Path) -> None:
    """The miniature's judges bring none along."""
    ViTImageProcessor(size={"height": 64, "width": 64}, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(
        folder
    )


def pixels(pictures: list[Image.Image], mean: float, deviation: float) -> torch.Tensor:
    stacked = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2)
    return (stacked.float() / 255 - mean) / deviation
