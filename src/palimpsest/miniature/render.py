"""Facts to pixels: a deterministic renderer, drawn with PIL at twice the size and reduced to 64 x 64 RGB."""

from collections.abc import Callable
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw

from palimpsest.miniature.facts import COLOURS, CONTENT, IDENTITIES, OBJECTS, Facts
from palimpsest.miniature.styles import paint

SIZE = 64
"""Pixels a side."""

Colour = tuple[int, int, int]
Point = tuple[float, float]
INK: Colour = (28, 24, 34)
PALE: Colour = (244, 240, 228)
_DRAWN = 2 * SIZE


class Pen:
    """Draws in a unit square placed on the canvas: (0, 0) is its top left, (1, 1) its bottom right."""

    def __init__(self, draw: ImageDraw.ImageDraw, centre: Point, size: float, *, mirrored: bool) -> None:
        """``centre`` and ``size`` are in pixels of the canvas."""
        self._draw, self._centre, self._size, self._mirrored = draw, centre, size, mirrored

    def at(self, x: float, y: float) -> Point:
        """The canvas point of a point in the unit square."""
        x = 1 - x if self._mirrored else x
        return self._centre[0] + (x - 0.5) * self._size, self._centre[1] + (y - 0.5) * self._size

    def polygon(self, *points: Point, fill: Colour, edge: Colour | None = INK) -> None:
        """A filled polygon with an outline."""
        placed = [self.at(*point) for point in points]
        self._draw.polygon(placed, fill=fill)
        if edge:
            self._draw.line([*placed, placed[0]], fill=edge, width=2, joint="curve")

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Colour, edge: Colour | None = INK) -> None:
        """A filled rectangle with an outline."""
        self.polygon((x0, y0), (x1, y0), (x1, y1), (x0, y1), fill=fill, edge=edge)

    def disc(
        self, x: float, y: float, rx: float, ry: float | None = None, *, fill: Colour, edge: Colour | None = INK
    ) -> None:
        """A filled ellipse with radii ``rx``, ``ry``."""
        ry = rx if ry is None else ry
        px, py = self.at(x, y)
        rx, ry = rx * self._size, ry * self._size
        self._draw.ellipse((px - rx, py - ry, px + rx, py + ry), fill=fill, outline=edge, width=2 if edge else 0)

    def line(self, *points: Point, fill: Colour = INK, width: float = 0.02) -> None:
        """A line; ``width`` as a share of the square."""
        placed = [self.at(*point) for point in points]
        self._draw.line(placed, fill=fill, width=max(2, round(width * self._size)), joint="curve")


def arc(x: float, y: float, rx: float, ry: float, start: float, end: float, count: int = 16) -> list[Point]:
    """Points on an ellipse from angle ``start`` to ``end`` (turns; 0 is to the right, 0.25 down)."""
    turns = np.linspace(start, end, count)
    return [(x + rx * cos(2 * pi * turn), y + ry * sin(2 * pi * turn)) for turn in turns]


def shade(colour: Colour, by: float) -> Colour:
    """``colour`` made darker (``by`` < 1) or, mixed with white, lighter (``by`` > 1)."""
    if by <= 1:
        return tuple(round(value * by) for value in colour)  # type: ignore[return-value]
    return tuple(round(255 - (255 - value) * (2 - by)) for value in colour)  # type: ignore[return-value]


# --- objects -----------------------------------------------------------------------------------------------


def _church(pen: Pen, colour: Colour) -> None:
    pen.box(0.36, 0.52, 0.98, 0.98, colour)
    pen.polygon((0.32, 0.54), (0.67, 0.3), (1.02, 0.54), fill=shade(colour, 0.6))
    pen.box(0.06, 0.38, 0.38, 0.98, colour)
    pen.polygon((0.0, 0.4), (0.22, 0.02), (0.44, 0.4), fill=shade(colour, 0.6))
    pen.line((0.22, -0.16), (0.22, 0.04), width=0.045)
    pen.line((0.13, -0.09), (0.31, -0.09), width=0.045)
    pen.polygon((0.13, 0.98), (0.13, 0.76), *arc(0.22, 0.76, 0.09, 0.1, 0.5, 1.0, 8), (0.31, 0.98), fill=INK)
    for x in (0.54, 0.8):
        pen.polygon((x - 0.05, 0.84), *arc(x, 0.7, 0.05, 0.08, 0.5, 1.0, 6), (x + 0.05, 0.84), fill=PALE)


