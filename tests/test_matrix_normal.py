"""Recovery of a matrix by its rows and by what its columns' units are told, beside the dense formula in numpy."""

import numpy as np
import pytest
import torch

from palimpsest.completion import complete
from palimpsest.matrix_normal import complete_normal


def planted(seed=0, m=24, n=96, width=12, noise=0.3):
    """A second linear that grew from its units' activations, its missing entries, and what leads into the units."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    value, gate = normal(n, width), normal(n, width)
    lessons = normal(4, width), normal(4, width)
    seen = (value @ lessons[0].T) * (gate @ lessons[1].T)
    matrix = normal(m, 4) @ seen.T / 24 + noise * normal(m, n)
    large = matrix.abs() * (0.5 + torch.rand(1, n, generator=random))
    missing = torch.zeros_like(matrix, dtype=torch.bool).scatter_(1, large.topk(n // 10, 1).indices, value=True)
    return matrix, missing, (value, gate)


def told(completion, matrix, missing):
    """Share of the missing signs that are found."""
    return float((completion.matrix.sign() == matrix.sign())[missing].float().mean())


def dense(matrix, missing, inputs, noise=1.0, *, join=np.multiply, scaled=True):
    """The same by one large system of the known entries."""
    known, there = np.where(missing, 0, matrix), ~missing.numpy()
    scale = np.sqrt((known**2).sum(1, keepdims=True) / there.sum(1, keepdims=True)) if scaled else 1.0

    def cosine(rows):
        straight = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return straight @ straight.T

    x, rows, units = known / scale, cosine(known / scale), np.eye(matrix.shape[1])
    if inputs:
        units = cosine(inputs[0].numpy())
        for one in inputs[1:]:
            units = join(units, cosine(one.numpy()))
    covariance, at = np.kron(rows, units), there.ravel()
    weights = np.linalg.solve(covariance[at][:, at] + noise * np.eye(at.sum()), x.ravel()[at])
    return (covariance[:, at] @ weights).reshape(x.shape) * scale


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("noise", [0.5, 1.0])
def test_is_the_mean_of_the_dense_formula(count, noise):
    matrix, missing, inputs = planted(m=8, n=30)
    found = complete_normal(matrix, missing, inputs[:count], noise=noise, tolerance=1e-10, rounds=1000).matrix
    theirs = dense(matrix, missing, inputs[:count], noise)
    np.testing.assert_allclose(found[missing].numpy(), theirs[missing.numpy()], rtol=1e-6, atol=1e-8)
    assert torch.equal(found[~missing], matrix[~missing])


@pytest.mark.parametrize(
    ("inputs", "mutation"),
    [
        (slice(0), {}),
        (slice(1), {}),
        (slice(2), {"join": np.add}),
        (slice(2), {"scaled": False}),
        (slice(2), {"noise": 0.2}),
    ],
)
def test_another_formula_does_not_pass(inputs, mutation):
    matrix, missing, both = planted(m=8, n=30)
    found = complete_normal(matrix, missing, both, tolerance=1e-10, rounds=1000).matrix
    theirs = dense(matrix, missing, both[inputs], **mutation)
    assert np.abs(found.numpy() - theirs)[missing.numpy()].max() > 1e-2


def test_units_told_the_same_give_signs_that_rows_alone_do_not():
    matrix, missing, inputs = planted()
    own, rows = (complete_normal(matrix, missing, one) for one in (inputs, ()))
    assert told(own, matrix, missing) > told(complete(matrix, missing), matrix, missing) + 0.02
    assert told(own, matrix, missing) > told(rows, matrix, missing) + 0.02
    assert 1 <= own.rounds < 100


def test_nothing_is_found_where_there_is_nothing():
    matrix, missing, inputs = planted(m=48, n=192)
    random = torch.Generator().manual_seed(5)
    shuffled = matrix.flatten()[torch.randperm(matrix.numel(), generator=random)].view_as(matrix)
    assert told(complete_normal(matrix, missing, inputs), matrix, missing) > 0.7
    assert told(complete_normal(shuffled, missing, inputs), shuffled, missing) == pytest.approx(0.5, abs=0.05)


def test_value_and_column_may_change_their_sign_together():
    """A GEGLU with both turned says the same, and so must what is recovered."""
    matrix, missing, (value, gate) = planted()
    turned = torch.where(torch.arange(matrix.shape[1]) % 3 == 0, -1.0, 1.0).double()
    found = complete_normal(matrix, missing, (value, gate)).matrix
    other = complete_normal(matrix * turned, missing, (value * turned[:, None], gate)).matrix
    torch.testing.assert_close(other, found * turned)


def test_what_stands_in_missing_places_is_not_looked_at():
    matrix, missing, inputs = planted()
    found = complete_normal(matrix, missing, inputs).matrix
    other = complete_normal(matrix.masked_fill(missing, torch.nan), missing, inputs).matrix
    assert torch.equal(found, other)


@pytest.mark.parametrize("gone", [(2, slice(None)), (slice(None), 2), (slice(None), slice(None))])
def test_a_whole_row_or_column_or_all_is_gone(gone):
    matrix, missing, inputs = planted()
    missing[gone] = True
    found = complete_normal(matrix, missing, inputs).matrix
    assert found.isfinite().all()


def test_refuses_what_does_not_fit():
    matrix, missing, (value, _) = planted()
    with pytest.raises(ValueError, match=r"inputs of n rows, got \(24, 96\), \(24, 96\), \(95, 12\)"):
        complete_normal(matrix, missing, (value[1:],))
    with pytest.raises(ValueError, match="expected a matrix"):
        complete_normal(matrix, missing[1:])
    matrix[~missing] = torch.inf
    with pytest.raises(ValueError, match="got inf or nan"):
        complete_normal(matrix, missing)
