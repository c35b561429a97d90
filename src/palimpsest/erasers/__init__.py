"""Erasers: ways to make a model forget a concept."""

from palimpsest.erasers.base import Eraser
from palimpsest.erasers.cad import Cad
from palimpsest.erasers.checkpoint import Checkpoint
from palimpsest.erasers.concept_prune import ConceptPrune
from palimpsest.erasers.esd import Esd
from palimpsest.erasers.fia import Fia
from palimpsest.erasers.mace import Mace
from palimpsest.erasers.magnitude import Magnitude
from palimpsest.erasers.negative_prompt import NegativePrompt
from palimpsest.erasers.nothing import Nothing
from palimpsest.erasers.rece import Rece
from palimpsest.erasers.sld import Sld
from palimpsest.erasers.uce import Uce

__all__ = [
    "ERASERS",
    "Cad",
    "Checkpoint",
    "ConceptPrune",
    "Eraser",
    "Esd",
    "Fia",
    "Mace",
    "Magnitude",
    "NegativePrompt",
    "Nothing",
    "Rece",
    "Sld",
    "Uce",
]

ERASERS: tuple[type[Eraser], ...] = (
    Nothing,
    Checkpoint,
    Cad,
    ConceptPrune,
    Esd,
    Fia,
    Mace,
    Magnitude,
    NegativePrompt,
    Rece,
    Sld,
    Uce,
)
