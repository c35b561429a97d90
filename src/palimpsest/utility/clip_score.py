"""Whether pictures still show what their prompts ask for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import AutoTokenizer, CLIPModel

from palimpsest.errors import BadSetting
from palimpsest.opening import BATCH, preprocessing
from palimpsest.records import Concept, Reading
from palimpsest.utility.base import Draws, Erasure, Measure, plain_attempts
from palimpsest.utility.features import Network
from palimpsest.utility.intervals import means


@dataclass(frozen=True, kw_only=True)
class ClipScore(Measure):
    """CLIP score of the pictures of the other concepts, and what it lost against the base's pictures.

    Hessel et al. 2021, arXiv 2104.08718, on the scale of torchmetrics: with v the CLIP's embedding of a picture and t
    that of its prompt,

        clip_score = max(0, mean of 100 cos(v, t))

    ``clip_score_change`` is the mean of 100 cos(v, t) - 100 cos(v', t), with v' the base's picture of the same prompt
    and seed: much of the spread between prompts cancels. Values of two CLIPs do not compare.
    """

    name = "clip_score"

    pictures: int = 10
    """Of each concept, by its first prompts; shared with the other measures."""
    model: str = ""
    """A folder of a CLIPModel, with tokenizer and image processor; or a hub id in the cache; empty: the miniature's."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        if self.pictures < 2:
            raise BadSetting(f"{self.name}: expected pictures >= 2, got {self.pictures}")

    def check(self, base: str) -> None:
        """Opens the CLIP."""
        self._network.check("model", base)
        if not isinstance(self._network.whole, CLIPModel):
            raise BadSetting(
                f"{self.name}: expected a CLIPModel, got {self.model!r}, a {type(self._network.whole).__name__}"
            )
        preprocessing(self.name, AutoTokenizer, self._network.folder)

    @property
    def fingerprint(self) -> str:
        """Of ``model``."""
        return self._network.fingerprint

    def draws(self, target: Concept, concepts: Sequence[Concept], *, seed: int) -> Draws:
        """The same of the victim and of the base."""
        attempts = plain_attempts(concepts, self.pictures, seed)
        return Draws(victim=attempts, base=attempts)

    def measure(self, erasure: Erasure) -> list[Reading]:
        """For each concept and for all together, the score and its change."""
        attempts = self.draws(erasure.target, erasure.concepts, seed=erasure.seed).victim
        prompts = [attempt.prompt for attempt in attempts]
        own, before = (
            clip_cosines(self._network, pictures, prompts)
            for pictures in (erasure.pictures(attempts), erasure.base_pictures(attempts))
        )
        of = f"100 x cosine of picture and prompt by {self._network.label}"
        change = f"the same, less that of the base's picture of the same prompt and seed, by {self._network.label}"
        return [
            *means(erasure, self.name, 100 * own, of=of, least=0.0),
            *means(erasure, f"{self.name}_change", 100 * (own - before), of=change),
        ]

    @property
    def _network(self) -> Network:
        return Network(measure=self.name, source=self.model)


def clip_cosines(network: Network, pictures: Sequence[Image], prompts: Sequence[str]) -> NDArray[np.float64]:
    """(n,) cosines, -1 to 1, of pictures and prompts by a CLIP; a prompt beyond its context is cut."""
    seen = torch.from_numpy(network.embeddings(pictures))
    asked = list(dict.fromkeys(prompts))
    texts = dict(zip(asked, _texts(network, asked), strict=True))
    cosines: Tensor = cosine_similarity(seen, torch.stack([texts[prompt] for prompt in prompts]))
    return cosines.numpy()


@torch.no_grad()
def _texts(network: Network, texts: list[str]) -> Tensor:
    """(n, d), in batches of one size."""
    whole: Any = network.whole
    tokenizer = preprocessing(network.measure, AutoTokenizer, network.folder)
    context = whole.config.text_config.max_position_embeddings
    parts = []
    for first in range(0, len(texts), BATCH):
        some = texts[first : first + BATCH]
        padded = some + some[-1:] * (BATCH - len(some))
        tokens = tokenizer(padded, padding="max_length", truncation=True, max_length=context, return_tensors="pt")
        states = whole.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        parts.append(whole.text_projection(states.pooler_output)[: len(some)])
    return torch.cat(parts).double()
