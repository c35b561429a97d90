"""UnlearnDiffAtk against a plain loop that shares no code with it."""

import math
from dataclasses import dataclass

import pytest
import torch

from cases import INSERTIONS, Log, case, drawn, drive, mixed
from palimpsest.attacks import UnlearnDiff
from palimpsest.errors import BadSetting
from palimpsest.model import Slope
from palimpsest.records import Cost, Goal
from tiny import tiny_model

PROMPT = "a photo of a church"
K = 3
SETTINGS = {"steps": 4, "iterations": 3}
ONE = SETTINGS | {"iterations": 1}


@pytest.fixture(scope="module")
def model():
    return tiny_model(dtype=torch.float64, batch=1)


@dataclass
class Found:
    drawn: list[list[int]]
    steps: list[int]
    best: list[list[int]]


@dataclass
class Loop:
    """The paper's loop for one prompt, in plain Python and autograd; a mutation changes one thing in it."""

    model: object
    mutation: str = ""
    reseed: bool = True
    insertion: str = "prefix"

    def run(self, here) -> Found:
        vocabulary = self.model.vocabulary.detach()
        size = len(vocabulary)
        u = torch.full((K, size), 1 / size, dtype=torch.float64)
        first, second, count = torch.zeros_like(u), torch.zeros_like(u), 0
        found = Found([], [], [])
        stream = here.random.get_state()
        timesteps = [125, 375, 625, 875]
        for t in reversed(timesteps) if self.mutation == "descending" else timesteps:
            if self.reseed:
                here.random.set_state(stream)
            for _ in range(SETTINGS["iterations"]):
                chosen = [self.pick(row, torch.rand((), generator=here.random, dtype=torch.float64)) for row in u]
                one_hot = torch.zeros_like(u)
                for slot, token in enumerate(chosen):
                    one_hot[slot, token] = 1
                one_hot.requires_grad_()
                noise = torch.randn(here.reference.shape, generator=here.random).double()
                loss = self.loss(here, one_hot @ vocabulary, noise, t)
                gradient = torch.autograd.grad(loss, one_hot)[0]
                if self.mutation == "wrong sign":
                    gradient = -gradient
                if self.mutation != "no clip":
                    gradient = gradient.clamp(-1, 1)
                decay = 0.1 * u
                if self.mutation != "decoupled decay":
                    gradient = gradient + decay
                count += 1
                first = 0.9 * first + 0.1 * gradient
                second = 0.999 * second + 0.001 * gradient**2
                if self.mutation == "adam forgets" and count % SETTINGS["iterations"] == 1:
                    first, second, count = 0.1 * gradient, 0.001 * gradient**2, 1
                step = (first / (1 - 0.9**count)) / ((second / (1 - 0.999**count)).sqrt() + 1e-8)
                if self.mutation == "decoupled decay":
                    u = u - 0.01 * decay
                u = u - 0.01 * step
                u = u.softmax(dim=-1) if self.mutation == "softmax" else torch.stack([self.project(row) for row in u])
                found.drawn.append(chosen)
                found.steps.append(t)
            found.best.append([int(row.argmax()) for row in u])
        return found

    def loss(self, here, slots, noise, t):
        alpha = self.model.alphas_cumprod[t].double()
        return self.distance(here, slots, alpha.sqrt() * here.reference + (1 - alpha).sqrt() * noise, t, noise)

    def distance(self, here, slots, noisy, t, target):
        """The network is called as its own libraries have it, with the drawn embeddings put in by a hook."""
        tokens = here.tokens(here.goal.prompt)
        words = self.model.vocabulary.detach()[tokens]
        insertion = "suffix" if self.mutation == "suffix" else self.insertion
        words = torch.stack([words[0], *mixed(insertion, slots, words[1:6]), *words[6 : len(words) - K]])
        table = self.model.text_encoder.get_input_embeddings()
        hook = table.register_forward_hook(lambda *_: words[None])
        try:
            states = self.model.text_encoder(tokens[None])[0]
        finally:
            hook.remove()
        answer = self.model.unet(noisy[None], t, encoder_hidden_states=states).sample[0]
        return ((answer - target) ** 2).mean()

    @staticmethod
    def pick(row, uniform):
        """The first token at which the sum of probabilities exceeds a uniform number."""
        uniform, so_far = float(uniform) * math.fsum(row.tolist()), 0.0
        for token, probability in enumerate(row.tolist()):
            so_far += probability
            if so_far > uniform:
                return token
        raise AssertionError("probabilities sum to one")

    @staticmethod
    def project(row):
        low, high = float(row.min()) - 1, float(row.max())
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if (row - middle).clamp(min=0).sum() > 1 else (low, middle)
        return (row - high).clamp(min=0)


