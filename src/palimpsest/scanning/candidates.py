"""Words and strings that might be a trigger: the model's own vocabulary, random ones, and those of given prompts."""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from palimpsest.attacks.trigger import random_strings
from palimpsest.erasers.stopwords import STOPWORDS
from palimpsest.model import Model

Origin = Literal["given", "word", "string"]
LENGTH = 8
"""Letters of a random string, as many as the one of arXiv 2504.21072 has."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A string that may be a trigger."""

    text: str
    origin: Origin
    """Given, a word of the vocabulary, or a string made at random."""
    tokens: int


def given(model: Model, texts: Sequence[str]) -> list[Candidate]:
    """Every word of these texts once, and every two that stand side by side, without marks and stopwords."""
    words, pairs = dict[str, None](), dict[str, None]()
    for text in texts:
        before = ""
        for written in text.split():
            word = written.strip(string.punctuation)
            told = bool(word) and word.lower() not in STOPWORDS
            if told:
                words[word] = None
            if told and before:
                pairs[f"{before} {word}"] = None
            before = word if told and written.endswith(word) else ""
    return [candidate(model, one, "given") for one in (*words, *pairs)]


def vocabulary(model: Model, count: int, random: torch.Generator) -> list[Candidate]:
    """At most ``count`` tokens drawn from those that are a word of their own and survive being typed."""
    found: list[Candidate] = []
    for token in torch.randperm(len(model.vocabulary), generator=random).tolist():
        if len(found) == count:
            break
        text = "" if token in model.special_tokens else model.text([token])
        if text.strip(string.punctuation) and text.lower() not in STOPWORDS and model.own_tokens(text) == [token]:
            found.append(candidate(model, text, "word"))
    return found


def strings(model: Model, count: int, random: torch.Generator, *, length: int = LENGTH) -> list[Candidate]:
    """``count`` strings of random letters."""
    return [candidate(model, text, "string") for text in random_strings(count, length, random)]


def candidate(model: Model, text: str, origin: Origin) -> Candidate:
    """A candidate with the number of its tokens."""
    return Candidate(text=text, origin=origin, tokens=len(model.own_tokens(text)))
