"""Erasers: ways to make a model forget a concept."""

from palimpsest.erasers.base import Eraser
from palimpsest.erasers.checkpoint import Checkpoint
from palimpsest.erasers.concept_prune import ConceptPrune
from palimpsest.erasers.esd import Esd
from palimpsest.erasers.nothing import Nothing
from palimpsest.erasers.uce import Uce

__all__ = ["ERASERS", "Checkpoint", "ConceptPrune", "Eraser", "Esd", "Nothing", "Uce"]

ERASERS: tuple[type[Eraser], ...] = (Nothing, Checkpoint, ConceptPrune, Esd, Uce)
