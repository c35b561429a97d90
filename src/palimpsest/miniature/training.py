"""The recipe: every leg of the miniature's training, in order, each continuing from the folders of those before it.

A leg takes at most 40 minutes on two CPU cores. It ends by writing its folder, with ``leg.json`` last, so that a leg
without that file starts again and a leg with it is never done twice.
"""

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from palimpsest.assets import sha256, write_checksums
from palimpsest.errors import BadRun
from palimpsest.judges.miniature import by_head
from palimpsest.miniature.autoencoder import encode, new_autoencoder, train_autoencoder
from palimpsest.miniature.clip import acquaint, labels, new_clip, new_processor, train_clip
from palimpsest.miniature.denoiser import new_denoiser, new_scheduler, train_denoiser
from palimpsest.miniature.facts import FIXED
from palimpsest.miniature.judging import LABELS, new_judge, nonsense, save_judge, thresholds, train_judge
from palimpsest.miniature.optimise import Curve, Report
from palimpsest.miniature.pictures import imagine_many, render_many, signed
from palimpsest.miniature.vocabulary import new_tokenizer
from palimpsest.records import digest


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How long and how wide each leg is; with the seeds in the legs, it fixes the weights on one kind of machine."""

    autoencoder_pictures: int = 30_000
    autoencoder_steps: int = 2_600
    autoencoder_batch: int = 32
    clip_pictures: int = 24_000
    clip_steps: int = 900
    word_steps: int = 250
    clip_batch: int = 256
    """Of the words, too."""
    judge_pictures: int = 16_000
    judge_steps: int = 1_600
    judge_batch: int = 96
    denoiser_pictures: int = 40_000
    denoiser_steps: tuple[int, int] = (1_800, 800)
    """At full rate, and falling to zero."""
    denoiser_batch: int = 128
    """Of the sparse leg and the twin, too."""
    sparse_pictures: int = 12_000
    sparse_steps: int = 240
    twin_steps: int = 1_000


def _compare(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key in wanted.keys() | found.keys():
        if found.get(key) != wanted.get(key):
            raise BadRun(
                f"{folder} holds another recipe: expected {key} {wanted.get(key)}, got {found.get(key)}; "
                "choose another folder"
            )


class Workshop:
    """One training folder: what the legs have written, and where the next one writes."""

    def __init__(self, folder: Path, recipe: Recipe, device: str, report: Report) -> None:
        """Raises ``BadRun`` if the folder holds another recipe."""
        self.folder, self.recipe, self.report = folder, recipe, report
        self.device = torch.device(device)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "recipe.json"
        wanted = json.loads(json.dumps(dataclasses.asdict(recipe)))
        if path.exists():
            _compare(folder, json.loads(path.read_text()), wanted)
        path.write_text(json.dumps(wanted, indent=1))

    def done(self, leg: str) -> bool:
        """Whether the leg was finished; raises ``BadRun`` if a file of it has changed since."""
        path = self.folder / leg / "leg.json"
        if not path.exists():
            return False
        for name, wanted in json.loads(path.read_text())["files"].items():
            file = self.folder / leg / name
            if not file.is_file() or sha256(file) != wanted:
                raise BadRun(f"{file} is missing or damaged; delete {file.parent} to train this leg again")
        return True

    def finish(self, leg: str, write: Callable[[Path], None], curves: list[Curve]) -> None:
        """Writes the leg's folder beside its place and moves it there whole."""
        place = self.folder / leg
        with tempfile.TemporaryDirectory(dir=self.folder) as draft:
            made = Path(draft) / leg
            made.mkdir()
            write(made)
            files = {
                path.relative_to(made).as_posix(): sha256(path) for path in sorted(made.rglob("*")) if path.is_file()
            }
            told = {
                "recipe": digest(dataclasses.asdict(self.recipe)),
                "files": files,
                "threads": torch.get_num_threads(),
            }
            told |= {"curves": [dataclasses.asdict(curve) for curve in curves]}
            (made / "leg.json").write_text(json.dumps(told))
            shutil.rmtree(place, ignore_errors=True)
            os.replace(made, place)

    def tokenizer(self) -> CLIPTokenizer:
        """Of the leg ``clip``."""
        return CLIPTokenizer.from_pretrained(self.folder / "clip" / "tokenizer")

    def clip(self, leg: str) -> CLIPModel:
        """Of the leg ``clip`` or ``words``."""
        return CLIPModel.from_pretrained(self.folder / leg).eval().to(self.device)

    def autoencoder(self) -> AutoencoderKL:
        """Of the leg ``autoencoder``."""
        network = AutoencoderKL.from_pretrained(self.folder / "autoencoder").eval().to(self.device)
        # Where it was trained is nobody's business once it is shipped.
        network.register_to_config(_name_or_path="")
        return network

    def denoiser(self, leg: str) -> UNet2DConditionModel:
        """Of the leg ``leg``, with the attention that trains fastest."""
        network = UNet2DConditionModel.from_pretrained(self.folder / leg).to(self.device)
        network.register_to_config(_name_or_path="")
        network.set_attn_processor(AttnProcessor())
        return network


