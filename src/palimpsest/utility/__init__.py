"""Measures of utility: what an erasure cost."""

from palimpsest.utility.base import Measure
from palimpsest.utility.clip_score import ClipScore
from palimpsest.utility.diffusion_classifier import DiffusionClassifier, classify, noised_at
from palimpsest.utility.kid import Kid
from palimpsest.utility.neighbours import Neighbours
from palimpsest.utility.paired_distance import PairedDistance

__all__ = [
    "MEASURES",
    "ClipScore",
    "DiffusionClassifier",
    "Kid",
    "Measure",
    "Neighbours",
    "PairedDistance",
    "classify",
    "noised_at",
]

MEASURES: tuple[type[Measure], ...] = (ClipScore, DiffusionClassifier, Kid, Neighbours, PairedDistance)
