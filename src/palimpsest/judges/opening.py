"""How a judge or a measure opens a model of transformers, and asks it in batches of one size."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel

from palimpsest.errors import BadSetting

BATCH = 16
"""One size for every forward (short ones are padded), so that a score does not depend on a picture's neighbours."""


@cache
def opened(part: str, kind: Any, source: str) -> Any:
    """``kind.from_pretrained(source)`` in full precision, opened once; no code of the folder is run, nothing fetched.

    Raises ``BadSetting`` where there is no such model, or where its weights lack some that ``kind`` needs: they would
    be random. For features (``AutoModel``) a pooler may be lacking: they are taken before it.
    """
    try:
        network, found = kind.from_pretrained(
            source,
            local_files_only=True,
            trust_remote_code=False,
            weights_only=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise BadSetting(f"{part}: expected a model of transformers, got {source!r}: {_short(error)}") from None
    lacking = sorted(found["missing_keys"])
    if kind is AutoModel:
        lacking = [name for name in lacking if "pooler" not in name.split(".")]
    if lacking:
        raise BadSetting(
            f"{part}: expected a {type(network).__name__}, got {source!r}, whose weights lack {len(lacking)} of its "
            f"own, {lacking[0]} for one"
        )
    return network.eval()


@cache
def preprocessing(part: str, kind: Any, source: str) -> Any:
    """The tokenizer or the image processor in a model's folder; ``BadSetting`` where there is none."""
    # One way of resizing on every machine: torchvision's, where it is installed, gives other pixels.
    how = {"backend": "pil"} if kind is AutoImageProcessor else {}
    try:
        return kind.from_pretrained(source, local_files_only=True, trust_remote_code=False, **how)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadSetting(f"{part}: expected {kind.__name__}'s file in {source!r}: {_short(error)}") from None


@torch.no_grad()
def in_batches(part: str, source: str, pictures: Sequence[Image], ask: Callable[[Tensor], Tensor]) -> Tensor:
    """Pictures -> what ``ask`` makes of (BATCH, 3, h, w) pixels, (n, ...); pixels as the model's folder says."""
    processor = preprocessing(part, AutoImageProcessor, source)
    parts = []
    for first in range(0, len(pictures), BATCH):
        some = [picture.convert("RGB") for picture in pictures[first : first + BATCH]]
        pixels = processor(some, return_tensors="pt")["pixel_values"]
        padded = torch.cat([pixels, pixels[-1:].expand(BATCH - len(some), *pixels.shape[1:])])
        parts.append(ask(padded)[: len(some)])
    return torch.cat(parts)


def _short(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:160]
