"""Erasers: ways to make a model forget a concept."""

from palimpsest.erasers.advunlearn import AdvUnlearn
from palimpsest.erasers.base import Eraser
from palimpsest.erasers.cad import Cad
from palimpsest.erasers.checkpoint import Checkpoint
from palimpsest.erasers.concept_prune import ConceptPrune
from palimpsest.erasers.esd import Esd
from palimpsest.erasers.fia import Fia
from palimpsest.erasers.magnitude import Magnitude
from palimpsest.erasers.nothing import Nothing
from palimpsest.erasers.receler import Receler
from palimpsest.erasers.stereo import Stereo
from palimpsest.erasers.uce import Uce

__all__ = [
    "ERASERS",
    "AdvUnlearn",
    "Cad",
    "Checkpoint",
    "ConceptPrune",
    "Eraser",
    "Esd",
    "Fia",
    "Magnitude",
    "Nothing",
    "Receler",
    "Stereo",
    "Uce",
]

ERASERS: tuple[type[Eraser], ...] = (
    Nothing,
    Checkpoint,
    AdvUnlearn,
    Cad,
    ConceptPrune,
    Esd,
    Fia,
    Magnitude,
    Receler,
    Stereo,
    Uce,
)
