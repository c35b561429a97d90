"""DAA-I: under a trigger the end token's attention changes more slowly than the other tokens'."""

from dataclasses import dataclass

from torch import Tensor

from palimpsest.errors import BadSetting
from palimpsest.scanning.attention import AttentionDetector


@dataclass(frozen=True, kw_only=True)
class DaaI(AttentionDetector):
    """Compares how fast the end token's attention map changes early on with how fast the words' maps do.

    The independent form of "Dynamic Attention Analysis", Wang et al., TPAMI 2025, arXiv 2504.20518. With M_l^t the map
    of token l at step t and l over the prompt's own tokens,

        s = sum_{t in changes} (|M_end^{t+1} - M_end^t|_F - mean_l |M_l^{t+1} - M_l^t|_F)

    A prompt is called triggered below s = 4.9e-4 (Stable Diffusion 1.4, maps of 16 x 16, 50 steps). The score is -s.
    The released code divides the words' sum by their number and two more.
    """

    name = "daa_i"
    paper = -4.9e-4

    changes: tuple[int, ...] = (3, 4)
    """The steps, from 0 on, whose change to the next is looked at; those of the released code."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        if not self.changes or min(self.changes) < 0:
            raise BadSetting(f"{self.name}: expected changes of 0 or more, got {self.changes}")
        super().__post_init__()

    @property
    def steps_read(self) -> int:
        return max(self.changes) + 2

    def score(self, maps: Tensor, words: int) -> float | None:
        """-s; None for a prompt without words."""
        if not words:
            return None
        speed = maps.diff(dim=0)[list(self.changes)].norm(dim=2)
        return -float((speed[:, words + 1] - speed[:, 1 : words + 1].mean(1)).sum())
