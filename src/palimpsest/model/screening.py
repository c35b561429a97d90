"""What is looked at in files that somebody else made, before any library opens them."""

import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from palimpsest.errors import BadCheckpoint, BadModel

PICKLED = (".pt", ".pth", ".bin", ".ckpt")
WEIGHTS = (".safetensors", *PICKLED)
PARTS = ("unet", "text_encoder", "vae", "tokenizer", "scheduler")
LARGEST_TABLE = 64 * 2**20
"""Bytes of a JSON file; the largest tokenizers take a third."""
DEEPEST_TABLE = 32
LONGEST_HEADER = 16 * 2**20
"""Bytes of a safetensors header: 100,000 tensors; Stable Diffusion's denoiser takes 0.1 MB."""
LARGEST_NUMBER = 2**20
"""In the configuration of a network or a scheduler: what it sizes, or counts."""
LARGEST_SIDE = 4096
"""Pixels that an image processor may ask for."""
MOST_MODULES = 5_000
"""Of one network; Stable Diffusion's denoiser has 700."""
READ_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
)
"""What the libraries below raise on files that are damaged, of the wrong kind, or say what cannot be."""


def first_line(error: BaseException) -> str:
    """What a library says of a file, in short."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Whatever a library raises on files that it cannot read becomes ``BadModel``."""
    try:
        yield
    except BaseException as error:
        # The tokenizers library raises Exception itself for whatever it cannot read, and panics where it did not look.
        if isinstance(error, READ_ERRORS) or type(error) is Exception or type(error).__name__ == "PanicException":
            raise BadModel(f"cannot read {what}: {first_line(error)}") from error
        raise


def read_json(path: Path) -> Any:
    """What a JSON file holds; raises ``BadModel`` for one that is too large, too deep or none."""
    with reading(str(path)):
        size = path.stat().st_size
        if size > LARGEST_TABLE:
            raise BadModel(f"expected a table of at most {LARGEST_TABLE:,} bytes in {path}, got {size:,}")
        return json.loads(path.read_text(encoding="utf-8"))


def screen(folder: Path) -> None:
    """Raises ``BadModel`` for anything through which a folder could run code, lead elsewhere, hang or fill a machine.

    Nothing of it is opened but its JSON files and the first bytes of its weights.
    """
    for path in screen_files(folder):
        if path.suffix in WEIGHTS:
            screen_weights(path)
        if path.suffix == ".json" and (path.parent == folder or path.parent.name in PARTS):
            _screen_table(path)


def screen_files(folder: Path) -> list[Path]:
    """All files in a folder; raises ``BadModel`` for code, for what leads out, and for what is no file."""
    with reading(str(folder)):
        root = folder.resolve()
        # The hub's cache keeps files in a folder beside the snapshots and links to them; one network may lie deeper.
        above = next((parent for parent in root.parents[:2] if parent.name == "snapshots"), None)
        within = above.parent if above else root
        paths = sorted(folder.rglob("*"))
        for path in paths:
            if not path.resolve().is_relative_to(within):
                raise BadModel(f"{path} leads out of the model's folder; it is not read")
            if path.exists() and not (path.is_file() or path.is_dir()):
                raise BadModel(f"{path} is neither a file nor a folder; it is not read")
            if path.suffix == ".py":
                raise BadModel(f"{path} is code; folders that bring their own code are refused")
        return [path for path in paths if path.is_file()]


def screen_weights(path: Path) -> None:
    """Raises ``BadCheckpoint`` for a file that unpacks to more than it is: a long header, or a packed archive."""
    try:
        if path.suffix == ".safetensors":
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
            if LONGEST_HEADER < length <= path.stat().st_size:
                raise BadCheckpoint(f"{path}: expected a header of at most {LONGEST_HEADER:,} bytes, got {length:,}")
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                entries = archive.infolist()
            unpacked, size = sum(entry.file_size for entry in entries), path.stat().st_size
            if unpacked > size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise BadCheckpoint(
                    f"{path}: expected a file as torch.save writes it, got a packed archive of {unpacked:,} bytes in "
                    f"{size:,}; it is not unpacked"
                )
    except (OSError, zipfile.BadZipFile, ValueError, struct.error) as error:
        raise BadCheckpoint(f"{path}: cannot be read ({first_line(error)})") from None


