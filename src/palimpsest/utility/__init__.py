"""Measures of utility: what an erasure cost."""

from palimpsest.utility.base import Measure
from palimpsest.utility.neighbours import Neighbours

__all__ = ["MEASURES", "Measure", "Neighbours"]

MEASURES: tuple[type[Measure], ...] = (Neighbours,)
