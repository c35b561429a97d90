"""What trained erasers do with gradients: add them up, find the largest, let some of them through alone, cut them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from palimpsest.errors import BadSetting
from palimpsest.model import Model
from palimpsest.pruning import Mask


def accumulated(student: Model, losses: Iterable[Tensor], part: str, *, sizes: bool = False) -> dict[str, Tensor]:
    """Weight's name -> float32: the losses' gradients by all that the student has trainable, summed.

    ``sizes``: their absolute values are. One loss is held at a time. Raises ``BadSetting`` for one that is no number.
    """
    weights = {name: weight for name, weight in student.weights().items() if weight.requires_grad}
    sums = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    for loss in losses:
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        for total, gradient in zip(sums.values(), gradients, strict=True):
            if gradient is not None:
                total += gradient.abs() if sizes else gradient
    if not all(bool(total.isfinite().all()) for total in sums.values()):
        raise BadSetting(f"{part}: expected finite gradients on the concept's pictures, got others")
    return sums


def largest_of_all(scores: Mapping[str, Tensor], count: int) -> Mask:
    """The ``count`` largest positive scores, whichever weight they belong to; ties with the last of them are taken.

    Of each weight the mask holds (out, all else): a convolution's kernel lies flat, a vector is one column.
    """
    least = _largest(list(scores.values()), count)
    marks = {name: (score >= least) & (score > 0) for name, score in scores.items()}
    return Mask({name: marked.reshape(len(marked), -1).cpu() for name, marked in marks.items()})


def _largest(scores: Sequence[Tensor], count: int) -> float:
    """The ``count``-th largest of non-negative numbers, without a copy of all of them in one place.

    Their bit patterns order as they do: the upper half of the bits is counted first, then the lower half of those that
    share the upper half of the one that is sought.
    """
    if count < 1:
        return float("inf")
    bits = [score.detach().float().flatten().view(torch.int32) for score in scores]
    upper, above = _bucket([one >> 16 for one in bits], count)
    lower, _ = _bucket([one[one >> 16 == upper] & 0xFFFF for one in bits], count - above)
    return float(torch.tensor(upper << 16 | lower, dtype=torch.int32).view(torch.float32))


def _bucket(numbers: Sequence[Tensor], count: int) -> tuple[int, int]:
    """(the ``count``-th largest of whole numbers below 2^16, how many are larger than it)."""
    sizes = sum((torch.bincount(some, minlength=1 << 16).cpu() for some in numbers), torch.zeros(1 << 16).long())
    from_above = sizes.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_above, count))
    return (1 << 16) - 1 - place, int(from_above[place] - sizes.flip(0)[place])


def let_through(student: Model, mask: Mask) -> None:
    """From now on, gradients of the student's trainable weights are zero wherever the mask does not mark.

    Under an optimiser that keeps still where it never saw a gradient (Adam without decay), all else stays as it is.
    """
    for name, weight in student.weights().items():
        if weight.requires_grad:
            marks = mask.entries[name].reshape(weight.shape).to(weight.device)
            weight.register_hook(marks.mul)


def cutting(optimiser: torch.optim.Optimizer, norm: float) -> None:
    """From now on, the gradient as a whole is scaled down to ``norm`` before each step, if it is longer."""
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]

    def cut(*_: Any) -> None:
        torch.nn.utils.clip_grad_norm_(weights, norm)

    optimiser.register_step_pre_hook(cut)