def _screen_table(path: Path) -> None:
    table = read_json(path)
    if path.name == "adapter_config.json":
        raise BadModel(f"{path} asks for a model elsewhere; a folder of a model with an adapter is refused")
    if not isinstance(table, dict):
        return
    if path.name.endswith("config.json"):
        limit = LARGEST_SIDE if path.name.startswith("preprocessor") else LARGEST_NUMBER
        _screen_values(path, table, None if path.parent.name == "tokenizer" or "token" in path.name else limit)
    shards = table.get("weight_map")
    for shard in set(map(str, shards.values())) if isinstance(shards, dict) else ():
        if Path(shard).name != shard:
            raise BadModel(f"{path} names weights outside its folder: {shard!r}")


def _screen_values(path: Path, table: dict[str, Any], limit: int | None) -> None:
    """Looks at every value of a configuration, at any depth; ``limit`` is for its numbers."""
    left: list[tuple[str, Any, int]] = [("", table, 0)]
    while left:
        key, value, depth = left.pop()
        if depth > DEEPEST_TABLE:
            raise BadModel(f"{path}: expected tables in at most {DEEPEST_TABLE} levels, got more")
        if isinstance(value, dict):
            left += [(str(name), inner, depth + 1) for name, inner in value.items()]
        elif isinstance(value, list):
            left += [(key, inner, depth + 1) for inner in value]
        _refuse_requests(path, key, value)
        if limit is not None and isinstance(value, int | float) and abs(value) > limit:
            raise BadModel(f"{path}: expected {key} of at most {limit:,}, got {value}")


def _refuse_requests(path: Path, key: str, value: Any) -> None:
    """What a configuration may not ask for: code, the libraries of others, files elsewhere."""
    if key == "auto_map" and value:
        raise BadModel(f"{path} asks for code of its own (auto_map); such folders are refused")
    if key == "quantization_config" and value:
        raise BadModel(f"{path} asks for quantised weights (quantization_config); expected plain ones")
    if "attn_implementation" in key and isinstance(value, str) and "/" in value:
        raise BadModel(f"{path} asks for code of somebody's ({key}={value!r}); it is not fetched")
    if key in ("vocab_file", "merges_file", "tokenizer_file") and value is not None:
        with reading(str(path)):
            if not isinstance(value, str) or (
                Path(value).exists() and Path(value).parent.resolve() != path.parent.resolve()
            ):
                raise BadModel(f"{path} names a file outside its folder ({key}={value!r}); it is not read")


def require_filled(build: Callable[[], nn.Module], folder: Path, held: int | None = None) -> None:
    """Raises ``BadModel`` for a network that is larger than the files that are to fill it.

    ``build`` makes the network; here it does so on PyTorch's meta device, without memory. ``held`` is how many bytes of
    weights there are, by default all in the folder; a weight takes at least one.
    """
    if held is None:
        held = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in WEIGHTS)
    with _counting(folder), torch.device("meta"):
        network = build()
    for what, tensors, most in (
        ("weights", network.parameters(), held),
        ("constants", network.buffers(), max(held, LARGEST_NUMBER)),
    ):
        asked = sum(tensor.numel() for tensor in tensors)
        if asked > most:
            raise BadModel(f"{folder} declares a network of {asked:,} {what}, and its files hold {held:,} bytes")


@contextmanager
def _counting(folder: Path) -> Iterator[None]:
    """Stops the building of a network that never ends."""
    count = 0

    def one_more(*_: object) -> None:
        nonlocal count
        count += 1
        if count > MOST_MODULES:
            raise BadModel(f"{folder} declares a network of more than {MOST_MODULES:,} modules")

    hook = register_module_module_registration_hook(one_more)
    try:
        yield
    finally:
        hook.remove()
