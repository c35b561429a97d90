"""How far a picture has moved from the base's of the same prompt and seed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor
from torch.nn.functional import normalize

from palimpsest.errors import BadSetting
from palimpsest.opening import BATCH, in_batches
from palimpsest.records import Concept, Reading
from palimpsest.utility.base import Draws, Erasure, Measure, plain_attempts
from palimpsest.utility.features import Network
from palimpsest.utility.intervals import means

assert BATCH % 2 == 0  # a pair is never split


@dataclass(frozen=True, kw_only=True)
class PairedDistance(Measure):
    """How far the pictures of the other concepts have moved from the base's of the same prompts and seeds.

    With a_ls and b_ls the activations of the two pictures in layer l at place s (a vector over channels), each divided
    by its length,

        d = mean over l, mean over s of  |a_ls - b_ls|^2 / 2

    which is 1 less the cosine: 0 for the same picture, 1 where nothing is alike, 2 at most. This is how LPIPS compares
    activations (Zhang et al. 2018, arXiv 1801.03924, eq. 1), but without its learnt weights and on another network: it
    is not LPIPS, and its values do not compare with LPIPS's. Layers are the blocks of a transformer or the stages of a
    convolutional network, the embedding of the pixels left out.
    """

    name = "paired_distance"

    pictures: int = 10
    """Of each concept, by its first prompts; shared with the other measures."""
    features: str = ""
    """A folder of a CLIP or an image model of transformers; or a hub id in the cache; empty: the miniature's CLIP."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        if self.pictures < 2:
            raise BadSetting(f"{self.name}: expected pictures >= 2, got {self.pictures}")

    def check(self, base: str) -> None:
        """Opens the network."""
        self._network.check("features", base)

    @property
    def fingerprint(self) -> str:
        """Of ``features``."""
        return self._network.fingerprint

    def draws(self, target: Concept, concepts: Sequence[Concept], *, seed: int) -> Draws:
        """The same of the victim and of the base."""
        attempts = plain_attempts(concepts, self.pictures, seed)
        return Draws(victim=attempts, base=attempts)

    def measure(self, erasure: Erasure) -> list[Reading]:
        """For each concept and for all together, the mean over the pairs."""
        attempts = self.draws(erasure.target, erasure.concepts, seed=erasure.seed).victim
        found = distances(self._network, erasure.pictures(attempts), erasure.base_pictures(attempts))
        of = f"distance from the base's picture of the same prompt and seed, by {self._network.label}"
        return means(erasure, self.name, found, of=of)

    @property
    def _network(self) -> Network:
        return Network(measure=self.name, source=self.features)


def distances(network: Network, first: Sequence[Image], second: Sequence[Image]) -> NDArray[np.float64]:
    """(n,) distances, 0 to 2, of each of ``first`` from its fellow in ``second``; see ``PairedDistance``."""
    seeing = network.seeing

    def ask(pixels: Tensor) -> Tensor:
        states = seeing(pixel_values=pixels, output_hidden_states=True).hidden_states[1:]
        return torch.stack([_apart(layer) for layer in states]).mean(0).repeat_interleave(2)

    pairs = [picture for pair in zip(first, second, strict=True) for picture in pair]
    return in_batches(network.measure, network.folder, pairs, ask)[::2].double().numpy()


def _apart(layer: Tensor) -> Tensor:
    """(2n, places, channels) or (2n, channels, height, width), pairs side by side -> (n,)."""
    places = layer if layer.ndim == 3 else layer.flatten(2).mT
    # A vector that is nought stays so: two of them are alike, where a cosine would call them strangers.
    unit = normalize(places, dim=-1)
    return (unit[::2] - unit[1::2]).square().sum(-1).mean(-1) / 2
