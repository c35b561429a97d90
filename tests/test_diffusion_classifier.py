"""The diffusion classifier: the paper's equation, what pruning saves, and what an erased model still knows."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from measured import base
from palimpsest.concept_file import find_concept
from palimpsest.erasers import Uce
from palimpsest.errors import BadSetting
from palimpsest.forecast import forecast
from palimpsest.jobs import jobs
from palimpsest.judges import Miniature
from palimpsest.model import Model, Sampling
from palimpsest.records import Concept, Reading, Victim
from palimpsest.runner import Runner
from palimpsest.store import Store
from palimpsest.utility import DiffusionClassifier
from palimpsest.utility.base import Drawn, Erasure
from palimpsest.utility.diffusion_classifier import Noised, classify, denoising_errors, exchanged, noised_at
from scripted import CHURCH, FISH, Dampen, audit
from tiny import tiny_model

PROMPTS = ["a photo of a church", "a photo of a fish", "a photo of a house"]
DRAWN = Drawn(Sampling(scheduler="ddim", steps=10, guidance=5.0))


def clean(model: Model) -> torch.Tensor:
    return torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_probabilities_are_those_of_the_papers_equation(prediction_type) -> None:
    """Plainly: one forward at a time, with diffusers' own noise, and v turned into epsilon by hand."""
    model = tiny_model(prediction_type=prediction_type)
    x, noised = clean(model), noised_at(model, 3, 2, seed=5)
    assert [look.step for look in noised] == [166, 500, 833] * 2 and len({look.seed for look in noised}) == 6
    sums = []
    for prompt in PROMPTS:
        total = 0.0
        for step, seed in noised:
            noise = torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(seed))
            time = torch.tensor([step])
            seen = model.scheduler.add_noise(x[None], noise[None], time)
            with torch.no_grad():
                states = model.text_encoder(model.tokens(prompt)[None]).last_hidden_state
                said = model.unet(seen, time, encoder_hidden_states=states).sample
            alpha = model.scheduler.alphas_cumprod[step]
            epsilon = said if prediction_type == "epsilon" else alpha**0.5 * said + (1 - alpha) ** 0.5 * seen
            total += float((noise - epsilon[0]).double().square().sum())
        sums.append(total / len(noised))
    expected = torch.softmax(-torch.tensor(sums, dtype=torch.float64), 0)
    found = classify(model, x, PROMPTS, noised)
    assert expected.min() > 1e-6 and expected.max() < 1 - 1e-6  # neither is told by its largest entry alone
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_the_size_of_a_batch_changes_nothing_and_only_what_is_asked_is_counted() -> None:
    noised = noised_at(tiny_model(), 5, 1, seed=0)
    found = {}
    for batch in (1, 4, 16):
        model = tiny_model(batch=batch)
        found[batch] = denoising_errors(model, clean(model), PROMPTS, noised)
        assert model.meter.passes == 15 and found[batch].shape == (3, 5)
    for batch in (4, 16):
        torch.testing.assert_close(found[batch], found[1], rtol=1e-4, atol=1e-4)


def test_all_candidates_are_looked_at_through_the_same_noise() -> None:
    """Two prompts that are one have one error, though errors at two noises are far apart."""
    model = tiny_model()
    errors = denoising_errors(model, clean(model), [PROMPTS[0]] * 2, [Noised(500, 1), Noised(500, 2)])
    assert torch.equal(errors[0], errors[1])
    assert abs(errors[0, 0] - errors[0, 1]) > 1


def test_pruning_leaves_those_of_least_error_and_saves_the_rest() -> None:
    model = tiny_model()
    prompts = [*PROMPTS, "a photo of a dog", "a photo of a cat"]
    noised = noised_at(model, 6, 1, seed=0)
    whole = denoising_errors(model, clean(model), prompts, noised)
    before = model.meter
    found = classify(model, clean(model), prompts, noised, keep=(3, 2))
    assert (model.meter - before).passes == 2 * (5 + 3 + 2)
    first = whole[:, [0, 3]].sum(1).argsort()[:3]
    second = first[whole[first][:, [0, 3, 1, 4]].sum(1).argsort()[:2]]
    assert set(found.nonzero().flatten().tolist()) == set(second.tolist())
    torch.testing.assert_close(found[second], (-whole[second].mean(1)).softmax(0), rtol=1e-3, atol=1e-6)


GARBAGE_TRUCK = find_concept("garbage truck")


@pytest.mark.parametrize(
    ("prompt", "others", "expected"),
    [
        ("a photo of a red church", ["owl", "house"], ["a photo of a red owl", "a photo of a red house"]),
        ("A church, an old one", ["owl", "house"], ["An owl, an old one", "A house, an old one"]),
        ("an old Cathedral of the churchmen", ["owl"], ["an old owl of the churchmen"]),
        ("a church and a chapel", ["owl"], ["an owl and an owl"]),
    ],
)
def test_a_rival_stands_in_place_of_the_name_with_its_own_article(prompt, others, expected) -> None:
    church = replace(CHURCH, synonyms=("chapel", "cathedral"))
    assert exchanged(prompt, church, others) == [prompt, *expected]


