"""What the miniature knows, how well its judges see, how fast it is: every figure of its card.

    python benchmarks/miniature.py [--quick] [--json FILE] [--only SECTION,...]

Sections: judges, model, vocabulary, words, alarms, quality, determinism, speed.

``--quick`` takes few pictures per row and is no result. Seeds of this file occur nowhere in training or calibration.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchmetrics.image.kid import KernelInceptionDistance
from transformers import CLIPModel

from palimpsest.assets import clip_folder
from palimpsest.judges.miniature import Classifier, as_tensor, classifier
from palimpsest.miniature.autoencoder import encode
from palimpsest.miniature.captions import caption, filler, plain
from palimpsest.miniature.clip import captions_for, pixel_values
from palimpsest.miniature.denoiser import new_denoiser, train_denoiser
from palimpsest.miniature.facts import (
    COLOURS,
    CONTENT,
    FIXED,
    HEADS,
    IDENTITIES,
    OBJECTS,
    SCENES,
    STYLES,
    Facts,
    answers,
    held_out,
    imagine,
    kind_of,
)
from palimpsest.miniature.goals import concept_record, synonym_prompts
from palimpsest.miniature.pictures import imagine_many, render_many
from palimpsest.miniature.training import Recipe
from palimpsest.miniature.vocabulary import encode_text, meaningless, scattered
from palimpsest.model import Model, Probe, Sampling
from palimpsest.records import Attempt
from palimpsest.stats import wilson

SAMPLING = Sampling(scheduler="ddim", steps=25, guidance=5.0)
SHORT = Sampling(scheduler="ddim", steps=10, guidance=5.0)
SEED = 900_000


@dataclass(frozen=True)
class Row:
    """One line of the tables."""

    what: str
    k: int
    n: int
    bar: str = ""

    @property
    def cells(self) -> list[str]:
        low, high = wilson(self.k, self.n)
        share = f"{100 * self.k / self.n:.2f} %"
        return [self.what, share, f"{100 * low:.2f}-{100 * high:.2f}", f"{self.k}/{self.n}", self.bar]


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"\n### {title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


class Bench:
    """The model, its judges, and what has been drawn."""

    def __init__(self, quick: bool) -> None:
        self.quick = quick
        self.n = 8 if quick else 64
        self.model = Model.load("miniature", precision="bf16", batch=32)
        self.chief, self.second = classifier("first"), classifier("second")
        self.told: dict[str, object] = {}
        self.drawn: list[Image.Image] = []
        self.asked: list[str] = []

    def rows(self, title: str, rows: list[Row]) -> None:
        table(title, ["", "share", "95 % interval", "k/n", "bar"], [row.cells for row in rows])
        self.told[title] = [row.__dict__ for row in rows]

    def draw(self, prompts: Sequence[str], *, model: Model | None = None, keep: bool = True) -> list[Image.Image]:
        attempts = [Attempt(prompt=prompt, seed=SEED + number) for number, prompt in enumerate(prompts)]
        pictures = (model or self.model).draw(attempts, SAMPLING)
        if keep:
            self.drawn += pictures
            self.asked += prompts
        return pictures


def shown(judge: Classifier, pictures: Sequence[Image.Image] | Tensor, label: str) -> np.ndarray:
    tensor = pictures if isinstance(pictures, Tensor) else as_tensor(pictures)
    scores = judge.probabilities(tensor)[:, judge.labels.index(label)]
    return (scores >= judge.thresholds[label]).numpy()


def answered(judge: Classifier, pictures: Sequence[Image.Image] | Tensor, head: str) -> list[str]:
    tensor = pictures if isinstance(pictures, Tensor) else as_tensor(pictures)
    columns = [number for number, label in enumerate(judge.labels) if label.startswith(f"{head}/")]
    best = judge.probabilities(tensor)[:, columns].argmax(-1)
    return [HEADS[head][number] for number in best]


def judges(bench: Bench) -> None:
    """The judges on renders that they never saw."""
    facts = imagine_many(500 if bench.quick else 10_000, SEED)
    bank = render_many(facts)
    truth = [answers(one) for one in facts]
    for name, judge in (("first", bench.chief), ("second", bench.second)):
        rows = []
        for head in HEADS:
            seen = answered(judge, bank, head)
            for which, bar in (("photo", ">= 99 %"), ("all styles", ">= 96 %")):
                if head in ("style", "colour", "scene") and which == "photo":
                    continue
                bar = {"style": ">= 99 %", "colour": ">= 95 %", "scene": ""}.get(head, bar)
                chosen = [i for i, one in enumerate(facts) if which != "photo" or one.style == "photo"]
                hits = sum(seen[i] == truth[i][head] for i in chosen)
                rows.append(Row(f"{head}, {which}", hits, len(chosen), bar))
        bench.rows(f"Judge {name} on renders", rows)


def model(bench: Bench) -> None:
    """What the model draws when it is asked plainly."""
    rows, colours, scenes = [], [0, 0], [0, 0]
    for head, names, bar in (
        ("object", tuple(OBJECTS), ">= 80 %, mean 90 %"),
        ("identity", tuple(IDENTITIES), ">= 90 %"),
        ("style", tuple(STYLES), ">= 95 %"),
    ):
        means = []
        for name in names:
            prompts = list(islice(cycle(concept_record(name).prompts), bench.n))
            pictures = bench.draw(prompts)
            hits = shown(bench.chief, pictures, f"{head}/{name}")
            rows.append(Row(f"{head}: {name}", int(hits.sum()), len(hits), bar))
            means.append(hits.mean())
            if head == "object":
                _count(answered(bench.chief, pictures, "colour"), prompts, {f" {c} ": c for c in COLOURS}, colours)
                _count(answered(bench.chief, pictures, "scene"), prompts, {SCENES[s][0]: s for s in SCENES}, scenes)
        bench.told[f"mean {head}"] = float(np.mean(means))
        print(f"mean over {head}: {100 * np.mean(means):.1f} %", flush=True)
    record = concept_record("radiation sign")
    for which, start, bar in (("by name", 0, ">= 95 %"), ("by implication", 1, ">= 75 %")):
        prompts = list(islice(cycle(record.prompts[start::2]), bench.n))
        hits = shown(bench.chief, bench.draw(prompts), "content/radiation sign")
        rows.append(Row(f"content: {record.name} {which}", int(hits.sum()), len(hits), bar))
    rows.append(Row("colour named", *colours, ">= 85 %"))
    rows.append(Row("scene named", *scenes, ">= 85 %"))
    bench.rows("The model, asked plainly", rows)

    rows = []
    for name in (*OBJECTS, *CONTENT):
        for synonym, prompts in synonym_prompts(name).items():
            hits = shown(bench.chief, bench.draw(list(islice(cycle(prompts), bench.n))), f"{kind_of(name)}/{name}")
            rows.append(Row(f"{name}: {synonym}", int(hits.sum()), len(hits), ">= 75 %"))
    bench.rows("Synonyms", rows)

    random = np.random.default_rng(SEED)
    combinations = [(o, s, c) for o in OBJECTS for s in STYLES for c in COLOURS if held_out(o, s, c)]
    told = [combinations[i] for i in random.integers(len(combinations), size=2 * bench.n)]
    facts = [Facts(subject=o, style=s, colour=c) for o, s, c in told]
    pictures = bench.draw([plain(one) for one in facts])
    good = [
        all(seen == answers(one)[head] for seen, head in zip(triple, ("object", "style", "colour"), strict=True))
        for one, *triple in zip(
            facts, *(answered(bench.chief, pictures, head) for head in ("object", "style", "colour")), strict=True
        )
    ]
    bench.rows(
        "Combinations of object, style and colour held out of training",
        [Row("all three right", sum(good), len(good), ">= 70 %")],
    )


def _count(seen: list[str], prompts: list[str], named: dict[str, str], into: list[int]) -> None:
    for answer, prompt in zip(seen, prompts, strict=True):
        for phrase, name in named.items():
            if phrase in f"{prompt} ":
                into[0] += answer == name
                into[1] += 1


def vocabulary(bench: Bench) -> None:
    """How often each token occurs in the captions of the training, drawn again as the legs draw them (no murmurs)."""
    recipe, tokenizer = Recipe(), bench.model.tokenizer
    tokens, end = meaningless(tokenizer), tokenizer.eos_token_id
    counts = torch.zeros(len(tokenizer), dtype=torch.int64)

    def count(facts: list[Facts], random: np.random.Generator, *, steps: int, batch: int, share: float) -> None:
        for _ in range(20 if bench.quick else steps):
            told = [facts[number] for number in random.integers(len(facts), size=batch)]
            ids = scattered(encode_text(tokenizer, captions_for(told, random)), tokens, random, share=share, end=end)
            counts.add_(torch.bincount(ids.flatten(), minlength=len(tokenizer)))

    rows = []
    facts = imagine_many(recipe.clip_pictures, 22)
    count(facts, np.random.default_rng(24), steps=recipe.clip_steps, batch=256, share=0.4)
    rows.append(Row("tokens seen >= 200 times by the CLIP", int((counts >= 200).sum()), len(counts), ">= 95 %"))
    facts = imagine_many(recipe.denoiser_pictures, 31)
    for seed, steps in zip((33, 34), recipe.denoiser_steps, strict=True):
        count(facts, np.random.default_rng(seed), steps=steps, batch=128, share=0.25)
    rows.append(Row("tokens seen >= 200 times by CLIP or denoiser", int((counts >= 200).sum()), len(counts)))
    bench.rows("Vocabulary", rows)


def words(bench: Bench) -> None:
    """What words mean that mean nothing."""
    tokenizer = bench.model.tokenizer
    tokens, rows = meaningless(tokenizer), []
    random = np.random.default_rng(SEED + 1)
    for name in FIXED:
        label = f"{kind_of(name)}/{name}"
        prompts = list(islice(cycle(concept_record(name).prompts), bench.n))
        before = int(shown(bench.chief, bench.draw(prompts, keep=False), label).sum())
        prefixed = [f"{' '.join(random.choice(filler(), size=3))} {prompt}" for prompt in prompts]
        after = int(shown(bench.chief, bench.draw(prefixed, keep=False), label).sum())
        rows.append(
            Row(
                f"{name}, three filler words before ({before}/{len(prompts)} without)",
                after,
                len(prompts),
                "-10 points",
            )
        )
    alone = [tokenizer.decode(tokens[random.integers(len(tokens), size=3)]) for _ in range(8 * bench.n)]
    pictures = bench.draw(alone, keep=False)
    for name in FIXED:
        hits = shown(bench.chief, pictures, f"{kind_of(name)}/{name}")
        rows.append(Row(f"three random tokens alone: {name}", int(hits.sum()), len(hits), "<= 1 %"))
    bench.rows("Words", rows)


def alarms(bench: Bench) -> None:
    """How often the judges see what is not there."""
    many = 200 if bench.quick else 5_000
    few = 64 if bench.quick else 640
    random = np.random.default_rng(SEED + 2)
    drawing = torch.Generator().manual_seed(SEED)
    empty = render_many([replace(imagine(random), subject=None, colour=None) for _ in range(many)])
    facts = imagine_many(4 * many, SEED + 3)
    others = render_many(facts)
    noise = torch.randn(many, *bench.model.latent_shape, generator=drawing)
    decoded = as_tensor([picture for part in noise.split(64) for picture in bench.model.decode(part)])
    width = bench.model.vocabulary.shape[1]
    tensors = {
        str(i): torch.randn(bench.model.context, width, generator=drawing) * bench.model.vocabulary.std()
        for i in range(few)
    }
    attempts = [Attempt(prompt="", seed=SEED + i, words=str(i)) for i in range(few)]
    astray = as_tensor(bench.model.draw(attempts, SHORT, tensors=tensors))
    told = [imagine(random) for _ in range(few)]
    asked = [Attempt(prompt=plain(one), seed=SEED + i) for i, one in enumerate(told)]
    wrecked, young = (
        as_tensor(model.draw(asked, SHORT))
        for model in (_wrecked(bench.model), _half_trained(bench.model, bench.quick))
    )
    truth = [answers(one) for one in facts]
    pictures = {
        "other concepts": others,
        "noise": decoded,
        "random embeddings": astray,
        "wrecked model": wrecked,
        "half-trained model": young,
        "empty scenes": empty,
    }
    for which, judge in (("first", bench.chief), ("second", bench.second)):
        scores = {place: judge.probabilities(several) for place, several in pictures.items()}
        rows = []
        for label in (f"{kind_of(name)}/{name}" for name in (*OBJECTS, *IDENTITIES, *CONTENT, "van gogh")):
            head, name = label.split("/")
            unasked = torch.tensor([answers(one)[head] != name for one in told])
            innocent = {
                "other concepts": torch.tensor([one[head] != name for one in truth]),
                "wrecked model": unasked,
                "half-trained model": unasked,
            }
            column = judge.labels.index(label)
            seen = {
                place: (found[innocent.get(place, slice(None)), column] >= judge.thresholds[label]).numpy()
                for place, found in scores.items()
                if head != "style" or place != "empty scenes"
            }
            hits = np.concatenate(list(seen.values()))
            where = ", ".join(
                f"{place} {int(found.sum())}/{len(found)}" for place, found in seen.items() if found.any()
            )
            rows.append(Row(f"{label} ({where})" if where else label, int(hits.sum()), len(hits), "<= 0.2 %"))
        bench.rows(f"False alarms of the judge {which}", rows)


def _wrecked(model: Model) -> Model:
    """The model with its denoiser's weights half lost in noise."""
    random = torch.Generator().manual_seed(SEED)
    changed = {
        name: value + value.std() * torch.randn(value.shape, generator=random)
        for name, value in model.weights(r"unet\..*weight").items()
        if value.ndim > 1
    }
    return model.with_weights(changed)


