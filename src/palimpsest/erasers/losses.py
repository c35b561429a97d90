"""The losses that trained erasers are made of; eps is the student's answer, MSE the mean over all entries."""

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.examples import Noised
from palimpsest.model import Model, Text


def denoising(student: Model, at: Noised, text: Text) -> Tensor:
    """MSE(eps(x_t, text), noise)."""
    return functional.mse_loss(student.predict_noise(at.latents, at.steps, text), at.noise)


def guided_denoising(student: Model, at: Noised, text: Text, scale: float) -> Tensor:
    """MSE((1 + scale) eps(x_t, text) - scale eps(x_t, ""), noise), with the gradient through both."""
    both = Text.join([text, student.remembered([""]).repeat(len(text))])
    answers = student.predict_noise(at.latents.repeat(2, 1, 1, 1), at.steps.repeat(2), both)
    with_concept, without = answers.chunk(2)
    return functional.mse_loss((1 + scale) * with_concept - scale * without, at.noise)


def replacing(student: Model, at: Noised, text: Text) -> Tensor:
    """MSE(eps(x_t, text), sg eps(x_t, absent)): what the student says by now of the prompts without the concept."""
    with torch.no_grad():
        target = student.predict_noise(at.latents, at.steps, student.remembered(at.absent))
    return functional.mse_loss(student.predict_noise(at.latents, at.steps, text), target)
