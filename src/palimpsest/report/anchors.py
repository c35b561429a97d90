"""What a concept's section and pages are called: no two concepts share a name."""

import re
from collections import Counter
from collections.abc import Iterable
from hashlib import sha256

LONGEST = 60
"""Letters of a name, but for its mark."""


def anchors(concepts: Iterable[str]) -> dict[str, str]:
    """Concept -> a name of ``[a-z0-9-]``.

    Where the name alone does not tell concepts apart, or is cut or empty, a mark follows it after ``--``, which stands
    in no name by itself.
    """
    plain = {concept: re.sub(r"[^a-z0-9]+", "-", concept.lower()).strip("-") for concept in set(concepts)}
    often = Counter(plain.values())
    return {
        concept: name if often[name] == 1 and 0 < len(name) <= LONGEST else f"{_cut(name)}--{_mark(concept)}"
        for concept, name in plain.items()
    }


def _cut(name: str) -> str:
    return name[:LONGEST].strip("-") or "concept"


def _mark(concept: str) -> str:
    return sha256(concept.encode("utf-8", "surrogatepass")).hexdigest()[:12]
