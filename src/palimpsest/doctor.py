"""Whether all is there to work with: versions, device, shipped files, speed. Touches no network."""

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

import torch
from packaging.requirements import Requirement

from palimpsest.assets import checked
from palimpsest.audit_file import MINIATURE
from palimpsest.errors import BadAsset
from palimpsest.forecast import speed
from palimpsest.model import Model, default_device, fastest_precision

PARTS = ("model", "twin", "clip", "judges/first", "judges/second")
"""The folders of the shipped files."""
EXTRAS = {
    "pyarrow": ("tables", "export to Parquet"),
    "pandas": ("tables", "tables in a notebook"),
    "matplotlib": ("plots", "the plot of an inspection"),
    "torchmetrics": ("benchmarks", "the benchmarks"),
    "torch-fidelity": ("inception", "KID by InceptionV3"),
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    what: str
    says: str
    good: bool = True
    """False: something does not work until it is mended."""
    advice: str = ""
    """What to do, where something can be done."""


def examine(*, seconds: float = 1.0) -> Iterator[Finding]:
    """What was found, one after another; each precision is timed for about ``seconds``."""
    yield Finding(what="machine", says=f"Python {platform.python_version()}, {platform.platform()}")
    yield from _libraries()
    yield _device()
    yield _precision()
    whole = True
    for part in PARTS:
        found = _shipped(part)
        whole = whole and found.good
        yield found
    if whole:
        yield _speed(seconds)
    else:
        yield Finding(what="speed", says="not measured, for want of the shipped files", good=False)
    yield from _extras()


def _libraries() -> Iterator[Finding]:
    """Every requirement of the package, against what is installed."""
    try:
        wanted = metadata.requires("palimpsest") or []
    except metadata.PackageNotFoundError:
        yield Finding(what="palimpsest", says="not installed", good=False, advice="pip install palimpsest")
        return
    yield Finding(what="palimpsest", says=metadata.version("palimpsest"))
    for requirement in (Requirement(line) for line in wanted):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = ""
        good = bool(version) and requirement.specifier.contains(version, prereleases=True)
        yield Finding(
            what=requirement.name,
            says=version or "not installed",
            good=good,
            advice="" if good else f"pip install '{requirement.name}{requirement.specifier}'",
        )


def _device() -> Finding:
    device = default_device()
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        return Finding(what="device", says=f"{about.name}, {about.total_memory / 2**30:.0f} GiB")
    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    advice = f"{cores} cores are there: unset OMP_NUM_THREADS to use them" if threads < cores else ""
    return Finding(what="device", says=f"CPU, {threads} thread{'s' if threads > 1 else ''}", advice=advice)


def _precision() -> Finding:
    device = default_device()
    if fastest_precision(device) == "bf16":
        return Finding(what="precision", says="auto is bf16")
    return Finding(what="precision", says="auto is fp32: the device has no instructions for bf16, or cannot say")


def _shipped(part: str) -> Finding:
    try:
        checked(part)
    except BadAsset as error:
        return Finding(what=f"shipped {part}", says=str(error), good=False, advice="reinstall palimpsest")
    return Finding(what=f"shipped {part}", says="as it was shipped")


def _speed(seconds: float) -> Finding:
    rates = []
    for precision in dict.fromkeys(["fp32", fastest_precision(default_device())]):
        model = Model.load(MINIATURE, precision=precision)
        rates.append(f"{speed(model, seconds=seconds):,.0f} passes/s in {precision}, batches of {model.batch}")
    return Finding(what="speed", says=f"the miniature's denoiser: {'; '.join(rates)}")


def _extras() -> Iterator[Finding]:
    for package, (extra, use) in EXTRAS.items():
        try:
            yield Finding(what=package, says=f"{metadata.version(package)} (optional, for {use})")
        except metadata.PackageNotFoundError:
            advice = f"pip install 'palimpsest[{extra}]'"
            yield Finding(what=package, says=f"not installed (optional, for {use})", advice=advice)