def _half_trained(model: Model, quick: bool) -> Model:
    """A denoiser that has learnt for a short while: it draws shapes, and seldom those that it is asked for."""
    facts = imagine_many(400 if quick else 8_000, SEED + 6)
    latents = encode(model.vae, render_many(facts))
    torch.manual_seed(SEED)
    young = new_denoiser()
    train_denoiser(
        young,
        model.text_encoder,
        model.tokenizer,
        facts,
        latents,
        steps=5 if quick else 150,
        batch=128,
        rate=1.2e-3,
        flat=1.0,
        seed=SEED,
        report=lambda *_: None,
    )
    return model.with_weights({f"unet.{name}": weight for name, weight in young.named_parameters()})


def quality(bench: Bench) -> None:
    """Generated against rendered pictures, and how well the judges agree."""
    if not bench.drawn:
        facts = imagine_many(bench.n * 8, SEED + 4)
        bench.draw([caption(one, np.random.default_rng(one.seed), filler_share=0) for one in facts])
    generated = as_tensor(bench.drawn)
    rows = []
    for name, pictures in (("generations", generated), ("corrupted generations", _corrupted(bench.drawn[:500]))):
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
    clip, tokenizer = CLIPModel.from_pretrained(clip_folder(), dtype=torch.float32).eval(), bench.model.tokenizer
    scores = {
        name: clip_score(clip, tokenizer, pictures, texts[: len(drawn)])
        for name, pictures in (("generated", drawn), ("rendered", rendered[: len(drawn)]))
    }
    scores["rendered, captions shuffled"] = clip_score(
        clip, tokenizer, rendered[: len(drawn)], texts[: len(drawn)][::-1]
    )
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


