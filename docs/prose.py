"""What stands in sources and in help texts, as Markdown."""

import re
import textwrap

ARXIV = re.compile(r"arXiv[: ](\d{4}\.\d{4,5})")


def prose(text: str) -> str:
    """A docstring as Markdown: an indented block is an equation, and nothing else in it is markup but code."""
    blocks = re.split(r"\n\s*\n", text)
    return "\n\n".join(_equation(block) if block.startswith("    ") else inline(block) for block in blocks)


def _equation(block: str) -> str:
    return "``` { .text .equation }\n" + textwrap.dedent(block) + "\n```"


def inline(text: str) -> str:
    """Text in which nothing is markup but code; papers become links."""
    # Two backticks stand around code in docstrings, and Markdown knows them; what lies between is left alone.
    pieces = re.split(r"(``.+?``|`.+?`)", text)
    pieces[::2] = [re.sub(r"([\\*_<>\[\]|])", r"\\\1", piece) for piece in pieces[::2]]
    return ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", "".join(pieces))


def code(text: str) -> str:
    """Code in a table's cell, where a bar would end the cell."""
    return f"<code>{text.replace('&', '&amp;').replace('<', '&lt;').replace('|', '&#124;')}</code>"
