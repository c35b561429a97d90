"""PEZ on the denoising loss, against the plain loop of P4D with that loss in it."""

import pytest
import torch

from cases import case, drive
from palimpsest.attacks import P4D, Pez, UnlearnDiff
from palimpsest.attacks.base import Need
from palimpsest.records import Cost
from test_p4d import FORMS, ITERATIONS, PROMPT, ROUNDS, SMALL, Loop, attacked, same
from tiny import tiny_model


class Denoising(Loop):
    """What the victim should predict is the noise; there is no base."""

    def wanted(self, here, context, noise, noisy, t):
        return noise


@pytest.fixture(scope="module")
def victim():
    return tiny_model(dtype=torch.float64, batch=1)


@pytest.fixture(scope="module", params=FORMS)
def form(request):
    return request.param


@pytest.fixture(scope="module")
def whole(victim, form):
    """A whole run of each form, in which a probe of the base would be an error."""
    return attacked(victim, None, form, Pez)


def test_equals_a_plain_loop_token_by_token(victim, form, whole):
    expected = Denoising(victim, None, form).run(case(victim, prompt=PROMPT))
    assert same(*whole, expected)
    assert whole[0].gave_up
    assert len({tuple(tokens) for tokens in expected.tokens}) > 3, "the words have changed on the way"


@pytest.mark.parametrize("form", ["unlearn_diff", "k"], indirect=True, scope="module")
@pytest.mark.parametrize(
    "mutation", ["not projected", "kept projected", "euclidean", "adam forgets", "the other decay"]
)
def test_another_method_does_not_pass(victim, form, whole, mutation):
    assert not same(*whole, Denoising(victim, None, form, mutation).run(case(victim, prompt=PROMPT)))


def test_p4d_does_not_pass(victim, form, whole):
    base = tiny_model(seed=1, dtype=torch.float64, batch=1)
    assert not same(*whole, Loop(victim, base, form).run(case(victim, prompt=PROMPT)))


def test_every_probe_is_a_gradient_of_the_victim(victim, whole):
    log, _ = whole
    assert len(log.probes) == ROUNDS * ITERATIONS
    assert {probe.of for probe in log.probes} == {"victim"}
    assert {victim.probe_cost(probe) for probe in log.probes} == {Cost(forwards=1, backwards=1, encodes=1)}


def test_has_the_optimiser_of_p4d_the_loss_of_unlearn_diff_and_needs_what_that_needs():
    assert Pez().spec | {"name": ""} == P4D().spec | {"name": ""}
    assert (Pez.loss, Pez.needs) == (UnlearnDiff.loss, UnlearnDiff.needs)
    assert Need.BASE not in Pez.needs


def test_the_settings_of_its_authors():
    theirs = Pez(form="n")
    assert theirs.plan._replace(order="") == (60, 50, 0.1, "adamw", "", False)
    assert theirs.plan.steps * theirs.plan.iterations == 3000
    assert theirs.weight_decay == 0.1


def test_a_prompt_without_room_is_given_up_after_the_plain_look(victim):
    log = drive(Pez(**SMALL).search(case(victim, prompt="church " * (victim.context - 4))))
    assert log.reason.startswith("expected room for") and len(log.looks) == 1
