"""Links that leave docs/, and pages for the files that they lead to."""

import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")


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


def outside(wanted: Iterable[str]) -> dict[str, str]:
    """The pages of files outside docs/: those that are ``wanted``, and what the pages of docs/ and these link to."""
    waiting = [*(str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").rglob("*.md"))), *wanted]
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