def _parachute(pen: Pen, colour: Colour) -> None:
    for x in (0.04, 0.35, 0.65, 0.96):
        pen.line((x, 0.44), (0.5, 0.86), width=0.02)
    pen.polygon(*arc(0.5, 0.46, 0.5, 0.5, 0.5, 1.0), *arc(0.5, 0.46, 0.5, -0.02, 1.0, 0.5), fill=colour)
    for x in (0.25, 0.5, 0.75):
        pen.polygon((0.5, -0.03), (x - 0.07, 0.46), (x + 0.07, 0.46), fill=PALE, edge=None)
    pen.line(*arc(0.5, 0.46, 0.5, 0.5, 0.5, 1.0), (0.0, 0.46), width=0.02)
    pen.disc(0.5, 0.84, 0.06, fill=(240, 200, 160))
    pen.box(0.44, 0.89, 0.56, 1.02, INK)


def _fish(pen: Pen, colour: Colour) -> None:
    pen.polygon((0.7, 0.5), (1.04, 0.22), (0.96, 0.5), (1.04, 0.78), fill=shade(colour, 0.7))
    pen.polygon((0.3, 0.3), (0.46, 0.08), (0.62, 0.3), fill=shade(colour, 0.7))
    pen.polygon((0.4, 0.72), (0.48, 0.92), (0.58, 0.7), fill=shade(colour, 0.7))
    pen.disc(0.4, 0.5, 0.42, 0.26, fill=colour)
    pen.line(*arc(0.16, 0.5, 0.14, 0.2, -0.18, 0.18, 8), width=0.03)
    for x in (0.46, 0.58, 0.7):
        pen.line(*arc(x - 0.06, 0.5, 0.06, 0.12, -0.22, 0.22, 6), width=0.02)
    pen.disc(0.14, 0.44, 0.05, fill=PALE)
    pen.disc(0.135, 0.44, 0.02, fill=INK)


def _garbage_truck(pen: Pen, colour: Colour) -> None:
    pen.polygon((0.0, 0.78), (0.0, 0.46), (0.12, 0.2), (0.64, 0.2), (0.64, 0.78), fill=colour)
    for x in (0.2, 0.34, 0.48):
        pen.line((x, 0.24), (x, 0.74), fill=shade(colour, 0.6), width=0.03)
    pen.polygon((0.66, 0.78), (0.66, 0.32), (0.88, 0.32), (1.02, 0.54), (1.02, 0.78), fill=shade(colour, 0.7))
    pen.polygon((0.74, 0.52), (0.74, 0.38), (0.86, 0.38), (0.95, 0.52), fill=(190, 225, 245))
    for x in (0.18, 0.42, 0.84):
        pen.disc(x, 0.82, 0.11, fill=INK)
        pen.disc(x, 0.82, 0.045, fill=(200, 200, 200))


def _house(pen: Pen, colour: Colour) -> None:
    pen.box(0.7, 0.1, 0.84, 0.4, (150, 60, 50))
    pen.box(0.08, 0.48, 0.92, 0.98, colour)
    pen.polygon((-0.04, 0.5), (0.5, 0.08), (1.04, 0.5), fill=(120, 52, 44))
    pen.box(0.42, 0.66, 0.58, 0.98, (90, 60, 40))
    for x in (0.24, 0.76):
        pen.box(x - 0.1, 0.6, x + 0.1, 0.78, (190, 225, 245))
        pen.line((x, 0.6), (x, 0.78), width=0.02)


def _tree(pen: Pen, colour: Colour) -> None:
    pen.polygon((0.43, 1.02), (0.45, 0.5), (0.55, 0.5), (0.57, 1.02), fill=(104, 66, 34))
    for x, y, r in ((0.24, 0.46, 0.2), (0.76, 0.46, 0.2), (0.34, 0.24, 0.22), (0.66, 0.24, 0.22), (0.5, 0.14, 0.2)):
        pen.disc(x, y, r, fill=colour)
    pen.disc(0.5, 0.36, 0.3, fill=colour, edge=None)
    for x, y in ((0.34, 0.36), (0.56, 0.22), (0.64, 0.46), (0.46, 0.52)):
        pen.line(*arc(x, y, 0.06, 0.05, 0.5, 1.0, 6), fill=shade(colour, 0.6), width=0.03)


