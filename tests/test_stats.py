"""The statistics against SciPy's ready-made tests and against sums written out."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, multinomial, permutation_test

from palimpsest import stats


@pytest.mark.parametrize("n", [1, 10, 20, 120, 5000])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_wilson_is_scipys(n: int, share: float, level: float) -> None:
    successes = round(share * n)
    expected = binomtest(successes, n).proportion_ci(confidence_level=level, method="wilson")
    assert stats.wilson(successes, n, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_of_textbook_counts() -> None:
    assert stats.wilson(0, 20) == pytest.approx((0.0, 0.16113), abs=1e-5)
    assert stats.wilson(3, 20) == pytest.approx((0.05237, 0.36042), abs=1e-5)
    assert stats.wilson(0, 20).low == 0.0
    assert stats.wilson(20, 20).high == 1.0
    assert stats.wilson(0, 0) == (0.0, 1.0)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_sum_of_both_tails(only_a: int, only_b: int) -> None:
    n = only_a + only_b
    tail = sum(Fraction(comb(n, k), 2**n) for k in range(min(only_a, only_b) + 1))
    assert stats.mcnemar_exact(only_a, only_b) == pytest.approx(float(min(Fraction(1), 2 * tail)), rel=1e-9)
    assert stats.mcnemar_exact(only_a, only_b) == stats.mcnemar_exact(only_b, only_a)


def test_mcnemar_is_scipys_binomial_test() -> None:
    assert stats.mcnemar_exact(0, 0) == 1.0
    assert stats.mcnemar_exact(12, 1) == pytest.approx(binomtest(12, 13, 0.5).pvalue)


def test_paired_difference_of_newcombes_examples() -> None:
    assert stats.paired_difference(36, 12, 2, 0) == pytest.approx((0.0569, 0.3404), abs=1e-4)
    assert stats.paired_difference(0, 0, 0, 54) == pytest.approx((-0.0664, 0.0664), abs=1e-4)
    assert stats.paired_difference(0, 0, 0, 0) == (-1.0, 1.0)
    with pytest.raises(ValueError, match="expected a count between 0 and"):
        stats.paired_difference(5, -1, 0, 3)


@pytest.mark.parametrize("shares", [(0.4, 0.2, 0.1, 0.3), (0.1, 0.05, 0.15, 0.7), (0.25, 0.25, 0.25, 0.25)])
def test_paired_difference_covers_the_truth_about_as_often_as_it_says(shares: tuple[float, ...]) -> None:
    """Every table of twenty pairs, weighed by its probability: no simulation."""
    n, truth = 20, shares[1] - shares[2]
    tables = [
        (both, only_a, only_b, n - both - only_a - only_b)
        for both in range(n + 1)
        for only_a in range(n + 1 - both)
        for only_b in range(n + 1 - both - only_a)
    ]
    intervals = [stats.paired_difference(*table) for table in tables]
    covered = [table for table, (low, high) in zip(tables, intervals, strict=True) if low <= truth <= high]
    assert 0.93 < multinomial.pmf(covered, n, shares).sum() < 0.99


@pytest.mark.parametrize(("successes", "n", "chance"), [(0, 20, 0.0), (1, 20, 0.0), (3, 20, 0.1), (20, 20, 0.39)])
def test_at_least_is_the_upper_tail(successes: int, n: int, chance: float) -> None:
    assert stats.at_least(successes, n, chance) == pytest.approx(binom.sf(successes - 1, n, chance))


@pytest.mark.parametrize("differences", [[1.0, 2.0], [3, -1, 2, 2, 0.5], [0.0, 0.0], [-1.0, -2.0, 0.5], [0.1] * 5])
def test_flipping_signs_is_scipys(differences: list[float]) -> None:
    expected = permutation_test(
        (differences,), sum, permutation_type="samples", alternative="greater", n_resamples=np.inf
    )
    assert stats.sign_flip(differences) == pytest.approx(float(expected.pvalue))


@pytest.mark.parametrize("count", [0, 17])
def test_as_many_signs_as_can_be_tried(count: int) -> None:
    with pytest.raises(ValueError, match=f"expected 1 to 16 differences, got {count}"):
        stats.sign_flip([1.0] * count)


def test_holm_by_hand() -> None:
    # Sorted: .01 x 4, .02 x 3, .03 x 2, .04 x 1; the last two may not fall below the one before.
    assert stats.holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert stats.holm([0.2]) == [0.2]
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]
    assert stats.holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values: list[float]) -> None:
    level = 0.05
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    rejected: set[int] = set()
    for rank, index in enumerate(order):
        if p_values[index] * (len(p_values) - rank) > level:
            break
        rejected.add(index)
    assert {i for i, p in enumerate(stats.holm(p_values)) if p <= level} == rejected


def test_success_curve_steps_where_goals_are_won() -> None:
    steps = stats.success_curve([3, None, 1, 3])
    assert [(step.cost, step.successes, step.rate) for step in steps] == [(0, 0, 0.0), (1, 1, 0.25), (3, 3, 0.75)]
    assert (steps[-1].low, steps[-1].high) == stats.wilson(3, 4)
    assert stats.success_curve([])[0].rate == 0.0


@pytest.mark.parametrize(("successes", "n"), [(-1, 3), (4, 3)])
def test_impossible_counts_are_refused(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"expected a count between 0 and {n}, got {successes}"):
        stats.wilson(successes, n)
