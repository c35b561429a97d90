"""Erasers: ways to make a model forget a concept."""

from palimpsest.erasers.base import Eraser
from palimpsest.erasers.cad import Cad
from palimpsest.erasers.checkpoint import Checkpoint
from palimpsest.erasers.conceal import Conceal
from palimpsest.erasers.concept_prune import ConceptPrune
from palimpsest.erasers.esd import Esd
from palimpsest.erasers.fia import Fia
from palimpsest.erasers.magnitude import Magnitude
from palimpsest.erasers.nothing import Nothing
from palimpsest.erasers.uce import Uce

__all__ = [
    "ERASERS",
    "Cad",
    "Checkpoint",
    "Conceal",
    "ConceptPrune",
    "Eraser",
    "Esd",
    "Fia",
    "Magnitude",
    "Nothing",
    "Uce",
]

ERASERS: tuple[type[Eraser], ...] = (Nothing, Checkpoint, Cad, Conceal, ConceptPrune, Esd, Fia, Magnitude, Uce)
