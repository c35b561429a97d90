"""How strongly the inputs of linear layers answer to prompts: what Wanda's score multiplies weights with."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from re import escape

import torch
from torch import Tensor

from palimpsest.errors import BadSetting
from palimpsest.model import Model, Sampling
from palimpsest.records import Concept


def prompts_of(concept: Concept, part: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Prompts with the concept, and the same without it; raises ``BadSetting`` where it brings no pairs."""
    if not concept.pairs:
        raise BadSetting(
            f"{part}: expected concept {concept.name!r} to have pairs of prompts (with, without), got none"
        )
    given, absent = zip(*concept.pairs, strict=True)
    return given, absent


@torch.no_grad()
def squares(
    model: Model, prompts: Sequence[str], names: Iterable[str], *, sampling: Sampling, steps: int, seed: int
) -> dict[str, Tensor]:
    """Weight's name -> (prompts, steps, in): squared inputs of its linear, summed over rows of length 1.

    Rows are positions in both branches of the guidance, while pictures of the prompts, all from the noise of one seed,
    take their first steps. The text encoder has one step, in which it encodes the prompt and the empty prompt.
    """
    names = list(names)
    of_text = all(name.startswith("text_encoder.") for name in names)
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for chunk in chunks(model, prompts):
        with watching(model, {name: partial(_squares, n=len(chunk)) for name in names}) as seen:
            if of_text:
                model.embed([*chunk, *[""] * len(chunk)])
            else:
                walk(model, chunk, sampling=sampling, steps=steps, seed=seed)
        for name, sums in seen.items():
            # PNDM asks once more than it steps.
            found[name].append(torch.stack(sums[:steps], dim=1))
    return {name: torch.cat(parts) for name, parts in found.items()}


def chunks(model: Model, prompts: Sequence[str]) -> Iterator[Sequence[str]]:
    """The prompts in batches of the model's size."""
    for first in range(0, len(prompts), model.batch):
        yield prompts[first : first + model.batch]


def walk(model: Model, prompts: Sequence[str], *, sampling: Sampling, steps: int, seed: int) -> None:
    """The first steps of the prompts' pictures, one batch, all from the noise of one seed."""
    noise = model.noise(seed).expand(len(prompts), *model.latent_shape)
    model.trajectory(noise, model.embed(prompts), sampling, until=steps)


@contextmanager
def watching(model: Model, keep: dict[str, Callable[[Tensor], Tensor]]) -> Iterator[dict[str, list[Tensor]]]:
    """Weight's name -> what ``keep`` made of its linear's input, one entry per forward while the context is open."""
    with ExitStack() as stack:
        seen = {}
        for name, keeps in keep.items():
            module = name.removesuffix(".weight")
            seen[name] = stack.enter_context(model.watch(escape(module), inputs=True, keep=keeps))[module]
        yield seen


def _squares(inputs: Tensor, *, n: int) -> Tensor:
    """(branches * n, positions, width) -> (n, width): squares summed over rows of length 1."""
    rows = torch.nn.functional.normalize(inputs.float(), dim=-1)
    sums: Tensor = rows.square().unflatten(0, (-1, n)).sum((0, 2))
    return sums
