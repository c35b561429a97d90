"""The pages that nobody writes: one for every part, the command line, and the files that other pages point at."""

import ast
import inspect
import os
import re
import shlex
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePosixPath

from typer.models import ArgumentInfo, OptionInfo

from palimpsest.catalogue import HERE, KINDS, Part, Setting, parts
from palimpsest.cli import app

ROOT = Path(__file__).parent.parent
PACKAGE = "src/palimpsest"

PLURALS = {"eraser": "erasers", "attack": "attacks", "judge": "judges", "measure": "measures"}
LEADS = {
    "eraser": "An eraser makes a model forget a concept, or opens a model in which somebody did.",
    "attack": "An attack is a way back to the concept. It proposes; the runner draws, judges, counts and stops.",
    "judge": "A judge says how surely a picture shows a concept. The first of an audit decides, the others confirm.",
    "measure": "A measure reads off a model what its erasure cost the rest.",
}
ARXIV = re.compile(r"arXiv[: ](\d{4}\.\d{4,5})")
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")


# Parts ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Origin:
    """Where a part is written down."""

    path: str
    """Below the repository's root."""
    lead: str
    """The first line of its file."""
    needs: tuple[str, ...]
    """What an attacker must hold."""


def origin(part: Part) -> Origin:
    """The file of a part, found by the name that its class gives itself."""
    folder = KINDS[part.kind]
    for file in sorted((HERE / folder).glob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in tree.body:
            said = _said(node)
            if said.get("name") == repr(part.name):
                needs = tuple(sorted(need.lower() for need in re.findall(r"Need\.(\w+)", said.get("needs", ""))))
                return Origin(f"{PACKAGE}/{folder}/{file.name}", ast.get_docstring(tree) or "", needs)
    raise FileNotFoundError(f"expected a class with name = {part.name!r} in {folder}, found none")


def _said(node: ast.stmt) -> dict[str, str]:
    """What a class's body sets, as it is written."""
    lines = node.body if isinstance(node, ast.ClassDef) else []
    found = {}
    for line in lines:
        if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
            found[line.targets[0].id] = ast.unparse(line.value)
        elif isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value:
            found[line.target.id] = ast.unparse(line.value)
    return found


def part_page(part: Part) -> str:
    """Name, meaning, settings, an example, the source."""
    source = origin(part)
    here = f"parts/{PLURALS[part.kind]}/{part.name}.md"
    lines = [
        f"# {part.name}",
        f"*{part.kind.capitalize()}.* {prose(source.lead)} [Source]({relative(source.path, here)})",
        prose(part.meaning),
    ]
    if part.kind == "attack":
        held = ", ".join(f"`{need}`" for need in source.needs) or "nothing but prompts"
        lines.append(f"**What the attacker holds:** {held} ([what these mean](../../add-a-part.md#what-needs-means)).")
    lines += ["## Settings", settings_table(part.settings), "## How to ask for it", example(part)]
    return "\n\n".join(lines) + "\n"


def prose(text: str) -> str:
    """A docstring as Markdown: indented equations stay as they are, and nothing else in it is markup but code."""
    blocks = re.split(r"\n\s*\n", text)
    return "\n\n".join(block if block.startswith("    ") else _inline(block) for block in blocks)


def _inline(text: str) -> str:
    # Two backticks stand around code in docstrings, and Markdown knows them; what lies between is left alone.
    pieces = re.split(r"(``.+?``|`.+?`)", text)
    pieces[::2] = [re.sub(r"([\\*_<>\[\]|])", r"\\\1", piece) for piece in pieces[::2]]
    return ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", "".join(pieces))


def settings_table(settings: tuple[Setting, ...]) -> str:
    """One row per setting."""
    if not settings:
        return "None."
    rows = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for setting in settings:
        default = "must be given" if setting.default is None else code(_written(setting.default))
        rows.append(f"| `{setting.name}` | {_type(setting.type)} | {default} | {_inline(setting.meaning)} |")
    return "\n".join(rows)


def _type(text: str) -> str:
    """A type as it is written in the source; a choice as its choices."""
    choices = re.fullmatch(r"Literal\[(.*)\]( \| None)?", text)
    if not choices:
        return code(text)
    options = [*choices[1].split(", "), *(["None"] if choices[2] else [])]
    return " or ".join(code(_written(option)) for option in options)


def _written(text: str) -> str:
    """A default as it is written in an audit file, where that has a word for it."""
    try:
        value = ast.literal_eval(text)
    except ValueError:
        return text
    return _toml(value) if isinstance(value, bool | str) else text


def code(text: str) -> str:
    """Code in a table's cell, where a bar would end the cell."""
    return f"<code>{text.replace('&', '&amp;').replace('<', '&lt;').replace('|', '&#124;')}</code>"


def example(part: Part) -> str:
    """Commands, or the line of an audit file where the command line has no option for the kind."""
    spec = {setting.name: _placeholder(setting) for setting in part.settings if setting.default is None}
    changed = next((setting for setting in part.settings if _plain(setting) is not None), None)
    if part.kind == "measure":
        full = {"name": part.name} | ({changed.name: _plain(changed)} if changed else {})
        entries = [f'measures = ["{part.name}"]']
        if changed:
            entries.append(f"measures = [{{ {', '.join(f'{key} = {_toml(value)}' for key, value in full.items())} }}]")
        return "In an audit file, one of\n\n```toml\n" + "\n".join(entries) + "\n```"
    commands = [f"palimpsest show {part.name}", _command(part, spec)]
    if changed:
        commands.append(_command(part, spec | {changed.name: _plain(changed)}))
    return "```sh\n" + "\n".join(commands) + "\n```"


def _command(part: Part, spec: dict[str, object]) -> str:
    if list(spec) == ["path"]:
        said = f"{part.name}={spec['path']}"
    else:
        settings = ",".join(f"{key}={_toml(value, bare=True)}" for key, value in spec.items())
        said = f"{part.name}:{settings}" if settings else part.name
    before = "" if part.kind == "eraser" else " --eraser uce"
    # The miniature's judges know its world; all others judge other models.
    of_others = part.kind == "judge" and not part.name.startswith("miniature")
    concept = "mine.toml --base sd15/" if of_others else "church"
    return f"palimpsest audit --concept {concept}{before} --{part.kind} {shlex.quote(said)}"


def _placeholder(setting: Setting) -> object:
    return "theirs.safetensors" if setting.name == "path" else f"{setting.name}/"


def _plain(setting: Setting) -> object:
    """The default, if it is one that reads well on a command line."""
    try:
        value = ast.literal_eval(setting.default or "None")
    except ValueError:
        return None
    plain = isinstance(value, bool | int | float) or (isinstance(value, str) and value.isidentifier())
    return value if plain else None


def _toml(value: object, *, bare: bool = False) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) and not bare else str(value)


