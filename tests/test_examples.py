"""What trained erasers learn from, and their losses."""

import copy

import pytest
import torch

from cases import concept
from palimpsest import fitting
from palimpsest.erasers.losses import denoising, guided_denoising, replacing
from palimpsest.errors import BadSetting
from palimpsest.examples import Examples, Pair, draw, in_turn, pairs_of, retained
from palimpsest.fitting import training_in
from palimpsest.model import Model, Sampling
from tiny import tiny_model

CHURCH = concept("church", pairs=(("a church", "a fish"), ("a church at night", "a tree at night")))
FISH = concept("fish", anchor="a dog")


def test_pairs_are_the_concepts_own_without_those_that_call_another_to_be_erased():
    assert pairs_of([CHURCH], "ac") == [[Pair("a church", "a fish"), Pair("a church at night", "a tree at night")]]
    assert pairs_of([CHURCH, FISH], "ac") == [[Pair("a church at night", "a tree at night")], [Pair("fish", "a dog")]]
    assert pairs_of([CHURCH], "ac", anchor="a cat") == [[Pair("a church", "a cat"), Pair("a church at night", "a cat")]]


def test_what_stands_in_for_the_concepts_is_retained_unless_told_otherwise():
    pairs = pairs_of([CHURCH, FISH], "salun")
    assert retained(pairs, (), [CHURCH, FISH], "salun") == [Pair("a tree at night", ""), Pair("a dog", "")]
    assert retained(pairs, ("the sea",), [CHURCH], "salun") == [Pair("the sea", "")]


def test_refuses_prompts_to_retain_that_call_the_concept_and_none_at_all():
    with pytest.raises(BadSetting, match="retain without concept 'church', got 'a red Church'"):
        retained(pairs_of([CHURCH], "salun"), ("a red Church",), [CHURCH], "salun")
    with pytest.raises(BadSetting, match="expected prompts to retain, got none"):
        retained([[Pair("a church", "")]], (), [CHURCH], "salun")


def test_groups_take_turns_and_begin_again():
    assert in_turn([["a", "b", "c"], ["x"]], 6) == ["a", "x", "b", "x", "c", "x"]


def test_draws_what_a_trajectory_to_its_end_gives():
    model, sampling = tiny_model(batch=2), Sampling(steps=3, guidance=4.0)
    pairs = [Pair("a church", "a fish"), Pair("a church", "a tree"), Pair("a church", "a dog")]
    found = draw(model, pairs, of="absent", sampling=sampling, random=torch.Generator().manual_seed(0), name="pictures")
    random = torch.Generator().manual_seed(0)
    for prompts, clean in ((["a fish", "a tree"], found.clean[:2]), (["a dog"], found.clean[2:])):
        noise = torch.randn(len(prompts), *model.latent_shape, generator=random)
        assert torch.equal(clean, model.trajectory(noise, model.remembered(prompts), sampling))
    assert found.pairs == pairs


def test_goes_on_with_the_batch_at_which_it_was_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "KEPT_AFTER", 0.0)
    pairs = [Pair("a church", "a fish")] * 6
    walked = []

    class Walks(Model):
        def trajectory(self, *given, **named):
            if len(walked) == 2:
                walked.append("stopped")
                raise KeyboardInterrupt
            walked.append("a batch")
            return super().trajectory(*given, **named)

    model = tiny_model(batch=2)
    walks = copy.copy(model)
    walks.__class__ = Walks

    def made(by):
        random = torch.Generator().manual_seed(0)
        found = draw(by, pairs, of="given", sampling=Sampling(steps=2), random=random, name="pictures")
        return torch.cat([found.clean.flatten(), torch.randn(1, generator=random)])

    whole = made(model)
    with training_in(tmp_path), pytest.raises(KeyboardInterrupt):
        made(walks)
    with training_in(tmp_path):
        assert torch.equal(made(walks), whole)
    assert walked == ["a batch", "a batch", "stopped", "a batch"]


@pytest.fixture(scope="module")
def at():
    """(model, some noised pictures)."""
    model, random = tiny_model(batch=2, prediction_type="v_prediction"), torch.Generator().manual_seed(0)
    examples = Examples(
        clean=torch.randn(3, *model.latent_shape, generator=random), pairs=[Pair("a church", "a fish")] * 3
    )
    return model, examples.drawn(model, 4, random)


def test_noised_pictures_are_made_of_their_noise(at):
    model, found = at
    assert found.latents.shape == (4, *model.latent_shape) and len(set(found.steps.tolist())) == 4
    alpha = model.alphas_cumprod[found.steps].reshape(-1, 1, 1, 1)
    clean = (found.latents - (1 - alpha).sqrt() * found.noise) / alpha.sqrt()
    # Drawn with replacement from three, so at least one comes twice.
    assert len({tuple(one.flatten()[:2].mul(100).round().tolist()) for one in clean}) <= 3


def test_the_losses_are_what_they_say(at):
    model, found = at
    church, fish, null = (model.embed([prompt] * 4) for prompt in ("a church", "a fish", ""))
    given, absent, without = (model.predict_noise(found.latents, found.steps, text) for text in (church, fish, null))
    torch.testing.assert_close(denoising(model, found, church), ((given - found.noise) ** 2).mean())
    torch.testing.assert_close(replacing(model, found, church), ((given - absent) ** 2).mean())
    guided = 3 * given - 2 * without
    torch.testing.assert_close(guided_denoising(model, found, church, 2.0), ((guided - found.noise) ** 2).mean())
