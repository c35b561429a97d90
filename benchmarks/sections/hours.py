"""What a benchmark will take, before it begins."""

import torch

from palimpsest.forecast import speed
from palimpsest.model import Model


def told(passes: int, model: Model, *, processes: int) -> str:
    """Passes, and hours by the clock: as many processes, a thread each."""
    torch.set_num_threads(1)
    each = speed(model)
    return (
        f"{passes:,} passes; at {each:.0f} a second, {processes} at once: {passes / each / processes / 3600:.1f} hours"
    )
