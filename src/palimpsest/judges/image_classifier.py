"""Any image classification model of transformers as a judge."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from PIL.Image import Image
from transformers import AutoModelForImageClassification

from palimpsest.errors import BadSetting, unknown
from palimpsest.judges.base import Judge, check_calibration, missing
from palimpsest.opening import fingerprint, in_batches, opened
from palimpsest.records import Concept


@dataclass(frozen=True, kw_only=True)
class ImageClassifier(Judge):
    """Any image classification model of transformers, by label: the probability that it gives the concept.

    The label is the concept's for ``image_classifier`` (``labels`` in its file), else its name. It is looked for among
    the model's labels and, for ImageNet's lists of synonyms ("tench, Tinca tinca"), among the words between commas.
    The papers count an object as shown where the label comes first, as ``top = 1`` does. Instead ``accept`` may be set,
    or ``top = 0``: then the threshold is chosen on one half of the pictures that the base draws before an audit
    attacks. How often the judge is right in pictures of the base, by whichever rule, stands in every report.
    """

    name: ClassVar[str] = "image_classifier"

    model: str
    """A folder of transformers, with its image processor; or a hub id that is in the cache already."""
    accept: float | None = None
    """The probability from which the concept counts as shown, whatever comes first."""
    top: int = 1
    """Counts as shown where the label is among so many first; 0: by its probability, from a threshold that is chosen on
    pictures of the base."""
    calibration: int = 50
    """How many pictures of each concept it is calibrated on, or its error counted; 0: none, and ``accept`` or ``top``
    decides."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        if self.accept is not None and not 0 < self.accept <= 1:
            raise BadSetting(f"{self.name}: expected 0 < accept <= 1, got {self.accept}")
        if self.top < 0:
            raise BadSetting(f"{self.name}: expected top >= 0, got {self.top}")
        if self.accept is not None and self.top > 1:
            raise BadSetting(f"{self.name}: expected accept or top, got both: {self.accept}, {self.top}")
        check_calibration(self.name, self.calibration, self.uncalibrated, "accept or top")

    def check(self, concept: Concept) -> None:
        """Looks for the label."""
        self._label(concept)

    @property
    def fingerprint(self) -> str:
        """Of ``model``."""
        return fingerprint(self.name, self.model)

    def draws(self) -> int:
        """``calibration``."""
        return self.calibration

    @property
    def uncalibrated(self) -> bool:
        """With neither ``accept`` nor ``top``."""
        return self.accept is None and self.top == 0

    def score(self, pictures: Sequence[Image], concept: Concept) -> list[float | None]:
        """The label's probability; by ``top``, 1 where the label is among the first so many, else 0."""
        number, network = self._label(concept), self._network
        if not pictures:
            return []
        seen = in_batches(self.name, self.model, pictures, lambda pixels: network(pixel_values=pixels).logits)
        if self._ranks:
            return [float(number in best) for best in seen.topk(min(self.top, seen.shape[1])).indices.tolist()]
        return [float(value) for value in seen.softmax(-1)[:, number]]

    def threshold(self, concept: Concept) -> float:
        """``accept``; by ``top``, one half."""
        self._label(concept)
        if self.uncalibrated:
            raise missing(self.label, concept)
        return 0.5 if self.accept is None else self.accept

    @property
    def _ranks(self) -> bool:
        return self.accept is None and self.top > 0

    @property
    def _network(self) -> Any:
        return opened(self.name, AutoModelForImageClassification, self.model)

    def _label(self, concept: Concept) -> int:
        """The number of the concept's label; ``UnknownName`` without one, ``BadSetting`` where several fit."""
        told: dict[int, str] = self._network.config.id2label
        label = concept.labels.get(self.name, concept.name)
        wanted = _plain(label)
        found = [number for number, name in told.items() if _plain(name) == wanted]
        found = found or [number for number, name in told.items() if wanted in map(_plain, name.split(","))]
        if not found:
            raise unknown(f"label of the judge {self.name!r}", label, told.values())
        if len(found) > 1:
            several = ", ".join(f"{told[number]!r}" for number in found)
            raise BadSetting(f"{self.name}: expected one label called {label!r}, got {len(found)}: {several}")
        return found[0]


def _plain(label: str) -> str:
    return label.replace("_", " ").strip().casefold()
