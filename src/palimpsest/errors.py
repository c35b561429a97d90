"""Every error that a user can cause.

* PalimpsestError
  x UnknownName      a part, concept or label that does not exist; the message lists those that do
  x BadSetting       a part's setting is unknown, of the wrong type or out of range
  x BadAudit         an audit file that cannot be run as written
  x BadConcept       a concept file or prompt list that cannot be used
  x BadModel         a model folder that cannot be opened as a Stable Diffusion pipeline
    · BadCheckpoint  a state dict that does not fit the base, or cannot be read safely
  x BadRun           a run folder that holds something else, is in use, or is damaged
  x BadAsset         a file shipped with the package is missing or damaged
  x MissingExtra     an optional library is needed for what was asked, and not installed
"""

__all__ = [
    "BadAsset",
    "BadAudit",
    "BadCheckpoint",
    "BadConcept",
    "BadModel",
    "BadRun",
    "BadSetting",
    "MissingExtra",
    "PalimpsestError",
    "UnknownName",
    "one_line",
    "printable",
    "unknown",
    "writing",
]

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class PalimpsestError(Exception):
    """Base of every error that a user can cause; the command line prints it in one line and exits with 2."""


class UnknownName(PalimpsestError):
    """A name that nothing answers to."""


class BadSetting(PalimpsestError):
    """A setting that is unknown, of the wrong type or out of range."""


class BadAudit(PalimpsestError):
    """An audit that cannot be run as written."""


class BadConcept(PalimpsestError):
    """A concept that cannot be used as written."""


class BadModel(PalimpsestError):
    """A model that cannot be opened as a Stable Diffusion pipeline."""


class BadCheckpoint(BadModel):
    """A state dict that does not fit its base, or cannot be read safely."""


class BadRun(PalimpsestError):
    """A run folder that holds something else, is in use, or is damaged."""


class BadAsset(PalimpsestError):
    """A file shipped with the package is missing or damaged."""


def unknown(what: str, name: str, known: Iterable[str]) -> UnknownName:
    """The error for a name that nothing answers to: ``no attack called 'x'; there are: ...``."""
    return UnknownName(f"no {what} called {name!r}; there are: {', '.join(sorted(known)) or 'none'}")


LONGEST = 3000
"""Characters of an error on the command line: a hostile file can name anything."""


def printable(text: str) -> str:
    """A text as a terminal may show it: what would steer the terminal is escaped, line ends are kept."""
    return "".join(
        sign if sign.isprintable() or sign == "\n" else sign.encode("unicode_escape").decode() for sign in text
    )


def one_line(error: Exception | str) -> str:
    """What an error says, as one line that a terminal may show."""
    told = printable(" ".join(str(error).split()))
    return told if len(told) <= LONGEST else f"{told[:LONGEST]} ... ({len(told) - LONGEST:,} characters more)"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A disk that is full, a folder that is read-only and the like become ``BadRun``, which names the path."""
    try:
        yield
    except OSError as error:
        raise BadRun(f"cannot write {path}: {error.strerror or error}") from None


class MissingExtra(PalimpsestError):
    """An optional library that is needed for what was asked, and is not installed."""

    def __init__(self, what: str, library: str, extra: str) -> None:
        super().__init__(f"{what} needs {library}, which is not installed: pip install 'palimpsest[{extra}]'")
