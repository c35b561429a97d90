"""The page of the command line, from the functions behind it."""

import inspect
import typing
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

from typer.models import ArgumentInfo, OptionInfo

from palimpsest.cli import app
from prose import code, inline


def command_line() -> str:
    """Every command with its arguments and options."""
    lines = [
        "# The command line",
        "`palimpsest COMMAND --help` says the same. A user's error is one line on stderr and exit code 2; Ctrl-C ends "
        "an audit with exit code 130, and the same command goes on with it. Nothing touches the network unless "
        "`--download` is given.",
    ]
    for command in app.registered_commands:
        assert command.callback is not None, "typer keeps the function of every command"
        name = command.name or command.callback.__name__
        lines += [f"## {name}", inspect.getdoc(command.callback) or "", *_options(name, command.callback)]
    return "\n\n".join(lines) + "\n"


def _options(command: str, function: typing.Callable[..., object]) -> Iterator[str]:
    hints = typing.get_type_hints(function, include_extras=True)
    arguments, rows = [], ["| | value | default | |", "|---|---|---|---|"]
    for name, parameter in inspect.signature(function).parameters.items():
        kind, info = typing.get_args(hints[name])
        many = "list" in str(kind)
        required = parameter.default is inspect.Parameter.empty
        if isinstance(info, ArgumentInfo):
            said = (info.metavar or name.upper()) + ("..." if many else "")
            arguments.append(said)
        else:
            assert isinstance(info, OptionInfo), "a parameter is an argument or an option"
            # Within Annotated, typer takes what would be the default for the first spelling.
            spelt = [text for text in (info.default, *(info.param_decls or ())) if str(text).startswith("--")]
            said = spelt[0] if spelt else f"--{name.replace('_', '-')}"
        default = "must be given" if required else _default(parameter.default)
        rows.append(f"| {code(said)} | {_values(kind)} | {default} | {inline(info.help or '')} |")
    yield "```text\n" + " ".join(["palimpsest", command, *arguments, "[OPTIONS]"]) + "\n```"
    yield "\n".join(rows)


def _values(kind: object) -> str:
    """What may stand there."""
    options = [option for option in typing.get_args(kind) if option is not type(None)] or [kind]
    (one,) = options
    if isinstance(one, type) and issubclass(one, Enum):
        return ", ".join(f"`{member.value}`" for member in one)
    words = {bool: "", int: "number", float: "number", Path: "path", str: "text"}
    return words.get(one, "text")  # type: ignore[call-overload, no-any-return]


def _default(value: object) -> str:
    if value is None or value is False:
        return ""
    return code(str(value.value if isinstance(value, Enum) else value))
