"""What a model's weights are called, how they are changed, and what they add up to."""

import copy
import hashlib
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from palimpsest.errors import BadCheckpoint, BadSetting
from palimpsest.model.adapters import Adapter, attach, names_adapter
from palimpsest.model.network import NETWORKS, Meter, Network

ModelT = TypeVar("ModelT", bound=Network)
CONSTANT = frozenset((type(None), bool, int, float, str))
TABLES = frozenset((dict, OrderedDict, set))


class LowRank(nn.Module):
    """A weight plus a trainable product of rank ``rank``: LoRA, Hu et al. 2021, W + B A with B = 0 at first.

    Of a convolution (out, in, k, k), A is a convolution of its own shape to ``rank`` channels, and B one of 1 x 1.
    """

    def __init__(self, weight: Tensor, rank: int, random: torch.Generator) -> None:
        super().__init__()
        out, into = weight.shape[0], weight[0].numel()
        down = torch.randn(rank, into, generator=random) / rank
        self.down = nn.Parameter(down.to(weight))
        self.up = nn.Parameter(weight.new_zeros(out, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that the layer uses."""
        return weight + (self.up @ self.down).view_as(weight)


def matching(model: Network, pattern: str) -> dict[str, nn.Parameter]:
    """The live weights whose whole qualified name matches."""
    fits = re.compile(pattern).fullmatch
    found = {
        f"{network}.{name}": weight
        for network in NETWORKS
        for name, weight in getattr(model, network).named_parameters()
        if fits(f"{network}.{name}")
    }
    if not found:
        raise BadSetting(f"expected a pattern that matches names such as unet.conv_in.weight, got {pattern!r}")
    return found


def feed_forwards(denoiser: nn.Module) -> dict[str, tuple[str, ...]]:
    """Name of each feed-forward's second linear weight -> names of the weights that lead into it.

    Known by their structure: a module whose only linears are one that narrows, and one or two that widen what that one
    gives to what it takes, or to twice that (gated).
    """
    found = {}
    for name, module in denoiser.named_modules():
        linears = {f"{name}.{path}": one for path, one in module.named_modules() if isinstance(one, nn.Linear)}
        if len(linears) not in (2, 3) or isinstance(module, Adapter):
            continue
        second = min(linears, key=lambda path: linears[path].out_features / linears[path].in_features)
        last, firsts = linears[second], [one for path, one in linears.items() if path != second]
        width, hidden = last.out_features, last.in_features
        widens = all(one.in_features == width for one in firsts)
        if width < hidden and widens and sum(one.out_features for one in firsts) in (hidden, 2 * hidden):
            found[f"{second}.weight"] = tuple(f"{path}.weight" for path in linears if path != second)
    return found


def put(model: Network, name: str, weight: Tensor, *, trainable: bool = False) -> None:
    """Sets one weight of a model whose modules are its own."""
    network, _, path = name.partition(".")
    owner, _, leaf = path.rpartition(".")
    module: nn.Module = getattr(model, network).get_submodule(owner)
    module.register_parameter(leaf, nn.Parameter(weight, requires_grad=trainable))


def sharing(model: ModelT) -> ModelT:
    """A model with modules of its own and all weights shared."""
    return _as(model, type(model))


def behind(model: Network, guard: type[ModelT], facts: Mapping[str, Any]) -> ModelT:
    """The model's weights behind a guard that has these attributes."""
    if model.guarded:
        raise BadSetting(f"expected a model without a guard, got one behind {type(model).__name__}")
    guarded = _as(model, guard)
    guarded.__dict__.update(facts)
    return guarded


def _as(model: Network, kind: type[ModelT]) -> ModelT:
    """The same as another kind of model, with modules of its own and all weights shared."""
    shared = object.__new__(kind)
    shared.__dict__.update(model.__dict__)
    shared.forget()
    shared._meter = Meter(origin=model._meter)
    for network in NETWORKS:
        setattr(shared, network, twin(getattr(model, network)))
    return shared


def twin(network: nn.Module) -> nn.Module:
    """What ``copy.deepcopy`` gives, but for the weights, which are shared; in a third of its time or less.

    Nearly all that it would visit are numbers and empty tables of hooks, a dozen to a module. Measured by
    ``benchmarks/copies.py``.
    """
    memo: dict[int, Any] = {id(weight): weight for weight in network.parameters()}
    modules = [module for module in network.modules() if not hasattr(type(module), "__deepcopy__")]
    memo |= {id(module): object.__new__(type(module)) for module in modules}
    for module in modules:
        new = memo[id(module)].__dict__
        new.update(module.__dict__)
        for name, value in module.__dict__.items():
            if (kind := type(value)) not in CONSTANT:
                new[name] = kind() if kind in TABLES and not value else copy.deepcopy(value, memo)
    return copy.deepcopy(network, memo)


def with_blank_adapters(model: ModelT, state: Mapping[str, Tensor]) -> ModelT:
    """A copy with an adapter, all zeros, wherever a file's state names one; the model itself if it names none."""
    if not any(map(names_adapter, state)):
        return model
    new = sharing(model)
    attach(new, state)
    return new


def changed(model: ModelT, weights: Mapping[str, Tensor]) -> ModelT:
    """A copy with these weights; every name and shape must fit. Adapters among them are put where they belong."""
    require_plain(model)
    new = sharing(model)
    attach(new, weights)
    known = matching(new, ".*")
    unknown = sorted(set(weights) - set(known))
    if unknown:
        raise BadCheckpoint(
            f"expected names of the model's weights, got {len(unknown)} others: {', '.join(unknown[:5])}"
        )
    for name, weight in weights.items():
        old = known[name]
        if weight.shape != old.shape:
            raise BadCheckpoint(f"expected {name} of shape {tuple(old.shape)}, got {tuple(weight.shape)}")
        if not bool(torch.isfinite(weight).all()):
            raise BadCheckpoint(f"expected numbers in {name}, got NaN or infinite values")
        put(new, name, weight.detach().to(old.device, old.dtype, copy=True))
    return new


def trainable(model: ModelT, pattern: str, lora: int | None, random: torch.Generator | None) -> ModelT:
    """A copy whose matching weights are its own and require gradients, or get low-rank additions that do."""
    require_plain(model)
    mine = matching(model, pattern) if pattern else {}
    new = sharing(model)
    if lora is None:
        for name, weight in mine.items():
            put(new, name, weight.detach().clone(), trainable=True)
        return new
    if random is None:
        raise ValueError("expected a generator for the low-rank additions, got none")
    layers = [
        name.rpartition(".")[0] for name, weight in mine.items() if name.endswith(".weight") and weight.ndim in (2, 4)
    ]
    if not layers:
        raise BadSetting(f"expected a pattern that matches weights of linear or convolution layers, got {pattern!r}")
    for layer in layers:
        network, _, path = layer.partition(".")
        module = getattr(new, network).get_submodule(path)
        parametrize.register_parametrization(module, "weight", LowRank(module.weight, lora, random))
    return new


def frozen(model: ModelT) -> ModelT:
    """A copy without anything trainable, low-rank additions merged in; what was trained is copied."""
    new = sharing(model)
    for network in NETWORKS:
        for module in getattr(new, network).modules():
            if parametrize.is_parametrized(module):
                _merge(module)
    for name, weight in matching(new, ".*").items():
        if weight.requires_grad:
            put(new, name, weight.detach().clone())
    return new


def _merge(module: Any) -> None:
    """Makes a layer with low-rank additions a plain one again.

    Done by hand, because the library takes the weight off the layer's class, which copies of the layer share.
    """
    merged = module.weight.detach().clone()
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    module.register_parameter("weight", nn.Parameter(merged, requires_grad=False))


def require_plain(model: Network) -> None:
    """Raises for a copy with low-rank additions, which must be merged first."""
    for network in NETWORKS:
        if any(parametrize.is_parametrized(module) for module in getattr(model, network).modules()):
            raise BadSetting("expected a model without low-rank additions: merge them with frozen() first")


def with_token(model: ModelT, token: str, embedding: Tensor) -> ModelT:
    """A copy that knows one more word."""
    require_plain(model)
    old = model.vocabulary
    if embedding.shape != old.shape[1:]:
        raise BadSetting(f"expected an embedding of shape {tuple(old.shape[1:])}, got {tuple(embedding.shape)}")
    new = sharing(model)
    new.tokenizer = copy.deepcopy(model.tokenizer)
    if new.tokenizer.add_tokens([token]) != 1:
        raise BadSetting(f"expected a word that is no token yet, got {token!r}")
    number = new.tokenizer.convert_tokens_to_ids(token)
    # Some tables have more rows than the tokenizer has words.
    table = old.new_zeros(max(number + 1, len(old)), old.shape[1])
    table[: len(old)] = old
    table[number] = embedding.to(table)
    layer = new.text_encoder.get_input_embeddings()
    layer.weight = nn.Parameter(table, requires_grad=False)
    layer.num_embeddings = new.text_encoder.config.vocab_size = len(table)
    return new


def fingerprint(model: Network) -> str:
    """SHA-256 of all that decides what the model draws: weights, schedule, words of its own, guard."""
    facts = (
        model.prediction_type,
        model.scaling_factor,
        sorted(model.tokenizer.get_added_vocab().items()),
        type(model).__qualname__ if model.guarded else "",
        model.guard,
    )
    sha = hashlib.sha256(repr(facts).encode())
    tensors: dict[str, Tensor] = {"alphas_cumprod": model.alphas_cumprod} | dict(sorted(matching(model, ".*").items()))
    for name, tensor in tensors.items():
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
