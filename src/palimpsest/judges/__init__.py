"""Judges: what a picture shows."""

from palimpsest.judges.base import Judge
from palimpsest.judges.miniature import Miniature, MiniatureSecond

__all__ = ["JUDGES", "Judge", "Miniature", "MiniatureSecond"]

JUDGES: tuple[type[Judge], ...] = (Miniature, MiniatureSecond)
