"""Opens what is to be scanned, beside its base where one is given."""

from pathlib import Path

import torch

from palimpsest.erasers.checkpoint import Checkpoint
from palimpsest.errors import BadSetting
from palimpsest.model import Model
from palimpsest.model.state_files import adapter_in
from palimpsest.scanning.base import Suspect


def open_suspect(source: str, base: str | None = None, *, download: bool = False) -> Suspect:
    """A pipeline as ``Model.load`` opens it, or weights as the eraser ``checkpoint`` puts them into the base.

    Raises ``BadModel`` or ``BadSetting``: a file of weights, or a folder of one network alone, needs the base.
    """
    original = None if base is None else Model.load(base, download=download)
    path = Path(source)
    one_network = (path / "config.json").is_file() and not (path / "model_index.json").is_file()
    if not (path.is_file() or one_network or adapter_in(path) is not None):
        return Suspect(model=Model.load(source, download=download), base=original)
    if original is None:
        raise BadSetting(f"{source}: holds weights and no whole pipeline: give the base that they belong to")
    changed = Checkpoint(path=source, partial=True).erase(original, [], random=torch.Generator())
    return Suspect(model=changed, base=original)
