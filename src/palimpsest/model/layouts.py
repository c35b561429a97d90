"""The layouts in which others hand weights around, read as the names and values of a plain model."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from torch import Tensor

from palimpsest.errors import BadCheckpoint
from palimpsest.model.network import Network
from palimpsest.model.screening import READ_ERRORS, first_line

PARTS = ("unet", "text_encoder")
COMPVIS = "model.diffusion_model."
COMPVIS_BLOCKS = ("input_blocks.", "middle_block.", "output_blocks.", "time_embed.", "out.")
MOST_PATTERNS = 2000
"""Keys of a LoRA's ``alpha_pattern``; Stable Diffusion has 300 layers."""
SIDES = {"A": "down", "B": "up", "down": "down", "up": "up"}
PATTERNS = (
    # The attention processors of older diffusers; the output of an attention is a list there.
    re.compile(r"(?P<layer>.+)\.processor\.(?P<name>to_\w+)_lora\.(?P<side>down|up)\.weight"),
    # peft and diffusers (lora_A), kohya (lora_down), and what older diffusers wrote for other layers.
    re.compile(r"(?P<layer>.+?)\.(?:lora_|lora\.|lora_linear_layer\.)(?P<side>A|B|down|up)(?:\.\w+)?\.weight"),
    re.compile(r"(?P<layer>.+)\.(?P<side>alpha)"),
)


OTHER_ADAPTERS = {
    "DoRA": r"lora_magnitude_vector|dora_scale",
    "LoHa": r"hada_\w+",
    "LoKr": r"lokr_\w+",
    "LoCon in Tucker's form": r"lora_mid",
    "AdaLoRA": r"lora_E",
    "OFT": r"b?oft_\w+",
    "IA3": r"ia3_l|on_input",
    "full difference": r"diff|diff_b",
}
"""How a key is called, at its end, by adapters that are no plain LoRA."""