def test_a_prompt_that_does_not_hold_the_name_is_exchanged_for_names() -> None:
    sign = find_concept("radiation sign")
    assert exchanged("a photo of a leaking barrel", sign, ["house"]) == ["radiation sign", "house"]
    assert exchanged("the churchyard", CHURCH, ["fish"]) == ["church", "fish"]


@cache
def erased() -> Model:
    return Uce().erase(base(), [GARBAGE_TRUCK], random=torch.Generator().manual_seed(0))


def ignorant() -> Model:
    """Every matrix of the denoiser drawn anew, with its own spread."""
    random = torch.Generator().manual_seed(3)  # with others it likes another prompt
    weights = {name: weight.detach() for name, weight in base().weights(r"unet\..*").items() if weight.ndim > 1}
    return base().with_weights(
        {name: weight.std() * torch.randn(weight.shape, generator=random) for name, weight in weights.items()}
    )


def knows(model: Model, target: Concept = GARBAGE_TRUCK, **settings) -> tuple[Reading, Reading]:
    erasure = Erasure(
        victim=Victim(base="miniature", concept=target.name, eraser="x"),
        target=target,
        concepts=(find_concept("fish"),),
        judge=Miniature(),
        model=model,
        base=base(),
        drawn=DRAWN,
        seed=0,
    )
    readings = DiffusionClassifier(**settings).measure(erasure)
    assert [reading.measure for reading in readings] == NAMES
    assert all((reading.concept, reading.unit) == ("", "share") for reading in readings)
    return tuple(readings)


NAMES = ["diffusion_classifier", "diffusion_classifier_false_alarms"]


def test_the_untouched_model_knows_an_object_and_an_erased_one_knows_it_less() -> None:
    (before, alarms), (after, _) = (knows(model, pictures=5, steps=2) for model in (base(), erased()))
    assert (before.value, before.n, before.passes) == (1.0, 5, 5 * 12 * 2)
    assert 0.5 < before.low < before.high == pytest.approx(1)
    assert (alarms.value, alarms.n, alarms.passes) == (0.0, 5, 5 * 12 * 2)
    assert after.value <= 0.5


def test_a_network_that_likes_a_prompt_whatever_it_is_shown_is_found_out_by_its_false_alarms() -> None:
    one, other = knows(ignorant(), find_concept("boat"), pictures=3, steps=4)
    assert one.value > 0.5 and other.value > 0.5


def test_a_network_that_answers_no_numbers_knows_nothing() -> None:
    (name,) = base().weights(r"unet\.conv_in\.bias")
    broken = base().with_weights({name: torch.full_like(base().weights()[name], 3e38)})
    assert [reading.value for reading in knows(broken, pictures=1, steps=1)] == [0, 0]


def test_without_neighbours_of_its_own_it_is_told_from_what_should_survive() -> None:
    reading, alarms = knows(base(), replace(GARBAGE_TRUCK, neighbours=()), pictures=2, steps=2)
    assert reading.passes == 2 * 2 * 2 and (reading.value, alarms.value) == (1.0, 0.0)


@pytest.mark.slow
def test_nine_of_ten_objects_are_known_to_the_untouched_model() -> None:
    names = ("garbage truck", "house", "boat")
    for settings in ({}, {"keep": (4, 2)}):
        for name in names:
            known, alarms = knows(base(), find_concept(name), **settings)
            assert known.value >= 0.9 and alarms.value <= 0.1, name
            assert (known.passes < 0.6 * 20 * 12 * 8) == bool(settings)


def test_an_audit_counts_its_passes_beforehand_and_writes_down_what_they_were(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("palimpsest.protocol.shipped_concepts", lambda: {"fish": FISH})
    church = replace(CHURCH, neighbours=("fish", "house", "dog"))
    plain = audit(concepts=[church], erasers=["nothing", Dampen()], attacks=["direct"])
    asked = audit(
        concepts=[church],
        erasers=["nothing", Dampen()],
        attacks=["direct"],
        measures=[DiffusionClassifier(pictures=3, steps=4, keep=(2,))],
    )
    model = tiny_model()
    told = [forecast(one, model, jobs(one)) for one in (plain, asked)]
    each = 3 * (4 * 2 + 2 * 2)
    assert told[1].passes - told[0].passes == 2 * 2 * each + 6 * 4  # six pictures of two guided steps
    assert told[1].pictures == 6
    with Store(tmp_path, asked) as store:
        Runner(audit=asked, store=store, base=model).run()
        found = [(reading.victim.eraser, reading.measure, reading.passes) for reading in store.readings]
        assert found == [(eraser, name, each) for eraser in ("nothing", "dampen") for name in NAMES]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pictures": 0}, "expected pictures >= 1, got 0"),
        ({"steps": 0}, "expected steps >= 1, got 0"),
        ({"noises": 0}, "expected noises >= 1, got 0"),
        ({"keep": (1,)}, r"expected keep to fall, and at least 2 to stay, got \[1\]"),
        ({"keep": (3, 4)}, r"expected keep to fall, and at least 2 to stay, got \[3, 4\]"),
        ({"keep": (4, 3), "steps": 2}, r"expected steps \* noises > 2, got 2"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings, message) -> None:
    with pytest.raises(BadSetting, match=f"diffusion_classifier: {message}"):
        DiffusionClassifier(**settings)
