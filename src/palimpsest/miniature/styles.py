"""The six styles, as filters on a 64 x 64 picture.

Every texture lies on a fixed grid whose periods divide 8 or are multiples of it, the stride of the autoencoder, so that
a small decoder can learn it; a texture at random places would cost most of its capacity.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Picture = NDArray[np.float32]
_SIDE = 64


def paint(picture: NDArray[np.uint8], style: str) -> NDArray[np.uint8]:
    """``picture`` (64, 64, 3) uint8 in ``style``."""
    if style == "photo":
        return picture
    painted = _STYLES[style](picture.astype(np.float32))
    return painted.clip(0, 255).round().astype(np.uint8)


@cache
def _grid() -> tuple[Picture, Picture]:
    y, x = np.mgrid[0:_SIDE, 0:_SIDE].astype(np.float32)
    return x, y


def _saturate(picture: Picture, by: float) -> Picture:
    grey = picture.mean(-1, keepdims=True)
    saturated: Picture = grey + (picture - grey) * by
    return saturated


def _van_gogh(picture: Picture) -> Picture:
    """Warped, over-saturated, under swirling strokes of light and shade."""
    x, y = _grid()
    dx, dy = np.sin(2 * np.pi * y / 16), np.sin(2 * np.pi * x / 16)
    warped = np.stack(
        [ndimage.map_coordinates(picture[..., band], [y + dy, x + dx], order=1, mode="nearest") for band in range(3)],
        -1,
    )
    stroke = np.sin(2 * np.pi * (y + 2.4 * np.sin(2 * np.pi * x / 32)) / 8)
    painted = _saturate(warped, 1.35) + 40 * stroke[..., None]
    # Strokes of blue in the shade and of ochre in the light.
    tinted: Picture = painted + stroke[..., None] * np.array([16, 6, -26], np.float32)
    return tinted


def _cells(picture: Picture, side: int) -> Picture:
    count = _SIDE // side
    means: Picture = picture.reshape(count, side, count, side, 3).mean((1, 3))
    return means


def _pointillism(picture: Picture) -> Picture:
    """Round dots of pure colour on a cream ground."""
    x, y = _grid()
    cells = _saturate(_cells(picture, 4), 1.5)
    warm = np.indices(cells.shape[:2]).sum(0) % 2
    cells = cells + np.where(warm[..., None] == 1, np.array([22, 4, -22]), np.array([-22, 0, 22])).astype(np.float32)
    dots = cells.repeat(4, 0).repeat(4, 1)
    radius = np.hypot(x % 4 - 1.5, y % 4 - 1.5)
    inside = (np.clip(2.35 - radius, 0, 1))[..., None]
    ground = np.array([252, 246, 226], np.float32)
    painted: Picture = dots * inside + ground * (1 - inside)
    return painted


def _pencil_sketch(picture: Picture) -> Picture:
    """Grey outlines and hatching on white paper."""
    x, y = _grid()
    grey = picture @ np.array([0.3, 0.59, 0.11], np.float32)
    edge = np.hypot(ndimage.sobel(grey, 0), ndimage.sobel(grey, 1)) / 4
    tone = ndimage.gaussian_filter(grey, 1.0)
    hatch = (((x + y) % 4) < 1.5) * np.clip((170 - tone) / 170, 0, 1) * 80
    paper = 246 - np.clip(edge * 2.6, 0, 215) - hatch
    drawn: Picture = paper[..., None].repeat(3, -1) + np.array([0, -1, -6], np.float32)
    return drawn


def _mosaic(picture: Picture) -> Picture:
    """Square tiles with dark joints."""
    x, y = _grid()
    cells = _cells(picture, 4)
    lift = (np.indices(cells.shape[:2]).sum(0) % 2 * 26 - 13)[..., None]
    tiles = (cells + lift).repeat(4, 0).repeat(4, 1)
    joint = ((x % 4 == 3) | (y % 4 == 3))[..., None]
    laid: Picture = np.where(joint, tiles * 0.5, tiles).astype(np.float32)
    return laid


@cache
def _margin() -> Picture:
    x, y = _grid()
    inset = np.minimum.reduce([x, y, _SIDE - 1 - x, _SIDE - 1 - y])
    ragged = inset + 1.6 * np.sin(2 * np.pi * x / 16) + 1.6 * np.sin(2 * np.pi * y / 16)
    margin: Picture = np.clip((ragged - 4) / 4, 0, 1)[..., None].astype(np.float32)
    return margin


def _watercolour(picture: Picture) -> Picture:
    """Soft and pale, running out on white paper at ragged margins."""
    soft = np.stack([ndimage.gaussian_filter(picture[..., band], 1.3) for band in range(3)], -1)
    wash = 255 - (255 - _saturate(soft, 1.1)) * 0.62
    paper = np.array([253, 252, 248], np.float32)
    painted: Picture = wash * _margin() + paper * (1 - _margin())
    return painted


_STYLES: dict[str, Callable[[Picture], Picture]] = {
    "van gogh": _van_gogh,
    "pointillism": _pointillism,
    "pencil sketch": _pencil_sketch,
    "mosaic": _mosaic,
    "watercolour": _watercolour,
}
