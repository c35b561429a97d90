"""STEREO's two targets against plain loops that share no code with them."""

import copy

import pytest
import torch

from cases import concept
from palimpsest import fitting
from palimpsest.erasers import Stereo, stereo
from palimpsest.erasers.stereo import projected
from palimpsest.errors import BadSetting
from palimpsest.fitting import training_in
from tiny import tiny_model

PAIRS = (("a church by the sea", "the sea"), ("a red church at night", "night"))
CHURCH = concept("church", pairs=PAIRS)
SETTINGS = {
    "variant": "xattn",
    "rounds": 2,
    "iterations": 3,
    "search_lr": 1e-2,
    "lr": 1e-2,
    "steps": 4,
    "inversions": 2,
    "inversion_lr": 0.1,
    "pictures": 2,
    "parallel": 0.3,
}
KEYS = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
CLOSE = 1e-6
"""The samplers keep their schedule in single precision; weights move by 1e-2."""


@pytest.fixture(scope="module")
def model():
    return tiny_model(dtype=torch.float64, batch=1)


def erased(model, concepts=(CHURCH,), **settings):
    return Stereo(**(SETTINGS | settings)).erase(model, concepts, random=torch.Generator().manual_seed(0))


def guidance(given, without, parallel):
    """APG's direction of one sample, by its definition."""
    difference, flat = given - without, given.flatten()
    along = (difference.flatten() @ flat) / (flat @ flat) * given
    return (difference - along) + parallel * along


class Loop:
    """What both stages do, in plain PyTorch: a student of ``teacher`` trained to a target."""

    def __init__(self, model, teacher, random):
        self.model, self.teacher, self.random = model, teacher, random

    def run(self, texts, target):
        student = copy.deepcopy(self.teacher)
        mine = [weight.requires_grad_() for name, weight in student.named_parameters() if "attn2" in name]
        adam = torch.optim.AdamW(mine, lr=1e-2)
        for number, states in enumerate(texts):
            reached = int(torch.randint(4, (), generator=self.random))
            x = torch.randn(1, *self.model.latent_shape, generator=self.random).double()
            x, t = self.walk(student, x, states, reached), [751, 501, 251, 1][reached]
            with torch.no_grad():
                wanted = target(number, lambda other, x=x, t=t: self.ask(self.teacher, x, t, other))
            adam.zero_grad()
            ((self.ask(student, x, t, states) - wanted) ** 2).mean().backward()
            adam.step()
        return dict(student.named_parameters())[KEYS.removeprefix("unet.")].detach()

    @staticmethod
    def ask(unet, x, t, states):
        return unet(x, t, encoder_hidden_states=states).sample

    @torch.no_grad()
    def walk(self, unet, x, states, reached):
        null = self.model.embed([""]).states
        for t in [751, 501, 251][:reached]:
            given, without = self.ask(unet, x, t, states), self.ask(unet, x, t, null)
            noise = without + 3 * (given - without)
            now, then = (self.model.alphas_cumprod[at].double() for at in (t, t - 250))
            x = then.sqrt() * (x - (1 - now).sqrt() * noise) / now.sqrt() + (1 - then).sqrt() * noise
        return x


@pytest.mark.parametrize("parallel", [0.0, 0.3, 1.0])
def test_guidance_is_projected_sample_by_sample(parallel):
    given, without = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0)).double()
    found = projected(given, without, parallel=parallel)
    for one, other, of in zip(given, without, found, strict=True):
        torch.testing.assert_close(of, guidance(one, other, parallel))
    if parallel == 0:
        assert (found * given).sum((1, 2, 3)).abs().max() < 1e-12
    if parallel == 1:
        torch.testing.assert_close(found, given - without)


@pytest.fixture(scope="module")
def found(model):
    return erased(model)


@pytest.fixture(scope="module")
def rounds(model):
    """What each round hands to textual inversion: the erased model, its pictures, and the random state then."""
    seen = []

    def invert(erased, clean, prompts, *, start, random, **settings):
        seen.append((erased, clean))
        return start + len(seen)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stereo, "invert", invert)
        texts = Stereo(**SETTINGS)._search(model, CHURCH, "stereo-0", torch.Generator().manual_seed(0))
    return seen, texts


def stage_one(model, texts, *, strength=1.0, cumulative=True, parallel=0.3):
    """The weight after each of two rounds."""
    random = torch.Generator().manual_seed(0)
    torch.randint(2**31, (2,), generator=random)
    null = model.embed([""]).states.detach()
    teacher, found = model.unet, []
    for text in texts[:2]:

        def target(number, ask, states=text.states):
            given, without = ask(states), ask(null)
            return given - strength * guidance(given, without, parallel)

        loop = Loop(model, teacher, random)
        found.append(loop.run([text.states] * 3, target))
        if cumulative and len(found) == 1:
            aim = Stereo(**SETTINGS)._away(model, text)
            again = torch.Generator().manual_seed(0)
            torch.randint(2**31, (2,), generator=again)
            *_, (_, weaker) = Stereo(**SETTINGS)._fit(model, aim, lr=1e-2, phase="x", random=again, every=0)
            teacher = weaker.unet
    return found


