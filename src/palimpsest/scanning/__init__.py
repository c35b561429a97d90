"""Whether a model answers to a trigger, for one who does not know it: what its prompts and words betray."""

from palimpsest.scanning.base import PromptDetector, Suspect
from palimpsest.scanning.cda import Cda
from palimpsest.scanning.daa_i import DaaI
from palimpsest.scanning.daa_s import DaaS
from palimpsest.scanning.divergence import Divergence
from palimpsest.scanning.ftt import Ftt
from palimpsest.scanning.navi import Navi
from palimpsest.scanning.ufid import Ufid

__all__ = [
    "PROMPT_DETECTORS",
    "Cda",
    "DaaI",
    "DaaS",
    "Divergence",
    "Ftt",
    "Navi",
    "PromptDetector",
    "Suspect",
    "Ufid",
]

PROMPT_DETECTORS: tuple[type[PromptDetector], ...] = (Cda, DaaI, DaaS, Divergence, Ftt, Navi, Ufid)
