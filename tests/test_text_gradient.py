"""The text gradient on P4D's loss, against the plain loop of UnlearnDiffAtk with that loss in it."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch

from cases import case, drawn, drive
from palimpsest.attacks import P4D, TextGradient, UnlearnDiff
from palimpsest.attacks.base import Need
from palimpsest.records import Cost
from test_unlearn_diff import PROMPT, SETTINGS, K, Loop, texts
from tiny import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model(dtype=torch.float64, batch=1)


@pytest.fixture(scope="module")
def base():
    """Other weights throughout, text encoder included, so that neither can stand in for the other."""
    return tiny_model(seed=1, dtype=torch.float64, batch=1)


@dataclass
class Matching(Loop):
    """The wanted prediction is the base's under the goal's own prompt."""

    base: object = None

    def loss(self, here, slots, noise, t):
        alpha = self.model.alphas_cumprod[t].double()
        noisy = alpha.sqrt() * here.reference + (1 - alpha).sqrt() * noise
        wanted = self.model if self.mutation == "victim as base" else self.base
        with torch.no_grad():
            states = wanted.text_encoder(here.tokens(PROMPT)[None])[0]
            target = wanted.unet(noisy[None], t, encoder_hidden_states=states).sample[0]
        return self.distance(here, slots, noisy, t, target)


@pytest.fixture(scope="module")
def log(model, base):
    search = TextGradient(**SETTINGS).search(case(model, prompt=PROMPT))
    return drive(search, partial(model.ask, base=base), looks=99)


def victims(log):
    return [probe for probe in log.probes if probe.of == "victim"]


def same(model, log, expected):
    return (
        [probe.tokens[1 : 1 + K].tolist() for probe in victims(log)] == expected.drawn
        and [probe.step for probe in victims(log)] == expected.steps
        and [attempt.prompt for attempt in log.looks] == [PROMPT, *texts(model, expected.best)]
    )


def test_equals_a_plain_loop_token_by_token(model, base, log):
    assert same(model, log, Matching(model, base=base).run(case(model, prompt=PROMPT)))
    assert log.gave_up


@pytest.mark.parametrize(
    "mutation", ["wrong sign", "decoupled decay", "adam forgets", "softmax", "descending", "suffix", "victim as base"]
)
def test_another_method_does_not_pass(model, base, log, mutation):
    assert not same(model, log, Matching(model, mutation, base=base).run(case(model, prompt=PROMPT)))


def test_unlearn_diff_does_not_pass(model, log):
    assert not same(model, log, Loop(model).run(case(model, prompt=PROMPT)))
    other = drive(UnlearnDiff(**SETTINGS).search(case(model, prompt=PROMPT)), model.ask, looks=99)
    assert drawn(other, K) != [probe.tokens[1 : 1 + K].tolist() for probe in victims(log)]


def test_an_iteration_is_a_forward_of_the_base_and_a_gradient_of_the_victim_at_the_same_place(model, log):
    assert [probe.of for probe in log.probes] == ["base", "victim"] * (SETTINGS["steps"] * SETTINGS["iterations"])
    for original, attack in zip(log.probes[::2], log.probes[1::2], strict=True):
        assert torch.equal(original.tokens, model.tokens(PROMPT))
        assert original.latents is attack.latents and original.step == attack.step
        assert model.probe_cost(original) == Cost(forwards=1, encodes=1)
        assert model.probe_cost(attack) == Cost(forwards=1, backwards=1, encodes=1)


def test_has_the_optimiser_of_unlearn_diff_the_loss_of_p4d_and_needs_what_that_needs():
    assert TextGradient().spec | {"name": ""} == UnlearnDiff().spec | {"name": ""}
    assert (TextGradient.loss, TextGradient.needs) == (P4D.loss, P4D.needs)
    assert Need.BASE in TextGradient.needs and Need.BASE not in UnlearnDiff.needs