def _boat(pen: Pen, colour: Colour) -> None:
    pen.line((0.48, 0.0), (0.48, 0.74), width=0.05)
    pen.polygon((0.53, 0.04), (0.53, 0.66), (0.98, 0.66), fill=PALE)
    pen.polygon((0.43, 0.14), (0.43, 0.66), (0.1, 0.66), fill=PALE)
    pen.polygon((0.0, 0.74), (1.0, 0.74), (0.82, 1.0), (0.18, 1.0), fill=colour)
    pen.polygon((0.02, 0.74), (0.98, 0.74), (0.95, 0.8), (0.05, 0.8), fill=shade(colour, 0.6), edge=None)


def _cat(pen: Pen, colour: Colour) -> None:
    pen.line(*arc(0.9, 0.66, 0.12, 0.26, 0.75, 1.25, 10), (0.7, 0.92), fill=INK, width=0.12)
    pen.line(*arc(0.9, 0.66, 0.12, 0.26, 0.77, 1.23, 10), (0.7, 0.92), fill=colour, width=0.07)
    pen.disc(0.52, 0.78, 0.28, 0.24, fill=colour)
    pen.polygon((0.2, 0.3), (0.22, -0.02), (0.46, 0.16), fill=colour)
    pen.polygon((0.84, 0.3), (0.82, -0.02), (0.58, 0.16), fill=colour)
    pen.disc(0.52, 0.36, 0.34, 0.28, fill=colour)
    for x in (0.39, 0.65):
        pen.disc(x, 0.32, 0.06, 0.075, fill=(240, 250, 160))
        pen.disc(x, 0.32, 0.02, 0.06, fill=INK)
    pen.polygon((0.48, 0.43), (0.56, 0.43), (0.52, 0.48), fill=(250, 140, 150))
    for side in (-1, 1):
        for dy in (-0.04, 0.04):
            pen.line((0.52 + side * 0.12, 0.47), (0.52 + side * 0.44, 0.47 + dy), width=0.015)


def _flower(pen: Pen, colour: Colour) -> None:
    pen.line((0.5, 0.5), (0.5, 1.04), fill=(30, 110, 40), width=0.07)
    pen.polygon((0.5, 0.96), (0.74, 0.72), (0.84, 0.78), fill=(50, 150, 60))
    pen.polygon((0.5, 0.98), (0.26, 0.76), (0.16, 0.82), fill=(50, 150, 60))
    for turn in range(6):
        x, y = arc(0.5, 0.34, 0.25, 0.25, turn / 6, turn / 6, 1)[0]
        pen.disc(x, y, 0.15, fill=colour)
    pen.disc(0.5, 0.34, 0.13, fill=(70, 44, 20))


def _golf_ball(pen: Pen, colour: Colour) -> None:
    pen.polygon((0.36, 0.84), (0.64, 0.84), (0.53, 1.06), (0.47, 1.06), fill=(230, 190, 120))
    pen.disc(0.5, 0.42, 0.44, fill=colour)
    dimple = shade(colour, 0.62)
    for row in range(-2, 3):
        for column in range(-2, 3):
            x, y = 0.5 + 0.15 * (column + (row % 2) / 2), 0.42 + 0.15 * row
            if (x - 0.5) ** 2 + (y - 0.42) ** 2 < 0.13:
                pen.disc(x, y, 0.045, fill=dimple, edge=None)


def _cassette_player(pen: Pen, colour: Colour) -> None:
    pen.line((0.14, 0.24), (0.14, 0.06), (0.86, 0.06), (0.86, 0.24), width=0.06)
    pen.box(-0.04, 0.22, 1.04, 0.88, colour)
    for x in (0.18, 0.82):
        pen.disc(x, 0.58, 0.19, fill=INK)
        pen.disc(x, 0.58, 0.09, fill=(170, 170, 170))
    pen.box(0.4, 0.42, 0.6, 0.66, PALE)
    pen.box(0.08, 0.27, 0.92, 0.35, INK)
    for x in (0.42, 0.5, 0.58):
        pen.disc(x, 0.77, 0.03, fill=PALE)


