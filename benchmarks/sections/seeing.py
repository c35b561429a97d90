"""How well the judges see."""

from dataclasses import replace

import numpy as np
import torch

from palimpsest.judges.miniature import as_tensor
from palimpsest.miniature.autoencoder import encode
from palimpsest.miniature.captions import plain
from palimpsest.miniature.denoiser import new_denoiser, train_denoiser
from palimpsest.miniature.facts import CONTENT, HEADS, IDENTITIES, OBJECTS, answers, imagine, kind_of
from palimpsest.miniature.pictures import imagine_many, render_many
from palimpsest.model import Model
from palimpsest.records import Attempt
from sections.bench import SEED, Bench, Row, answered


def judges(bench: Bench) -> None:
    """The judges on renders that they never saw."""
    facts = imagine_many(200 if bench.quick else 10_000, SEED)
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


def alarms(bench: Bench) -> None:
    """How often the judges see what is not there."""
    many = 32 if bench.quick else 5_000
    few = 8 if bench.quick else 640
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
    astray = as_tensor(bench.model.draw(attempts, bench.short, tensors=tensors))
    told = [imagine(random) for _ in range(few)]
    asked = [Attempt(prompt=plain(one), seed=SEED + i) for i, one in enumerate(told)]
    wrecked, young = (
        as_tensor(model.draw(asked, bench.short))
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
    facts = imagine_many(200 if quick else 8_000, SEED + 6)
    latents = encode(model.vae, render_many(facts))
    torch.manual_seed(SEED)
    young = new_denoiser()
    train_denoiser(
        young,
        model.text_encoder,
        model.tokenizer,
        facts,
        latents,
        steps=1 if quick else 150,
        batch=128,
        rate=1.2e-3,
        flat=1.0,
        seed=SEED,
        report=lambda *_: None,
    )
    return model.with_weights({f"unet.{name}": weight for name, weight in young.named_parameters()})
