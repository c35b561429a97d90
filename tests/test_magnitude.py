"""Pruning by size alone, sorted in numpy."""

import numpy as np
import pytest
import torch

from cases import concept
from palimpsest.erasers import Magnitude
from palimpsest.errors import BadModel, BadSetting
from palimpsest.pruning import PATTERNS, Mask
from tiny import tiny_model

SHARE = 0.1


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def by_hand(weight, *, largest=False, per="row"):
    """(out, in): the pruned matrix."""
    size = np.abs(weight.detach().numpy())
    rows = (-size if largest else size).reshape(size.shape if per == "row" else (1, -1))
    order = np.argsort(rows, axis=1)[:, : int(SHARE * rows.shape[1])]
    kept = np.ones_like(rows)
    np.put_along_axis(kept, order, 0, axis=1)
    return weight.detach().numpy() * kept.reshape(size.shape)


@pytest.mark.parametrize("layers", PATTERNS)
@pytest.mark.parametrize(("largest", "per"), [(False, "row"), (True, "row"), (False, "matrix"), (True, "matrix")])
def test_zeroes_the_share_of_every_matrix_and_nothing_else(model, layers, largest, per):
    eraser = Magnitude(share=SHARE, largest=largest, per=per, layers=layers)
    pruned = eraser.erase(model, [concept()], random=torch.Generator()).weights()
    matching = model.weights(PATTERNS[layers])
    for name, weight in model.weights().items():
        if name in matching:
            assert (pruned[name].numpy() == by_hand(weight, largest=largest, per=per)).all()
            assert not torch.equal(pruned[name], weight)
        else:
            assert pruned[name] is weight


@pytest.mark.parametrize("mutation", [{"largest": True}, {"per": "matrix"}])
def test_another_choice_does_not_pass(model, mutation):
    pruned = Magnitude(share=SHARE).erase(model, [concept()], random=torch.Generator())
    for name, weight in model.weights(PATTERNS["ff2"]).items():
        assert (pruned.weights()[name].numpy() != by_hand(weight, **mutation)).mean() > 0.01


def test_knows_nothing_of_the_concept(model):
    masks = [Magnitude().mask(model, concepts) for concepts in ([concept()], [concept("fish"), concept("alice")])]
    assert masks[0].overlap(masks[1]).jaccard == 1
    assert Mask.of_zeros(masks[0].applied(model)).count == masks[0].count


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_refuses_a_share_out_of_range(share):
    with pytest.raises(BadSetting, match=f"expected 0 < share <= 1, got {share}"):
        Magnitude(share=share)


def test_refuses_a_share_of_no_entry_and_a_model_without_such_layers(model, monkeypatch):
    with pytest.raises(BadSetting, match="magnitude: expected a share that takes an entry of at least one row"):
        Magnitude(share=0.001).mask(model, [concept()])
    monkeypatch.setitem(PATTERNS, "ff2", r"unet\..*\.no_ff\.weight")
    with pytest.raises(BadModel, match="expected a model with matrices called"):
        Magnitude().mask(model, [concept()])