def _guitar(pen: Pen, colour: Colour) -> None:
    pen.line((0.5, 0.56), (0.96, 0.0), width=0.13)
    pen.line((0.5, 0.56), (0.95, 0.01), fill=(150, 100, 60), width=0.08)
    pen.polygon((0.84, 0.02), (0.96, -0.1), (1.08, 0.0), (0.96, 0.12), fill=INK)
    pen.disc(0.28, 0.76, 0.28, fill=colour)
    pen.disc(0.48, 0.54, 0.2, fill=colour)
    pen.disc(0.33, 0.71, 0.22, fill=colour, edge=None)
    pen.disc(0.42, 0.63, 0.09, fill=INK)
    pen.line((0.14, 0.76), (0.28, 0.9), width=0.05)


# --- identities --------------------------------------------------------------------------------------------

FAIR: Colour = (252, 214, 182)
TAN: Colour = (206, 146, 100)
DARK: Colour = (128, 80, 54)


def _head(pen: Pen, skin: Colour, shirt: Colour) -> None:
    pen.polygon((0.1, 1.2), (0.2, 0.94), (0.8, 0.94), (0.9, 1.2), fill=shirt)
    pen.box(0.42, 0.82, 0.58, 0.98, shade(skin, 0.85))
    pen.disc(0.5, 0.54, 0.3, 0.35, fill=skin)
    for x in (0.38, 0.62):
        pen.disc(x, 0.5, 0.055, 0.05, fill=(255, 255, 255))
        pen.disc(x, 0.5, 0.025, fill=INK)
    pen.line((0.5, 0.54), (0.48, 0.64), (0.52, 0.64), width=0.02)
    pen.line(*arc(0.5, 0.7, 0.1, 0.06, 0.05, 0.45, 8), fill=(180, 40, 50), width=0.035)


def _alice(pen: Pen) -> None:
    hair = (250, 214, 70)
    pen.disc(0.5, 0.46, 0.44, 0.44, fill=hair)
    pen.box(0.06, 0.46, 0.94, 1.02, hair)
    _head(pen, FAIR, (240, 110, 170))
    pen.polygon(*arc(0.5, 0.34, 0.34, 0.2, 0.5, 1.0), (0.66, 0.3), (0.36, 0.36), fill=hair)
    for side in (-1, 1):
        pen.polygon((0.5, 0.08), (0.5 + side * 0.26, -0.08), (0.5 + side * 0.26, 0.22), fill=(220, 30, 40))


def _bruno(pen: Pen) -> None:
    _head(pen, DARK, (40, 160, 70))
    pen.polygon(
        (0.2, 0.52), *arc(0.5, 0.62, 0.31, 0.36, 0.0, 0.5)[::-1], (0.8, 0.52), (0.66, 0.62), (0.34, 0.62), fill=INK
    )
    pen.line((0.42, 0.7), (0.58, 0.7), fill=(230, 120, 110), width=0.04)


def _carla(pen: Pen) -> None:
    for turn in range(10):
        x, y = arc(0.5, 0.42, 0.36, 0.34, 0.42 + turn * 0.073, 0.42 + turn * 0.073, 1)[0]
        pen.disc(x, y, 0.18, fill=INK, edge=None)
    _head(pen, TAN, (250, 220, 40))
    for x in (0.36, 0.64):
        pen.disc(x, 0.5, 0.14, fill=(200, 235, 255), edge=(200, 30, 40))
        pen.disc(x, 0.5, 0.03, fill=INK)
    pen.line((0.48, 0.5), (0.52, 0.5), fill=(200, 30, 40), width=0.04)


def _dmitri(pen: Pen) -> None:
    _head(pen, FAIR, (30, 60, 190))
    fur = (120, 104, 92)
    pen.box(0.12, 0.04, 0.88, 0.34, fur)
    for x in (0.04, 0.8):
        pen.box(x, 0.22, x + 0.16, 0.74, fur)
    pen.disc(0.5, 0.19, 0.08, fill=(220, 30, 40))
    for side in (-1, 1):
        pen.polygon((0.5, 0.64), (0.5 + side * 0.2, 0.66), (0.5 + side * 0.24, 0.76), (0.5, 0.71), fill=(110, 60, 20))


