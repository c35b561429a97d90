"""What the erasers that edit cross-attention in closed form know of prompts."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from palimpsest.erasers.base import Eraser
from palimpsest.errors import BadSetting
from palimpsest.model import Model

WEIGHTS = r"unet\..*\.attn2\.to_[kv]\.weight"


def encode(model: Model, prompt: str) -> tuple[Tensor, int]:
    """(context, width) states in double precision, and the place of the prompt's last token (the start, if empty)."""
    return model.embed([prompt]).states[0].double(), len(model.own_tokens(prompt))


def states(model: Model, prompts: Sequence[str]) -> Iterator[Tensor]:
    """(context, width) in double precision, of one prompt after the other."""
    for first in range(0, len(prompts), model.batch):
        yield from model.remembered(prompts[first : first + model.batch]).states.double()


def turned(model: Model, change: Tensor) -> Model:
    """Every key and value W as W + W D, D (width, width)."""
    changed: dict[str, Tensor] = {}
    for name, weight in model.weights(WEIGHTS).items():
        start = weight.double()
        changed[name] = (start + start @ change).to(weight.dtype)
    return model.with_weights(changed)


def check_anchors(eraser: Eraser, model: Model, pairs: Sequence[tuple[str, str]]) -> None:
    """``BadSetting`` if a name is its own anchor, or two names that the tokenizer reads alike have different ones."""
    read: dict[tuple[int, ...], tuple[str, str]] = {}
    for name, anchor in pairs:
        tokens, target = (tuple(model.tokens(prompt).tolist()) for prompt in (name, anchor))
        if tokens == target:
            raise BadSetting(
                f"{eraser.name}: expected an anchor that is not the concept, got {anchor!r} for {name!r}: "
                "the tokenizer reads them alike, and nothing would change"
            )
        before, its_anchor = read.setdefault(tokens, (name, anchor))
        if tuple(model.tokens(its_anchor).tolist()) != target:
            raise BadSetting(
                f"{eraser.name}: expected concepts with text states of their own, got {before!r} (to {its_anchor!r}) "
                f"and {name!r} (to {anchor!r}), which coincide: the tokenizer reads them alike"
            )


def gram(weights: Mapping[str, Tensor]) -> Tensor:
    """(in, in) float64: sum W^T W over matrices (out, in)."""
    (width,) = {weight.shape[1] for weight in weights.values()}
    device = next(iter(weights.values())).device
    total = torch.zeros(width, width, dtype=torch.float64, device=device)
    for weight in weights.values():
        rows = weight.detach().double()
        total.addmm_(rows.mT, rows)
    return total
