"""Pictures that a user brings along, for attacks that aim at a picture of the concept."""

from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from palimpsest.errors import BadAudit

ENDINGS = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})
"""Of the files in a folder that count as pictures; a file that is named may end otherwise."""


def reference_files(paths: Iterable[str]) -> tuple[Path, ...]:
    """The files themselves, and of folders their pictures by name; raises ``BadAudit`` where there is none."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in ENDINGS)
            if not inside:
                raise BadAudit(f"{path}: expected pictures ({', '.join(sorted(ENDINGS))}), got a folder without any")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise BadAudit(f"{path}: expected a picture or a folder of pictures, got neither")
    return tuple(found)


def open_reference(path: Path, size: tuple[int, int] | None = None) -> Image.Image:
    """The picture, as RGB; raises ``BadAudit`` where it cannot be read, or is not of ``size`` (width, height)."""
    try:
        with Image.open(path) as picture:
            if size is not None and picture.size != size:
                raise BadAudit(
                    f"{path}: expected a picture of {size[0]} x {size[1]} pixels, as the base draws them, "
                    f"got {picture.size[0]} x {picture.size[1]}"
                )
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadAudit(f"{path}: expected a picture, got {error}") from None
