"""What can go wrong while an audit runs: one line, exit code 2, nothing lost, and in the end the same report.

Kills are in test_runner.py; what the store does by itself is in test_store.py.
"""

import ctypes
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from PIL import Image
from safetensors.torch import load_file

from forked import command, refused, start
from palimpsest.attacks import ATTACKS
from palimpsest.erasers import ERASERS
from palimpsest.judges import JUDGES
from scripted import FISH, Dampen, Hash, Seeds
from tiny import tiny_pipeline

AUDIT = {
    "concepts": [{"name": "church", "kind": "object", "prompts": ["a photo of a church", "a church by the sea"]}],
    "erasers": ["dampen"],
    "attacks": ["direct", "seeds"],
    "judges": ["hash"],
    "measures": [{"name": "neighbours", "pictures": 2}],
    "goals": 2,
    "batch": 4,
    "budget": {"looks": 3, "passes": 40},
    "sampling": {"steps": 2},
    "keep": "all",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny model, an audit, and ``whole``: the run that nothing disturbed."""
    home = tmp_path_factory.mktemp("home")
    tiny_pipeline(home / "tiny")
    (home / "small.toml").write_text(tomli_w.dumps(AUDIT))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("palimpsest.protocol.shipped_concepts", lambda: {"fish": FISH})
        patch.setattr("palimpsest.audit_file.JUDGES", (*JUDGES, Hash))
        patch.setattr("palimpsest.audit_file.ATTACKS", (*ATTACKS, Seeds))
        patch.setattr("palimpsest.audit_file.ERASERS", (*ERASERS, Dampen))
        patch.setattr("palimpsest.forecast.speed", lambda model: 100.0)  # it measures for a second
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        patch.chdir(home)
        ended = command(*audit("whole"))
        assert ended.code == 0, ended.err
        yield home


def audit(run: object) -> tuple[object, ...]:
    return ("audit", "small.toml", "--base", "tiny", "--out", run)


@pytest.fixture
def run(home: Path, tmp_path: Path) -> Path:
    """A copy of the whole run."""
    return Path(shutil.copytree(home / "whole", tmp_path / "run"))


def half(run: Path) -> Path:
    """The same, as if it had been stopped half-way: some goals and the measures are still to do."""
    lines = (run / "trials.jsonl").read_bytes().splitlines(keepends=True)
    ends = [number for number, line in enumerate(lines, start=1) if b'"end":null' not in line]
    (run / "trials.jsonl").write_bytes(b"".join(lines[: ends[len(ends) // 2]]))
    (run / "readings.jsonl").unlink()
    for name in ("report.html", "report.md", "report.json"):
        (run / name).unlink()
    return run


def found(run: Path) -> Any:
    """What the report says, without its times and how it was made."""
    return _timeless(json.loads((run / "report.json").read_text()))


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _timeless(entry) for key, entry in value.items() if key not in ("seconds", "started", "command", "git")
        }
    return [_timeless(entry) for entry in value] if isinstance(value, list) else value


def ledger(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.glob("*.jsonl")}


def ends_the_same(run: Path, home: Path) -> None:
    """The same command again ends as the run that nothing disturbed."""
    before = (run / "trials.jsonl").read_bytes() if (run / "trials.jsonl").exists() else b""
    ended = command(*audit(run))
    assert ended.code == 0, ended.err
    assert found(run) == found(home / "whole")
    assert (run / "trials.jsonl").read_bytes().startswith(before)


def test_half_a_run_goes_on_to_the_same_report(run: Path, home: Path) -> None:
    assert found(run) == found(home / "whole")
    count = (run / "trials.jsonl").read_bytes().count(b"\n")
    assert 0 < half(run).joinpath("trials.jsonl").read_bytes().count(b"\n") < count
    ends_the_same(run, home)


# disks ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """A disk of its own, of so many kilobytes; again for the same with other options."""
    libc, place = ctypes.CDLL(None, use_errno=True), tmp_path / "disk"
    place.mkdir()
    mounted = False

    def mount(kilobytes: int, flags: int = 0) -> Path:
        nonlocal mounted
        again = 32 if mounted else 0  # MS_REMOUNT
        options = f"size={kilobytes}k".encode()
        if libc.mount(b"tmpfs", os.fsencode(place), b"tmpfs", flags | again, options):
            pytest.skip(f"cannot mount a disk here: {os.strerror(ctypes.get_errno())}")
        mounted = True
        return place

    yield mount
    if mounted:
        libc.umount2(os.fsencode(place), 2)  # MNT_DETACH


def size(run: Path) -> int:
    """Kilobytes that a run takes, in whole pages."""
    return sum(4 * -(-path.stat().st_size // 4096) for path in run.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "share", [0.3, 0.85, *(pytest.param(share, marks=pytest.mark.slow) for share in (0.02, 0.6, 0.7, 0.97))]
)
def test_a_full_disk_during_an_audit(disk: Callable[..., Path], home: Path, share: float) -> None:
    whole = size(home / "whole")
    run = disk(int(share * whole)) / "run"
    refused(command(*audit(run)), "cannot write", "No space left on device")
    assert not list(run.rglob("*.partial"))
    disk(2 * whole)
    ends_the_same(run, home)


def test_a_full_disk_where_reports_pictures_and_weights_go(disk: Callable[..., Path], run: Path, home: Path) -> None:
    place = disk(size(run) + 8)
    shutil.copytree(run, place / "run")
    before = found(place / "run")
    with (place / "full").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))
    refused(command("report", place / "run"), "cannot write", "report", "No space left")
    assert found(place / "run") == before
    refused(command("export", place / "run"), "looks.csv: cannot be written (No space left")
    drawn = command("draw", "a church", "--base", "tiny", "--steps", 1, "--out", place / "drawn")
    refused(drawn, "cannot write")
    for name in ("erased", "erased.safetensors"):
        erased = command("erase", "--base", "tiny", "--eraser", "uce", "--concept", "fish", "--out", place / name)
        refused(erased, "cannot write", name)
        assert not (place / name).exists()


def test_a_read_only_disk(disk: Callable[..., Path], run: Path, home: Path) -> None:
    place = disk(2 * size(run))
    half(Path(shutil.copytree(run, place / "run")))
    before = ledger(place / "run")
    disk(2 * size(run), 1)  # MS_RDONLY
    refused(command(*audit(place / "run")), "cannot write", "Read-only file system")
    refused(command(*audit(place / "other")), "cannot write", "Read-only file system")
    refused(command("report", place / "run"), "cannot write", "Read-only file system")
    assert ledger(place / "run") == before
    disk(2 * size(run))
    ends_the_same(place / "run", home)


# ledgers -------------------------------------------------------------------------------------------------------------


def torn(line: bytes) -> bytes:
    return line[: len(line) // 2]


def flipped(line: bytes) -> bytes:
    return line.replace(b'"', b"\x02", 1)


def of_zeros(line: bytes) -> bytes:
    return bytes(len(line))


@pytest.mark.parametrize("name", ["trials.jsonl", "readings.jsonl"])
@pytest.mark.parametrize("harm", [torn, *(pytest.param(harm, marks=pytest.mark.slow) for harm in (flipped, of_zeros))])
def test_a_damaged_line_in_the_middle_is_named(run: Path, home: Path, name: str, harm: Callable) -> None:
    path = run / name
    good = path.read_bytes()
    lines = good.split(b"\n")
    lines[1] = harm(lines[1])
    path.write_bytes(b"\n".join(lines))
    before = ledger(run)
    refused(command(*audit(run)), f"{name}:2: expected a")
    refused(command("report", run), f"{name}, line 2")
    assert ledger(run) == before
    path.write_bytes(good)
    ends_the_same(run, home)


def test_a_torn_last_line_is_done_again(run: Path, home: Path) -> None:
    path = run / "trials.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert command("report", run).code == 0
    ended = command(*audit(run))
    assert ended.code == 0, ended.err
    assert found(run) == found(home / "whole")


@pytest.mark.parametrize("name", ["trials.jsonl", "readings.jsonl", "provenance.json"])
@pytest.mark.slow
def test_a_folder_or_a_pipe_in_the_place_of_a_file(run: Path, home: Path, name: str) -> None:
    (run / name).rename(run.parent / name)
    for make in (os.mkdir, os.mkfifo):
        make(run / name)
        refused(command(*audit(run)), name)
        refused(command("report", run), name)
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    (run.parent / name).rename(run / name)
    ends_the_same(run, home)


# files ---------------------------------------------------------------------------------------------------------------


def test_a_picture_that_is_gone_or_damaged_is_shown_as_missing(run: Path, home: Path) -> None:
    pictures = sorted((run / "pictures").iterdir())
    for number, picture in enumerate(pictures):
        match number % 4:
            case 0:
                picture.unlink()
            case 1:
                picture.write_bytes(picture.read_bytes()[:60])
            case 2:
                picture.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(canary) (w) file\n")
            case 3:
                Image.new("1", (5000, 5000)).save(picture)
    before = ledger(run)
    assert command("report", run).code == 0
    assert ledger(run) == before
    assert found(run) == found(home / "whole")
    (run / "report.json").unlink()
    ends_the_same(run, home)


def weights(run: Path) -> Path:
    (path,) = (run / "erased").glob("*.safetensors")
    return path


def test_erased_weights_that_are_gone_are_made_again(run: Path, home: Path) -> None:
    path = weights(half(run))
    before = load_file(path)
    path.unlink()
    ends_the_same(run, home)
    after = load_file(path)
    assert after.keys() == before.keys()
    assert all(torch.equal(weight, before[name]) for name, weight in after.items())


@pytest.mark.parametrize(
    "harm", ["one bit", *(pytest.param(harm, marks=pytest.mark.slow) for harm in ("cut", "emptied"))]
)
def test_damaged_erased_weights_are_named(run: Path, home: Path, harm: str) -> None:
    path = weights(half(run))
    content = bytearray(path.read_bytes())
    content[-2] ^= 1  # of the last number, so that the file is as good as any
    path.write_bytes({"cut": content[:-7], "emptied": b"", "one bit": bytes(content)}[harm])
    before = ledger(run)["trials.jsonl"]
    refused(command(*audit(run)), path.name, "delete it, and it is made again")
    assert ledger(run)["trials.jsonl"] == before
    path.unlink()
    ends_the_same(run, home)


SELDOM = (b"{", b"null", b"\xff\xfe", b"[" * 5000)
PROVENANCES = [b"", b"[]", *(pytest.param(content, marks=pytest.mark.slow) for content in SELDOM)]


@pytest.mark.parametrize("content", PROVENANCES)
def test_a_damaged_provenance_is_named(run: Path, home: Path, content: bytes) -> None:
    path = half(run) / "provenance.json"
    good, before = path.read_bytes(), ledger(run)
    path.write_bytes(content)
    refused(command(*audit(run)), "provenance.json")
    assert ledger(run) == before
    path.write_bytes(good)
    ends_the_same(run, home)


@pytest.mark.parametrize(
    "content", [b"[", *(pytest.param(content, marks=pytest.mark.slow) for content in (b"", b"\xff\xfe", None))]
)
def test_a_damaged_audit_is_written_again(run: Path, home: Path, content: bytes | None) -> None:
    path = half(run) / "audit.toml"
    good = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    ends_the_same(run, home)
    assert path.read_bytes() == good


# two at once ---------------------------------------------------------------------------------------------------------


def test_of_two_runs_at_once_the_second_is_refused(home: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with (tmp_path / "out").open("w+b") as out, (tmp_path / "err").open("w+b") as err:
        first = start(*audit(run), out=out, err=err)
        try:
            while not (run / "provenance.json").exists():
                assert os.waitpid(first, os.WNOHANG)[0] == 0
                time.sleep(0.001)
            os.kill(first, signal.SIGSTOP)  # however fast it is, it has not ended
            refused(command(*audit(run)), "is in use by another run")
        finally:
            os.kill(first, signal.SIGCONT)
        _, status = os.waitpid(first, 0)
        assert os.waitstatus_to_exitcode(status) == 0, (tmp_path / "err").read_text()
    assert found(run) == found(home / "whole")