def overview(kind: str) -> str:
    """All parts of a kind on one page."""
    rows = ["| name | what it is |", "|---|---|"]
    rows += [f"| [{part.name}]({part.name}.md) | {_inline(part.summary)} |" for part in parts(kind)]
    title = PLURALS[kind].capitalize()
    more = f"A further one is one file and one name: [add a part](../../add-a-part.md#{ANCHORS[kind]})."
    return "\n\n".join([f"# {title}", LEADS[kind], "\n".join(rows), more]) + "\n"


ANCHORS = {"eraser": "an-eraser", "attack": "an-attack-in-ten-minutes", "judge": "a-judge", "measure": "a-measure"}


# The command line ----------------------------------------------------------------------------------------------------


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
        rows.append(f"| {code(said)} | {_values(kind)} | {default} | {_inline(info.help or '')} |")
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


# Files outside docs/ that pages point at -----------------------------------------------------------------------------


def place(path: str) -> str:
    """Where a file of the repository stands in the site: docs/ is its root, and code becomes a page."""
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return path if path.endswith(".md") else f"{path}.md"


def relative(path: str, page: str) -> str:
    """The link from a page of the site to a file of the repository."""
    return os.path.relpath(place(path), PurePosixPath(page).parent).replace(os.sep, "/")


def relinked(text: str, path: str) -> str:
    """A page's text, whose links are those of the repository, with the links of the site; ``path`` is the file's."""

    def link(match: re.Match[str]) -> str:
        target = os.path.normpath(PurePosixPath(path).parent / match[1]).replace(os.sep, "/")
        outside = not target.startswith(("docs/", "..")) and (ROOT / target).is_file()
        inside = path.startswith("docs/") and target.startswith("docs/")
        return match[1] if inside or not (outside or target.startswith("docs/")) else relative(target, place(path))

    return LINK.sub(link, text)


def outside() -> dict[str, str]:
    """The pages of files outside docs/: the sources of all parts, and what the pages of docs/ and these link to."""
    waiting = [str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").rglob("*.md"))]
    waiting += ["CHANGELOG.md", *(origin(part).path for kind in KINDS for part in parts(kind))]
    found: dict[str, str] = {}
    while waiting:
        path = waiting.pop()
        text = (ROOT / path).read_text(encoding="utf-8")
        if path.startswith("docs/") or path.endswith(".md"):
            targets = (os.path.normpath(PurePosixPath(path).parent / link) for link in LINK.findall(text))
            waiting += [t for t in targets if (ROOT / t).is_file() and place(t) not in found and _outside(t)]
        if _outside(path):
            found[place(path)] = relinked(text, path) if path.endswith(".md") else _source(path, text)
    return found


def _outside(path: str) -> bool:
    return not path.startswith("docs/") and path != "README.md"


def _source(path: str, text: str) -> str:
    language = {".py": "python", ".toml": "toml"}.get(Path(path).suffix, "text")
    name = Path(path).name
    return f"---\nsearch:\n  exclude: true\n---\n\n# {name}\n\n`{path}`\n\n````{language}\n{text}\n````\n"


# All -----------------------------------------------------------------------------------------------------------------


def pages() -> dict[str, str]:
    """Place in the site -> Markdown, but for the files outside docs/."""
    found = {"command-line.md": command_line()}
    for kind, plural in PLURALS.items():
        found[f"parts/{plural}/index.md"] = overview(kind)
        found |= {f"parts/{plural}/{part.name}.md": part_page(part) for part in parts(kind)}
    return found


def navigation(kind: str) -> list[str]:
    """The pages of a kind, the overview first."""
    return [f"parts/{PLURALS[kind]}/{name}.md" for name in ("index", *(part.name for part in parts(kind)))]
