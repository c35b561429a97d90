"""Attacks: ways back to a concept."""

from palimpsest.attacks.backdoor_data import BackdoorData
from palimpsest.attacks.backdoor_deep import BackdoorDeep
from palimpsest.attacks.backdoor_shallow import BackdoorShallow
from palimpsest.attacks.backdoor_surface import BackdoorSurface
from palimpsest.attacks.base import Attack
from palimpsest.attacks.direct import Direct
from palimpsest.attacks.p4d import P4D
from palimpsest.attacks.palimpsest_search import PalimpsestSearch
from palimpsest.attacks.pez import Pez
from palimpsest.attacks.random_prefix import RandomPrefix
from palimpsest.attacks.random_trigger import RandomTrigger
from palimpsest.attacks.revive import Revive
from palimpsest.attacks.revive_changed import ReviveChanged
from palimpsest.attacks.revive_chosen import ReviveChosen
from palimpsest.attacks.revive_oracle import ReviveOracle
from palimpsest.attacks.seed_search import SeedSearch
from palimpsest.attacks.soft_prompt import SoftPrompt
from palimpsest.attacks.text_gradient import TextGradient
from palimpsest.attacks.transfer import Transfer
from palimpsest.attacks.unlearn_diff import UnlearnDiff

__all__ = [
    "ATTACKS",
    "P4D",
    "Attack",
    "BackdoorData",
    "BackdoorDeep",
    "BackdoorShallow",
    "BackdoorSurface",
    "Direct",
    "PalimpsestSearch",
    "Pez",
    "RandomPrefix",
    "RandomTrigger",
    "Revive",
    "ReviveChanged",
    "ReviveChosen",
    "ReviveOracle",
    "SeedSearch",
    "SoftPrompt",
    "TextGradient",
    "Transfer",
    "UnlearnDiff",
]

ATTACKS: tuple[type[Attack], ...] = (
    BackdoorData,
    BackdoorDeep,
    BackdoorShallow,
    BackdoorSurface,
    Direct,
    P4D,
    PalimpsestSearch,
    Pez,
    RandomPrefix,
    RandomTrigger,
    Revive,
    ReviveChanged,
    ReviveChosen,
    ReviveOracle,
    SeedSearch,
    SoftPrompt,
    TextGradient,
    Transfer,
    UnlearnDiff,
)
