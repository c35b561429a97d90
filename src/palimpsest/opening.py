"""How a part opens a model of transformers, and asks it in batches of one size."""

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from PIL.Image import Image
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from palimpsest.errors import BadModel, BadSetting
from palimpsest.model.screening import reading, require_filled, screen

BATCH = 16
"""One size for every forward (short ones are padded), so that a score does not depend on a picture's neighbours."""
SAFELY: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


@cache
def screened(part: str, source: str) -> Path:
    """The folder that ``source`` means, here or in the hub's cache, once it has been looked through."""
    try:
        with reading(source):
            folder = Path(source) if Path(source).is_dir() else Path(snapshot_download(source, local_files_only=True))
        screen(folder)
    except BadModel as error:
        raise BadSetting(f"{part}: expected a model of transformers, got {source!r}: {error}") from None
    return folder


@cache
def fingerprint(part: str, source: str) -> str:
    """SHA-256 over a model's folder: weights, configuration, tokenizer, image processor."""
    folder, sha = screened(part, source), hashlib.sha256()
    try:
        with reading(source):
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                sha.update(f"{path.relative_to(folder).as_posix()}\0".encode())
                with path.open("rb") as file:
                    sha.update(hashlib.file_digest(file, "sha256").digest())
    except BadModel as error:
        raise BadSetting(f"{part}: expected a model of transformers, got {source!r}: {error}") from None
    return sha.hexdigest()


@cache
def opened(part: str, kind: Any, source: str) -> Any:
    """``kind.from_pretrained(source)`` in full precision, opened once; no code of the folder is run, nothing fetched.

    Raises ``BadSetting`` where there is no such model, or where its weights lack some that ``kind`` needs: they would
    be random. For features (``AutoModel``) a pooler may be lacking: they are taken before it.
    """
    folder = screened(part, source)
    try:
        with reading(source):
            require_filled(lambda: _declared(kind, folder), folder)
            network, found = kind.from_pretrained(
                str(folder), **SAFELY, weights_only=True, dtype=torch.float32, output_loading_info=True
            )
        for name, weight in network.named_parameters():
            if not bool(weight.isfinite().all()):
                raise BadModel(f"{name} holds values that are no numbers (NaN or infinite)")
    except BadModel as error:
        raise BadSetting(f"{part}: expected a model of transformers, got {source!r}: {error}") from None
    lacking = sorted(found["missing_keys"])
    if kind is AutoModel:
        lacking = [name for name in lacking if "pooler" not in name.split(".")]
    if lacking:
        raise BadSetting(
            f"{part}: expected a {type(network).__name__}, got {source!r}, whose weights lack {len(lacking)} of its "
            f"own, {lacking[0]} for one"
        )
    return network.eval()


def _declared(kind: Any, folder: Path) -> Any:
    """The network that a folder's configuration declares, without the folder's weights."""
    if (own := getattr(kind, "config_class", None)) is not None:
        return kind(own.from_pretrained(str(folder), local_files_only=True))
    return kind.from_config(AutoConfig.from_pretrained(str(folder), **SAFELY), trust_remote_code=False)


@cache
def preprocessing(part: str, kind: Any, source: str) -> Any:
    """The tokenizer or the image processor in a model's folder; ``BadSetting`` where there is none."""
    # One way of resizing on every machine: torchvision's, where it is installed, gives other pixels.
    how = {"backend": "pil"} if kind is AutoImageProcessor else {}
    folder = screened(part, source)
    try:
        with reading(source):
            return kind.from_pretrained(str(folder), **SAFELY, **how)
    except BadModel as error:
        raise BadSetting(f"{part}: expected {kind.__name__}'s file in {source!r}: {error}") from None


@torch.no_grad()
def in_batches(part: str, source: str, pictures: Sequence[Image], ask: Callable[[Tensor], Tensor]) -> Tensor:
    """Pictures -> what ``ask`` makes of (BATCH, 3, h, w) pixels, (n, ...); pixels as the model's folder says."""
    processor = preprocessing(part, AutoImageProcessor, source)
    parts = []
    for first in range(0, len(pictures), BATCH):
        some = [picture.convert("RGB") for picture in pictures[first : first + BATCH]]
        try:
            with reading(source):
                pixels = processor(some, return_tensors="pt")["pixel_values"]
                padded = torch.cat([pixels, pixels[-1:].expand(BATCH - len(some), *pixels.shape[1:])])
                parts.append(ask(padded)[: len(some)])
        except BadModel as error:
            raise BadSetting(f"{part}: the model cannot look at a picture: {error}") from None
    return torch.cat(parts)