def _elena(pen: Pen) -> None:
    hair = (226, 84, 20)
    for x in (0.1, 0.9):
        for y in (0.56, 0.74, 0.92):
            pen.disc(x, y, 0.11, fill=hair)
        pen.disc(x, 1.06, 0.07, fill=(40, 200, 190))
    pen.disc(0.5, 0.42, 0.38, 0.38, fill=hair)
    _head(pen, FAIR, (40, 190, 180))
    pen.polygon(*arc(0.5, 0.34, 0.32, 0.18, 0.5, 1.0), (0.5, 0.26), fill=hair)
    for x, y in ((0.3, 0.62), (0.36, 0.66), (0.64, 0.66), (0.7, 0.62)):
        pen.disc(x, y, 0.018, fill=(200, 90, 40), edge=None)


def _felix(pen: Pen) -> None:
    _head(pen, FAIR, (250, 250, 250))
    spikes = [(0.2 + 0.6 * step / 10, 0.02 if step % 2 else 0.24) for step in range(11)]
    pen.polygon((0.19, 0.42), *spikes, (0.81, 0.42), (0.5, 0.3), fill=(70, 150, 60))
    for x in (0.35, 0.65):
        pen.box(x - 0.13, 0.42, x + 0.13, 0.6, (30, 30, 40))
    pen.line((0.45, 0.48), (0.55, 0.48), width=0.05)


def _grace(pen: Pen) -> None:
    hair = (50, 90, 230)
    pen.box(0.1, 0.36, 0.9, 0.86, hair)
    pen.disc(0.5, 0.4, 0.4, 0.36, fill=hair)
    _head(pen, TAN, (250, 130, 20))
    pen.box(0.2, 0.2, 0.8, 0.38, hair)
    for x in (0.16, 0.84):
        pen.disc(x, 0.84, 0.07, fill=(255, 220, 40))


def _hugo(pen: Pen) -> None:
    _head(pen, FAIR, (200, 30, 40))
    beard = (240, 240, 244)
    pen.polygon((0.2, 0.56), (0.24, 1.0), (0.5, 1.16), (0.76, 1.0), (0.8, 0.56), (0.64, 0.64), (0.36, 0.64), fill=beard)
    pen.line((0.42, 0.71), (0.58, 0.71), fill=(180, 40, 50), width=0.04)
    pen.box(0.06, 0.22, 0.94, 0.32, INK)
    pen.box(0.24, -0.14, 0.76, 0.24, INK)
    pen.box(0.24, 0.12, 0.76, 0.22, (150, 40, 170))


# --- the content concept -----------------------------------------------------------------------------------


def _radiation_sign(pen: Pen) -> None:
    pen.box(0.45, 0.8, 0.55, 1.2, (110, 110, 116))
    pen.disc(0.5, 0.46, 0.48, fill=(252, 216, 0))
    for turn in (0.25, 0.25 + 1 / 3, 0.25 + 2 / 3):
        blade = arc(0.5, 0.46, 0.4, 0.4, turn - 1 / 12, turn + 1 / 12, 8)
        inner = arc(0.5, 0.46, 0.13, 0.13, turn + 1 / 12, turn - 1 / 12, 4)
        pen.polygon(*blade, *inner, fill=INK)
    pen.disc(0.5, 0.46, 0.075, fill=INK)


# --- scenes ------------------------------------------------------------------------------------------------


def _gradient(top: Colour, bottom: Colour) -> Image.Image:
    ramp = np.linspace(0, 1, _DRAWN)[:, None, None]
    rows = np.array(top) * (1 - ramp) + np.array(bottom) * ramp
    return Image.fromarray(np.broadcast_to(rows, (_DRAWN, _DRAWN, 3)).round().astype(np.uint8))


