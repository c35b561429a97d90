import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from palimpsest.closed_form import Ridge, ridge_edit
from palimpsest.errors import BadSetting

OUT, IN = 4, 6


def problem(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A weight, keys, values and retained inputs."""
    random = torch.Generator().manual_seed(seed)
    shapes = ((OUT, IN), (3, IN), (3, OUT), (2, IN))
    weight, keys, values, retained = (torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes)
    return weight, keys, values, retained


def objective(candidate: Tensor, *, lam: float, e: float, p: float) -> Tensor:
    """What the edit minimises, written out as in the paper."""
    weight, keys, values, retained = problem()
    wanted = sum(((candidate @ key - value) ** 2).sum() for key, value in zip(keys, values, strict=True))
    kept = sum(((candidate @ r - weight @ r) ** 2).sum() for r in retained)
    return e * wanted + p * kept + lam * ((candidate - weight) ** 2).sum()


def edit(*, lam: float, e: float, p: float, dtype: torch.dtype = torch.float64) -> Tensor:
    weight, keys, values, retained = problem()
    penalty = lam * torch.eye(IN, dtype=torch.float64) + p * retained.T @ retained
    return ridge_edit(weight.to(dtype), keys, values, penalty, scale=e)


@pytest.mark.parametrize(("lam", "e", "p"), [(0.5, 1.0, 1.0), (0.1, 3.0, 0.2), (2.0, 0.05, 10.0)])
def test_nothing_does_better(lam, e, p):
    def cost(flat):
        candidate = torch.tensor(flat.reshape(OUT, IN), requires_grad=True)
        value = objective(candidate, lam=lam, e=e, p=p)
        value.backward()
        return value.item(), candidate.grad.numpy().ravel()

    found = scipy.optimize.minimize(
        cost, np.zeros(OUT * IN), jac=True, method="L-BFGS-B", options={"ftol": 0, "gtol": 1e-12}
    )
    torch.testing.assert_close(edit(lam=lam, e=e, p=p), torch.tensor(found.x).reshape(OUT, IN), atol=1e-7, rtol=0)


def test_no_keys_no_change():
    weight, keys, values, retained = problem()
    same = ridge_edit(weight.float(), keys[:0], values[:0], torch.eye(IN, dtype=torch.float64))
    assert torch.equal(same, weight.float())


def test_inputs_at_right_angles_to_all_keys_are_answered_as_before():
    weight, keys, values, _ = problem()
    keys[:, -1] = 0
    edited = ridge_edit(weight, keys, values, 0.5 * torch.eye(IN, dtype=torch.float64))
    assert torch.equal(edited[:, -1], weight[:, -1])
    assert not torch.equal(edited[:, 0], weight[:, 0])


def test_nearly_collinear_keys_need_double_precision():
    weight, keys, values, _ = problem()
    # Text states lie close together: these differ in the fourth digit.
    keys = keys[:1] + 1e-4 * keys
    small = 1e-6
    exact = ridge_edit(weight, keys, values, small * torch.eye(IN, dtype=torch.float64))
    found = ridge_edit(weight.float(), keys.float(), values.float(), small * torch.eye(IN))
    k, v, start = keys.float(), values.float(), weight.float()
    single = (v.T @ k + small * start) @ torch.linalg.inv(k.T @ k + small * torch.eye(IN))
    assert found.dtype == torch.float32
    assert (single - exact).abs().max() > 50 * (found - exact).abs().max()


def test_one_factor_serves_every_map():
    weight, keys, values, retained = problem()
    penalty = 0.1 * torch.eye(IN, dtype=torch.float64) + retained.T @ retained
    ridge = Ridge.of(keys, penalty, scale=0.7)
    others = torch.randn(3, 5, IN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    anchors = keys.flip(0)
    for other in (weight, *others):
        expected = ridge_edit(other, keys, anchors @ other.mT, penalty, scale=0.7)
        torch.testing.assert_close(ridge.edit(other, anchors @ other.mT), expected, atol=1e-12, rtol=0)
        torch.testing.assert_close(other + other @ ridge.turn(anchors), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(ridge.edit(weight, values), ridge_edit(weight, keys, values, penalty, scale=0.7))


@pytest.mark.parametrize("nearly", [0.0, 1e-9])
def test_what_has_no_single_solution_is_refused(nearly):
    """Three keys, two of them alike or all but alike, in six directions; rounding must not make that regular."""
    _, keys, _, _ = problem()
    keys[1] = keys[0] * (1 + nearly)
    with pytest.raises(BadSetting, match="expected text states in all 6 directions .* got states in 2"):
        Ridge.of(keys, torch.zeros(IN, IN, dtype=torch.float64))
    Ridge.of(keys, 1e-6 * torch.eye(IN, dtype=torch.float64))
