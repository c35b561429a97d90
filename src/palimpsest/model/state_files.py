"""State dicts and settings out of files that nobody vouches for."""

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from palimpsest.errors import BadCheckpoint
from palimpsest.model.screening import READ_ERRORS, first_line, read_json, screen_weights

ADAPTERS = ("adapter_model", "pytorch_lora_weights")
"""What peft and diffusers call a LoRA in a folder of its own."""
SETTINGS = "adapter_config.json"
"""Where peft keeps a LoRA's settings, beside it."""
METADATA = "lora_adapter_metadata"
"""Where diffusers keeps a LoRA's settings in the header of its file."""
NOT_PLAIN = ("use_dora", "fan_in_fan_out", "use_qalora", "alora_invocation_tokens")
"""Settings of peft that make of a LoRA something else than W + scale B A."""
OTHER_STARTS = ("pissa", "olora", "corda", "lora_ga", "loftq")
"""Ways to begin a LoRA that change the base's weights as well."""


def adapter_in(folder: Path) -> Path | None:
    """The LoRA's file in a folder of peft's or diffusers'; safetensors go first."""
    names = [f"{stem}{ending}" for stem in ADAPTERS for ending in (".safetensors", ".bin")]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def read_settings(path: Path) -> dict[str, Any]:
    """What peft wrote beside a LoRA in its folder, or diffusers into its file; empty where neither did.

    Raises ``BadCheckpoint`` for a kind of adapter that is no plain LoRA.
    """
    told: Any = {}
    try:
        if path.stem == ADAPTERS[0] and (path.parent / SETTINGS).exists():
            told = read_json(path.parent / SETTINGS)
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                told = json.loads((file.metadata() or {}).get(METADATA, "{}"))
    except READ_ERRORS as error:
        raise BadCheckpoint(f"settings of the LoRA that cannot be read ({first_line(error)})") from None
    if not isinstance(told, dict):
        raise BadCheckpoint(f"expected the LoRA's settings as a table, got {type(told).__name__}")
    for key, value in told.items():
        setting = key.rpartition(".")[2]
        odd = bool(value) and setting in NOT_PLAIN
        odd |= setting == "peft_type" and str(value).upper() != "LORA"
        odd |= setting == "init_lora_weights" and str(value).lower().startswith(OTHER_STARTS)
        if odd:
            raise BadCheckpoint(f"expected a plain LoRA, got one with {key} = {value!r}")
    return told


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, without running anything that the file brings along."""
    if not path.is_file():
        raise BadCheckpoint(f"{path}: expected a file, got something else or nothing")
    screen_weights(path)
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise BadCheckpoint(f"{path}: not a whole safetensors file ({first_line(error)})") from None
    except pickle.UnpicklingError:
        raise BadCheckpoint(
            f"{path}: not a PyTorch file of tensors alone: damaged, or it holds objects whose opening could run code; "
            "nothing was run; a state_dict() saved by itself would do"
        ) from None
    except READ_ERRORS as error:
        raise BadCheckpoint(f"{path}: cannot be read as a PyTorch file ({first_line(error)})") from None
    if not isinstance(state, dict) or not state:
        raise BadCheckpoint(f"{path}: expected a state dict (names and tensors), got {type(state).__name__}")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise BadCheckpoint(
                f"{path}: expected a state dict (names and tensors), got {type(value).__name__} at {key!r}"
            )
        if not _is_whole(value):
            raise BadCheckpoint(f"{path}: expected dense tensors that lie in the file, got another at {key!r}")
    return state


def _is_whole(tensor: Tensor) -> bool:
    """Whether a tensor's numbers are all there: a few bytes can pose as a tensor of any shape."""
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
