"""Runs an audit that is killed at random moments until it is done; then the same, undisturbed. No test of its own.

Each run is a forked process, so that the libraries are loaded once; it dies by SIGKILL, as for lack of memory.
"""

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

import palimpsest.protocol
from scripted import FISH, Chosen, Dampen, Follow, Seeds, audit, run


def work(folder: Path, goals: int) -> None:
    palimpsest.protocol.shipped_concepts = lambda: {"fish": FISH}  # type: ignore[assignment]
    attacks = ["direct", Seeds(), Follow()]
    judges = [Chosen(pictures=20)]
    planned = audit(
        attacks=attacks, goals=goals, measures=["neighbours"], erasers=[Dampen()], keep="all", judges=judges
    )
    run(folder, planned)


def started(folder: Path, goals: int) -> int:
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # a forked process has no other threads
            work(folder, goals)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    return child


def lines(folder: Path) -> int:
    path = folder / "trials.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def killed_and_whole(folder: Path, kills: int, seed: int) -> None:
    """Below the folder, ``killed`` and ``whole``; raises if a run ended in another way than is meant."""
    moments = random.Random(seed)
    goals = 4 * kills
    for kill in range(kills):
        before = lines(folder / "killed")
        child = started(folder / "killed", goals)
        # Every other one lives until it has written something, however slow the machine: else none would get on.
        while kill % 2 and lines(folder / "killed") == before and os.waitpid(child, os.WNOHANG)[0] == 0:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.2))
        if os.waitpid(child, os.WNOHANG)[0] != 0:
            raise RuntimeError("the run was over before it could be killed")
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    for name in ("killed", "whole"):
        _, status = os.waitpid(started(folder / name, goals), 0)
        if status:
            raise RuntimeError(f"{name}: expected a run that ends well, got status {status}")
