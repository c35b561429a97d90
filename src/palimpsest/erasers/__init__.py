"""Erasers: ways to make a model forget a concept."""

from palimpsest.erasers.ac import Ac
from palimpsest.erasers.base import Eraser
from palimpsest.erasers.cad import Cad
from palimpsest.erasers.checkpoint import Checkpoint
from palimpsest.erasers.concept_prune import ConceptPrune
from palimpsest.erasers.esd import Esd
from palimpsest.erasers.fia import Fia
from palimpsest.erasers.fmn import Fmn
from palimpsest.erasers.magnitude import Magnitude
from palimpsest.erasers.nothing import Nothing
from palimpsest.erasers.salun import Salun
from palimpsest.erasers.scissorhands import Scissorhands
from palimpsest.erasers.uce import Uce

__all__ = [
    "ERASERS",
    "Ac",
    "Cad",
    "Checkpoint",
    "ConceptPrune",
    "Eraser",
    "Esd",
    "Fia",
    "Fmn",
    "Magnitude",
    "Nothing",
    "Salun",
    "Scissorhands",
    "Uce",
]

ERASERS: tuple[type[Eraser], ...] = (
    Nothing,
    Checkpoint,
    Ac,
    Cad,
    ConceptPrune,
    Esd,
    Fia,
    Fmn,
    Magnitude,
    Salun,
    Scissorhands,
    Uce,
)
