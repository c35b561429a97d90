"""Opens pipelines that somebody else made, without running anything of theirs."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from palimpsest.assets import miniature_folder, twin_folder
from palimpsest.errors import BadModel
from palimpsest.model.screening import (
    LARGEST_SIDE,
    READ_ERRORS,
    first_line,
    read_json,
    reading,
    require_filled,
    screen,
    screen_weights,
)

ALLOWED: dict[str, dict[str, Any]] = {
    "unet": {"UNet2DConditionModel": UNet2DConditionModel},
    "text_encoder": {"CLIPTextModel": CLIPTextModel},
    "vae": {"AutoencoderKL": AutoencoderKL},
    "tokenizer": {"CLIPTokenizer": CLIPTokenizer, "CLIPTokenizerFast": CLIPTokenizer},
    "scheduler": {
        "DDIMScheduler": DDIMScheduler,
        "DPMSolverMultistepScheduler": DPMSolverMultistepScheduler,
        "EulerAncestralDiscreteScheduler": EulerAncestralDiscreteScheduler,
        "EulerDiscreteScheduler": EulerDiscreteScheduler,
        "LMSDiscreteScheduler": LMSDiscreteScheduler,
        "PNDMScheduler": PNDMScheduler,
    },
}
"""The classes that a folder may name; the safety checker and all else beside these parts is left unread."""
STEMS = {
    "unet": ("diffusion_pytorch_model",),
    "vae": ("diffusion_pytorch_model",),
    "text_encoder": ("model", "pytorch_model"),
}
ALONE: dict[str, str] = {
    "UNet2DConditionModel": "unet",
    "CLIPTextModel": "text_encoder",
    "CLIPTextModelWithProjection": "text_encoder",
    "CLIPModel": "text_encoder",
}
"""The part of a pipeline that a folder of one network holds, by the class that wrote it; of a CLIP its text half."""
CLIP_BESIDE_TEXT = re.compile(r"(vision_model|visual_projection|text_projection|logit_scale)(\..+)?")
"""What a CLIP holds beside the text encoder: Stable Diffusion has no use for it."""
TEXT_FACTS = ("hidden_act", "num_attention_heads", "num_hidden_layers", "layer_norm_eps")


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A pipeline taken apart."""

    unet: Any
    text_encoder: Any
    vae: Any
    tokenizer: Any
    scheduler: Any

    @staticmethod
    def of(pipeline: Any) -> "Parts":
        """The parts of a ``StableDiffusionPipeline``; its safety checker is left out."""
        return Parts(**{name: getattr(pipeline, name) for name in ALLOWED})


def open_twin(dtype: torch.dtype) -> Parts:
    """The miniature with the denoiser that never saw the six fixed concepts."""
    miniature = open_parts(miniature_folder(), dtype, download=False, config=None)
    folder = twin_folder()
    with quiet(), reading(f"unet of {folder}"):
        return replace(miniature, unet=_network(UNet2DConditionModel, "unet", folder, dtype))


def open_parts(source: str | Path, dtype: torch.dtype, *, download: bool, config: str | Path | None) -> Parts:
    """Opens a folder, a .safetensors file or a hub id, and checks what came out."""
    path = Path(source)
    with reading(str(source)):  # a name may be one that no file can have
        is_folder, is_file = path.is_dir(), path.is_file()
    if is_folder:
        parts = open_folder(path, dtype)
    elif path.suffix == ".safetensors" and is_file:
        parts = open_file(path, dtype, download=download, config=config)
    elif is_file:
        raise BadModel(f"expected a folder or a .safetensors file, got {path.name!r}: convert it to safetensors first")
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        parts = open_folder(fetch(str(source), download=download), dtype)
    else:
        raise BadModel(f"expected a folder, a .safetensors file or a hub id, found nothing at {str(source)!r}")
    check(parts, str(source))
    return parts


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' progress bars, and without their advice to those who wrote the files."""
    bars = [
        (log, log.is_progress_bar_enabled(), log.get_verbosity()) for log in (diffusers_logging, transformers_logging)
    ]
    for log, _, _ in bars:
        log.disable_progress_bar()
        log.set_verbosity_error()
    try:
        yield
    finally:
        for log, enabled, verbosity in bars:
            if enabled:
                log.enable_progress_bar()
            log.set_verbosity(verbosity)


def fetch(name: str, *, download: bool) -> Path:
    """The folder of a hub model: from the local cache, or with ``download`` from the network."""
    wanted = [f"{part}/*.{kind}" for part in ALLOWED for kind in ("json", "txt", "safetensors")]
    try:
        return Path(
            snapshot_download(
                name,
                allow_patterns=["model_index.json", *wanted],
                ignore_patterns=["*.fp16.*", "*.non_ema.*", "*flax*"],
                local_files_only=not download,
            )
        )
    except LocalEntryNotFoundError:
        raise BadModel(
            f"no folder {name!r} here and no copy of it in the hub's cache; allow the download with --download"
        ) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise BadModel(f"cannot fetch {name!r}: {first_line(error)}") from error


