"""Generated against rendered pictures, and how well the judges agree."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchmetrics.image.kid import KernelInceptionDistance

from palimpsest.judges.miniature import Classifier, as_tensor
from palimpsest.miniature.captions import caption
from palimpsest.miniature.pictures import imagine_many, render_many
from palimpsest.utility.clip_score import clip_cosines
from palimpsest.utility.features import Network
from sections.bench import SEED, Bench, answered, table


def quality(bench: Bench) -> None:
    """Generated against rendered pictures, and how well the judges agree."""
    if not bench.drawn:
        facts = imagine_many(bench.n * 8, SEED + 4)
        bench.draw([caption(one, np.random.default_rng(one.seed), filler_share=0) for one in facts])
    generated = as_tensor(bench.drawn)
    # Evenly over what was drawn, which comes kind by kind: among photos alone, kappa of the style means nothing.
    some = [bench.drawn[place] for place in np.linspace(0, len(bench.drawn) - 1, min(500, len(bench.drawn)), dtype=int)]
    rows = []
    for name, pictures in (("generations", generated), ("corrupted generations", _corrupted(some))):
        for head in ("object", "style", "identity", "content"):
            first, second = (answered(judge, pictures, head) for judge in (bench.chief, bench.second))
            rows.append([f"{head}, {name}", f"{kappa(first, second):.3f}", str(len(first)), ">= 0.9"])
    table("Agreement of the two judges (Cohen's kappa)", ["", "kappa", "n", "bar"], rows)
    bench.told["kappa"] = rows

    facts = imagine_many(len(generated), SEED + 5)
    random = np.random.default_rng(SEED)
    texts = [caption(one, random, filler_share=0) for one in facts]
    drawn = as_tensor(bench.draw(texts[: bench.n * 16], keep=False))
    rendered = render_many(facts)
    distance = KernelInceptionDistance(feature=Features(bench.chief), subset_size=min(100, len(drawn)), normalize=False)
    distance.update(rendered[: len(drawn)], real=True)
    distance.update(drawn, real=False)
    mean, spread = distance.compute()
    scores = {
        name: clip_score(pictures, texts[: len(drawn)])
        for name, pictures in (("generated", drawn), ("rendered", rendered[: len(drawn)]))
    }
    scores["rendered, captions shuffled"] = clip_score(rendered[: len(drawn)], texts[: len(drawn)][::-1])
    rows = [
        ["KID, generated to rendered (features of the first judge)", f"{mean:.4f} +- {spread:.4f}", str(len(drawn))]
    ]
    rows += [[f"CLIP score, {name}", f"{value:.3f}", str(len(drawn))] for name, value in scores.items()]
    table("Generated against rendered", ["", "value", "n"], rows)
    bench.told["generated against rendered"] = rows


class Features(torch.nn.Module):
    """The first judge's pooled features, (n, 160), for uint8 pictures."""

    def __init__(self, judge: Classifier) -> None:
        super().__init__()
        self.body = judge.network.base_model

    def forward(self, pictures: Tensor) -> Tensor:
        pooled: Tensor = self.body(pixel_values=pictures.float() / 127.5 - 1).pooler_output
        return pooled.flatten(1)


def _corrupted(pictures: Sequence[Image.Image]) -> Tensor:
    random = np.random.default_rng(SEED)
    made = []
    for number, picture in enumerate(pictures):
        if number % 3 == 0:
            picture = picture.filter(ImageFilter.GaussianBlur(1.0))
        elif number % 3 == 1:
            noisy = np.asarray(picture, np.float32) + random.normal(0, 20, (64, 64, 3))
            picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        else:
            picture = Image.fromarray((np.asarray(picture, np.float32) * 0.8 + 20).astype(np.uint8))
        made.append(picture)
    return as_tensor(made)


def kappa(first: Sequence[str], second: Sequence[str]) -> float:
    """Cohen's kappa: agreement beyond chance."""
    agreed = np.mean([a == b for a, b in zip(first, second, strict=True)])
    chance = sum(first.count(name) * second.count(name) for name in set(first)) / len(first) ** 2
    return 1.0 if chance == 1 else float((agreed - chance) / (1 - chance))


def clip_score(pictures: Tensor, texts: list[str]) -> float:
    """Mean cosine between pictures and their captions, by the miniature's CLIP."""
    plain = [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in pictures]
    return float(clip_cosines(Network(measure="clip_score", source="miniature"), plain, texts).mean())
