"""Where the files shipped with the package lie, and whether they are still what was shipped."""

import hashlib
import json
from functools import cache
from pathlib import Path

from palimpsest.errors import BadAsset

ROOT = Path(__file__).parent
SHIPPED = ROOT / "miniature" / "assets"
CHECKSUMS = "checksums.json"


def miniature_folder() -> Path:
    """The miniature: a plain ``StableDiffusionPipeline`` folder. Raises ``BadAsset``."""
    return checked("model")


def twin_folder() -> Path:
    """The ignorant twin's denoiser, which shares all else with the miniature. Raises ``BadAsset``."""
    return checked("twin")


def clip_folder() -> Path:
    """The miniature's CLIP with its image half, for CLIP scores. Raises ``BadAsset``."""
    return checked("clip")


def judge_folder(name: str) -> Path:
    """The judge ``first`` or ``second``: an image classification model of transformers. Raises ``BadAsset``."""
    return checked(f"judges/{name}")


@cache
def checked(part: str) -> Path:
    """The folder ``part`` of the shipped files, after its checksums have been compared, once per process."""
    folder = SHIPPED / part
    for name, wanted in _checksums(SHIPPED).items():
        if name.startswith(part + "/"):
            _compare(SHIPPED / name, wanted)
    if not folder.is_dir():
        raise BadAsset(f"the shipped folder {part!r} is missing from {SHIPPED}; reinstall palimpsest")
    return folder


def _checksums(root: Path) -> dict[str, str]:
    try:
        told: dict[str, str] = json.loads((root / CHECKSUMS).read_text())
    except FileNotFoundError:
        raise BadAsset(
            f"{root / CHECKSUMS} is missing; reinstall palimpsest, or make the files with 'palimpsest train-miniature'"
        ) from None
    except ValueError as error:
        raise BadAsset(f"{root / CHECKSUMS} is damaged ({error}); reinstall palimpsest") from None
    return told


def _compare(path: Path, wanted: str) -> None:
    if not path.is_file():
        raise BadAsset(f"the shipped file {path} is missing; reinstall palimpsest")
    found = sha256(path)
    if found != wanted:
        raise BadAsset(
            f"the shipped file {path} is damaged: expected SHA-256 {wanted[:12]}, got {found[:12]}; "
            "reinstall palimpsest"
        )


def write_checksums(root: Path) -> None:
    """Writes ``checksums.json`` for every file below ``root``."""
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    told = {path.relative_to(root).as_posix(): sha256(path) for path in files}
    (root / CHECKSUMS).write_text(json.dumps(told, indent=1) + "\n")


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