# Folders -------------------------------------------------------------------------------------------------------------


@quiet()
def open_folder(folder: Path, dtype: torch.dtype) -> Parts:
    """Opens a diffusers folder part by part: classes from a list, no code, no pickles of more than tensors."""
    classes = _classes(folder)
    screen(folder)
    opened: dict[str, Any] = {}
    for part, found in classes.items():
        where = folder / part
        if not where.is_dir():
            raise BadModel(f"{folder} has no {part!r} folder: expected {', '.join(ALLOWED)}")
        with reading(f"{part} of {folder}"):
            if part in STEMS:
                opened[part] = _network(found, part, where, dtype)
            else:
                opened[part] = found.from_pretrained(str(where), local_files_only=True)
    return Parts(**opened)


@quiet()
def open_network(folder: Path, dtype: torch.dtype) -> tuple[str, Any]:
    """A network from a folder of its own, as diffusers or transformers write it, and which part of a pipeline it is.

    Of a whole CLIP it is the text half. Raises ``BadModel`` for any other class, and for weights too few or too many.
    """
    screen(folder)
    config = read_json(folder / "config.json")
    told = config if isinstance(config, dict) else {}
    name = str(told.get("_class_name") or next(iter(told.get("architectures") or ()), None))
    if name not in ALONE:
        raise BadModel(f"expected a folder of {', '.join(ALONE)} or of a whole pipeline, got {name} in {folder}")
    part = ALONE[name]
    (network,) = ALLOWED[part].values()
    with reading(f"{part} of {folder}"):
        return part, _network(network, part, folder, dtype)


def architecture(part: str, network: Any) -> dict[str, Any]:
    """What a network's config says of how it computes; two that differ in it mean other things by the same weights."""
    if part == "text_encoder":
        return {fact: getattr(network.config, fact) for fact in TEXT_FACTS}
    told: Mapping[str, Any] = network.config
    return {
        fact: list(value) if isinstance(value, tuple) else value
        for fact, value in told.items()
        if not fact.startswith("_") and fact != "sample_size"
    }


def _classes(folder: Path) -> dict[str, Any]:
    """The class of every part, by the folder's own index."""
    path = folder / "model_index.json"
    if not path.is_file():
        raise BadModel(f"{folder} has no model_index.json: expected the folder of a Stable Diffusion pipeline")
    index = read_json(path)
    if not isinstance(index, dict) or index.get("_class_name") != "StableDiffusionPipeline":
        found = index.get("_class_name") if isinstance(index, dict) else index
        raise BadModel(f"expected a StableDiffusionPipeline in {folder}, got {found!r}")
    classes = {}
    for part, allowed in ALLOWED.items():
        entry = index.get(part)
        if not (isinstance(entry, list) and len(entry) == 2 and entry[1]):
            raise BadModel(f"{folder} has no {part}: expected a pipeline of {', '.join(ALLOWED)}")
        library, name = map(str, entry)
        if library not in {"diffusers", "transformers"} or name not in allowed:
            raise BadModel(
                f"expected {part} in {folder} to be {' or '.join(allowed)}, got {library}.{name}; it is not run"
            )
        classes[part] = allowed[name]
    return classes


def _network(network: Any, part: str, where: Path, dtype: torch.dtype) -> Any:
    """A network from safetensors, else from a .bin that may hold tensors only; every weight must be there."""
    safe, variant = _weights_file(part, where)
    require_filled(partial(_built, network, where), where)
    # Told the type, because transformers keeps the stored one where diffusers opens everything as float32. A .bin goes
    # through torch.load with weights_only=True in both libraries. Of a weight of a wrong shape diffusers tells in its
    # error, transformers only in its report.
    reporting = {"ignore_mismatched_sizes": True} if part == "text_encoder" else {}
    loaded, info = network.from_pretrained(
        str(where),
        torch_dtype=dtype,
        use_safetensors=safe,
        variant=variant,
        local_files_only=True,
        output_loading_info=True,
        **reporting,
    )
    for fault, key in (
        ("lacks", "missing_keys"),
        ("has no place for", "unexpected_keys"),
        ("has another shape for", "mismatched_keys"),
    ):
        names = [name if isinstance(name, str) else name[0] for name in info[key]]
        if part == "text_encoder" and key == "unexpected_keys":
            names = [name for name in names if not CLIP_BESIDE_TEXT.fullmatch(name)]
        if names:
            raise BadModel(f"{part} in {where.parent} {fault} {len(names)} of its weights, the first is {min(names)}")
    return loaded


