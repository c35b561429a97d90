"""Attacks: ways back to a concept."""

from palimpsest.attacks.base import Attack
from palimpsest.attacks.direct import Direct
from palimpsest.attacks.random_prefix import RandomPrefix
from palimpsest.attacks.unlearn_diff import UnlearnDiff

__all__ = ["ATTACKS", "Attack", "Direct", "RandomPrefix", "UnlearnDiff"]

ATTACKS: tuple[type[Attack], ...] = (Direct, RandomPrefix, UnlearnDiff)
