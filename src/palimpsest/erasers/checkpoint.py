"""A model that somebody else has erased."""

import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from palimpsest.erasers.base import Eraser
from palimpsest.errors import BadCheckpoint, BadSetting
from palimpsest.model import Model
from palimpsest.model.layouts import from_compvis, from_low_rank, is_compvis, is_low_rank
from palimpsest.model.screening import PICKLED, READ_ERRORS, first_line, read_json, screen_files, screen_weights
from palimpsest.records import Concept

ADAPTER = ("adapter_model.safetensors", "adapter_config.json")
"""peft's files in its folder."""
METADATA = "lora_adapter_metadata"
"""Where diffusers keeps a LoRA's settings in the header of its file."""
PARTS = ("unet", "text_encoder")


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Eraser):
    """Takes the erased weights from a file or folder, and nothing on trust.

    ``path`` is a diffusers folder (the whole pipeline), or the state dict of a denoiser, a text encoder or both, in
    safetensors or in PyTorch's format, read with ``weights_only=True``: no code in it is run. Keys are those of the
    bare network, or begin with ``unet.`` or ``text_encoder.``; or those of a denoiser in CompVis' layout; or those of a
    LoRA in the layout of peft (also its folder), diffusers or kohya, which is merged into the base. Every key must name
    a weight of the base and have its shape; each one that does not is named. A part that the file has weights of must
    be covered wholly, unless ``partial`` says that the file holds only what was changed: a lost weight would else pass
    for an erased one. A LoRA is partial by its nature.
    """

    name = "checkpoint"

    path: str
    """A diffusers folder, or a file: .safetensors, .pt, .pth, .bin, .ckpt."""
    partial: bool = False
    """The file holds only the changed weights (as ESD and UCE save them); the base keeps the rest."""

    def __post_init__(self) -> None:
        """Refuses a path at which nothing can be read, before any model is opened."""
        if not _is_there(Path(self.path)):
            raise BadSetting(f"{self.name}: expected the path of a file or folder, got {self.path!r}: no such file")
        if not Path(self.path).is_dir() and Path(self.path).suffix not in (".safetensors", *PICKLED):
            endings = ", ".join((".safetensors", *PICKLED))
            raise BadSetting(f"{self.name}: expected a folder or a file ending in {endings}, got {self.path!r}")

    def stages(
        self, model: Model, concepts: Sequence[Concept], *, random: torch.Generator
    ) -> Iterator[tuple[int, Model]]:
        """The erased model, in one stage."""
        path = Path(self.path)
        if path.is_dir() and not (path / ADAPTER[0]).exists():
            yield 1, _pipeline(path, model)
            return
        file = path / ADAPTER[0] if path.is_dir() else path
        if path.is_dir():
            screen_files(path)
        state = read_state(file)
        try:
            if is_low_rank(state):
                fitting = from_low_rank(state, model, read_settings(file))
            else:
                fitting = self._fitting(from_compvis(state, model) if is_compvis(state) else state, model)
        except BadCheckpoint as error:
            raise BadCheckpoint(f"{self.path}: {error}") from None
        yield 1, model.with_weights(fitting)

    def _fitting(self, state: Mapping[str, Tensor], model: Model) -> dict[str, Tensor]:
        """The state by the model's own names; raises ``BadCheckpoint`` unless it fits."""
        weights = model.weights(rf"({'|'.join(PARTS)})\..*")
        names = {alias: name for name in weights for alias in _aliases(name)}
        state = {key: tensor for key, tensor in state.items() if not _is_buffer(key, tensor, model)}
        strangers = [key for key in state if key not in names]
        if len(strangers) == len(state):
            raise BadCheckpoint(
                f"expected weights of the base's {' or '.join(PARTS)}, got {len(state)} keys of which "
                f"none fits: {', '.join(strangers[:3])}{' ...' if len(strangers) > 3 else ''}"
            )
        faults = {key: "no such weight" for key in strangers}
        fitting: dict[str, Tensor] = {}
        for key in [key for key in state if key in names]:
            name = names[key]
            fault = "a weight that another key names too" if name in fitting else _fault(state[key], weights[name])
            faults |= {key: fault} if fault else {}
            fitting[name] = state[key]
        if faults:
            told = ", ".join(f"{key} ({fault})" for key, fault in faults.items())
            raise BadCheckpoint(f"{len(faults)} of {len(state)} keys do not fit the base: {told}")
        self._refuse_gaps(fitting, list(weights))
        return fitting

    def _refuse_gaps(self, fitting: Mapping[str, Tensor], weights: Sequence[str]) -> None:
        """Raises unless each part that the file has weights of is covered, or the file is said to be partial."""
        touched = {name.partition(".")[0] for name in fitting}
        missing = [name for name in weights if name.partition(".")[0] in touched and name not in fitting]
        if missing and not self.partial:
            raise BadCheckpoint(
                f"has only {len(fitting)} of {len(fitting) + len(missing)} weights of the base's "
                f"{' and '.join(sorted(touched))}; set partial = true if the rest is meant to stay as it is; "
                f"missing: {', '.join(missing)}"
            )


