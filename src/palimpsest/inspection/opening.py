"""Opens what is to be inspected: a whole model, or a file of weights."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from palimpsest.erasers.checkpoint import Checkpoint
from palimpsest.errors import BadCheckpoint, BadSetting
from palimpsest.model import Model
from palimpsest.model.layouts import is_low_rank
from palimpsest.model.loading import open_network
from palimpsest.model.state_files import adapter_in, read_state

PREFIXES = {
    "unet.": "unet.",
    "text_encoder.": "text_encoder.",
    "vae.": "vae.",
    "model.diffusion_model.": "unet.",
    "first_stage_model.": "vae.",
    "cond_stage_model.transformer.": "text_encoder.",
    "cond_stage_model.": "text_encoder.",
    "text_model.": "text_encoder.",
    "encoder.layers.": "text_encoder.encoder.layers.",
    "embeddings.": "text_encoder.embeddings.",
    "final_layer_norm.": "text_encoder.final_layer_norm.",
}
"""How the keys of a file begin, and the qualified names that they stand for; all others are the denoiser's."""
ENDS = (
    ("unet.conv_in.weight", "unet.conv_out.weight"),
    ("unet.input_blocks.0.0.weight", "unet.out.2.weight"),
    (
        "text_encoder.embeddings.token_embedding.weight",
        "text_encoder.final_layer_norm.weight",
    ),
)
"""The first and last weight of a network, by which a whole one is known."""


def open_weights(
    source: str, base: str | None = None, *, download: bool = False
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor] | None]:
    """The weights by qualified name, and the base's; raises ``BadModel`` or ``BadSetting``.

    A diffusers folder, a hub id and the miniature are opened as ``Model.load`` does, a file, a LoRA's folder and that
    of one network alone as the eraser ``checkpoint`` does. Without a base a file must hold a whole denoiser, text
    encoder or both.
    """
    path = Path(source)
    one_network = (path / "config.json").is_file() and not (path / "model_index.json").is_file()
    is_file = path.is_file() or one_network or adapter_in(path) is not None
    if base is None and one_network:
        part, network = open_network(path, torch.float32)
        return {f"{part}.{name}": weight for name, weight in network.named_parameters()}, None
    if base is None:
        return (_alone(path) if is_file else _load(source, download).weights()), None
    original = _load(base, download)
    if not is_file:
        return _load(source, download).weights(), original.weights()
    changed = Checkpoint(path=source, partial=True).erase(original, [], random=torch.Generator())
    return changed.weights(), original.weights()


def _load(source: str, download: bool) -> Model:
    return Model.load(source, device="cpu", download=download)


def _alone(path: Path) -> dict[str, Tensor]:
    """The weights of a file without a base."""
    file = adapter_in(path) or path
    Checkpoint(path=str(file))  # refuses other endings
    state = read_state(file)
    if is_low_rank(state):
        raise BadSetting(f"{path}: a LoRA holds differences, no weights: give the base that it belongs to")
    weights = {qualified(key): tensor for key, tensor in state.items() if tensor.is_floating_point()}
    if not any(set(ends) <= set(weights) for ends in ENDS):
        raise BadSetting(
            f"{path}: holds {len(weights)} weights, and no whole denoiser or text encoder: give the base that it "
            f"belongs to; the first is {next(iter(state))}"
        )
    for name, weight in weights.items():
        if weight.layout is not torch.strided or weight.is_meta:
            raise BadCheckpoint(f"{path}: expected a dense tensor, got another at {name}")
        if not bool(weight.isfinite().all()):
            raise BadCheckpoint(f"{path}: expected numbers, got NaN or infinite values in {name}")
    return weights


def qualified(key: str) -> str:
    """A file's key by its network."""
    for prefix, stands_for in PREFIXES.items():
        if key.startswith(prefix):
            return (stands_for + key.removeprefix(prefix)).replace("text_encoder.text_model.", "text_encoder.", 1)
    return f"unet.{key}"
