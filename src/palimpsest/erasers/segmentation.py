"""Where a concept is in a picture, as a model of others tells by its name."""

from collections.abc import Sequence

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional
from transformers import AutoImageProcessor, AutoTokenizer, CLIPSegForImageSegmentation

from palimpsest.opening import in_batches, opened, preprocessing


def check_segmenter(part: str, source: str) -> None:
    """Opens it, so that an erasure without one ends before it begins."""
    opened(part, CLIPSegForImageSegmentation, source)
    preprocessing(part, AutoTokenizer, source)
    preprocessing(part, AutoImageProcessor, source)


def segmented(part: str, source: str, pictures: Sequence[Image], name: str, *, size: tuple[int, int]) -> Tensor:
    """(n, 1, *size) in [0, 1]: how surely each place shows what ``name`` says, by a CLIPSeg (arXiv 2112.10003).

    ``source`` is its folder, with its tokenizer and image processor. Raises ``BadSetting`` where there is none.
    """
    network = opened(part, CLIPSegForImageSegmentation, source)
    asked = preprocessing(part, AutoTokenizer, source)([name], return_tensors="pt")

    def ask(pixels: Tensor) -> Tensor:
        words = {key: asked[key].expand(len(pixels), -1) for key in ("input_ids", "attention_mask")}
        logits: Tensor = network(pixel_values=pixels, **words).logits
        return logits

    found = torch.sigmoid(in_batches(part, source, pictures, ask))[:, None]
    return functional.interpolate(found, size=size, mode="area")