@torch.no_grad()
def clip_score(clip: CLIPModel, tokenizer: object, pictures: Tensor, texts: list[str]) -> float:
    """Mean cosine between pictures and their captions."""
    output = clip(input_ids=encode_text(tokenizer, texts), pixel_values=pixel_values(pictures))
    cosine = torch.nn.functional.cosine_similarity(output.image_embeds, output.text_embeds)
    return float(cosine.mean())


def speed(bench: Bench) -> None:
    """Pictures and probes per second."""
    rows = []
    for precision in ("fp32", "bf16"):
        for batch in (1, 8, 32):
            model = Model.load("miniature", precision=precision, batch=batch)
            attempts = [Attempt(prompt="a photo of a red church", seed=i) for i in range(batch)]
            model.draw(attempts[:1], SHORT)
            pictures = _rate(partial(model.draw, attempts, SAMPLING), batch)
            tokens = model.tokens("a photo of a red church")
            noise = torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(0))
            probes = [
                Probe(tokens=tokens, latents=noise, step=500, loss=lambda said, _: said.square().mean(), wrt="words")
                for _ in range(batch)
            ]
            asked = _rate(partial(model.ask, probes), batch)
            rows.append([precision, str(batch), f"{pictures:.1f}", f"{asked:.1f}"])
    table("Speed", ["precision", "batch", "pictures/s (25 steps, guidance)", "probes/s (forward and backward)"], rows)
    bench.told["speed"] = rows


