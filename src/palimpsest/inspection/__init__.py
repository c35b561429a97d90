"""What a checkpoint's weights betray, without drawing a picture."""

from palimpsest.inspection.inspecting import Inspection, inspect
from palimpsest.inspection.opening import open_weights

__all__ = ["Inspection", "inspect", "open_weights"]
