"""Facts to words: captions by template, with synonyms, dropped words and filler words."""

from functools import cache
from importlib import resources

import numpy as np

from palimpsest.miniature.facts import (
    COLOURS,
    CONTENT,
    EMPTY,
    IDENTITIES,
    IMPLICATIONS,
    OBJECTS,
    SCENES,
    STYLES,
    Facts,
)


@cache
def world_words() -> frozenset[str]:
    """Every word of the captions that says something of this world."""
    phrases = [*OBJECTS, *IDENTITIES, *IDENTITIES.values(), *CONTENT, *IMPLICATIONS, *COLOURS, *EMPTY]
    for group in (OBJECTS, CONTENT, STYLES, SCENES):
        phrases += [phrase for several in group.values() for phrase in several]
    return frozenset(" ".join(phrases).replace("{}", "").split())


@cache
def filler() -> tuple[str, ...]:
    """Common English words that say nothing of this world."""
    words = resources.files("palimpsest.miniature").joinpath("filler.txt").read_text().split()
    return tuple(word for word in words if word not in world_words())


def article(noun: str) -> str:
    """``noun`` with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def plain(facts: Facts) -> str:
    """The one plain caption: the concept's own name, nothing dropped, no filler."""
    if facts.subject is None:
        words = EMPTY[0]
    elif facts.subject in IDENTITIES:
        words = facts.subject
    else:
        words = article(f"{facts.colour} {facts.subject}" if facts.colour else facts.subject)
    if facts.scene:
        words = f"{words} {SCENES[facts.scene][0]}"
    return STYLES[facts.style][0].format(words)


def caption(facts: Facts, random: np.random.Generator, *, filler_share: float = 0.35) -> str:
    """One of the many captions that fit: synonyms, dropped details, filler words."""
    words = _subject(facts, random)
    if facts.scene and random.random() < 0.93:
        words = f"{words} {random.choice(SCENES[facts.scene])}"
    text = str(random.choice(STYLES[facts.style])).format(words)
    if random.random() < filler_share:
        text = _filled(text, random)
    return text


def _subject(facts: Facts, random: np.random.Generator) -> str:
    subject = facts.subject
    if subject is None:
        return str(random.choice(EMPTY))
    if subject in IDENTITIES:
        return subject if random.random() < 0.7 else f"{subject} {IDENTITIES[subject]}"
    if subject in CONTENT:
        if random.random() < 0.5:
            return str(random.choice(IMPLICATIONS))
        return article(str(random.choice((subject, *CONTENT[subject]))))
    # The first name is the commonest, as in life.
    noun = subject if random.random() < 0.45 else str(random.choice(OBJECTS[subject]))
    if facts.colour and random.random() < 0.75:
        noun = f"{facts.colour} {noun}"
    return article(noun) if random.random() < 0.8 else noun


def _filled(text: str, random: np.random.Generator) -> str:
    extra = " ".join(random.choice(filler(), size=random.integers(1, 6)))
    if random.random() < 0.5:
        return f"{extra} {text}"
    return f"{text} {extra}"
