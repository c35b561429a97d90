"""Detectors of pruned entries find what they are for, beside what a detector of nothing would find."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from cases import concept
from palimpsest import concealment, detection
from palimpsest.attacks import Revive, ReviveChanged
from palimpsest.attacks.base import GivesUp
from palimpsest.detection import DETECTORS, auroc, mixture, precision
from palimpsest.errors import BadSetting
from palimpsest.matrix_normal import alike, cosines
from palimpsest.pruning import Mask
from tiny import tiny_model

ROWS, WIDTH = 60, 80
LINEARS = r"unet\..*\.ff\.net\.2\.weight"
NORMS = torch.linspace(0.2, 2, WIDTH)
"""Activations of the columns."""


def pruned():
    """A matrix in half precision, and what ConceptPrune would take from it: large entries in columns that answer."""
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(ROWS, WIDTH, generator=random) * torch.linspace(0.02, 0.1, ROWS).unsqueeze(1)
    weight = weight.half().float()
    score = weight.abs() * NORMS
    return weight, score >= score.quantile(0.9, dim=1, keepdim=True)


def filled(name, *, gridded=True, **settings):
    weight, mask = pruned()
    put = getattr(concealment, name)(weight, mask, torch.Generator().manual_seed(1), **settings)
    return (put.half().float() if gridded else put), mask


def found(detector, name, **settings):
    weight, mask = filled(name, **settings)
    return auroc(DETECTORS[detector](weight, ()), mask)


def test_zeros_and_the_smallest_find_zeros_and_not_what_is_as_wide_as_the_rest():
    for detector in ("zeros", "smallest"):
        assert found(detector, "zero") == 1.0
        assert found(detector, "formula", times=1.0) == pytest.approx(0.5, abs=0.08)
    assert found("zeros", "gaussian", sigma=0.005) == pytest.approx(0.5, abs=0.02)
    assert found("smallest", "gaussian", sigma=0.005) > 0.85


def test_likelihood_knows_the_rows_spread():
    """A filling of one width is lost among the small rows, and sticks out of the large ones."""
    told, size = found("likelihood", "gaussian", sigma=0.02), found("smallest", "gaussian", sigma=0.02)
    assert told > size + 0.01
    weight, mask = filled("gaussian", sigma=0.005)
    fitted = mixture(weight)
    assert float(fitted.filling) == pytest.approx(0.005, rel=0.4)
    assert float(fitted.share) == pytest.approx(float(mask.float().mean()), abs=0.06)
    own = weight.masked_fill(mask, 0).square().sum(1) / (~mask).sum(1)
    assert (fitted.others.squeeze() / own.sqrt() - 1).abs().max() < 0.25


def test_the_log_odds_are_those_of_the_densities():
    weight = filled("gaussian", sigma=0.005)[0].double()
    fitted = mixture(weight, by_column=True)
    value, share = float(weight[3, 7]), float(fitted.share[0, 7])
    narrow, wide = (
        multivariate_normal(0, float(sigma) ** 2).pdf(value) for sigma in (fitted.filling, fitted.others[3])
    )
    odds = np.log(share * narrow / ((1 - share) * wide))
    assert float(fitted.log_odds(weight)[3, 7]) == pytest.approx(odds, rel=1e-6)


def test_columns_find_more_than_entries_one_by_one():
    for settings in ({"sigma": 0.01}, {"sigma": 0.02}):
        assert found("columns", "gaussian", **settings) > found("likelihood", "gaussian", **settings) + 0.02
    weight, _ = filled("gaussian", sigma=0.005)
    assert np.corrcoef(mixture(weight, by_column=True).share[0], NORMS)[0, 1] > 0.7


def test_a_column_that_lost_its_large_entries_is_short_of_them_unless_levelled():
    assert found("deficit", "formula", times=1.0) > 0.7
    assert found("deficit", "levelled") < 0.6
    weight, _ = filled("zero")
    scaled = weight.numpy() / np.sqrt((weight.numpy() ** 2).mean(1, keepdims=True))
    np.testing.assert_allclose(detection.deficit(weight)[5], -(scaled**2).mean(0), rtol=1e-5)


def test_sizes_that_stayed_are_found_by_what_pruning_takes():
    weight, mask = filled("flipped")
    given, absent = NORMS.expand(3, -1), torch.zeros(3, WIDTH)
    again = detection.pruned_again(weight, given, absent)
    assert precision(again, mask) > 0.9
    assert auroc(detection.prominent(weight), mask) > 0.8
    assert auroc(detection.prominent(filled("zero")[0]), mask) < 0.5
    # Columns that answer no more with the concept than without are not taken.
    assert auroc(detection.pruned_again(weight, given, given), mask) < auroc(again, mask) - 0.1


def test_activations_tell_where_small_entries_were_large():
    weight, mask = filled("gaussian", sigma=0.02)
    given, absent, share = NORMS.expand(3, -1), torch.zeros(3, WIDTH), float(mask.float().mean())
    told = auroc(detection.missing(weight, given, absent, share=share), mask)
    assert told > auroc(detection.likelihood(weight), mask) + 0.05
    blind = detection.missing(weight, given.flip(1), absent, share=share)
    assert told > auroc(blind, mask) + 0.2


@pytest.mark.parametrize(
    ("values", "bits"), [([1.0, 0.0], [23, 23]), ([1.5, 2**-20 * 1.25], [22, 21]), ([0.1, -1 / 3], [0, 0])]
)
def test_bits_at_the_end_of_a_mantissa(values, bits):
    ends = detection._trailing_zeros(torch.tensor(values))
    by_hand = [
        23 if not (m := np.float32(v).view(np.int32) & (2**23 - 1)) else int(m & -m).bit_length() - 1 for v in values
    ]
    assert ends.tolist() == by_hand
    assert by_hand == bits or values[0] == 0.1


def test_mantissas_give_a_filling_away_that_was_not_rounded():
    assert found("mantissa", "formula", times=1.0, gridded=False) > 0.95
    assert found("mantissa", "formula", times=1.0) == pytest.approx(0.5, abs=0.08)


def test_copies_stand_beside_what_they_were_copied_from():
    weight = torch.tensor([[1.0, 2.0, 1.0, 3.0], [1.0, 2.0, 4.0, 3.0]])
    assert detection.repeats(weight).tolist() == [[2, 1, 2, 1], [1, 1, 1, 1]]
    assert found("repeats", "survivors") > 0.85
    assert found("repeats", "formula", times=1.0) == pytest.approx(0.5, abs=0.08)


def test_disagreement_is_the_density_given_all_others():
    """On a small matrix, by the covariance of all its entries at once."""
    random = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(4, 5, generator=random), (torch.randn(5, 3, generator=random),)
    scaled = weight.double() / weight.double().square().mean(1, keepdim=True).sqrt()
    covariance = torch.kron(cosines(scaled), alike(inputs, like=scaled)).numpy() + np.eye(20)
    w = scaled.flatten().numpy()
    told = detection.disagreement(weight, inputs).flatten()
    for i in range(20):
        rest = [j for j in range(20) if j != i]
        solved = np.linalg.solve(covariance[np.ix_(rest, rest)], covariance[rest, i])
        mean, variance = solved @ w[rest], covariance[i, i] - solved @ covariance[rest, i]
        kind = multivariate_normal(mean, variance)
        assert float(told[i]) == pytest.approx(kind.logpdf(-w[i]) - kind.logpdf(w[i]), rel=1e-6)


def test_turned_signs_are_found_where_the_matrix_is_of_low_rank():
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(ROWS, 3, generator=random) @ torch.randn(3, WIDTH, generator=random)
    mask = torch.rand(weight.shape, generator=random) < 0.05
    assert auroc(detection.disagreement(weight), mask) == pytest.approx(0.5, abs=0.08)
    assert auroc(detection.disagreement(torch.where(mask, -weight, weight)), mask) > 0.9


def test_a_base_tells_all_but_what_is_as_it_was():
    weight, mask = filled("gaussian", sigma=0.02)
    assert auroc(detection.difference(weight, pruned()[0]), mask) == 1.0


def test_rank_statistics_by_hand():
    scores, mask = torch.tensor([[3.0, 2.0], [2.0, 1.0]]), torch.tensor([[True, True], [False, False]])
    assert auroc(scores, mask) == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    assert precision(scores, mask) == pytest.approx((1 + 0.5) / 2)
    assert precision(torch.zeros(2, 2), mask) == 0.5
    assert np.isnan([auroc(scores, mask & False), auroc(scores, mask | True), precision(scores, mask & False)]).all()
    random = torch.Generator().manual_seed(0)
    scores, mask = torch.randint(9, (30, 20), generator=random), torch.rand(30, 20, generator=random) < 0.2
    pairs = scores[mask].unsqueeze(1).double() - scores[~mask]
    assert auroc(scores, mask) == pytest.approx(float(((pairs > 0) + 0.5 * (pairs == 0)).mean()))


# Revival -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def concealed(model, **settings):
    """The model with a tenth of every second linear filled, and what was."""
    random = torch.Generator().manual_seed(3)
    weights = model.weights(LINEARS)
    mask = Mask({name: torch.rand(weight.shape, generator=random) < 0.1 for name, weight in weights.items()})
    put = {
        name: concealment.gaussian(weight.detach(), mask.entries[name], random, **settings)
        for name, weight in weights.items()
    }
    return model.with_weights(put), mask


def revive(victim, **settings):
    attack, random = Revive(**settings), torch.Generator().manual_seed(0)
    ((_, revived),) = attack.revise(victim, base=None, concepts=[concept()], random=random)
    return revived


def test_what_is_filled_is_revived_only_where_it_is_located(model):
    victim, mask = concealed(model, sigma=1e-6)
    with pytest.raises(GivesUp, match="no exact zeros beyond 0 natural ones"):
        revive(victim)
    known = revive(mask.applied(victim))
    located = revive(victim, locate="smallest", share=mask.share)
    for name, marks in mask.entries.items():
        # Not quite the same entries: each matrix is taken to have lost the same share.
        assert (located.weights()[name] == known.weights()[name]).float().mean() > 0.8
        sizes = located.weights()[name].detach().abs()[marks]
        assert (sizes > 1e-3).float().mean() > 0.45


@pytest.mark.parametrize("locate", [name for name in DETECTORS if name != "zeros"])
def test_every_detector_locates_its_share(model, locate):
    victim, _ = concealed(model, sigma=0.01)
    attack = Revive(locate=locate, share=0.05)
    for name in victim.weights(LINEARS):
        marks = attack.pruned(victim, None, name)
        assert int(marks.sum()) == int(0.05 * marks.numel())
    changed = revive(victim, locate=locate, share=0.05)
    assert changed.fingerprint != victim.fingerprint


def test_a_share_of_nothing_gives_up_and_bad_settings_are_refused(model):
    with pytest.raises(GivesUp, match=r"a share of 1e-06 takes 0 entries"):
        revive(model, locate="smallest", share=1e-6)
    with pytest.raises(BadSetting, match="revive: expected 0 < share < 1, got 1.0"):
        Revive(share=1.0)
    with pytest.raises(BadSetting, match="revive_changed: expected no locate, for the base tells the places"):
        ReviveChanged(locate="smallest")
