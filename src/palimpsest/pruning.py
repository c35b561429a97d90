"""What pruning takes away: entries of matrices, as a value that is kept, counted and compared."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from palimpsest.errors import BadCheckpoint, BadModel, BadSetting
from palimpsest.model import Model

Per = Literal["row", "matrix"]
Layers = Literal["ff2", "ff1", "keys", "values", "text"]

PATTERNS: dict[Layers, str] = {
    "ff2": r"unet\..*\.ff\.net\.2\.weight",
    "ff1": r"unet\..*\.ff\.net\.0\.proj\.weight",
    "keys": r"unet\..*\.attn2\.to_k\.weight",
    "values": r"unet\..*\.attn2\.to_v\.weight",
    "text": r"text_encoder\..*\.mlp\.fc2\.weight",
}
"""The matrices that pruning erasers choose from: second and first (GEGLU's) linear of the denoiser's feed-forwards,
keys and values of its cross-attention, second linear of the text encoder's feed-forwards."""
MARK = {"palimpsest": "mask"}
"""In the header of a mask's file."""


class Overlap(NamedTuple):
    """What two masks have in common."""

    shared: int
    """Entries that both mark."""
    jaccard: float
    """Shared entries over those that either marks; 0 where neither marks any."""
    chance: float
    """The same of masks that mark as many entries of each matrix, anywhere in it: |A| |B| / N are shared."""
    beyond: float
    """(shared - by chance) / (most possible - by chance): 0 by chance, 1 if one contains the other in each matrix."""


@dataclass(frozen=True, eq=False)
class Mask:
    """Entries of a model's matrices that are pruned, or are to be; raises ``BadCheckpoint`` unless they are bool.

    A matrix that is not among them has none marked.
    """

    entries: Mapping[str, Tensor]
    """Weight's qualified name -> (out, in) bool."""

    def __post_init__(self) -> None:
        """Refuses what marks no entries of a matrix."""
        for name, marks in self.entries.items():
            if marks.dtype is not torch.bool or marks.ndim != 2:
                kind = str(marks.dtype).removeprefix("torch.")
                raise BadCheckpoint(f"expected a mask of bool (out, in) for {name}, got {kind} {tuple(marks.shape)}")

    @property
    def count(self) -> int:
        """Entries that are marked."""
        return sum(int(marks.sum()) for marks in self.entries.values())

    @property
    def share(self) -> float:
        """Of all entries of the mask's matrices; 0 without any."""
        return self.count / max(1, sum(marks.numel() for marks in self.entries.values()))

    @property
    def shares(self) -> dict[str, float]:
        """Weight's name -> share of its entries."""
        return {name: float(marks.double().mean()) for name, marks in self.entries.items()}

    def __or__(self, other: "Mask") -> "Mask":
        """What either marks; raises ``BadCheckpoint`` if a matrix has two shapes."""
        both = self._beside(other)
        return Mask({name: mine | others for name, (mine, others) in both.items()})

    def overlap(self, other: "Mask") -> Overlap:
        """How much the two have in common; raises ``BadCheckpoint`` if a matrix has two shapes."""
        shared = either = 0
        chance = most = 0.0
        for mine, others in self._beside(other).values():
            a, b = int(mine.sum()), int(others.sum())
            shared += int((mine & others).sum())
            either += a + b
            chance += a * b / mine.numel()
            most += min(a, b)
        return Overlap(
            shared=shared,
            jaccard=shared / max(1, either - shared),
            chance=chance / max(1.0, either - chance),
            beyond=(shared - chance) / (most - chance) if most > chance else 0.0,
        )

    def _beside(self, other: "Mask") -> dict[str, tuple[Tensor, Tensor]]:
        """Both masks of each matrix that either has, on the CPU."""
        both = {}
        for name in dict.fromkeys([*self.entries, *other.entries]):
            one = self.entries.get(name, other.entries.get(name))
            assert one is not None
            nothing = torch.zeros(one.shape, dtype=torch.bool)
            pair = self.entries.get(name, nothing).cpu(), other.entries.get(name, nothing).cpu()
            if pair[0].shape != pair[1].shape:
                shapes = f"{tuple(pair[0].shape)} and {tuple(pair[1].shape)}"
                raise BadCheckpoint(f"expected masks of one shape for {name}, got {shapes}")
            both[name] = pair
        return both

    def applied(self, model: Model) -> Model:
        """The model with every marked entry zero; ``BadCheckpoint`` names each matrix that the model does not have."""
        weights = model.weights()
        faults = [
            f"{name} ({'no such weight' if name not in weights else f'of shape {tuple(weights[name].shape)}'})"
            for name, marks in self.entries.items()
            if name not in weights or weights[name].shape != marks.shape
        ]
        if faults:
            raise BadCheckpoint(f"expected a mask of the model's matrices, got others: {', '.join(faults)}")
        return model.with_weights(
            {
                name: weights[name].detach().masked_fill(marks.to(weights[name].device), 0.0)
                for name, marks in self.entries.items()
            }
        )

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file."""
        save_file({name: marks.cpu().contiguous() for name, marks in self.entries.items()}, path, MARK)

    @classmethod
    def load(cls, path: str | Path) -> "Mask":
        """The mask in a file that ``save`` wrote; raises ``BadCheckpoint`` for any other."""
        try:
            with safe_open(path, "pt") as file:
                if not (file.metadata() or {}).items() >= MARK.items():
                    raise BadCheckpoint(f"{path}: expected a saved mask, got other tensors")
                entries = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise BadCheckpoint(f"{path}: cannot be read as a mask ({error})") from None
        try:
            return cls(entries)
        except BadCheckpoint as error:
            raise BadCheckpoint(f"{path}: {error}") from None

    @classmethod
    def of_zeros(cls, model: Model, pattern: str = r"unet\..*", *, natural: float = 1e-4) -> "Mask":
        """The zeros of those matrices that match of which more than the share ``natural`` is exactly 0.

        So a pruned layer is known by what it holds, whatever it is called; in half precision a few weights of any layer
        are rounded to zero. A mask without matrices if there are none. Raises ``BadModel`` if no matrix matches.
        """
        zeros = {name: weight.detach() == 0 for name, weight in matrices(model, pattern).items()}
        return cls({name: marks.cpu() for name, marks in zeros.items() if marks.double().mean() > natural})


def matrices(model: Model, pattern: str) -> dict[str, Tensor]:
    """Name -> (out, in), the 2-D weights whose whole qualified name matches; raises ``BadModel`` if there are none."""
    found: dict[str, Tensor] = {}
    try:
        found = {name: weight for name, weight in model.weights(pattern).items() if weight.ndim == 2}
    except BadSetting:
        pass  # of names that match none; said below of matrices
    if not found:
        raise BadModel(f"expected a model with matrices called {pattern}, got one without")
    return found


def largest(scores: Tensor, share: float, *, per: Per = "row", least: int = 0) -> Tensor:
    """(out, in) bool: the floor(share * size) entries, and at least ``least``, of largest score per row or matrix."""
    rows = scores if per == "row" else scores.reshape(1, -1)
    count = max(least, int(share * rows.shape[1]))
    marks = torch.zeros_like(rows, dtype=torch.bool)
    return marks.scatter_(1, rows.topk(count, dim=1).indices, value=True).view_as(scores)


def chosen(entries: Mapping[str, Tensor], part: str) -> Mask:
    """The mask that an eraser chose; raises ``BadSetting`` if it marks nothing, for then nothing would be erased."""
    mask = Mask({name: marks.cpu() for name, marks in entries.items()})
    if not mask.count:
        widths = sorted({marks.shape[1] for marks in mask.entries.values()})
        raise BadSetting(
            f"{part}: expected a share that takes an entry of at least one row, got none in "
            f"{len(widths)} kinds of rows of {widths[0]} to {widths[-1]} entries"
        )
    return mask
