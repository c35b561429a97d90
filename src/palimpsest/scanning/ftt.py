"""T2IShield's FTT: a trigger draws all tokens' attention to the same place."""

from dataclasses import dataclass

from torch import Tensor

from palimpsest.scanning.attention import AttentionDetector


@dataclass(frozen=True, kw_only=True)
class Ftt(AttentionDetector):
    """Measures how alike the attention maps of a prompt's tokens are: under a trigger they assimilate.

    The Frobenius norm threshold truncation of "T2IShield", Wang et al., ECCV 2024, arXiv 2407.04215. With M_i the map
    of token i, the mean over all steps, scaled to a maximum of 1, for the L tokens behind the start token, the end
    token's included, and M their mean,

        F = (1 / L) sum_i |M_i - M|_F

    A prompt is called triggered below F = 2.5 (for maps of 16 x 16). The score here is -F. In the released code, of
    which that threshold is, M takes in one token more than are compared with it, and maps are rounded to 8 bits.
    """

    name = "ftt"
    paper = -2.5

    def score(self, maps: Tensor, words: int) -> float | None:
        """-F; None for a prompt without words."""
        if not words:
            return None
        own = scaled(maps)[1 : words + 2]
        return -float((own - own.mean(0)).norm(dim=1).mean())


def scaled(maps: Tensor) -> Tensor:
    """(steps, context, places) -> (context, places): their means, each token's with a maximum of 1."""
    mean = maps.mean(0)
    highest: Tensor = mean.amax(1, keepdim=True)
    return mean / highest.clamp(min=1e-12)