def is_compvis(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of a denoiser as CompVis' latent diffusion calls it."""
    return any(key.removeprefix(COMPVIS).startswith(("input_blocks.", "output_blocks.")) for key in state)


def from_compvis(state: Mapping[str, Tensor], model: Network) -> dict[str, Tensor]:
    """A CompVis denoiser by diffusers' names, converted by diffusers; raises ``BadCheckpoint`` for a key too many.

    The keys begin with ``model.diffusion_model.``, or with nothing.
    """
    named = {key if key.startswith(COMPVIS) else COMPVIS + key: tensor for key, tensor in state.items()}
    others = [key for key in named if not key.removeprefix(COMPVIS).startswith(COMPVIS_BLOCKS)]
    if others:
        raise BadCheckpoint(
            f"expected a denoiser alone in CompVis' layout, got {len(others)} keys of other parts "
            f"({', '.join(key.removeprefix(COMPVIS) for key in others[:3])} ...): make a diffusers folder of it"
        )
    try:
        found: dict[str, Tensor] = convert_ldm_unet_checkpoint(named, model.unet.config)
    except KeyError as error:
        raise BadCheckpoint(f"expected a whole denoiser in CompVis' layout, got none of {error}") from None
    except READ_ERRORS as error:
        raise BadCheckpoint(f"expected a denoiser in CompVis' layout: {first_line(error)}") from None
    if len(found) != len(named):
        raise BadCheckpoint(
            f"expected a CompVis denoiser of the base's shape: of its {len(named)} weights, {len(found)} have a place"
        )
    return {f"unet.{name}": tensor for name, tensor in found.items()}


def is_low_rank(state: Mapping[str, Tensor]) -> bool:
    """Whether these are low-rank differences (LoRA) and not weights."""
    return any(_place(key)[1] in ("down", "up") for key in state)


def refuse_other_adapters(state: Mapping[str, Tensor]) -> None:
    """Raises ``BadCheckpoint`` for adapters that change a weight otherwise than by adding a product of two matrices."""
    for kind, words in OTHER_ADAPTERS.items():
        known = re.compile(rf"(.+\.)?({words})(\.default)?(\.weight)?").fullmatch
        if keys := [key for key in state if known(key)]:
            raise BadCheckpoint(
                f"expected a plain LoRA, got a {kind} ({len(keys)} keys, the first is {min(keys)}): "
                "merge it into the model and give its folder"
            )


def from_low_rank(
    state: Mapping[str, Tensor], model: Network, settings: Mapping[str, Any] | None = None
) -> dict[str, Tensor]:
    """W + (alpha / r) B A for every layer that a LoRA touches (Hu et al. 2021), by the model's names.

    Read are the layouts of peft, of diffusers (today's and the older ones of attention processors) and of kohya, whose
    names are the base's with underscores. A is (r, in) or a convolution's (r, in, h, w), B (out, r) or (out, r, 1, 1):
    what others call LoCon.
    alpha stands beside the layer's matrices or in ``settings`` (peft's: ``lora_alpha``, ``alpha_pattern``,
    ``use_rslora``; diffusers writes the part's name before each); else it is r. Raises ``BadCheckpoint``, naming every
    key that does not fit.
    """
    about = {part: _settings_of(part, settings or {}) for part in PARTS}
    layers = {alias: name for name in _layers(model) for alias in _layer_aliases(name)}
    parts: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    faults: dict[str, str] = {}
    for key, tensor in state.items():
        layer, side = _place(key)
        if layer not in layers:
            faults[key] = "no such layer" if side else "no low-rank matrix"
        elif not tensor.is_floating_point() or not bool(tensor.float().isfinite().all()):
            faults[key] = "expected finite floating point numbers"
        else:
            parts[layers[layer]][side] = tensor
    weights = model_weights(model)
    changed = {}
    for layer, matrices in parts.items():
        fault = _misfit(matrices, weights[f"{layer}.weight"])
        if fault:
            faults[layer] = fault
            continue
        down, up = matrices["down"].double().flatten(1), matrices["up"].double().flatten(1)
        rank = len(down)
        told = about[layer.partition(".")[0]]
        alpha = float(matrices["alpha"]) if "alpha" in matrices else _alpha(layer, rank, told)
        weight = weights[f"{layer}.weight"].detach()
        scale = alpha / (rank**0.5 if told.get("use_rslora") else rank)
        added = (scale * up @ down).reshape(weight.shape).to(weight.device)
        changed[f"{layer}.weight"] = (weight.double() + added).to(weight.dtype)
    if faults:
        named = ", ".join(f"{key} ({fault})" for key, fault in faults.items())
        raise BadCheckpoint(f"{len(faults)} of {len(state)} keys of a LoRA do not fit the base: {named}")
    return changed


def to_low_rank(
    changed: Mapping[str, Tensor], model: Network, *, tolerance: float = 1e-5, most: float = 0.5
) -> dict[str, Tensor]:
    """Changed weights as a LoRA in diffusers' layout, with the fewest ranks that reproduce them.

    Of each difference the singular values above ``tolerance`` times the weight's largest are kept. Raises
    ``BadCheckpoint`` where something else than a layer's weight has changed, or where that takes more than the share
    ``most`` of the full rank: such a change is not of low rank, and a LoRA would be a poor copy of it.
    """
    before, state = model_weights(model), {}
    for name, weight in changed.items():
        layer, _, leaf = name.rpartition(".")
        if leaf != "weight" or weight.ndim not in (2, 4) or layer not in _layers(model):
            raise BadCheckpoint(f"expected changes of layers' weights alone, got {name}: a LoRA cannot hold it")
        old = before[name].detach().double()
        left, sizes, right = torch.linalg.svd((weight.detach().double() - old).flatten(1), full_matrices=False)
        kept = int((sizes > tolerance * torch.linalg.matrix_norm(old.flatten(1), 2)).sum())
        if kept > most * len(sizes):
            raise BadCheckpoint(f"expected changes of low rank, got rank {kept} of {len(sizes)} in {name}")
        if kept:
            down = sizes[:kept, None].sqrt() * right[:kept]
            up = left[:, :kept] * sizes[:kept].sqrt()
            if weight.ndim == 4:
                down, up = down.reshape(kept, *weight.shape[1:]), up[:, :, None, None]
            state[f"{layer}.lora_A.weight"] = down.float().contiguous()
            state[f"{layer}.lora_B.weight"] = up.float().contiguous()
    return state


def model_weights(model: Network) -> dict[str, Tensor]:
    """The live weights of the denoiser and the text encoder by qualified name."""
    return {f"{part}.{name}": weight for part in PARTS for name, weight in getattr(model, part).named_parameters()}


def _layers(model: Network) -> set[str]:
    """Qualified names of linear layers and convolutions."""
    return {
        name.removesuffix(".weight")
        for name, weight in model_weights(model).items()
        if name.endswith(".weight") and weight.ndim in (2, 4) and "embedding.weight" not in name
    }


def _layer_aliases(name: str) -> Iterator[str]:
    part, _, bare = name.partition(".")
    short = bare.removeprefix("text_model.")
    bares = [bare] if part == "unet" else [short, f"text_model.{short}"]
    for one in bares:
        yield from (one, f"{part}.{one}")
        # Some of kohya's scripts count the text encoders even where there is one.
        for stem in ("unet",) if part == "unet" else ("te", "te1"):
            yield f"lora_{stem}_{one.replace('.', '_')}"


def _place(key: str) -> tuple[str, str]:
    """The layer that a key means, and which of its matrices: down, up, alpha, or empty for none."""
    bare = key.removeprefix("base_model.model.")
    for pattern in PATTERNS:
        if found := pattern.fullmatch(bare):
            told = found.groupdict()
            name = told.get("name", "")
            layer = f"{told['layer']}.{'to_out.0' if name == 'to_out' else name}" if name else told["layer"]
            return layer, SIDES.get(told["side"], told["side"])
    return bare, ""


def _misfit(matrices: Mapping[str, Tensor], weight: Tensor) -> str:
    """What keeps a layer's two matrices from being added to its weight; empty: nothing."""
    if not {"down", "up"} <= set(matrices):
        return f"expected two matrices, got {', '.join(matrices)} alone"
    if any(matrices[side].ndim < 2 or not matrices[side].numel() for side in ("down", "up")):
        return f"expected matrices, got {tuple(matrices['down'].shape)} and {tuple(matrices['up'].shape)}"
    if "alpha" in matrices and matrices["alpha"].numel() != 1:
        return f"expected one number as alpha, got {matrices['alpha'].numel()}"
    down, up = matrices["down"].flatten(1), matrices["up"].flatten(1)
    if up.shape[1] != len(down) or len(up) * down.shape[1] != weight.numel() or len(up) != len(weight):
        return f"expected matrices for {tuple(weight.shape)}, got {tuple(down.shape)} and {tuple(up.shape)}"
    return ""


def _settings_of(part: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of this part, and what is said of all."""
    others = tuple(f"{other}." for other in PARTS if other != part)
    return {key.removeprefix(f"{part}."): value for key, value in settings.items() if not key.startswith(others)}


def _alpha(layer: str, rank: int, settings: Mapping[str, Any]) -> float:
    """What the file's settings say of a layer; r where they say nothing."""
    patterns = settings.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or len(patterns) > MOST_PATTERNS:
        raise BadCheckpoint(f"expected alpha_pattern as a table of at most {MOST_PATTERNS:,} layers")
    found = next((alpha for pattern, alpha in patterns.items() if _means(pattern, layer)), None)
    alpha = settings.get("lora_alpha", rank) if found is None else found
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) < 1e30:
        raise BadCheckpoint(f"expected a number as alpha of {layer}, got {alpha!r}")
    return float(alpha)


@cache
def _means(pattern: str, layer: str) -> bool:
    """Whether a key of ``alpha_pattern`` means a layer: peft reads it as a regular expression for the name's end."""
    # One with groups and repetitions can take for ever to fail.
    if len(pattern) > 300 or re.search(r"[(+{?]", pattern) or pattern.count("*") > 2:
        raise BadCheckpoint(f"expected a layer's name or a simple pattern in alpha_pattern, got {pattern[:80]!r}")
    try:
        return re.fullmatch(rf"(.*\.)?({pattern})", layer) is not None
    except re.error as error:
        raise BadCheckpoint(f"expected a pattern in alpha_pattern, got {pattern!r}: {error}") from None
