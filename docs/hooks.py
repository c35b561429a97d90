"""What MkDocs calls while it builds the site: adds the generated pages, and refuses a page that needs the network."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel

import generated
import links

REMOTE = re.compile(r"\s*(https?:)?//")
STYLE = re.compile(r"""(?:@import|url\()\s*['"]?\s*((?:https?:)?//[^'")\s]+)""")
PLAIN = {"a": {"href"}, "svg": {"xmlns"}}
"""Attributes that may name another place: following a link is the reader's choice; a namespace is only a name."""


class Loaded(HTMLParser):
    """What a page loads from elsewhere when it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name not in PLAIN.get(tag, ()) and not name.startswith("xmlns") and value and REMOTE.match(value):
                self.found.append(f"<{tag} {name}={value!r}>")
            if name == "class" and "mermaid" in (value or "").split():
                self.found.append(f"<{tag} class={value!r}>: the theme fetches what draws it")
            if name == "style":
                self.found += STYLE.findall(value or "")


def loaded(page: str) -> list[str]:
    """What the text of a page or style sheet loads from elsewhere; empty: nothing."""
    parser = Loaded()
    parser.feed(page)
    return [*parser.found, *STYLE.findall(page)]


def on_config(config: Any) -> Any:
    """Puts the pages of the parts into the navigation, and those of the results that it does not name yet."""
    for section in config["nav"]:
        for title, entries in section.items():
            if title == "Parts":
                entries += [
                    {plural.capitalize(): generated.navigation(kind)} for kind, plural in generated.PLURALS.items()
                ]
            if title == "Results":
                folder = Path(config["docs_dir"])
                named = {page for entry in entries if isinstance(entry, dict) for page in entry.values()}
                pages = [str(page.relative_to(folder)) for page in sorted((folder / "results").glob("*.md"))]
                entries += [page for page in pages if page not in named]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the generated pages; those of files outside docs/ are reached by links."""
    for path, text in generated.pages().items():
        files.append(File.generated(config, path, content=text))
    for path, text in generated.outside().items():
        files.append(File.generated(config, path, content=text, inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns links that leave docs/ to the pages that stand for those files."""
    if page.file.generated_by:
        return markdown
    return links.relinked(markdown, f"docs/{page.file.src_uri}")


def on_post_build(config: Any) -> None:
    """Fails where a page would load something from elsewhere."""
    for file in sorted(Path(config["site_dir"]).rglob("*")):
        if file.suffix in (".html", ".css") and (found := loaded(file.read_text(encoding="utf-8"))):
            raise PluginError(f"{file}: expected a page that loads nothing from elsewhere, got {', '.join(found[:3])}")
