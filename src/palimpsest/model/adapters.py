"""Modules that an eraser puts behind cross-attention: a plain diffusers folder cannot hold them.

An adapter takes the place of the dropout after an ``attn2``'s output layer, which does nothing in a frozen model. So
its weights are called ``unet.<...>.attn2.to_out.1.down.weight`` and the like, and are weights like all others.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional

from palimpsest.errors import BadCheckpoint
from palimpsest.model.network import Network

WEIGHTS = r"unet\..*\.attn2\.to_out\.1\.(down|up)\.(weight|bias)"
_NAME = re.compile(r"(?:unet\.)?(?P<attention>.*attn2)\.to_out\.1\.(?P<piece>(?:down|up)\.(?:weight|bias))")
PIECES = ("down.weight", "down.bias", "up.weight", "up.bias")


class Adapter(nn.Module):
    """h + up(GELU(down(h))), by way of ``hidden`` units, for h of ``width``."""

    def __init__(self, width: int, hidden: int, like: Tensor) -> None:
        super().__init__()
        about = {"device": like.device, "dtype": like.dtype}
        self.down = nn.utils.skip_init(nn.Linear, width, hidden, **about)
        self.up = nn.utils.skip_init(nn.Linear, hidden, width, **about)
        for weight in self.parameters():
            nn.init.zeros_(weight.requires_grad_(False))

    def forward(self, state: Tensor) -> Tensor:
        """What follows on the attention's output."""
        added: Tensor = self.up(functional.gelu(self.down(state)))
        return state + added


def names_adapter(key: str) -> bool:
    """Whether this is what an adapter's weight is called, with its network's name or bare."""
    return _NAME.fullmatch(key) is not None


def adapters(model: Network) -> dict[str, Adapter]:
    """Those of a model by qualified name."""
    return {f"unet.{name}": module for name, module in model.unet.named_modules() if isinstance(module, Adapter)}


def fresh(model: Network, hidden: int, random: torch.Generator) -> dict[str, Tensor]:
    """Weights of an adapter behind every ``attn2``, which change nothing yet; for ``with_weights``.

    ``down`` begins as PyTorch's linear layers do, uniformly within 1 / sqrt(width); ``up`` is zero.
    """
    found = {}
    for name, module in _attentions(model).items():
        width = module.to_out[0].out_features
        bound = width**-0.5
        for piece, shape in (("down.weight", (hidden, width)), ("down.bias", (hidden,))):
            found[f"unet.{name}.to_out.1.{piece}"] = (2 * torch.rand(shape, generator=random) - 1) * bound
        for piece, shape in (("up.weight", (width, hidden)), ("up.bias", (width,))):
            found[f"unet.{name}.to_out.1.{piece}"] = torch.zeros(shape)
    return found


def attach(model: Network, weights: Mapping[str, Tensor]) -> None:
    """Puts an adapter wherever ``weights`` has some of one, into a model whose modules are its own.

    The weights' values are not taken. Raises ``BadCheckpoint`` for a piece of an adapter without the rest.
    """
    pieces: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for key in weights:
        if match := _NAME.fullmatch(key):
            pieces[match["attention"]][match["piece"]] = key
    known = _attentions(model)
    for attention, named in pieces.items():
        if attention not in known or isinstance(known[attention].to_out[1], Adapter):
            continue  # a stranger, or weights for what is there: whoever takes the weights checks those
        missing = [piece for piece in PIECES if piece not in named]
        if missing:
            raise BadCheckpoint(f"expected a whole adapter at {attention}, got none of its {', '.join(missing)}")
        down = weights[named["down.weight"]]
        if down.ndim != 2 or not down.shape[0]:
            raise BadCheckpoint(f"expected {named['down.weight']} of two dimensions, got {tuple(down.shape)}")
        output = known[attention].to_out[0]
        known[attention].to_out[1] = Adapter(output.out_features, down.shape[0], output.weight)


@contextmanager
def additions(model: Network) -> Iterator[dict[str, Tensor]]:
    """Collects what each adapter adds, (n, positions, width) by its name, with gradient; the last forward's."""
    seen: dict[str, Tensor] = {}

    def record(name: str, output: Tensor) -> None:
        seen[name] = output

    with ExitStack() as undo:
        for name, adapter in adapters(model).items():
            hook = adapter.up.register_forward_hook(lambda module, given, out, name=name: record(name, out))
            undo.callback(hook.remove)
        yield seen


def _attentions(model: Network) -> dict[str, Any]:
    """The denoiser's cross-attentions by name."""
    return {
        name: module
        for name, module in model.unet.named_modules()
        if isinstance(module, Attention) and name.endswith("attn2")
    }
