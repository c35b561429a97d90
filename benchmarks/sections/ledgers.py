"""Ledgers of runs as they lie, compressed, in docs/results."""

import lzma
import shutil
from collections.abc import Iterable
from pathlib import Path

WHOLE = ("audit.toml", "provenance.json")
"""Files that are small."""


def pack(runs: Iterable[Path], out: Path) -> None:
    """Of each run what a report is computed of, in a folder of its name: no models, no pictures."""
    for run in runs:
        there = out / run.name
        there.mkdir(parents=True, exist_ok=True)
        for name in WHOLE:
            shutil.copy(run / name, there)
        for path in sorted(run.glob("*.jsonl")):
            (there / f"{path.name}.xz").write_bytes(lzma.compress(path.read_bytes(), preset=9))


def unpack(ledgers: Path, out: Path) -> list[Path]:
    """Runs of which a report can be computed; their folders."""
    folders = []
    for packed in sorted(path.parent for path in ledgers.glob("*/trials.jsonl.xz")):
        folders.append(out / packed.name)
        folders[-1].mkdir()
        for name in WHOLE:
            shutil.copy(packed / name, folders[-1])
        for path in packed.glob("*.jsonl.xz"):
            (folders[-1] / path.stem).write_bytes(lzma.decompress(path.read_bytes()))
    return folders
