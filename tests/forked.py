"""The command line in a process of its own, forked so that the libraries are loaded once. No test of its own."""

import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from palimpsest import cli

MEMORY = 2 * 2**30
"""Bytes of address space that a command may take beyond what the libraries hold."""
SECONDS = 30
"""Of the processor; on the clock six times as many."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command ended."""

    code: int
    """Negative: by this signal."""
    out: str
    err: str
    peak: int
    """Bytes of memory in use at most, the libraries included."""


def command(*arguments: object, memory: int = MEMORY) -> Ended:
    """Runs ``palimpsest`` with these arguments to its end; a traceback is exit code 1, and whoever hangs is killed."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = start(*arguments, out=out, err=err, memory=memory)
        until = time.monotonic() + 6 * SECONDS
        while (ended := os.wait4(child, os.WNOHANG))[0] == 0:
            if time.monotonic() > until:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.005)
        told = []
        for file in (out, err):
            file.seek(0)
            told.append(file.read().decode(errors="replace"))
    return Ended(code=os.waitstatus_to_exitcode(ended[1]), out=told[0], err=told[1], peak=ended[2].ru_maxrss * 1024)


def start(*arguments: object, out: BinaryIO, err: BinaryIO, memory: int = MEMORY) -> int:
    """The number of the process, which runs on."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
        torch.set_num_threads(1)  # a forked process has no other threads
        resource.setrlimit(resource.RLIMIT_AS, (held() + memory,) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (_spent() + SECONDS,) * 2)
        sys.argv = ["palimpsest", *map(str, arguments)]
        cli.main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def held() -> int:
    """Bytes of address space of this process."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _spent() -> int:
    """Whole seconds of the processor; a forked process begins at none."""
    return int(time.process_time()) + 1


def refused(ended: Ended, *says: str) -> str:
    """What a command that cannot be done says: one line, and exit code 2."""
    assert ended.code == 2, (ended.code, ended.out[-300:], ended.err[-3000:])
    (line,) = ended.err.splitlines()
    assert line.startswith("palimpsest: ")
    assert "allocate" not in line and "MemoryError" not in line, line
    for words in says:
        assert words in line, line
    return line
