"""The embeddings of single words as what an eraser trains."""

from re import escape

import torch

from palimpsest.erasers.gradients import let_through
from palimpsest.model import Model
from palimpsest.pruning import Mask


def learning_words(model: Model, words: set[int]) -> Model:
    """A copy of the model in which the embeddings of these token ids learn, and nothing else does."""
    table = model.text_encoder.get_input_embeddings().weight
    (name,) = (name for name, weight in model.weights(r"text_encoder\..*").items() if weight is table)
    student = model.copy(trainable=escape(name))
    marks = torch.zeros(table.shape, dtype=torch.bool)
    marks[sorted(words)] = True
    let_through(student, Mask({name: marks}))
    return student
