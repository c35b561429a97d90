"""The words of a prompt, and their embeddings as what an eraser trains."""

from collections.abc import Sequence
from re import escape

import torch

from palimpsest.erasers.gradients import let_through
from palimpsest.errors import BadSetting
from palimpsest.model import Model
from palimpsest.pruning import Mask
from palimpsest.records import Concept


def learning_words(model: Model, words: set[int]) -> Model:
    """A copy of the model in which the embeddings of these token ids learn, and nothing else does."""
    table = model.text_encoder.get_input_embeddings().weight
    (name,) = (name for name, weight in model.weights(r"text_encoder\..*").items() if weight is table)
    student = model.copy(trainable=escape(name))
    marks = torch.zeros(table.shape, dtype=torch.bool)
    marks[sorted(words)] = True
    let_through(student, Mask({name: marks}))
    return student


def require_words(eraser: str, model: Model, concepts: Sequence[Concept]) -> None:
    """Raises ``BadSetting`` for a concept whose name is no word to the model."""
    for concept in concepts:
        if not model.own_tokens(concept.name):
            raise BadSetting(f"{eraser}: expected a concept whose name has a token, got {concept.name!r}")
