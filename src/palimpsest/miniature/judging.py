"""The two judges: classifiers trained on renders, round trips through the autoencoder, and noise."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
)

from palimpsest.miniature.autoencoder import decode, encode
from palimpsest.miniature.clip import labels
from palimpsest.miniature.facts import HEADS, Facts
from palimpsest.miniature.optimise import Curve, Report, optimise
from palimpsest.miniature.pictures import signed
from palimpsest.model import computing

LABELS: tuple[str, ...] = tuple(f"{head}/{answer}" for head, choices in HEADS.items() for answer in choices)
IGNORED = -100
FALSE_ALARMS = 0.0005
"""Share of negatives above a threshold; half of what is promised, since the next sample will differ."""


def new_judge(which: str) -> PreTrainedModel:
    """An untrained judge: ``first`` a ResNet, ``second`` a ConvNeXt."""
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {label: number for number, label in enumerate(LABELS)}}
    if which == "first":
        return ResNetForImageClassification(
            ResNetConfig(
                embedding_size=32, hidden_sizes=[32, 64, 96, 160], depths=[1, 1, 1, 1], layer_type="basic", **names
            )
        )
    return ConvNextForImageClassification(
        ConvNextConfig(
            patch_size=4, hidden_sizes=[48, 96, 160], depths=[1, 2, 1], num_stages=3, drop_path_rate=0.0, **names
        )
    )


def nonsense(network: AutoencoderKL, latents: Tensor, random: torch.Generator) -> Tensor:
    """Pictures of nothing, a third each: decoded noise, latents drowned in noise, latents with shuffled places."""
    third = len(latents) // 3
    noise = torch.randn(latents.shape, generator=random)
    depth = 1.5 + torch.rand(third, 1, 1, 1, generator=random)
    drowned = latents[third : 2 * third] + noise[third : 2 * third] * depth
    places = torch.rand(len(latents) - 2 * third, 64, generator=random).argsort(-1)[:, None].expand(-1, 16, -1)
    shuffled = latents[2 * third :].flatten(2).gather(2, places).unflatten(2, (8, 8))
    return decode(network, torch.cat([noise[:third], drowned, shuffled]))


def nonsense_answers(head: str, count: int) -> Tensor:
    """What is true of ``count`` pictures of nothing: no subject; of what was drowned or shuffled the style may show."""
    answer = torch.zeros(count, dtype=torch.int64)
    if head in ("colour", "scene"):
        answer[:] = IGNORED
    elif head == "style":
        answer[count // 3 :] = IGNORED
    return answer


def train_judge(
    network: PreTrainedModel,
    autoencoder: AutoencoderKL,
    facts: Sequence[Facts],
    bank: Tensor,
    *,
    steps: int,
    batch: int,
    rate: float,
    seed: int,
    report: Report,
) -> Curve:
    """Cross-entropy per head on ``bank`` (n, 3, 64, 64), its round trips, and nonsense, all augmented with noise."""
    random = torch.Generator().manual_seed(seed)
    truth = labels(facts)
    half = len(bank) // 2
    latents = encode(autoencoder, bank[:half])
    # A little noise in the latents: what a denoiser draws is not what an encoder says.
    jitter = torch.randn(latents.shape, generator=random) * 0.3 * torch.rand(half, 1, 1, 1, generator=random)
    trips = decode(autoencoder, latents + jitter)
    empty = nonsense(autoencoder, latents[: half // 2], random)
    pictures = torch.cat([bank, trips, empty])
    told = {
        head: torch.cat([answer, answer[:half], nonsense_answers(head, len(empty))]) for head, answer in truth.items()
    }
    sizes = [len(choices) for choices in HEADS.values()]

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(pictures), (batch,), generator=random)
        seen = augmented(signed(pictures[chosen]), random)
        with computing(network.device):
            logits = network(pixel_values=seen.to(network.device)).logits.float()
        parts = [
            cross_entropy(part, told[head][chosen].to(network.device), ignore_index=IGNORED, label_smoothing=0.02)
            for head, part in zip(HEADS, logits.split(sizes, dim=-1), strict=True)
        ]
        return torch.stack(parts).sum()

    network.train()
    curve = optimise(
        "judge", [network], loss_of, steps=steps, rate=rate, weight_decay=0.05, average=0.99, report=report
    )
    network.eval()
    return curve


def augmented(pictures: Tensor, random: torch.Generator) -> Tensor:
    """Half of the pictures with noise, a change of brightness, or blurred; values stay in [-1, 1]."""
    count = len(pictures)
    shape = (count, 1, 1, 1)
    noise = torch.randn(pictures.shape, generator=random) * 0.25 * torch.rand(shape, generator=random)
    bright = 0.15 * torch.randn(shape, generator=random)
    blurred = interpolate(interpolate(pictures, scale_factor=0.5, mode="area"), scale_factor=2, mode="bilinear")
    soft = torch.where(torch.rand(shape, generator=random) < 0.12, blurred, pictures)
    changed = torch.where(torch.rand(shape, generator=random) < 0.5, soft + noise + bright, soft)
    return changed.clamp(-1, 1)


def thresholds(scores: Tensor, truth: dict[str, Tensor], nothing: Tensor) -> dict[str, float]:
    """Label -> the least score, 0.5 or more, that at most ``FALSE_ALARMS`` of the pictures without it reach.

    ``scores`` (n, labels) are of pictures with known ``truth``; ``nothing`` (m, labels) of pictures of nothing.
    """
    told = {}
    for number, label in enumerate(LABELS):
        head, answer = label.split("/")
        without = truth[head] != HEADS[head].index(answer)
        void = nonsense_answers(head, len(nothing)) != IGNORED
        negatives = torch.cat([scores[without, number], nothing[void, number]]).double()
        told[label] = max(0.5, round(float(negatives.quantile(1 - FALSE_ALARMS)) + 5e-5, 4))
    return told


def save_judge(network: PreTrainedModel, told: dict[str, float], folder: Path) -> None:
    """Writes the judge in the standard way, in half precision, with its thresholds."""
    network.half().save_pretrained(folder)
    (folder / "thresholds.json").write_text(json.dumps(told, indent=1) + "\n")