def _autoencoder(shop: Workshop) -> None:
    bank = render_many(imagine_many(shop.recipe.autoencoder_pictures, 1))
    torch.manual_seed(11)
    network = new_autoencoder().to(shop.device)
    steps = shop.recipe.autoencoder_steps
    curve = train_autoencoder(
        network, bank, steps=steps, batch=shop.recipe.autoencoder_batch, rate=1.5e-3, seed=12, report=shop.report
    )
    shop.finish("autoencoder", lambda place: network.save_pretrained(place), [curve])


def _clip(shop: Workshop) -> None:
    tokenizer = new_tokenizer()
    facts = imagine_many(shop.recipe.clip_pictures, 22)
    torch.manual_seed(23)
    network = new_clip(tokenizer).to(shop.device)
    curve = train_clip(
        network,
        tokenizer,
        facts,
        render_many(facts),
        steps=shop.recipe.clip_steps,
        batch=shop.recipe.clip_batch,
        rate=1e-3,
        seed=24,
        report=shop.report,
    )

    def write(place: Path) -> None:
        network.save_pretrained(place)
        tokenizer.save_pretrained(place / "tokenizer")

    shop.finish("clip", write, [curve])


def _words(shop: Workshop) -> None:
    facts = imagine_many(shop.recipe.clip_pictures, 25)
    network = shop.clip("clip")
    curve = acquaint(
        network,
        shop.tokenizer(),
        facts,
        render_many(facts),
        steps=shop.recipe.word_steps,
        batch=shop.recipe.clip_batch,
        rate=3e-4,
        seed=26,
        report=shop.report,
    )
    shop.finish("words", lambda place: network.save_pretrained(place), [curve])


def _judges(shop: Workshop) -> None:
    autoencoder = shop.autoencoder()
    made, curves = {}, []
    for which, seed in (("first", 41), ("second", 51)):
        facts = imagine_many(shop.recipe.judge_pictures, seed)
        torch.manual_seed(seed + 1)
        network = new_judge(which).to(shop.device)
        curves.append(
            train_judge(
                network,
                autoencoder,
                facts,
                render_many(facts),
                steps=shop.recipe.judge_steps,
                batch=shop.recipe.judge_batch,
                rate=2e-3,
                seed=seed + 2,
                report=shop.report,
            )
        )
        made[which] = network, _calibrated(shop, network, autoencoder, seed + 3)

    def write(place: Path) -> None:
        for which, (network, told) in made.items():
            save_judge(network, told, place / which)

    shop.finish("judges", write, curves)