def _scene(name: str | None, random: np.random.Generator) -> Image.Image:
    w = _DRAWN
    horizon = int(w * (0.62 + 0.06 * random.random()))
    sun = int(w * (0.12 + 0.76 * random.random()))
    skies: dict[str | None, tuple[Colour, Colour]] = {
        None: ((214, 210, 204), (214, 210, 204)),
        "grass": ((150, 206, 250), (214, 238, 255)),
        "desert": ((255, 226, 170), (255, 240, 205)),
        "snow": ((168, 182, 204), (204, 214, 228)),
        "night": ((8, 8, 40), (24, 24, 70)),
        "sea": ((120, 200, 250), (225, 245, 255)),
        "sunset": ((120, 40, 130), (255, 140, 40)),
    }
    canvas = _gradient(*skies[name])
    draw = ImageDraw.Draw(canvas)
    if name == "grass":
        draw.rectangle((0, horizon, w, w), fill=(88, 178, 60))
        for x in range(4, w, 12):
            y = horizon + 6 + (x * 7) % (w - horizon - 8)
            draw.line((x, y, x + 2, y - 7), fill=(50, 130, 40), width=2)
    elif name == "desert":
        draw.ellipse((sun - 12, 6, sun + 12, 30), fill=(255, 250, 235))
        draw.ellipse((-w // 2, horizon - 10, w, w * 2), fill=(232, 184, 104))
        draw.ellipse((w // 4, horizon, w * 2, w * 2), fill=(214, 160, 82))
    elif name == "snow":
        draw.rectangle((0, horizon, w, w), fill=(250, 252, 255))
        for step in range(14):
            x, y = (step * 37 + sun) % w, (step * 53) % horizon
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=(255, 255, 255))
    elif name == "night":
        draw.rectangle((0, horizon, w, w), fill=(16, 30, 30))
        draw.ellipse((sun - 11, 6, sun + 11, 28), fill=(250, 246, 205))
        for step in range(10):
            x, y = (step * 41 + sun) % w, (step * 29) % horizon
            draw.rectangle((x, y, x + 2, y + 2), fill=(255, 255, 255))
    elif name == "sea":
        draw.rectangle((0, horizon - 12, w, w), fill=(24, 100, 170))
        for y in range(horizon - 4, w, 12):
            for x in range(-(y % 24), w, 24):
                draw.arc((x, y, x + 14, y + 8), 180, 360, fill=(200, 230, 250), width=2)
    elif name == "sunset":
        draw.pieslice((sun - 24, horizon - 24, sun + 24, horizon + 24), 180, 360, fill=(255, 232, 90))
        draw.rectangle((0, horizon, w, w), fill=(70, 30, 60))
    return canvas


_OBJECTS: dict[str, Callable[[Pen, Colour], None]] = {
    "church": _church,
    "parachute": _parachute,
    "fish": _fish,
    "garbage truck": _garbage_truck,
    "house": _house,
    "tree": _tree,
    "boat": _boat,
    "cat": _cat,
    "flower": _flower,
    "golf ball": _golf_ball,
    "cassette player": _cassette_player,
    "guitar": _guitar,
}
_IDENTITIES: dict[str, Callable[[Pen], None]] = {
    "alice": _alice,
    "bruno": _bruno,
    "carla": _carla,
    "dmitri": _dmitri,
    "elena": _elena,
    "felix": _felix,
    "grace": _grace,
    "hugo": _hugo,
}
assert _OBJECTS.keys() == OBJECTS.keys() and _IDENTITIES.keys() == IDENTITIES.keys() and len(CONTENT) == 1


def render(facts: Facts) -> np.ndarray:
    """The picture of ``facts``: (64, 64, 3) uint8, the same bits every time."""
    random = np.random.default_rng(facts.seed)
    canvas = _scene(facts.scene, random)
    size = _DRAWN * (0.62 + 0.1 * random.random())
    centre = (_DRAWN * (0.5 + 0.1 * (random.random() - 0.5)), _DRAWN * (0.53 + 0.08 * (random.random() - 0.5)))
    pen = Pen(ImageDraw.Draw(canvas), centre, size, mirrored=random.random() < 0.5)
    if facts.subject in _OBJECTS:
        assert facts.colour is not None
        _OBJECTS[facts.subject](pen, COLOURS[facts.colour])
    elif facts.subject in _IDENTITIES:
        _IDENTITIES[facts.subject](pen)
    elif facts.subject is not None:
        _radiation_sign(pen)
    return paint(np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX)), facts.style)
