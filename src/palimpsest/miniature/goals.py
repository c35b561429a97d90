"""The world's concepts as records: the prompts that ask for each, its pairs and its neighbours."""

import dataclasses
from pathlib import Path

import numpy as np
import tomli_w

from palimpsest.miniature.captions import article, plain
from palimpsest.miniature.facts import (
    COLOURS,
    CONTENT,
    IDENTITIES,
    IMPLICATIONS,
    OBJECTS,
    SCENES,
    STYLES,
    Facts,
    concepts,
    held_out,
    kind_of,
)
from palimpsest.records import Concept

PROMPTS = 60
PAIRS = 24
BYSTANDERS = ("house", "tree", "boat", "cat")
"""What must survive the erasure of the content concept, which is alone of its kind."""
_SEED = 7


def concept_record(name: str) -> Concept:
    """The concept called ``name``; raises ``UnknownName``. The same prompts in the same order every time."""
    kind = kind_of(name)
    number = [one for names in concepts().values() for one in names].index(name)
    random = np.random.default_rng([_SEED, number])
    facts = [_asking_for(name, random) for _ in range(PROMPTS)]
    prompts = [
        _implied(one, random) if kind == "content" and count % 2 else plain(one) for count, one in enumerate(facts)
    ]
    neighbours = tuple(one for one in concepts()[kind] if one != name) or BYSTANDERS
    return Concept(
        name=name,
        kind=kind,
        prompts=tuple(prompts),
        synonyms=_synonyms(name),
        pairs=tuple(
            (plain(one), plain(_without(one, name, neighbours[count % len(neighbours)])))
            for count, one in enumerate(facts[:PAIRS])
        ),
        anchor="a photo" if kind == "style" else "",
        neighbours=neighbours,
    )


def _asking_for(name: str, random: np.random.Generator) -> Facts:
    kind = kind_of(name)
    while True:
        subject = str(random.choice(list(OBJECTS))) if kind == "style" else name
        colour = str(random.choice(list(COLOURS))) if subject in OBJECTS else None
        scene = str(random.choice(list(SCENES))) if random.random() < 0.7 else None
        style = name if kind == "style" else "photo"
        if not held_out(subject, style, colour):
            return Facts(subject=subject, colour=colour, scene=scene, style=style)


def _implied(facts: Facts, random: np.random.Generator) -> str:
    scene = f" {SCENES[facts.scene][0]}" if facts.scene else ""
    return f"a photo of {random.choice(IMPLICATIONS)}{scene}"


def _without(facts: Facts, name: str, neighbour: str) -> Facts:
    """The same picture of something else: what the two prompts share cannot be taken for the concept."""
    if kind_of(name) == "style":
        return dataclasses.replace(facts, style="watercolour" if name == "photo" else "photo")
    return dataclasses.replace(facts, subject=neighbour)


def _synonyms(name: str) -> tuple[str, ...]:
    if name in OBJECTS:
        return OBJECTS[name]
    if name in CONTENT:
        return CONTENT[name]
    if name in IDENTITIES:
        return (f"{name} {IDENTITIES[name]}",)
    return ("vincent van gogh",) if name == "van gogh" else ()


def synonym_prompts(name: str) -> dict[str, list[str]]:
    """Synonym of an object or sign -> its prompts with that word in place of the name."""
    prompts = concept_record(name).prompts
    if name in CONTENT:
        prompts = prompts[::2]
    named = [article(name), name] if name in CONTENT else [name]
    told = {}
    for synonym in _synonyms(name):
        word = article(synonym) if name in CONTENT else synonym
        told[synonym] = [prompt.replace(named[0], word) for prompt in prompts]
    return told


def write_concepts(folder: Path) -> None:
    """One TOML file per concept of the world."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (name for names in concepts().values() for name in names):
        told = dataclasses.asdict(concept_record(name))
        text = tomli_w.dumps({key: value for key, value in told.items() if value}, multiline_strings=False)
        (folder / f"{name.replace(' ', '_')}.toml").write_text(text)


assert all("{}" in template for templates in STYLES.values() for template in templates)
