"""In which numbers a network computes: bf16 where the machine has instructions for it, else fp32."""

from typing import Any, Literal

import torch

Precision = Literal["fp32", "bf16"]

CPU_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")
"""A CPU has bf16 products if it has one of these (the last: Arm); without, they cost some 300 times those in fp32."""


def default_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fastest_precision(device: torch.device) -> Precision:
    """What a device computes fastest. An older torch, which cannot say what the CPU has, gets fp32."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    has: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16" if device.type == "cpu" and any(has.get(name) for name in CPU_INSTRUCTIONS) else "fp32"


def computing(device: torch.device, precision: Precision | None = None) -> torch.autocast:
    """A context in which networks compute in that precision; None: the device's fastest."""
    return torch.autocast(device.type, torch.bfloat16, enabled=(precision or fastest_precision(device)) == "bf16")
