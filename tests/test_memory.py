"""Peak of memory."""

import sys

import pytest
import torch

from palimpsest.memory import forget_peak, peak

CPU = torch.device("cpu")
MIB = 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a peak is not forgotten")
def test_a_peak_is_of_what_came_since_the_one_before_was_forgotten() -> None:
    forget_peak(CPU)
    before = peak(CPU)
    large = torch.ones(64 * MIB // 4)
    with_large = peak(CPU)
    del large
    forget_peak(CPU)
    assert with_large > before + 50 * MIB
    assert peak(CPU) < with_large - 50 * MIB
