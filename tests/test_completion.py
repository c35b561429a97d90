"""Matrix completion against the released procedure, followed with full singular value decompositions in numpy."""

import numpy as np
import pytest
import torch

from palimpsest.completion import complete, shrunk


def matrix(rows: int = 24, columns: int = 60, rank: int = 3, noise: float = 0.3, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    low = random.normal(size=(rows, rank)) @ random.normal(size=(rank, columns)) / rank**0.5
    return low + noise * random.normal(size=(rows, columns))


def holes(shape: tuple[int, int], share: float = 0.1, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < share


def released(values, missing, *, mutation="", rounds=500, tolerance=1e-5):
    """As the released code does it; a mutation changes one thing."""
    known = np.where(missing, 0, values)
    counts = (~missing).sum(0)
    means = np.where(counts > 0, known.sum(0) / np.maximum(counts, 1), 0)
    fill = {"zeros": 0 * means, "row means": None}.get(mutation, means)
    if fill is None:
        fill = (known.sum(1) / (~missing).sum(1))[:, None]
    filled = np.where(missing, fill, values)
    past, first = [filled], None
    for count in range(1, rounds + 1):
        u, s, vt = np.linalg.svd(filled, full_matrices=False)
        first = s[-1] if first is None else first
        threshold = {"first threshold": first, "half": 0.5 * s[-1], "median": np.median(s)}.get(mutation, s[-1])
        filled = np.where(missing, (u * np.maximum(s - threshold, 0)) @ vt, values)
        past.append(filled)
        back = 2 if mutation == "one round back" else 3
        if len(past) >= back:
            before = past[-back]
            if np.linalg.norm(filled - before) / (np.linalg.norm(before) + 1e-12) < tolerance:
                return filled, count
    return filled, rounds


def gap(ours, theirs):
    return float(np.abs(ours.numpy() - theirs).max())


@pytest.mark.parametrize("shape", [(24, 60), (60, 24), (20, 20)])
def test_equals_the_released_procedure(shape):
    values, missing = matrix(*shape), holes(shape)
    expected, rounds = released(values, missing)
    found = complete(torch.tensor(values), torch.tensor(missing))
    assert gap(found.matrix, expected) < 1e-9
    assert found.rounds == rounds > 3


def pruned(values: np.ndarray, share: float = 0.03, seed: int = 2) -> np.ndarray:
    """As Wanda prunes: the top of each row by size times a norm of the column, so that many columns are whole."""
    score = np.abs(values) * np.exp(1.5 * np.random.default_rng(seed).normal(size=values.shape[1]))
    return score >= np.sort(score, axis=1)[:, [-max(1, int(share * values.shape[1]))]]


@pytest.mark.parametrize("shape", [(100, 260), (260, 100)])
def test_equals_the_released_procedure_where_columns_are_whole(shape):
    values = matrix(*sorted(shape), rank=8)
    missing = pruned(values)
    assert 0.1 < missing.any(0).mean() < 0.6
    if shape[0] > shape[1]:
        values, missing = values.T.copy(), missing.T.copy()
    expected, rounds = released(values, missing)
    found = complete(torch.tensor(values), torch.tensor(missing))
    assert gap(found.matrix, expected) < 1e-9
    assert found.rounds == rounds > 10


@pytest.mark.parametrize("shape", [(24, 60), (60, 24)])
def test_the_papers_form_equals_its_equations_where_columns_are_whole(shape):
    values = matrix(*sorted(shape))
    missing = pruned(values)
    if shape[0] > shape[1]:
        values, missing = values.T, missing.T
    filled = known = np.where(missing, 0, values)
    cut = 0.05 * np.linalg.svd(known, compute_uv=False)[0]
    for _ in range(7):
        u, s, vt = np.linalg.svd(filled, full_matrices=False)
        filled = np.where(missing, (u * np.maximum(s - cut, 0)) @ vt, known)
    found = complete(torch.tensor(values), torch.tensor(missing), form="paper", lam=0.05, rounds=7, tolerance=0)
    assert gap(found.matrix, filled) < 1e-9 and found.rounds == 7


@pytest.mark.parametrize("condition", [1e2, 1e5, 1e7, 1e9])
def test_the_gram_matrix_loses_no_digits_that_matter(condition):
    u, _, vt = np.linalg.svd(matrix(40, 100), full_matrices=False)
    values = 100 * (u * np.geomspace(1, 1 / condition, 40)) @ vt
    missing = pruned(values, share=0.02)
    expected, rounds = released(values, missing)
    found = complete(torch.tensor(values), torch.tensor(missing))
    assert found.rounds == rounds
    assert gap(found.matrix, expected) < 1e-6 * np.abs(values[missing]).mean()


def test_single_precision_is_close():
    values = matrix(60, 160)
    missing = torch.tensor(pruned(values))
    double, single = (complete(torch.tensor(values), missing, dtype=dtype) for dtype in (torch.float64, torch.float32))
    assert single.matrix.dtype == torch.float32
    assert 0 < (single.matrix.double() - double.matrix).abs()[missing].max() < 1e-4
    assert (single.matrix.sign() == double.matrix.sign())[missing].double().mean() > 0.99


class TestEdgesEqualTheReleasedProcedure:
    def same(self, values, missing):
        expected, rounds = released(values, missing)
        found = complete(torch.tensor(values), torch.tensor(missing))
        assert found.matrix.shape == values.shape and found.rounds == rounds
        assert gap(found.matrix, expected) < 1e-9
        return found

    @pytest.mark.parametrize("shape", [(24, 60), (60, 24)])
    @pytest.mark.parametrize("place", [(3, slice(None)), (slice(None), 3)])
    def test_a_row_or_a_column_is_missing(self, shape, place):
        missing = holes(shape)
        missing[place] = True
        self.same(matrix(*shape), missing)

    def test_all_is_missing(self):
        assert not self.same(matrix(), np.ones((24, 60), dtype=bool)).matrix.any()

    def test_one_entry_is_missing(self):
        missing = np.zeros((24, 60), dtype=bool)
        missing[5, 7] = True
        self.same(matrix(), missing)

    @pytest.mark.parametrize("shape", [(1, 60), (60, 1), (1, 1)])
    def test_one_row_or_one_column(self, shape):
        missing = holes(shape, share=0.3)
        missing[0, 0] = True
        self.same(matrix(*shape), missing)

    def test_more_rank_than_rows(self):
        self.same(matrix(12, 60, rank=40), holes((12, 60)))

    def test_a_singular_matrix_stays_as_it_was_filled(self):
        values, missing = matrix(), holes((24, 60))
        values[5], missing[5] = 0, False
        found = self.same(values, missing)
        means = np.where(missing, 0, values).sum(0) / (~missing).sum(0)
        assert gap(found.matrix, np.where(missing, means, values)) < 1e-9
        assert found.rounds == 2

    def test_no_round_at_all(self):
        values, missing = matrix(), holes((24, 60))
        found = complete(torch.tensor(values), torch.tensor(missing), rounds=0)
        assert gap(found.matrix, released(values, missing, rounds=0)[0]) < 1e-12 and found.rounds == 0


@pytest.mark.parametrize("mutation", ["zeros", "row means", "first threshold", "half", "median"])
def test_another_completion_does_not_pass(mutation):
    values, missing = matrix(), holes((24, 60))
    found = complete(torch.tensor(values), torch.tensor(missing), rounds=5, tolerance=0)
    assert gap(found.matrix, released(values, missing, rounds=5, tolerance=0)[0]) < 1e-9
    assert gap(found.matrix, released(values, missing, rounds=5, tolerance=0, mutation=mutation)[0]) > 1e-3


def test_the_move_is_taken_over_two_rounds():
    values, missing = matrix(), holes((24, 60))
    assert (
        complete(torch.tensor(values), torch.tensor(missing)).rounds
        > released(values, missing, mutation="one round back")[1]
    )


def test_the_papers_form_minimises_the_papers_objective():
    values, missing = matrix(), holes((24, 60))
    found = complete(torch.tensor(values), torch.tensor(missing), form="paper", lam=0.05, rounds=5000, tolerance=1e-12)
    known = np.where(missing, 0, values)
    lam = 0.05 * np.linalg.svd(known, compute_uv=False)[0]

    def objective(candidate):
        return 0.5 * (((candidate - values) * ~missing) ** 2).sum() + lam * np.linalg.norm(candidate, "nuc")

    u, s, vt = np.linalg.svd(found.matrix.numpy(), full_matrices=False)
    best = (u * np.maximum(s - lam, 0)) @ vt
    random = np.random.default_rng(5)
    for size in (1e-1, 1e-2, 1e-3):
        for _ in range(20):
            assert objective(best + size * random.normal(size=best.shape)) > objective(best)
    assert objective(released(values, missing)[0]) > objective(best)


@pytest.mark.parametrize("threshold", [None, 0.0, 1.5, 1e6])
@pytest.mark.parametrize("shape", [(12, 30), (30, 12)])
def test_shrinks_singular_values(shape, threshold):
    values = matrix(*shape)
    u, s, vt = np.linalg.svd(values, full_matrices=False)
    expected = (u * np.maximum(s - (s[-1] if threshold is None else threshold), 0)) @ vt
    assert gap(shrunk(torch.tensor(values), threshold), expected) < 1e-10


def test_a_matrix_of_low_rank_loses_nothing():
    values = torch.tensor(matrix(noise=0.0))
    torch.testing.assert_close(shrunk(values, None), values)


def test_finds_signs_where_there_is_structure_and_none_where_there_is_not():
    missing = holes((60, 160))
    random = np.random.default_rng(3)

    def right(values):
        found = complete(torch.tensor(values), torch.tensor(missing)).matrix.numpy()
        return (np.sign(found) == np.sign(values))[missing].mean()

    structured = matrix(60, 160, noise=0.5)
    assert right(structured) > 0.8
    assert 0.4 < right(random.permutation(structured.flatten()).reshape(structured.shape)) < 0.6


@pytest.mark.parametrize("form", ["released", "paper"])
class TestEdges:
    def test_keeps_what_is_known_and_ignores_what_stands_in_the_holes(self, form):
        values, missing = torch.tensor(matrix()), torch.tensor(holes((24, 60)))
        found = complete(values, missing, form=form).matrix
        assert torch.equal(found[~missing], values[~missing])
        assert torch.equal(found, complete(values.masked_fill(missing, float("nan")), missing, form=form).matrix)

    def test_no_holes(self, form):
        values = torch.tensor(matrix())
        found = complete(values, torch.zeros_like(values, dtype=torch.bool), form=form)
        assert torch.equal(found.matrix, values) and found.rounds == 0

    @pytest.mark.parametrize("place", [(3, slice(None)), (slice(None), 3), (slice(None), slice(None))])
    def test_a_row_a_column_or_all_is_missing(self, form, place):
        values, missing = torch.tensor(matrix()), torch.tensor(holes((24, 60)))
        missing[place] = True
        assert complete(values, missing, form=form).matrix.isfinite().all()

    def test_half_precision(self, form):
        values, missing = torch.tensor(matrix()).half(), torch.tensor(holes((24, 60)))
        assert complete(values, missing, form=form).matrix.dtype == torch.float64

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_refuses_what_is_not_finite(self, form, bad):
        values, missing = torch.tensor(matrix()), torch.zeros(24, 60, dtype=torch.bool)
        values[2, 3], missing[0, 0] = bad, True
        with pytest.raises(ValueError, match="expected finite entries outside the mask"):
            complete(values, missing, form=form)

    def test_refuses_a_mask_of_another_shape(self, form):
        with pytest.raises(ValueError, match=r"one shape, got \(24, 60\), \(60, 24\)"):
            complete(torch.tensor(matrix()), torch.zeros(60, 24, dtype=torch.bool), form=form)