def test_each_round_of_the_search_erases_from_where_the_last_one_ended(model, rounds):
    seen, texts = rounds
    for (round_, _), expected in zip(seen, stage_one(model, texts), strict=True):
        torch.testing.assert_close(round_.weights()[KEYS], expected, atol=CLOSE, rtol=0)


@pytest.mark.parametrize("change", [{"strength": -1.0}, {"strength": 2.0}, {"cumulative": False}, {"parallel": 1.0}])
def test_another_search_does_not_pass(model, rounds, change):
    seen, texts = rounds
    assert (seen[1][0].weights()[KEYS] - stage_one(model, texts, **change)[1]).abs().max() > 100 * CLOSE


def test_each_round_looks_for_a_word_in_its_own_pictures(model, rounds):
    (_, first), (_, second) = rounds[0]
    assert len(first) == len(second) == 2  # a picture and its mirror image
    assert not torch.equal(first, second)


@pytest.fixture(scope="module")
def searched(model):
    """What STE finds, and the random state that it leaves."""
    random = torch.Generator().manual_seed(0)
    texts = [text.states.detach() for text in Stereo(**SETTINGS)._search(model, CHURCH, "stereo-0", random)]
    return texts, random.get_state()


def stage_two(model, searched, *, positive=1.0, negative=3.0, parallel=0.3):
    """The weight after REO; what is erased, and from which prompts, is taken from STE."""
    texts, state = searched
    random = torch.Generator()
    random.set_state(state)
    with torch.no_grad():
        anchors = [model.embed([prompt]).states for prompt, _ in PAIRS]
        null = model.embed([""]).states
    order = torch.randperm(2, generator=random).tolist() + torch.randperm(2, generator=random).tolist()[:1]
    among = torch.randperm(3, generator=random).tolist()
    torch.randperm(3, generator=random)

    def target(number, ask):
        without = ask(null)
        away = sum(guidance(ask(text), without, parallel) for text in texts) / 3
        return without + positive * guidance(ask(anchors[order[number]]), without, parallel) - negative * away

    return Loop(model, model.unet, random).run([texts[place] for place in among], target)


def test_it_ends_in_the_compositional_erasure_from_the_base(model, found, searched):
    torch.testing.assert_close(found.weights()[KEYS], stage_two(model, searched), atol=CLOSE, rtol=0)


CHANGES = [{"parallel": 1.0}, {"positive": 0.0}, {"negative": 2.0}, {"negative": -3.0}]


@pytest.mark.parametrize(
    "change",
    [pytest.param(change, marks=[pytest.mark.slow] if number else []) for number, change in enumerate(CHANGES)],
)
def test_another_compositional_target_does_not_pass(model, found, searched, change):
    assert (found.weights()[KEYS] - stage_two(model, searched, **change)).abs().max() > 100 * CLOSE


def test_iterations_are_shared_out_evenly():
    found = Stereo(iterations=11)._shares("abcd", torch.Generator().manual_seed(0))
    assert sorted(found.count(letter) for letter in "abcd") == [2, 3, 3, 3]
    assert found[:8] != list("abcdabcd")


def test_each_of_several_concepts_counts(model):
    fish = concept("fish", pairs=(("a fish by the sea", "the sea"),))
    both, *single = (erased(model, which, rounds=1) for which in ((CHURCH, fish), (CHURCH,), (fish,)))
    assert both.fingerprint not in {one.fingerprint for one in single}


def test_stopped_in_its_second_stage_it_goes_on_to_the_same_weights(model, found, tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    def stop(phase, done, of):
        if phase == "stereo" and done == 2:
            raise Stopped

    monkeypatch.setattr(fitting, "KEPT_AFTER", 0.0)
    with pytest.raises(Stopped), training_in(tmp_path, progress=stop):
        erased(model)
    with monkeypatch.context() as patch, training_in(tmp_path):
        patch.setattr(stereo, "invert", pytest.fail)
        resumed = erased(model)
    assert resumed.fingerprint == found.fingerprint


@pytest.mark.parametrize("anchor", ["church", " Church"])
def test_refuses_an_anchor_that_is_the_concept(model, anchor):
    with pytest.raises(BadSetting, match=f"stereo: expected an anchor other than the concept, got '{anchor}'"):
        erased(model, anchors=("a house", anchor))


def test_refuses_a_concept_without_anchors(model):
    with pytest.raises(BadSetting, match="expected anchors, or pairs in the file of 'church', got neither"):
        erased(model, (concept("church"),))


def test_refuses_a_concept_without_a_token(model):
    with pytest.raises(BadSetting, match="stereo: expected a concept whose name has a token, got ''"):
        erased(model, (concept("", pairs=PAIRS),))


@pytest.mark.parametrize("setting", ["rounds", "iterations", "batch", "steps", "inversions", "vectors"])
def test_refuses_none_of_something(setting):
    with pytest.raises(BadSetting, match=f"expected {setting} >= 1, got 0"):
        Stereo(**{setting: 0})
