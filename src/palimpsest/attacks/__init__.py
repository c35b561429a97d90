"""Attacks: ways back to a concept."""

from palimpsest.attacks.base import Attack
from palimpsest.attacks.direct import Direct
from palimpsest.attacks.p4d import P4D
from palimpsest.attacks.palimpsest_search import PalimpsestSearch
from palimpsest.attacks.random_prefix import RandomPrefix
from palimpsest.attacks.revive import Revive
from palimpsest.attacks.revive_changed import ReviveChanged
from palimpsest.attacks.revive_oracle import ReviveOracle
from palimpsest.attacks.seed_search import SeedSearch
from palimpsest.attacks.unlearn_diff import UnlearnDiff

__all__ = [
    "ATTACKS",
    "P4D",
    "Attack",
    "Direct",
    "PalimpsestSearch",
    "RandomPrefix",
    "Revive",
    "ReviveChanged",
    "ReviveOracle",
    "SeedSearch",
    "UnlearnDiff",
]

ATTACKS: tuple[type[Attack], ...] = (
    Direct,
    P4D,
    PalimpsestSearch,
    RandomPrefix,
    Revive,
    ReviveChanged,
    ReviveOracle,
    SeedSearch,
    UnlearnDiff,
)
