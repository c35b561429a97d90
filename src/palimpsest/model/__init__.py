"""The one door to diffusers."""

from palimpsest.model.asking import Probe, Slope
from palimpsest.model.model import Model
from palimpsest.model.precision import Precision, computing, default_device, fastest_precision
from palimpsest.model.sampling import Sampling
from palimpsest.model.text import Text

__all__ = [
    "Model",
    "Precision",
    "Probe",
    "Sampling",
    "Slope",
    "Text",
    "computing",
    "default_device",
    "fastest_precision",
]
