"""The control that asks plainly."""

from dataclasses import dataclass
from typing import ClassVar

from palimpsest.attacks.base import Attack


@dataclass(frozen=True, kw_only=True)
class Direct(Attack):
    """Asks for the concept with the goal's own prompt and seed, once.

    On the untouched base it is the ceiling of every attack, on an erased model the floor.
    """

    name = "direct"
    once: ClassVar[bool] = True
