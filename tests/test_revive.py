"""Revival of pruned weights, step by step in numpy."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cases import concept
from palimpsest.attacks import Revive, ReviveChanged, ReviveChosen, ReviveOracle
from palimpsest.attacks.base import GivesUp
from palimpsest.attacks.revive import OneByOne
from palimpsest.attacks.sign_accuracy import Found, sign_accuracy
from palimpsest.completion import complete
from palimpsest.errors import BadSetting
from palimpsest.matrix_normal import complete_normal
from palimpsest.records import Verdict
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
    before, after, linears = pruned.weights(), revived.weights(), pruned.weights(LINEARS)
    for name, weight in before.items():
        if name in linears:
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


def test_says_why_it_gives_up_where_nothing_was_pruned(base):
    entries = sum(weight.numel() for weight in base.weights(LINEARS).values())
    told = rf"no exact zeros beyond 0 natural ones in {entries:,} weights of \d feed-forwards' second linears"
    with pytest.raises(GivesUp, match=f"nothing to revive: {told}"):
        revive(base)
    name, weight = next(iter(base.weights(LINEARS).items()))
    almost = weight.detach().clone()
    almost[0, 0] = 0
    with pytest.raises(GivesUp, match="beyond 1 natural ones"):
        revive(base.with_weights({name: almost}), natural=1e-3)
    assert len(revive(base.with_weights({name: almost}), natural=0.0)) == 1


def test_the_codes_draw_is_never_below_the_rows_maximum_and_now_and_then_above(pruned):
    """A row of few and like entries, of which many draws lie beyond the largest."""
    name, weight = next(iter(pruned.weights(LINEARS).items()))
    few = weight.detach().clone()
    few[0] = 0
    few[0, :3] = torch.tensor([0.5, 0.51, 0.49])
    victim = pruned.with_weights({name: few})
    sizes = {
        rule: revive(victim, magnitude=rule, keep=1.0)[0][1].weights()[name].detach().abs()[0, 3:]
        for rule in ("max", "draw", "sample")
    }
    torch.testing.assert_close(sizes["draw"], torch.maximum(sizes["sample"], sizes["max"]))
    assert 0 < (sizes["draw"] > sizes["max"]).sum() < len(sizes["draw"]) - 1


def test_random_signs_are_right_half_of_the_time(base, pruned):
    told = sign_accuracy(pruned, base, Revive(recovery="random"), random=torch.Generator().manual_seed(1))
    assert told.found.share == pytest.approx(0.5, abs=0.05)
    ((_, first),), ((_, other),) = revive(pruned, recovery="random"), revive(pruned)
    for name, weight in pruned.weights(LINEARS).items():
        sizes = [model.weights()[name].detach()[weight == 0].abs().max() for model in (first, other)]
        torch.testing.assert_close(*sizes)


def test_matrix_normal_is_told_by_value_and_gate(pruned):
    ((_, revived),) = revive(pruned, recovery="matrix_normal", magnitude="recovered", keep=1.0)
    for name, weight in pruned.weights(LINEARS).items():
        first = pruned.weights()[name.replace("net.2", "net.0.proj")].detach()
        hidden = weight.shape[1]
        assert first.shape[0] == 2 * hidden
        theirs = complete_normal(weight, weight == 0, (first[:hidden], first[hidden:])).matrix.float()
        torch.testing.assert_close(revived.weights()[name].detach(), theirs)
        assert not torch.equal(theirs, complete_normal(weight, weight == 0).matrix.float())


def test_no_two_matrices_are_worked_on_at_once(pruned):
    """The changed model takes each when it has put the one before."""
    alive, most = 0, 0

    class Counted(torch.Tensor):
        def __del__(self):
            nonlocal alive
            alive -= 1

    def make(name):
        nonlocal alive, most
        alive += 1
        most = max(most, alive)
        return pruned.weights()[name].detach().clone().as_subclass(Counted)

    names = list(pruned.weights(LINEARS))
    assert len(names) > 3
    pruned.with_weights(OneByOne(names, make))
    assert most <= 2  # the one being made, and the last one's name not yet taken by it


@pytest.mark.parametrize("place", [(2, slice(None)), (slice(None), 2)])
def test_a_whole_row_or_column_is_gone(pruned, place):
    name, weight = next(iter(pruned.weights(LINEARS).items()))
    gone = weight.detach().clone()
    gone[place] = 0
    ((_, revived),) = revive(pruned.with_weights({name: gone}))
    assert revived.weights()[name].isfinite().all()
    if place[0] == 2:  # no survivor tells how large the row was
        assert (revived.weights()[name][2] == 0).all()


def changed(base, shares):
    """The base with so many entries of each second linear moved, the later the further."""
    weights = {}
    for name, weight in base.weights(LINEARS).items():
        moved = weight.detach().clone().flatten()
        moved[:shares] += torch.arange(1, shares + 1) / 10
        weights[name] = moved.view_as(weight)
    return base.with_weights(weights)


def test_changed_weights_are_taken_as_pruned_by_their_difference(base):
    victim, share = changed(base, 50), 0.02
    attack = ReviveChanged(share=share, keep=1.0)
    ((_, revived),) = attack.revise(victim, base=base, concepts=[concept()], random=torch.Generator())
    for name, weight in victim.weights(LINEARS).items():
        taken = int(share * weight.numel())
        pruned = torch.zeros(weight.numel(), dtype=torch.bool)
        pruned[max(0, 50 - taken) : 50] = True
        zeroed = weight.detach().masked_fill(pruned.view_as(weight), 0)
        assert pruned.sum() == min(50, taken) > 5
        torch.testing.assert_close(revived.weights()[name].detach().double(), torch.tensor(by_hand(zeroed, keep=1.0)))
    assert revive_changed_gives_up(base, base) == "no more than 0 weights differ from the base"


def revive_changed_gives_up(victim, base):
    with pytest.raises(GivesUp) as raised:
        list(ReviveChanged().revise(victim, base=base, concepts=[concept()], random=torch.Generator()))
    return str(raised.value).removeprefix("nothing to revive: ").partition(" in ")[0]


def oracle(victim, base, **settings):
    random = torch.Generator().manual_seed(0)
    ((_, filled),) = ReviveOracle(**settings).revise(victim, base=base, concepts=[concept()], random=random)
    return filled


def test_the_oracle_that_knows_all_is_the_original(base, pruned):
    filled = oracle(pruned, base, magnitude="true")
    assert filled.fingerprint == base.fingerprint != pruned.fingerprint


@pytest.mark.parametrize("others", ["flipped", "zeroed"])
def test_oracles_fill_what_their_settings_say(base, pruned, others):
    signs = oracle(pruned, base, right=0.3, others=others)
    sizes = oracle(pruned, base, signs="random", magnitude="true")
    for name, weight in pruned.weights(LINEARS).items():
        zeros, true = (weight == 0).numpy(), base.weights()[name].detach().double().numpy()
        row = np.broadcast_to(np.where(zeros, 0, np.abs(true)).max(1, keepdims=True) * (1 + 1e-6), true.shape)
        dropped = int(0.7 * zeros.sum())
        right = np.abs(true) > np.sort(np.abs(true)[zeros])[dropped - 1]
        theirs = np.where(right, 1, -1 if others == "flipped" else 0) * np.sign(true) * row
        np.testing.assert_allclose(signs.weights()[name].detach()[zeros], theirs[zeros], rtol=1e-5)
        given = sizes.weights()[name].detach().numpy()
        np.testing.assert_allclose(np.abs(given), np.abs(true), rtol=1e-6)
        assert 0.3 < (np.sign(given) == np.sign(true))[zeros].mean() < 0.7


def test_sign_accuracy_counts_by_hand(base, pruned):
    told = sign_accuracy(pruned, base, Revive(), random=torch.Generator())
    found = kept = fifths = best = n = 0
    for layer in told.layers:
        weight, true = pruned.weights()[layer.name].detach(), base.weights()[layer.name].detach().double()
        zeros = weight == 0
        recovered, rounds = complete(weight, zeros)
        right = (recovered.sign() == true.sign())[zeros]
        order, truly = (one[zeros].abs().argsort(descending=True) for one in (recovered, true))
        few = len(order) - int(0.4 * len(order))
        assert (layer.pruned, layer.rounds, layer.entries) == (len(order), rounds, weight.numel())
        assert layer.found == Found(int(right.sum()), len(order))
        assert layer.kept == Found(int(right[order[:few]].sum()), few)
        assert sum(group.n for group in layer.by_true) == sum(group.n for group in layer.by_recovered) == len(order)
        fifths += int(right[order[-(len(order) // 5) :]].sum())
        best += int(right[truly[: -(-len(order) // 5)]].sum())
        found, kept, n = found + layer.found.right, kept + layer.kept.right, n + len(order)
    assert (told.found, told.kept.right) == (Found(found, n), kept)
    assert told.by_recovered[-1].right == fifths
    assert told.by_true[0].right == best
    assert told.pruned == n / sum(weight.numel() for weight in base.weights(LINEARS).values())


def test_without_the_original_shares_and_rounds_alone_are_told(pruned):
    told = sign_accuracy(pruned, None, Revive(), random=torch.Generator())
    assert 0.05 < told.pruned < 0.15
    assert all(layer.rounds > 1 and layer.found is None and layer.kept is None for layer in told.layers)
    assert (told.found.n, told.by_true) == (0, ())


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


@pytest.mark.parametrize(
    ("part", "settings", "message"),
    [
        (ReviveChanged, {"share": 1.0}, "revive_changed: expected 0 < share < 1, got 1.0"),
        (ReviveChanged, {"keep": 0.0}, "revive_changed: expected 0 < keep <= 1, got 0.0"),
        (ReviveOracle, {"right": 0.0}, "revive_oracle: expected 0 < right <= 1, got 0.0"),
    ],
)
def test_its_kin_refuse_what_is_out_of_range(part, settings, message):
    with pytest.raises(BadSetting, match=message):
        part(**settings)


def verdict(score, shown):
    return Verdict(scores={"chief": score, "second": 1 - score}, shown=shown)


def chosen(attack, victim, told):
    """The tryouts, and what the attack takes in the end if it is told these verdicts."""
    asked = replace(concept(), prompts=("first", "second", "third"))
    revisions = attack.revise(victim, base=None, concepts=[asked], random=torch.Generator().manual_seed(1))
    tryouts, step = [], next(revisions)
    for verdicts in told:
        tryouts.append(step)
        step = revisions.send(verdicts)
    assert list(revisions) == []
    return tryouts, step


YES, MAYBE, NO = verdict(0.9, True), verdict(0.4, False), verdict(0.1, False)


@pytest.mark.parametrize(
    ("told", "best"),
    [
        ([[NO, NO], [YES, NO], [MAYBE, MAYBE]], 2),  # the most shown, whatever the scores
        ([[NO, NO], [NO, MAYBE], [MAYBE, MAYBE]], 3),  # of equals the higher score
        ([[NO, YES], [YES, NO], [NO, NO]], 1),  # of equals the first
    ],
)
def test_the_candidate_that_shows_the_most_is_chosen(pruned, told, best):
    attack = ReviveChosen(recoveries=("completion",), keeps=(0.2, 0.6, 1.0), looks=2)
    tryouts, (number, model) = chosen(attack, pruned, told)
    assert number == best
    ((_, expected),) = revive(pruned, keep=attack.keeps[best - 1])
    assert model.fingerprint == expected.fingerprint
    # Everyone draws the same pictures, by the concept's last prompts.
    assert len({tuple(tryout.attempts) for tryout in tryouts}) == 1
    assert [attempt.prompt for attempt in tryouts[0].attempts] == ["third", "second"]
    assert len({tryout.model.fingerprint for tryout in tryouts}) == 3


def test_one_candidate_is_no_choice():
    with pytest.raises(BadSetting, match="expected at least two candidates, got 1"):
        ReviveChosen(recoveries=("completion",), keeps=(0.6,))
    with pytest.raises(BadSetting, match="0 < keep <= 1"):
        ReviveChosen(keeps=(0.6, 1.5))


def test_nothing_pruned_is_nothing_to_choose(base):
    with pytest.raises(GivesUp, match="nothing to revive"):
        next(ReviveChosen().revise(base, base=None, concepts=[concept()], random=torch.Generator()))
