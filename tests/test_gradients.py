"""Gradients added up, the largest of them found, some let through, and cut."""

import pytest
import torch

from palimpsest.erasers.gradients import accumulated, cutting, largest_of_all, let_through
from palimpsest.errors import BadSetting
from palimpsest.pruning import Mask
from tiny import tiny_model

KEYS = r"unet\.mid_block\..*attn2\.to_k\.weight"


@pytest.mark.parametrize("count", [1, 2, 37, 500, 999, 1000])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_finds_the_largest_of_all(count, scale):
    random = torch.Generator().manual_seed(count)
    scores = {"a": torch.rand(20, 30, generator=random) * scale, "b": torch.rand(400, generator=random) * scale}
    mask = largest_of_all(scores, count)
    least = torch.cat([score.flatten() for score in scores.values()]).topk(count).values[-1]
    assert torch.equal(mask.entries["a"], scores["a"] >= least)
    assert torch.equal(mask.entries["b"], (scores["b"] >= least)[:, None])
    assert mask.count == count


def test_nothing_that_is_zero_is_among_the_largest():
    assert largest_of_all({"a": torch.tensor([[0.0, 1.0], [0.0, 0.0]])}, 3).count == 1
    assert largest_of_all({"a": torch.ones(2, 2)}, 0).count == 0


@pytest.fixture
def student():
    return tiny_model(batch=1).copy(trainable=KEYS)


def losses(student, signs=(1, -1, 1)):
    (weight,) = student.trainable()
    for at, sign in enumerate(signs):
        yield sign * (weight * (at + 1)).sum()


def test_adds_up_gradients_or_their_sizes(student):
    (signed,) = accumulated(student, losses(student), "salun").values()
    (sizes,) = accumulated(student, losses(student), "salun", sizes=True).values()
    assert torch.equal(signed, torch.full_like(signed, 1 - 2 + 3))
    assert torch.equal(sizes, torch.full_like(sizes, 1 + 2 + 3))


def test_refuses_gradients_that_are_no_numbers(student):
    with pytest.raises(BadSetting, match="salun: expected finite gradients on the concept's pictures"):
        accumulated(student, losses(student, signs=(1, float("nan"))), "salun")


def test_only_what_is_marked_moves_and_no_further_than_the_cut(student):
    (weight,), (name,) = student.trainable(), student.weights(KEYS)
    before, marks = weight.detach().clone(), torch.zeros(weight.shape, dtype=torch.bool)
    marks[0, :3] = True
    let_through(student, Mask({name: marks}))
    optimiser = torch.optim.SGD([weight], lr=1.0)
    cutting(optimiser, 0.1)
    torch.autograd.backward(next(losses(student)), inputs=[weight])
    optimiser.step()
    assert torch.equal(weight != before, marks)
    torch.testing.assert_close((weight - before).norm(), torch.tensor(0.1))