@torch.no_grad()
def _calibrated(shop: Workshop, network: Any, autoencoder: AutoencoderKL, seed: int) -> dict[str, float]:
    facts = imagine_many(max(64, shop.recipe.judge_pictures // 2), seed)
    bank = render_many(facts)
    nothing = nonsense(autoencoder, encode(autoencoder, bank), torch.Generator().manual_seed(seed))

    def seen(pictures: Tensor) -> Tensor:
        parts = [network(pixel_values=signed(part).to(shop.device)).logits.cpu() for part in pictures.split(256)]
        return by_head(torch.cat(parts), LABELS)

    return thresholds(seen(bank), labels(facts), seen(nothing))


def _denoise(
    shop: Workshop,
    leg: str,
    network: UNet2DConditionModel,
    *,
    steps: int,
    flat: float,
    seed: int,
    rate: float = 1.2e-3,
    pictures: int | None = None,
    without: frozenset[str] = frozenset(),
    sparsity: float = 0.0,
) -> None:
    facts = imagine_many(pictures or shop.recipe.denoiser_pictures, 31, without=without)
    latents = encode(shop.autoencoder(), render_many(facts)).cpu()
    curve = train_denoiser(
        network.to(shop.device),
        shop.clip("clip").text_model,
        shop.tokenizer(),
        facts,
        latents,
        steps=steps,
        batch=shop.recipe.denoiser_batch,
        rate=rate,
        flat=flat,
        seed=seed,
        sparsity=sparsity,
        report=shop.report,
    )
    shop.finish(leg, lambda place: network.save_pretrained(place), [curve])


def _denoiser_1(shop: Workshop) -> None:
    torch.manual_seed(32)
    _denoise(shop, "denoiser_1", new_denoiser(), steps=shop.recipe.denoiser_steps[0], flat=1.0, seed=33)


def _denoiser_2(shop: Workshop) -> None:
    _denoise(shop, "denoiser_2", shop.denoiser("denoiser_1"), steps=shop.recipe.denoiser_steps[1], flat=0.0, seed=34)


def _denoiser_3(shop: Workshop) -> None:
    _denoise(
        shop,
        "denoiser_3",
        shop.denoiser("denoiser_2"),
        steps=shop.recipe.sparse_steps,
        pictures=shop.recipe.sparse_pictures,
        rate=8e-4,
        flat=0.2,
        seed=5,
        sparsity=0.05,
    )


def _twin(shop: Workshop) -> None:
    torch.manual_seed(35)
    steps = shop.recipe.twin_steps
    _denoise(shop, "twin", new_denoiser(), steps=steps, flat=0.4, seed=36, without=frozenset(FIXED))


LEGS: dict[str, Callable[[Workshop], None]] = {
    "autoencoder": _autoencoder,
    "clip": _clip,
    "denoiser_1": _denoiser_1,
    "denoiser_2": _denoiser_2,
    "denoiser_3": _denoiser_3,
    "words": _words,
    "judges": _judges,
    "twin": _twin,
}


def train(folder: Path, *, recipe: Recipe, device: str, legs: int | None, report: Report) -> list[str]:
    """Trains what is not yet done, at most ``legs`` legs (None: all), and returns their names.

    Raises ``BadRun`` for a folder of another recipe or a damaged leg.
    """
    shop = Workshop(folder, recipe, device, report)
    trained: list[str] = []
    for leg, work in LEGS.items():
        if shop.done(leg):
            continue
        if legs is not None and len(trained) >= legs:
            break
        work(shop)
        trained.append(leg)
    return trained


def assemble(folder: Path, out: Path, *, recipe: Recipe) -> None:
    """Writes the shipped files: the pipeline, the twin, the CLIP and the judges, in half precision, with checksums.

    The text encoder stays in full precision: transformers keeps the stored type while diffusers widens its own
    parts, so that a narrower one would not fit them when the folder is opened plainly.
    """
    shop = Workshop(folder, recipe, "cpu", lambda *_: None)
    missing = [leg for leg in LEGS if not shop.done(leg)]
    if missing:
        raise BadRun(f"{folder} is not trained to the end: {', '.join(missing)} are missing; run train-miniature again")
    # A pipeline in memory is not widened again, so each part keeps the type in which it is to be stored.
    pipeline = StableDiffusionPipeline(
        vae=shop.autoencoder().half(),
        text_encoder=shop.clip("words").text_model,
        tokenizer=shop.tokenizer(),
        unet=shop.denoiser("denoiser_3").half(),
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(out / "model", max_shard_size="10MB")
    shop.denoiser("twin").half().save_pretrained(out / "twin", max_shard_size="10MB")
    shop.clip("words").half().save_pretrained(out / "clip")
    shop.tokenizer().save_pretrained(out / "clip")
    new_processor().save_pretrained(out / "clip")
    for which in ("first", "second"):
        shutil.copytree(folder / "judges" / which, out / "judges" / which, dirs_exist_ok=True)
    write_checksums(out)