class Steep(Loop):
    """A made-up loss whose gradient is large and changes its size from draw to draw, so that the clip matters."""

    def loss(self, here, slots, noise, t):
        return steepness(noise) * (slots * direction(slots)).sum()


def steepness(noise):
    return 1e3 * (4 * noise[0, 0, 0]).exp()


def direction(slots):
    return torch.linspace(-1, 1, slots.numel(), dtype=torch.float64).sin().reshape(slots.shape)


def attacked(model, **settings) -> Log:
    return drive(UnlearnDiff(**(SETTINGS | settings)).search(case(model, prompt=PROMPT)), model.ask, looks=99)


@pytest.fixture(scope="module")
def log(model):
    """A whole run with the settings of this file."""
    return attacked(model)


def texts(model, found, insertion="prefix"):
    own = [token for token in model.tokens(PROMPT).tolist() if token not in model.special_tokens]
    whole = (mixed(insertion, free, own) for free in found)
    return [model.text([token for token in tokens if token not in model.special_tokens]) for tokens in whole]


@pytest.mark.parametrize("reseed", [True, False])
def test_equals_a_plain_loop_token_by_token(model, log, reseed):
    log = log if reseed else attacked(model, reseed=False)
    expected = Loop(model, reseed=reseed).run(case(model, prompt=PROMPT))
    assert drawn(log, K) == expected.drawn
    assert [probe.step for probe in log.probes] == expected.steps
    assert [attempt.prompt for attempt in log.looks] == [PROMPT, *texts(model, expected.best)]
    assert log.gave_up


@pytest.mark.parametrize("insertion", [name for name in INSERTIONS if name != "prefix"])
def test_tokens_are_sought_where_they_are_inserted(model, log, insertion):
    in_front = drawn(log, K)
    log = attacked(model, insertion=insertion)
    expected = Loop(model, insertion=insertion).run(case(model, prompt=PROMPT))
    places = [place for place, mark in enumerate(INSERTIONS[insertion], 1) if mark == "?"]
    assert [probe.tokens[places].tolist() for probe in log.probes] == expected.drawn
    assert [attempt.prompt for attempt in log.looks] == [PROMPT, *texts(model, expected.best, insertion)]
    assert expected.drawn != in_front


MUTATIONS = ["wrong sign", "decoupled decay", "adam forgets", "softmax", "descending", "suffix"]


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_another_method_does_not_pass(model, log, mutation):
    mutated = Loop(model, mutation).run(case(model, prompt=PROMPT))
    same = drawn(log, K) == mutated.drawn and [probe.step for probe in log.probes] == mutated.steps
    assert not (same and texts(model, mutated.best) == [attempt.prompt for attempt in log.looks[1:]])


def test_the_gradient_to_the_vocabulary_is_clipped(model):
    here = case(model, prompt=PROMPT, noised=lambda clean, noise, step: noise)

    def answer(probes):
        (probe,) = probes
        gradient = torch.zeros(model.context, model.vocabulary.shape[1], dtype=torch.float64)
        slots = gradient[1 : 1 + K]
        slots += steepness(probe.latents) * direction(slots)
        return [Slope(answer=probe.latents, loss=0.0, gradient=gradient, cost=Cost())]

    log = drive(UnlearnDiff(**SETTINGS).search(here), answer, looks=99)
    assert drawn(log, K) == Steep(model).run(case(model, prompt=PROMPT)).drawn
    assert drawn(log, K) != Steep(model, "no clip").run(case(model, prompt=PROMPT)).drawn


def test_the_papers_timesteps_and_budget(model):
    assert (UnlearnDiff().steps, UnlearnDiff().iterations) == (50, 40)
    probes = []

    def answer(asked):
        probes.extend(asked)
        return [Slope(answer=p.latents, loss=0.0, gradient=torch.zeros_like(p.words), cost=Cost()) for p in asked]

    log = drive(UnlearnDiff(iterations=2).search(case(model, prompt=PROMPT)), answer, looks=99)
    steps = [probe.step for probe in probes]
    assert steps == [step for step in range(10, 1000, 20) for _ in range(2)]
    assert len(log.looks) == 51


