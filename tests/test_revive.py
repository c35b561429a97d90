"""Revival of pruned weights, step by step in numpy."""

import numpy as np
import pytest
import torch

from cases import concept
from palimpsest.attacks import Revive
from palimpsest.completion import complete
from palimpsest.errors import BadSetting
from tiny import tiny_model

LINEARS = r"unet\..*\.ff\.net\.2\.weight"


@pytest.fixture(scope="module")
def base():
    return tiny_model()


@pytest.fixture(scope="module")
def pruned(base):
    """The base without a tenth of every second linear."""
    random = torch.Generator().manual_seed(3)
    changed = {
        name: weight * (torch.rand(weight.shape, generator=random) > 0.1)
        for name, weight in base.weights(LINEARS).items()
    }
    return base.with_weights(changed)


def revive(model, **settings):
    random = torch.Generator().manual_seed(0)
    return list(Revive(**settings).revise(model, base=None, concepts=[concept()], random=random))


def by_hand(weight, *, keep=0.6, mutation=""):
    """One revived matrix; a mutation changes one thing."""
    w = weight.detach().double().numpy()
    zeros = w == 0
    recovered = complete(weight, torch.tensor(zeros)).matrix.numpy()
    sizes = np.abs(recovered[zeros])
    dropped = int((1 - keep) * zeros.sum())
    floor = np.sort(sizes)[dropped - 1] if dropped else -1
    if mutation == "smallest kept":
        retained = zeros & (np.abs(recovered) <= np.sort(sizes)[len(sizes) - dropped - 1])
    elif mutation == "all kept":
        retained = zeros
    else:
        retained = zeros & (np.abs(recovered) > floor)
    survivors = np.where(zeros, 0, np.abs(w))
    size = {
        "column maximum": survivors.max(0, keepdims=True),
        "matrix maximum": survivors.max(keepdims=True),
        "row mean": survivors.sum(1, keepdims=True) / (~zeros).sum(1, keepdims=True),
    }.get(mutation, (1 + 1e-6) * survivors.max(1, keepdims=True))
    signs = -np.sign(recovered) if mutation == "signs turned" else np.sign(recovered)
    return np.where(retained, signs * size, w)


def gap(model, theirs):
    return max(float(np.abs(model.weights()[name].detach().numpy() - w).max()) for name, w in theirs.items())


@pytest.mark.parametrize("keep", [0.6, 0.2, 1.0])
def test_equals_the_papers_steps(pruned, keep):
    ((number, revived),) = revive(pruned, keep=keep)
    assert number == 1
    assert gap(revived, {name: by_hand(w, keep=keep) for name, w in pruned.weights(LINEARS).items()}) < 1e-6


@pytest.mark.parametrize(
    "mutation", ["signs turned", "column maximum", "matrix maximum", "row mean", "smallest kept", "all kept"]
)
def test_another_method_does_not_pass(pruned, mutation):
    ((_, revived),) = revive(pruned)
    theirs = {name: by_hand(w, mutation=mutation) for name, w in pruned.weights(LINEARS).items()}
    assert gap(revived, theirs) > 5e-3


def test_changes_only_what_was_pruned(pruned):
    ((_, revived),) = revive(pruned)
    before, after = pruned.weights(), revived.weights()
    for name, weight in before.items():
        if name in pruned.weights(LINEARS):
            assert torch.equal(after[name][weight != 0], weight[weight != 0])
            zeros = weight == 0
            assert 0.55 < (after[name][zeros] != 0).float().mean() < 0.65
        else:
            assert after[name] is weight


def test_rivals_take_other_sizes(pruned):
    name = next(iter(pruned.weights(LINEARS)))
    weight = pruned.weights()[name].detach()
    zeros = weight == 0
    survivors = weight.abs().masked_fill(zeros, 0)

    def given(**settings):
        ((_, revived),) = revive(pruned, keep=1.0, **settings)
        return revived.weights()[name].detach()

    largest = given()
    for rule in ("mean", "sample", "recovered"):
        other = given(magnitude=rule)
        assert torch.equal(other.sign()[zeros], largest.sign()[zeros])
        assert (other.abs()[zeros] - largest.abs()[zeros]).abs().mean() > 1e-3
    mean = (survivors.sum(1, keepdim=True) / (~zeros).sum(1, keepdim=True)).expand_as(weight)
    torch.testing.assert_close(given(magnitude="mean").abs()[zeros], mean[zeros])
    recovered = complete(weight, zeros).matrix.float()
    torch.testing.assert_close(given(magnitude="recovered")[zeros], recovered[zeros])


def test_quantisation_rounds_to_four_bits_and_leaves_zeros(pruned):
    ((_, rounded),) = revive(pruned, recovery="quantisation")
    for name, weight in pruned.weights(LINEARS).items():
        w = weight.detach().double().numpy()
        scale = np.abs(w).max(1, keepdims=True) / 7
        expected = np.clip(np.floor(w / scale + 0.5), -8, 7) * scale
        np.testing.assert_allclose(rounded.weights()[name].detach().numpy(), expected, atol=1e-6)
        assert (rounded.weights()[name][weight == 0] == 0).all()


def test_gives_up_where_nothing_was_pruned(base):
    assert revive(base) == []
    name, weight = next(iter(base.weights(LINEARS).items()))
    almost = weight.detach().clone()
    almost[0, 0] = 0
    assert revive(base.with_weights({name: almost}), natural=1e-3) == []
    assert len(revive(base.with_weights({name: almost}), natural=0.0)) == 1


@pytest.mark.parametrize("place", [(2, slice(None)), (slice(None), 2)])
def test_a_whole_row_or_column_is_gone(pruned, place):
    name, weight = next(iter(pruned.weights(LINEARS).items()))
    gone = weight.detach().clone()
    gone[place] = 0
    ((_, revived),) = revive(pruned.with_weights({name: gone}))
    assert revived.weights()[name].isfinite().all()
    if place[0] == 2:  # no survivor tells how large the row was
        assert (revived.weights()[name][2] == 0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": 0.0}, "expected 0 < keep <= 1, got 0.0"),
        ({"keep": 1.1}, "expected 0 < keep <= 1, got 1.1"),
        ({"natural": 1.0}, "expected 0 <= natural < 1, got 1.0"),
    ],
)
def test_refuses_what_is_out_of_range(settings, message):
    with pytest.raises(BadSetting, match=message):
        Revive(**settings)
