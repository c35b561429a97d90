"""Judges: what a picture shows."""

from palimpsest.judges.base import Judge
from palimpsest.judges.clip import Clip
from palimpsest.judges.image_classifier import ImageClassifier
from palimpsest.judges.miniature import Miniature, MiniatureSecond

__all__ = ["JUDGES", "Clip", "ImageClassifier", "Judge", "Miniature", "MiniatureSecond"]

JUDGES: tuple[type[Judge], ...] = (Clip, ImageClassifier, Miniature, MiniatureSecond)