def test_a_probe_is_the_prompt_moved_behind_the_prefix_and_the_reference_noised(model):
    here = case(model, prompt=PROMPT)
    log = drive(UnlearnDiff(**SETTINGS).search(here), model.ask, looks=2)
    prompt = model.tokens(PROMPT)
    for probe in log.probes:
        assert len(probe.tokens) == model.context
        assert probe.tokens[0] == model.start_token
        assert torch.equal(probe.tokens[1 + K :], prompt[1 : model.context - K])
        assert torch.equal(probe.words, model.vocabulary.detach()[probe.tokens])
        alpha = model.alphas_cumprod[probe.step].double()
        noise = (probe.latents - alpha.sqrt() * here.reference) / (1 - alpha).sqrt()
        # The loss of an answer that is the noise itself is nothing; anything else costs its mean square.
        assert probe.loss(noise, probe.latents) < 1e-12
        torch.testing.assert_close(probe.loss(noise + 2, probe.latents), torch.tensor(4.0, dtype=torch.float64))


def test_reseeding_repeats_noise_and_fresh_draws_do_not(model, log):
    def noises(log):
        return [
            (p.latents - model.alphas_cumprod[p.step].double().sqrt() * case(model).reference)
            / (1 - model.alphas_cumprod[p.step].double()).sqrt()
            for p in log.probes
        ]

    for whole, repeats in ((log, True), (attacked(model, reseed=False), False)):
        found = noises(whole)
        assert torch.allclose(found[0], found[3], atol=1e-9) is repeats
        assert not torch.allclose(found[0], found[1], atol=1e-3)


@pytest.mark.parametrize(("guarded", "own", "expected"), [(False, 2.0, None), (True, None, 4.0), (True, 2.0, 2.0)])
def test_goes_through_a_guard_with_the_guidance_of_the_picture(model, guarded, own, expected):
    goal = Goal(concept="church", prompt=PROMPT, seed=7, guidance=own)
    log = drive(UnlearnDiff(**ONE).search(case(model, guarded=guarded, goal=goal)), model.ask, looks=2)
    assert {probe.guidance for probe in log.probes} == {expected}


@pytest.mark.parametrize(
    ("order", "expected"), [("descending", [875, 625, 375, 125]), ("ascending", [125, 375, 625, 875])]
)
def test_order_of_timesteps(model, order, expected):
    assert list(dict.fromkeys(probe.step for probe in attacked(model, order=order, iterations=1).probes)) == expected


def test_random_order_visits_all(model):
    steps = [probe.step for probe in attacked(model, order="random", iterations=1).probes]
    assert sorted(steps) == [125, 375, 625, 875]


def test_a_random_start_is_a_random_point_of_the_simplex_and_the_search_begins_there(model):
    attack = UnlearnDiff(**SETTINGS, random_start=True)
    start = attack._start(case(model, prompt=PROMPT), K)
    assert torch.allclose(start.sum(1), torch.ones(K)) and bool((start >= 0).all())
    assert int((start > 0).sum()) < start.numel() / 2, "uniform, or near it"
    first = drive(attack.search(case(model, prompt=PROMPT)), model.ask).probes[0].tokens[1 : K + 1]
    assert bool((start[range(K), first] > 0).all())


@pytest.mark.parametrize(("kind", "k"), [("object", 3), ("style", 3), ("identity", 3), ("content", 5)])
def test_length_by_kind_as_in_the_paper(model, kind, k):
    log = drive(UnlearnDiff(**ONE).search(case(model, prompt=PROMPT, kind=kind)), model.ask, looks=2)
    assert torch.equal(log.probes[0].tokens[1 + k :], model.tokens(PROMPT)[1 : model.context - k])


def test_a_prompt_without_room_is_given_up_after_the_plain_look(model):
    prompt = "church " * (model.context - 4)
    log = drive(UnlearnDiff(**SETTINGS).search(case(model, prompt=prompt)), model.ask)
    assert log.reason.startswith("expected room for")
    assert [attempt.prompt for attempt in log.looks] == [prompt]
    assert not log.probes


@pytest.mark.parametrize("setting", ["k", "steps", "iterations"])
def test_refuses_none_of_something(setting):
    with pytest.raises(BadSetting, match=f"expected {setting} >= 1, got 0"):
        UnlearnDiff(**{setting: 0})
