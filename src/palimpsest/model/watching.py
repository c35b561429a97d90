"""Looks inside a model while it works."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor, nn

from palimpsest.errors import BadSetting
from palimpsest.model.network import NETWORKS, Network


def _modules(model: Network, pattern: str) -> dict[str, nn.Module]:
    fits = re.compile(pattern).fullmatch
    found = {
        f"{network}.{name}": module
        for network in NETWORKS
        for name, module in getattr(model, network).named_modules()
        if fits(f"{network}.{name}")
    }
    if not found:
        raise BadSetting(f"expected a pattern that matches names of modules such as unet.conv_in, got {pattern!r}")
    return found


@contextmanager
def watch(
    model: Network, pattern: str, *, maps: bool, inputs: bool, keep: Callable[[Tensor], Tensor]
) -> Iterator[dict[str, list[Tensor]]]:
    """Collects outputs, first inputs or attention maps under the modules' qualified names while the context is open.

    Of each only what ``keep`` makes of it is held. It is given maps with their gradient, all else without.
    """
    seen: dict[str, list[Tensor]] = {name: [] for name in _modules(model, pattern)}
    with ExitStack() as undo:
        for name, module in _modules(model, pattern).items():
            if maps:
                undo.enter_context(_recording_maps(module, name, seen[name], keep))
            elif inputs:
                undo.callback(_record_inputs(module, seen[name], keep).remove)
            else:
                undo.callback(_record_outputs(module, seen[name], keep).remove)
        yield seen


def _record_outputs(module: nn.Module, seen: list[Tensor], keep: Callable[[Tensor], Tensor]) -> Any:
    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        seen.append(keep((output if isinstance(output, Tensor) else output[0]).detach()))

    return module.register_forward_hook(record)


def _record_inputs(module: nn.Module, seen: list[Tensor], keep: Callable[[Tensor], Tensor]) -> Any:
    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(keep(inputs[0].detach()))

    return module.register_forward_pre_hook(record)


@contextmanager
def _recording_maps(module: Any, name: str, seen: list[Tensor], keep: Callable[[Tensor], Tensor]) -> Iterator[None]:
    if not isinstance(module, Attention):
        raise BadSetting(f"expected attention modules of the denoiser to take maps of, got {name}")
    scores = module.get_attention_scores
    processor = module.processor

    def record(*arguments: Any, **named: Any) -> Tensor:
        probabilities: Tensor = scores(*arguments, **named)
        seen.append(keep(probabilities))
        return probabilities

    # Only the plain products make the map at all; the fused kernels never hold it.
    module.set_processor(AttnProcessor())
    module.get_attention_scores = record
    try:
        yield
    finally:
        del module.get_attention_scores
        module.set_processor(processor)
