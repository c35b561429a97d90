"""A run's folder: its audit and provenance, finished goals, readings, erased weights, pictures."""

import fcntl
import hashlib
import io
import json
import logging
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self, TypeVar

import torch
from PIL.Image import Image
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from palimpsest.errors import BadRun
from palimpsest.protocol import Audit
from palimpsest.provenance import provenance
from palimpsest.records import Goal, Reading, Scored, Trial, Victim

RecordT = TypeVar("RecordT")

log = logging.getLogger("palimpsest")


class Key(NamedTuple):
    """What a goal is known by, before its victim exists."""

    victim: Victim
    """Without its fingerprint."""
    attack: str
    goal: Goal

    @classmethod
    def of(cls, victim: Victim, attack: str, goal: Goal) -> "Key":
        """The key of a goal of a victim, whatever the victim's weights."""
        return cls(replace(victim, fingerprint=""), attack, goal)


class Store:
    """A run's folder, open and locked; use as ``with Store(folder, audit) as store``.

    The unit is the goal: all its lines are written at once, when it has ended. What a stopped run left of a goal
    without its end is dropped on the next opening, and so is a torn last line.
    """

    def __init__(self, folder: Path, audit: Audit) -> None:
        self.folder = folder
        self._finished: set[Key] = set()
        self.readings: list[Reading] = []
        self.scored: list[Scored] = []
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if not self._provenance_path.exists() and (strange := self._strange()):
                raise BadRun(f"expected an empty folder or a run's, got {folder} with {strange} in it")
            self._lock: BinaryIO = (folder / ".lock").open("ab")
        try:
            self._take(audit)
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.close()

    def _take(self, audit: Audit) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadRun(f"{self.folder} is in use by another run") from None
        trials = _read(self._trials_path, Trial)
        ended = {_key(trial) for trial in trials if trial.end is not None}
        whole = [trial for trial in trials if _key(trial) in ended]
        self.readings = _read(self._readings_path, Reading)
        self.scored = _read(self._scored_path, Scored)
        if self.provenance.get("protocol") != audit.protocol:
            if whole or self.readings or self.scored:
                raise BadRun(f"{self.folder} holds another audit: choose another folder, or delete this one")
            self._write(self._provenance_path, _json(provenance(audit)))
            self._write(self.folder / "audit.toml", audit.toml().encode())
        elif not _is_toml(self.folder / "audit.toml"):
            self._write(self.folder / "audit.toml", audit.toml().encode())
        if len(whole) < len(trials):
            self._write(self._trials_path, b"".join(_line(trial) for trial in whole))
        self._finished = ended

    def _strange(self) -> str | None:
        names = sorted(path.name for path in self.folder.iterdir())
        return next((name for name in names if name != ".lock" and not name.endswith(TEMPORARY)), None)

    @property
    def _trials_path(self) -> Path:
        return self.folder / "trials.jsonl"

    @property
    def _readings_path(self) -> Path:
        return self.folder / "readings.jsonl"

    @property
    def _scored_path(self) -> Path:
        return self.folder / "calibration.jsonl"

    @property
    def _provenance_path(self) -> Path:
        return self.folder / "provenance.json"

    @property
    def provenance(self) -> dict[str, Any]:
        """How the run is made; empty before its first opening."""
        try:
            _require_file(self._provenance_path)
            known = json.loads(self._provenance_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            raise BadRun(f"{self._provenance_path}: expected JSON, got {error}") from None
        if not isinstance(known, dict):
            raise BadRun(f"{self._provenance_path}: expected a table, got {type(known).__name__}")
        return known

    def confirm(self, facts: Mapping[str, Any]) -> None:
        """Writes down the model's facts, or, where the run goes on, raises ``BadRun`` if they are others now."""
        known = self.provenance
        for name, fact in facts.items():
            if known.get(name, fact) != fact:
                raise BadRun(f"{self.folder} was begun with {name} {known[name]}, got {fact}: choose another folder")
        self._write(self._provenance_path, _json(known | dict(facts)))

    def note(self, facts: Mapping[str, Any]) -> None:
        """Writes down what may be otherwise when the run goes on."""
        self._write(self._provenance_path, _json(self.provenance | dict(facts)))

    # goals and readings

    def is_finished(self, key: Key) -> bool:
        """Whether the goal has ended, in this run or before it was continued."""
        return key in self._finished

    def is_measured(self, victim: Victim, measure: str) -> bool:
        """Whether the measure has been taken of the victim, whatever its weights."""
        return any(
            reading.measure == measure and replace(reading.victim, fingerprint="") == replace(victim, fingerprint="")
            for reading in self.readings
        )

    def finish(self, trials: Sequence[Trial]) -> None:
        """Writes down an ended goal, all of it; it is on the disk when this returns, or not at all."""
        lines = memoryview(b"".join(_line(trial) for trial in trials))
        with _writing(self._trials_path), self._trials_path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                while lines:  # a nearly full disk takes a part
                    lines = lines[file.write(lines) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(before)
                raise
        self._finished.add(_key(trials[-1]))

    def add_readings(self, readings: Sequence[Reading]) -> None:
        """Writes down all that one measure read off one victim."""
        together = [*self.readings, *readings]
        self._write(self._readings_path, b"".join(_line(reading) for reading in together))
        self.readings = together

    def add_scored(self, scored: Sequence[Scored]) -> None:
        """Writes down what the judges said of pictures that they are calibrated on."""
        together = [*self.scored, *scored]
        self._write(self._scored_path, b"".join(_line(one) for one in together))
        self.scored = together

    # pictures, tensors, weights

    def keep_picture(self, picture: Image) -> str:
        """Stores a picture by its content; returns its name."""
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        return self._keep("pictures", buffer.getvalue(), ".png")

    def keep_tensor(self, tensor: Tensor) -> str:
        """Stores a tensor by its content; returns its name."""
        return self._keep("tensors", save({"tensor": tensor.detach().cpu().contiguous()}), ".safetensors")

    def _keep(self, kind: str, content: bytes, ending: str) -> str:
        name = hashlib.sha256(content).hexdigest()
        path = self.folder / kind / (name + ending)
        if not path.exists():
            self._write(path, content)
        return name

    def weights(self, name: str) -> dict[str, Tensor] | None:
        """The changed weights stored under a name; None if there are none."""
        path = self._weights_path(name)
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                told = (file.metadata() or {}).get(CONTENT)
                found = {key: file.get_tensor(key) for key in file.keys()}
            if told not in (None, _content(found)):
                raise ValueError("its numbers are not those that were written")
        except (SafetensorError, OSError, ValueError) as error:
            raise BadRun(f"{path}: cannot be read ({error}); delete it, and it is made again") from None
        return found

    def has_weights(self, name: str) -> bool:
        """Whether changed weights are stored under a name."""
        return self._weights_path(name).exists()

    def training(self, name: str) -> Path:
        """Where the training of the weights of this name is kept while it is under way."""
        return self._weights_path(name).with_suffix(".training")

    def keep_weights(self, name: str, weights: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
        """Stores changed weights, with what they are about in the file's header."""
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}
        told = {**about, CONTENT: _content(tensors)}
        self._replace(self._weights_path(name), lambda path: save_file(tensors, path, told))

    def _weights_path(self, name: str) -> Path:
        return self.folder / "erased" / f"{name}.safetensors"

    def _write(self, path: Path, content: bytes) -> None:
        self._replace(path, lambda temporary: temporary.write_bytes(content))

    def _replace(self, path: Path, write: Callable[[Path], object]) -> None:
        """A file is there whole or not at all, whenever the machine stops."""
        temporary = path.with_name(path.name + TEMPORARY)
        with _writing(path):
            path.parent.mkdir(exist_ok=True)
            try:
                write(temporary)
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)


TEMPORARY = ".partial"
CONTENT = "content"
"""Where the header of changed weights holds their checksum."""


def _content(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors and their names."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _require_file(path: Path) -> None:
    """A pipe or a device may never end."""
    if path.exists() and not path.is_file():
        raise OSError("something that is no file")


def _is_toml(path: Path) -> bool:
    try:
        _require_file(path)
        return bool(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return False


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise BadRun(f"cannot write {path}: {error}; what was finished is kept, and the same command goes on") from None


def _key(trial: Trial) -> Key:
    return Key.of(trial.victim, trial.attack, trial.goal)


_TYPES: dict[type, TypeAdapter[Any]] = {record: TypeAdapter(record) for record in (Trial, Reading, Scored)}


def _line(record: Trial | Reading | Scored) -> bytes:
    return _TYPES[type(record)].dump_json(record) + b"\n"


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode()


def _read(path: Path, record: type[RecordT]) -> list[RecordT]:
    """The records of a file, one per line; raises ``BadRun`` for a damaged one. A torn last line is cut off."""
    if not path.exists():
        return []
    try:
        _require_file(path)
        content = path.read_bytes()
    except OSError as error:
        raise BadRun(f"{path}: cannot be read ({error})") from None
    *lines, torn = content.split(b"\n")
    if torn:
        log.warning("%s: the last line is torn, and was cut off", path)
        with _writing(path):
            os.truncate(path, len(content) - len(torn))
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(_TYPES[record].validate_json(line))
        except ValidationError as error:
            raise BadRun(f"{path}:{number}: expected a {record.__name__}, got {error.errors()[0]['msg']}") from None
    return records
