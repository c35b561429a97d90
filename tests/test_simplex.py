import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from palimpsest.simplex import project_to_simplex


def by_bisection(row: Tensor) -> Tensor:
    """The projection of one row, by halving the interval in which its shift must lie."""
    low, high = float(row.min()) - 1, float(row.max())
    for _ in range(200):
        middle = (low + high) / 2
        if (row - middle).clamp(min=0).sum() > 1:
            low = middle
        else:
            high = middle
    return (row - high).clamp(min=0)


rows = arrays("float64", st.tuples(st.integers(1, 4), st.integers(1, 30)), elements=st.floats(-50, 50))


@given(rows)
@settings(max_examples=100, deadline=None)
def test_equals_bisection(values):
    points = torch.tensor(values)
    expected = torch.stack([by_bisection(row) for row in points])
    torch.testing.assert_close(project_to_simplex(points), expected, atol=1e-12, rtol=0)


@given(rows)
@settings(max_examples=50, deadline=None)
def test_lands_on_the_simplex_and_is_the_nearest_point(values):
    points = torch.tensor(values)
    found = project_to_simplex(points)
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum(dim=-1), torch.ones(len(points), dtype=torch.float64))
    # The variational inequality, which only the nearest point of a convex set fulfils: <x - p, vertex - p> <= 0.
    residual = points - found
    assert (residual - (residual * found).sum(dim=-1, keepdim=True)).max() <= 1e-9


def test_points_on_the_simplex_stay():
    points = torch.eye(5, dtype=torch.float64)
    assert torch.equal(project_to_simplex(points), points)
    flat = torch.full((2, 8), 1 / 8)
    assert torch.equal(project_to_simplex(flat), flat)


def test_ties_share_what_there_is():
    assert project_to_simplex(torch.tensor([3.0, 3.0, -1.0])).tolist() == [0.5, 0.5, 0.0]


def test_a_whole_vocabulary_in_single_precision():
    random = torch.Generator().manual_seed(0)
    start = torch.full((3, 49_408), 1 / 49_408)
    points = start + 0.01 * torch.randn(start.shape, generator=random).sign()
    found = project_to_simplex(points)
    expected = torch.stack([by_bisection(row) for row in points.double()])
    assert found.dtype == torch.float32
    # Entries are about 4e-5: the rounding of the points themselves is the limit.
    assert (found - expected).abs().max() < 1e-9
    assert (found.double().sum(dim=-1) - 1).abs().max() < 1e-6


def test_any_leading_shape():
    points = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
    flat = project_to_simplex(points.reshape(6, 7)).reshape(2, 3, 7)
    assert torch.equal(project_to_simplex(points), flat)
