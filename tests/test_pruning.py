"""A mask as a value: counted, kept, joined, compared, applied, and read off what was pruned."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from palimpsest.errors import BadCheckpoint, BadModel, BadSetting
from palimpsest.pruning import PATTERNS, Mask, chosen, largest, matrices
from tiny import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def random_mask(model, share, *, seed, pattern=PATTERNS["ff2"]):
    random = torch.Generator().manual_seed(seed)
    return Mask(
        {name: torch.rand(weight.shape, generator=random) < share for name, weight in matrices(model, pattern).items()}
    )


def same(one, other):
    return one.entries.keys() == other.entries.keys() and all(
        torch.equal(marks, other.entries[name]) for name, marks in one.entries.items()
    )


def test_counts_what_it_marks():
    mask = Mask({"a": torch.tensor([[True, False], [True, True]]), "b": torch.zeros(2, 4, dtype=torch.bool)})
    assert (mask.count, mask.share, mask.shares) == (3, 0.25, {"a": 0.75, "b": 0.0})
    assert (Mask({}).count, Mask({}).share) == (0, 0.0)


def test_goes_to_a_file_and_back(model, tmp_path):
    mask = random_mask(model, 0.1, seed=0)
    mask.save(tmp_path / "mask.safetensors")
    assert same(Mask.load(tmp_path / "mask.safetensors"), mask)


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"a": torch.ones(2, 2)}, {"palimpsest": "mask"}, r"bool \(out, in\) for a, got float32 \(2, 2\)"),
        ({"a": torch.ones(2, dtype=torch.bool)}, {"palimpsest": "mask"}, r"bool \(out, in\) for a, got bool \(2,\)"),
        ({"a": torch.ones(2, 2, dtype=torch.bool)}, None, "expected a saved mask, got other tensors"),
        ({"a": torch.ones(2, 2, dtype=torch.bool)}, {"palimpsest": "x"}, "expected a saved mask, got other tensors"),
    ],
)
def test_refuses_another_file(tensors, metadata, message, tmp_path):
    save_file(tensors, tmp_path / "x.safetensors", metadata)
    with pytest.raises(BadCheckpoint, match=f"x.safetensors: .*{message}"):
        Mask.load(tmp_path / "x.safetensors")


def test_refuses_what_is_no_file_or_a_part_of_one(model, tmp_path):
    with pytest.raises(BadCheckpoint, match="cannot be read as a mask"):
        Mask.load(tmp_path / "none.safetensors")
    path = tmp_path / "mask.safetensors"
    random_mask(model, 0.1, seed=0).save(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(BadCheckpoint, match="cannot be read as a mask"):
        Mask.load(path)


def test_either_is_the_union_of_matrices_and_entries(model):
    one, other = (random_mask(model, 0.1, seed=seed) for seed in (0, 1))
    names = list(one.entries)
    other = Mask({name: marks for name, marks in other.entries.items() if name != names[0]})
    both = one | other
    assert same(both, other | one)
    assert torch.equal(both.entries[names[0]], one.entries[names[0]])
    assert torch.equal(both.entries[names[1]], one.entries[names[1]] | other.entries[names[1]])


def test_overlap_is_that_of_sets():
    a = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]]).bool()
    b = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0]]).bool()
    found = Mask({"w": a}).overlap(Mask({"w": b}))
    # By chance 2 * 3 / 8 of 2 + 3 marks are shared, at most 2.
    assert found.shared == 1
    assert found.jaccard == 1 / 4
    assert found.chance == pytest.approx(0.75 / 4.25)
    assert found.beyond == pytest.approx(0.25 / 1.25)
    assert Mask({"w": a}).overlap(Mask({"v": a})) == (0, 0.0, 0.0, 0.0)
    assert Mask({}).overlap(Mask({})) == (0, 0.0, 0.0, 0.0)


def test_overlap_beyond_chance_is_none_for_chance_and_all_for_a_part(model):
    one, other = (random_mask(model, 0.2, seed=seed) for seed in (0, 1))
    by_chance = one.overlap(other)
    assert by_chance.jaccard == pytest.approx(by_chance.chance, abs=0.01)
    assert abs(by_chance.beyond) < 0.02
    assert by_chance.jaccard == pytest.approx(0.04 / 0.36, abs=0.01)
    part = Mask({name: marks & other.entries[name] for name, marks in one.entries.items()})
    assert one.overlap(part).beyond == 1
    assert one.overlap(one).jaccard == 1
    avoided = Mask({name: ~marks for name, marks in one.entries.items()})
    assert one.overlap(avoided).beyond < -0.2


@pytest.mark.parametrize("how", [Mask.__or__, Mask.overlap])
def test_masks_of_two_shapes_do_not_go_together(how):
    one, other = (Mask({"w": torch.ones(shape, dtype=torch.bool)}) for shape in ((2, 3), (3, 2)))
    with pytest.raises(BadCheckpoint, match=r"of one shape for w, got \(2, 3\) and \(3, 2\)"):
        how(one, other)


def test_applied_zeroes_its_entries_and_nothing_else(model):
    mask = random_mask(model, 0.1, seed=0)
    pruned = mask.applied(model).weights()
    for name, weight in model.weights().items():
        if name in mask.entries:
            assert torch.equal(pruned[name], weight * ~mask.entries[name])
        else:
            assert pruned[name] is weight


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("unet.none.weight", (2, 2), r"unet.none.weight \(no such weight\)"),
        ("unet.mid_block.attentions.0.transformer_blocks.0.ff.net.2.weight", (1, 1), r"\(of shape \(32, 128\)\)"),
    ],
)
def test_applied_refuses_another_models_mask(model, name, shape, message):
    with pytest.raises(BadCheckpoint, match=message):
        Mask({name: torch.ones(shape, dtype=torch.bool)}).applied(model)


def test_a_mask_is_read_off_the_zeros_whatever_the_layers_are_called(model):
    assert Mask.of_zeros(model).entries == {}
    for pattern in (PATTERNS["ff2"], PATTERNS["ff1"], PATTERNS["keys"], r"unet\..*\.proj_in\.weight|unet\.time.*"):
        mask = random_mask(model, 0.1, seed=2, pattern=pattern)
        assert same(Mask.of_zeros(mask.applied(model)), mask)


def test_a_few_natural_zeros_are_not_taken_for_pruning(model):
    name, weight = next(iter(model.weights(PATTERNS["ff2"]).items()))
    marks = torch.zeros(weight.shape, dtype=torch.bool)
    marks[0, 0] = True
    once = Mask({name: marks}).applied(model)
    assert Mask.of_zeros(once, natural=1.5 / weight.numel()).entries == {}
    assert same(Mask.of_zeros(once, natural=0.5 / weight.numel()), Mask({name: marks}))
    with pytest.raises(BadModel, match="expected a model with matrices called unet"):
        Mask.of_zeros(model, r"unet\..*\.none\.weight")


@pytest.mark.parametrize("pattern", [r"unet\..*\.none\.weight", r"unet\.conv_in\..*"])
def test_a_model_without_such_matrices_is_refused(model, pattern):
    with pytest.raises(BadModel, match="expected a model with matrices called"):
        matrices(model, pattern)


@pytest.mark.parametrize("per", ["row", "matrix"])
def test_largest_takes_the_share_of_each_row_or_matrix(per):
    scores = torch.randn(5, 30, generator=torch.Generator().manual_seed(0))
    marks = largest(scores, 0.125, per=per).numpy()
    rows = scores.numpy() if per == "row" else scores.numpy().reshape(1, -1)
    count = {"row": 3, "matrix": 18}[per]
    expected = rows >= np.sort(rows, axis=1)[:, -count][:, None]
    assert (marks == expected.reshape(marks.shape)).all()
    assert largest(scores, 0.001).sum() == 0
    assert largest(scores, 0.001, least=1).sum() == 5


def test_a_choice_of_nothing_is_refused():
    with pytest.raises(BadSetting, match="x: expected a share that takes an entry of at least one row, got none"):
        chosen({"w": torch.zeros(2, 8, dtype=torch.bool)}, "x")
