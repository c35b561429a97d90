"""Any CLIP as a judge, without training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from palimpsest.errors import BadSetting
from palimpsest.judges.base import Judge, check_calibration, missing
from palimpsest.opening import fingerprint, in_batches, opened, preprocessing
from palimpsest.records import Concept


@dataclass(frozen=True, kw_only=True)
class Clip(Judge):
    """Any CLIP, zero-shot: the concept's name against its neighbours' and against none of them.

    Radford et al. 2021, arXiv 2103.00020: with t_i the text embeddings of the template filled with the concept (i = 0),
    each rival, and nothing, v the picture's embedding, all of length 1, and s the model's logit scale,

        score = softmax_i(s t_i . v)_0

    It is right less often than a trained classifier, and its scores have no natural threshold: before an audit attacks
    it draws pictures by the base, and chooses the thresholds on one half of them. How often the judge is right in the
    other half stands in every report; look at that, and at the ceiling, before you trust its rates.
    """

    name: ClassVar[str] = "clip"

    model: str
    """A folder of a CLIPModel, with its tokenizer and image processor; or a hub id that is in the cache already."""
    template: str = "a photo of {}"
    """What is asked; ``{}`` is the concept's label for ``clip`` (``labels`` in its file), else its name."""
    rivals: tuple[str, ...] = ()
    """What else a picture may show; none: the concept's neighbours."""
    nothing: str = "something else"
    """Fills the template for a picture of none of them."""
    accept: float | None = None
    """The score from which the concept counts as shown; None: chosen on pictures of the base."""
    calibration: int = 50
    """How many pictures of each concept it is calibrated on, or its error counted; 0: none, and ``accept`` decides."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        if self.template.count("{}") != 1:
            raise BadSetting(f"{self.name}: expected a template with one {{}}, got {self.template!r}")
        if self.accept is not None and not 0 < self.accept <= 1:
            raise BadSetting(f"{self.name}: expected 0 < accept <= 1, got {self.accept}")
        check_calibration(self.name, self.calibration, self.uncalibrated, "accept")

    def check(self, concept: Concept) -> None:
        """Any CLIP knows any name; opens it, so that an audit without one ends before it begins."""
        opened(self.name, CLIPModel, self.model)
        preprocessing(self.name, AutoImageProcessor, self.model)
        tokenizer = preprocessing(self.name, AutoTokenizer, self.model)
        most = self._network.config.text_config.max_position_embeddings
        for name in self._names(concept):
            asked = self.template.format(name)
            if (tokens := len(tokenizer(asked, verbose=False).input_ids)) > most:
                raise BadSetting(f"{self.name}: expected at most {most} tokens, got {tokens} in {asked!r}")

    @property
    def fingerprint(self) -> str:
        """Of ``model``."""
        return fingerprint(self.name, self.model)

    def draws(self) -> int:
        """``calibration``."""
        return self.calibration

    @property
    def uncalibrated(self) -> bool:
        """Without ``accept``."""
        return self.accept is None

    def score(self, pictures: Sequence[Image], concept: Concept) -> list[float | None]:
        """The concept's share of the softmax."""
        if not pictures:
            return []
        network, texts = self._network, self._texts(self._names(concept))

        def ask(pixels: Tensor) -> Tensor:
            seen = _unit(network.visual_projection(network.vision_model(pixel_values=pixels).pooler_output))
            share: Tensor = (network.logit_scale.exp() * seen @ texts.T).softmax(-1)
            return share

        return [float(value) for value in in_batches(self.name, self.model, pictures, ask)[:, 0]]

    def threshold(self, concept: Concept) -> float:
        """``accept``."""
        if self.accept is None:
            raise missing(self.label, concept)
        return self.accept

    def _names(self, concept: Concept) -> list[str]:
        """What a picture may show, the concept first."""
        label = concept.labels.get(self.name, concept.name)
        return list(dict.fromkeys((label, *(self.rivals or concept.neighbours), self.nothing)))

    @property
    def _network(self) -> Any:
        return opened(self.name, CLIPModel, self.model)

    @torch.no_grad()
    def _texts(self, names: Sequence[str]) -> Tensor:
        """(names, d), of length 1."""
        tokenizer = preprocessing(self.name, AutoTokenizer, self.model)
        asked = tokenizer([self.template.format(name) for name in names], padding=True, return_tensors="pt")
        states = self._network.text_model(
            input_ids=asked["input_ids"], attention_mask=asked["attention_mask"]
        ).pooler_output
        return _unit(self._network.text_projection(states))


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1)
