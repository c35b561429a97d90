"""What a network makes of pictures: the shipped CLIP, any CLIP or image model of transformers, InceptionV3."""

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel

from palimpsest.assets import clip_folder
from palimpsest.errors import BadModel, BadSetting, MissingExtra
from palimpsest.opening import BATCH, fingerprint, in_batches, opened, preprocessing

MINIATURE, TWIN = "miniature", "twin"
INCEPTION = "inception"
INCEPTION_WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
"""As torch-fidelity calls them, among PyTorch's downloaded weights."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network of transformers that a measure looks at pictures with."""

    measure: str
    source: str
    """As it is set: a folder or a hub id; empty or ``miniature``: the shipped CLIP."""

    @property
    def folder(self) -> str:
        """Where it lies."""
        return str(clip_folder()) if self.source in ("", MINIATURE) else self.source

    @property
    def fingerprint(self) -> str:
        """SHA-256 of it; empty: the shipped CLIP."""
        return "" if self.source in ("", MINIATURE) else fingerprint(self.measure, self.source)

    @property
    def label(self) -> str:
        """What a report calls it: a folder's name, or the hub id."""
        if self.source in ("", MINIATURE):
            return "the miniature's CLIP"
        return Path(self.source).resolve().name if Path(self.source).exists() else self.source

    @property
    def whole(self) -> Any:
        """All of it, opened once."""
        return opened(self.measure, AutoModel, self.folder)

    @property
    def seeing(self) -> Any:
        """The part that sees; raises ``BadSetting`` where none does."""
        part = getattr(self.whole, "vision_model", self.whole)
        if getattr(part, "main_input_name", "") != "pixel_values":
            raise BadSetting(
                f"{self.measure}: expected a CLIP or an image model of transformers, got {self.source!r}, "
                f"a {type(self.whole).__name__}"
            )
        return part

    def check(self, setting: str, base: str) -> None:
        """Raises ``BadSetting`` where it cannot be opened, or is not set for a base that brings none along."""
        if not self.source and base not in (MINIATURE, TWIN):
            raise BadSetting(
                f"{self.measure}: expected {setting}=FOLDER, a model of transformers, for the base {base!r}: "
                "only the miniature brings one along"
            )
        assert self.seeing is not None
        preprocessing(self.measure, AutoImageProcessor, self.folder)

    def embeddings(self, pictures: Sequence[Image]) -> NDArray[np.float64]:
        """(n, d): of a CLIP its image embedding, at its own length; else the mean of the last layer over its places."""
        seeing, projection = self.seeing, getattr(self.whole, "visual_projection", None)

        def ask(pixels: Tensor) -> Tensor:
            states = seeing(pixel_values=pixels)
            if projection is not None:
                projected: Tensor = projection(states.pooler_output)
                return projected
            last: Tensor = states.last_hidden_state
            return last.mean(1) if last.ndim == 3 else last.mean((2, 3))

        return in_batches(self.measure, self.folder, pictures, ask).double().numpy()


def inception_lacks() -> str:
    """What InceptionV3 lacks on this machine; empty: nothing."""
    if importlib.util.find_spec("torch_fidelity") is None:
        return str(MissingExtra("InceptionV3", "torch-fidelity", "inception"))
    if not _inception_path().is_file():
        return f"InceptionV3 needs {INCEPTION_WEIGHTS} (torch-fidelity's release 0.2.0) in {_inception_path().parent}"
    return ""


def inception_fingerprint() -> str:
    """SHA-256 of InceptionV3's weights; empty: they are not there."""
    if inception_lacks():
        return ""
    with _inception_path().open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _inception_path() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_WEIGHTS


@cache
def _inception() -> Any:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = _inception_path()
    try:
        # The library opens the file as it is; what opens here holds nothing but tensors.
        torch.load(path, weights_only=True, map_location="cpu")
        return FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    except Exception as error:
        raise BadModel(f"{path}: expected InceptionV3's weights, got {error}") from None


@torch.no_grad()
def inception_features(pictures: Sequence[Image]) -> NDArray[np.float64]:
    """(n, 2048): the pooled features of the InceptionV3 that FID and KID are reckoned with, by torch-fidelity."""
    parts = []
    for first in range(0, len(pictures), BATCH):
        some = [np.asarray(picture.convert("RGB")) for picture in pictures[first : first + BATCH]]
        parts.append(_inception()(torch.from_numpy(np.stack(some)).permute(0, 3, 1, 2))[0])
    return torch.cat(parts).double().numpy()
