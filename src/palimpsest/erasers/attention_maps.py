"""Where in a picture the words of its prompt are attended to."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.model import Model, Text

CROSS_ATTENTION = r"unet\..*\.attn2"


def maps(model: Model, latents: Tensor, step: Tensor, text: Text) -> list[Tensor]:
    """Each cross-attention's probabilities, (n, heads, positions, context), with gradients."""
    with model.watch(CROSS_ATTENTION, maps=True, keep=_itself) as seen:
        model.predict_noise(latents, step, text)
    return [probabilities.unflatten(0, (len(latents), -1)) for (probabilities,) in seen.values()]


def attended(probabilities: Sequence[Tensor], places: Tensor, masks: Tensor) -> Tensor:
    """Scalar: the sum, over layers, heads and the tokens at ``places`` (n, context), of |A . M|^2.

    A are maps as above, M the ``masks`` (n, 1, h, w), 0 or 1; a position counts if any of what it stands for does.
    """
    total = torch.zeros((), device=masks.device, dtype=masks.dtype)
    for each in probabilities:
        size = _size(each.shape[2], (masks.shape[2], masks.shape[3]))
        mask = functional.interpolate(masks, size=size, mode="area").gt(0).flatten(1)
        total = total + ((each * mask[:, None, :, None] * places[:, None, None]) ** 2).sum()
    return total


@torch.no_grad()
def located(
    model: Model, latents: Tensor, text: Text, places: Tensor, *, shares: Sequence[float], random: torch.Generator
) -> Tensor:
    """(n, 1, h, w) in [0, 1]: how much the tokens at ``places`` (n, context) are attended to in clean latents.

    The mean over heads, layers and ``shares`` of the schedule, to which the latents are noised; scaled per picture.
    """
    size = (latents.shape[2], latents.shape[3])
    found = torch.zeros(len(latents), 1, *size).to(latents)
    for share in shares:
        noise = torch.randn(latents.shape, generator=random).to(latents)
        step = torch.tensor(int(share * model.timesteps), device=latents.device)
        for rows in torch.arange(len(latents), device=latents.device).split(model.batch):
            for each in maps(model, model.noised(latents[rows], noise[rows], step), step, text[rows]):
                own = (each * places[rows, None, None]).sum(-1).mean(1)
                picture = own.unflatten(1, _size(own.shape[1], size))[:, None]
                found[rows] += functional.interpolate(picture, size=size, mode="bilinear")
    low, high = (found.flatten(1).aminmax(dim=1)[end].reshape(-1, 1, 1, 1) for end in (0, 1))
    return (found - low) / (high - low).clamp(min=torch.finfo(found.dtype).tiny)


def _itself(probabilities: Tensor) -> Tensor:
    return probabilities


def _size(positions: int, like: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a map of so many positions of a picture of this shape."""
    height = round((positions * like[0] / like[1]) ** 0.5)
    return height, positions // height