def _is_there(path: Path) -> bool:
    """Whether there is a folder, or a file that can be read to its end."""
    try:
        return path.is_dir() or path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def read_settings(path: Path) -> dict[str, Any]:
    """What peft wrote beside a LoRA in its folder, or diffusers into its file; empty where neither did.

    Raises ``BadCheckpoint`` for a kind of adapter that is no plain LoRA.
    """
    told: Any = {}
    try:
        if path.name == ADAPTER[0] and (path.parent / ADAPTER[1]).exists():
            told = read_json(path.parent / ADAPTER[1])
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                told = json.loads((file.metadata() or {}).get(METADATA, "{}"))
    except READ_ERRORS as error:
        raise BadCheckpoint(f"settings of the LoRA that cannot be read ({first_line(error)})") from None
    if not isinstance(told, dict):
        raise BadCheckpoint(f"expected the LoRA's settings as a table, got {type(told).__name__}")
    for key, value in told.items():
        if value and key.rpartition(".")[2] in ("use_dora", "fan_in_fan_out"):
            raise BadCheckpoint(f"expected a plain LoRA, got one with {key}")
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


def _aliases(name: str) -> list[str]:
    """The keys that mean this weight: with its part's name before it or bare, and with CLIP's older prefix."""
    part, _, bare = name.partition(".")
    if part == "text_encoder":
        short = bare.removeprefix("text_model.")
        bares = [short, f"text_model.{short}"]
    else:
        bares = [bare]
    return [alias for bare in bares for alias in (bare, f"{part}.{bare}")]


def _is_buffer(key: str, tensor: Tensor, model: Model) -> bool:
    """Whether this is a constant of the text encoder that older files carry, with the value that it always has."""
    buffers = {f"text_encoder.{name}": buffer for name, buffer in model.text_encoder.named_buffers()}
    for name, buffer in buffers.items():
        if key in _aliases(name):
            return tensor.shape == buffer.shape and bool((tensor == buffer.to(tensor.device)).all())
    return False


def _fault(tensor: Tensor, weight: Tensor) -> str:
    """What keeps a tensor from taking a weight's place; empty: nothing."""
    if tensor.shape != weight.shape:
        return f"expected shape {tuple(weight.shape)}, got {tuple(tensor.shape)}"
    if not tensor.is_floating_point():
        return f"expected floating point, got {str(tensor.dtype).removeprefix('torch.')}"
    # In the base's type: a number that is finite in single precision need not be so in half.
    bad = int((~tensor.to(weight.dtype).isfinite()).sum())
    return f"{bad} of {tensor.numel()} numbers are NaN or infinite" if bad else ""


def _pipeline(folder: Path, base: Model) -> Model:
    """The model in a diffusers folder, if it is one of the base's family."""
    model = Model.load(
        folder,
        device=base.device,
        dtype=base.dtype,
        precision=base.precision,
        attention=base.attention,
        batch=base.batch,
    )
    for fact in ("latent_shape", "context", "prediction_type", "timesteps"):
        if getattr(model, fact) != getattr(base, fact):
            raise BadCheckpoint(
                f"{folder}: expected the base's {fact} {getattr(base, fact)}, got {getattr(model, fact)}"
            )
    return model