def _built(network: Any, where: Path) -> Any:
    """The network that a folder's configuration declares, without the folder's weights."""
    if network is CLIPTextModel:
        return network(network.config_class.from_pretrained(str(where), local_files_only=True))
    return network.from_config(read_json(where / "config.json"))


def _weights_file(part: str, where: Path) -> tuple[bool, str | None]:
    """Whether there are safetensors, and the variant (``fp16``) if only that one is there."""
    for safe, ending in ((True, "safetensors"), (False, "bin")):
        for variant in (None, "fp16"):
            middle = "" if variant is None else f".{variant}"
            for stem in STEMS[part]:
                names = (f"{stem}{middle}.{ending}", f"{stem}.{ending}.index{middle}.json")
                if any((where / name).is_file() for name in names):
                    return safe, variant
    raise BadModel(f"{where} holds no weights: expected {STEMS[part][0]}.safetensors")


# Single files --------------------------------------------------------------------------------------------------------


@quiet()
def open_file(path: Path, dtype: torch.dtype, *, download: bool, config: str | Path | None) -> Parts:
    """Opens a whole pipeline in one .safetensors file; tokenizer and shapes come from ``config``, a folder like it."""
    screen_weights(path)
    if config is not None:
        classes = _classes(Path(config))
        screen(Path(config))
        for part in STEMS:
            with reading(f"{part} of {config}"):
                where = Path(config) / part
                require_filled(partial(_built, classes[part], where), where, path.stat().st_size)
    try:
        # Reached for here, because importing it warns of what only its safety checker needs.
        pipeline = diffusers.StableDiffusionPipeline.from_single_file(
            str(path),
            torch_dtype=dtype,
            config=None if config is None else str(config),
            local_files_only=not download,
            safety_checker=None,
        )
    except READ_ERRORS as error:
        if config is None and not download:
            raise BadModel(
                f"cannot open {path.name} alone: one file holds neither tokenizer nor shapes, and they are not in the "
                "hub's cache; give a diffusers folder of the same kind as config, or allow the download"
            ) from error
        raise BadModel(f"cannot read {path}: {first_line(error)}") from error
    return Parts.of(pipeline)


# Checks --------------------------------------------------------------------------------------------------------------


def check(parts: Parts, source: str) -> None:
    """Raises ``BadModel`` for a pipeline that is not a plain Stable Diffusion, or whose weights are no numbers."""
    unet = parts.unet.config
    for field in ("class_embed_type", "addition_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim"):
        if unet.get(field) is not None:
            raise BadModel(
                f"expected a plain Stable Diffusion denoiser in {source}, got one with {field}={unet[field]}"
            )
    _check_size(unet.sample_size, source)
    if unet.in_channels != parts.vae.config.latent_channels:
        raise BadModel(
            f"expected a denoiser of {parts.vae.config.latent_channels} channels, as the autoencoder of {source} has, "
            f"got {unet.in_channels}"
        )
    if unet.cross_attention_dim != parts.text_encoder.config.hidden_size:
        raise BadModel(
            f"expected a denoiser for texts of width {parts.text_encoder.config.hidden_size}, as the text encoder of "
            f"{source} has, got {unet.cross_attention_dim}"
        )
    if len(parts.tokenizer) > parts.text_encoder.config.vocab_size:
        raise BadModel(
            f"expected a tokenizer of at most {parts.text_encoder.config.vocab_size} tokens in {source}, "
            f"got {len(parts.tokenizer)}"
        )
    prediction = parts.scheduler.config.prediction_type
    if prediction not in {"epsilon", "v_prediction"}:
        raise BadModel(f"expected prediction type epsilon or v_prediction in {source}, got {prediction}")
    if not float(parts.scheduler.alphas_cumprod[-1]) > 0:
        raise BadModel(f"expected a noise schedule that keeps some signal at its last step in {source}, got none")
    _check_weights(parts, source)


def _check_size(size: Any, source: str) -> None:
    sides = size if isinstance(size, list | tuple) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, int) and 1 <= side <= LARGEST_SIDE // 8 for side in sides):
        raise BadModel(f"expected a sample_size from 1 to {LARGEST_SIDE // 8} in {source}, got {size}")


def _check_weights(parts: Parts, source: str) -> None:
    for part in ("unet", "text_encoder", "vae"):
        for name, weight in getattr(parts, part).named_parameters():
            if weight.is_meta:
                raise BadModel(f"{source} lacks {part}.{name}")
            if not bool(torch.isfinite(weight).all()):
                raise BadModel(f"{part}.{name} in {source} holds values that are no numbers (NaN or infinite)")