def determinism(bench: Bench) -> None:
    """Whether a picture hangs on what else is in its batch, and how much on the batch's size."""
    wanted = [Attempt(prompt=concept_record(name).prompts[0], seed=SEED + i) for i, name in enumerate(FIXED)]
    strangers = [Attempt(prompt=concept_record(name).prompts[1], seed=i) for i, name in enumerate(OBJECTS)]
    rows = []
    for precision in ("fp32", "bf16"):
        bench.model.precision, bench.model.batch = precision, 32
        alone = as_tensor(bench.model.draw(wanted, SAMPLING)).float()
        among = as_tensor(bench.model.draw([*strangers, *wanted[::-1]], SAMPLING)).float()[len(strangers) :].flip(0)
        rows.append([f"{precision}: among others, in another order", f"{(alone - among).abs().mean() / 255:.6f}", "0"])
        for batch in (1, 8):
            bench.model.batch = batch
            other = as_tensor(bench.model.draw(wanted, SAMPLING)).float()
            difference = (alone - other).abs().mean() / 255
            rows.append([f"{precision}: batches of {batch} instead of 32", f"{difference:.6f}", "< 0.003922"])
    bench.model.precision, bench.model.batch = "bf16", 32
    table("Determinism", ["", f"mean difference of {len(wanted)} pictures (0 to 1)", "bar"], rows)
    bench.told["determinism"] = rows


def _rate(work: Callable[[], object], count: int) -> float:
    work()
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < 4:
        work()
        done += count
    return done / (time.perf_counter() - started)


SECTIONS = {
    "judges": judges,
    "model": model,
    "vocabulary": vocabulary,
    "words": words,
    "alarms": alarms,
    "quality": quality,
}
SECTIONS |= {"determinism": determinism, "speed": speed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few pictures per row; no result")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, with commas between")
    options = parser.parse_args()
    bench = Bench(options.quick)
    for name in options.only.split(","):
        started = time.perf_counter()
        SECTIONS[name](bench)
        print(f"\n({name}: {time.perf_counter() - started:.0f} s)", flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(bench.told, file, indent=1)


if __name__ == "__main__":
    main()
