"""Drawing and asking: equal to diffusers, equal to calculus, equal whatever the neighbours."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
)
from PIL import Image
from torch import Tensor

from palimpsest.errors import BadSetting, UnknownName
from palimpsest.model import Model, Probe, Sampling, Slope
from palimpsest.model.loading import Parts
from palimpsest.model.sampling import Walk, denoise
from palimpsest.records import Attempt, Cost
from tiny import WORDS, tiny_model, tiny_pipeline, tiny_tokenizer

Wrt = Literal["words", "latents"]
SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {}),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}),
    "lms": (LMSDiscreteScheduler, {}),
    "euler": (EulerDiscreteScheduler, {}),
    "dpmsolver++": (DPMSolverMultistepScheduler, {}),
}
PROMPTS = ("a photo of a church", "van gogh painting of a dog", "empty sea")


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of two pictures, in steps of 1/255."""
    return float(np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).mean())


def probe(
    model: Model, seed: int, *, wrt: Wrt | None = "words", guidance: float | None = None, **changes: Any
) -> Probe:
    random = torch.Generator().manual_seed(seed)
    tokens = model.tokens(PROMPTS[seed % len(PROMPTS)])
    words = model.vocabulary[tokens]
    target = torch.randn(model.latent_shape, generator=random, dtype=model.dtype)

    def loss(answer: Tensor, latents: Tensor | None) -> Tensor:
        assert latents is not None
        return ((answer - target) * latents).square().mean()

    given: dict[str, Any] = {
        "tokens": tokens,
        "words": words + 0.002 * torch.randn(words.shape, generator=random, dtype=model.dtype),
        "latents": torch.randn(model.latent_shape, generator=random, dtype=model.dtype),
        "step": 40 + 97 * seed,
        "guidance": guidance,
        "loss": loss,
        "wrt": wrt,
    }
    return Probe(**(given | changes))


def same(one: Slope, other: Slope) -> bool:
    assert one.gradient is not None and other.gradient is not None
    return (
        torch.equal(one.answer, other.answer) and torch.equal(one.gradient, other.gradient) and one.loss == other.loss
    )


# Drawing -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_picture_is_the_one_that_diffusers_draws(name: Any, prediction_type: Any) -> None:
    pipeline = tiny_pipeline(prediction_type=prediction_type)
    kind, settings = SCHEDULERS[name]
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **settings)
    model = tiny_model(prediction_type=prediction_type)
    guidance = (7.5, 3.0, 1.0)
    attempts = [
        Attempt(prompt=prompt, seed=seed, guidance=scale)
        for seed, (prompt, scale) in enumerate(zip(PROMPTS, guidance, strict=True))
    ]
    drawn = model.draw(attempts, Sampling(scheduler=name, steps=4))
    expected = [
        pipeline(
            attempt.prompt,
            num_inference_steps=4,
            guidance_scale=attempt.guidance,
            generator=torch.Generator().manual_seed(attempt.seed),
        ).images[0]
        for attempt in attempts
    ]
    assert all(difference(one, other) < 1 for one, other in zip(drawn, expected, strict=True))
    # The bar means something: other seeds and other prompts are far beyond it.
    assert difference(drawn[0], expected[1]) > 5


def test_stable_diffusion_2_is_drawn_as_diffusers_draws_it() -> None:
    pipeline = tiny_pipeline(prediction_type="v_prediction", sd2=True)
    expected = pipeline(PROMPTS[0], num_inference_steps=3, generator=torch.Generator().manual_seed(5)).images[0]
    model = tiny_model(prediction_type="v_prediction", sd2=True)
    assert difference(model.draw([Attempt(prompt=PROMPTS[0], seed=5)], Sampling(steps=3))[0], expected) < 1


def test_drafts_take_fewer_steps_and_cost_less() -> None:
    model = tiny_model()
    sampling = Sampling(steps=5, draft_steps=2)
    draft, picture = Attempt(prompt=PROMPTS[0], seed=1, draft=True), Attempt(prompt=PROMPTS[0], seed=1)
    drawn = model.draw([draft, picture], sampling)
    assert difference(drawn[0], model.draw([picture], Sampling(steps=2))[0]) == 0
    assert difference(drawn[0], drawn[1]) > 0
    assert model.picture_cost(draft, sampling).passes == 4
    assert model.picture_cost(picture, sampling).passes == 10


@pytest.mark.parametrize("name", ["ddim", "euler"])
def test_a_walk_begun_half_way_ends_where_the_whole_one_does(name: Any) -> None:
    """One-step samplers have no past, so entering at a step with its latents changes nothing."""
    model = tiny_model()
    sampling = Sampling(scheduler=name, steps=5)
    whole = Attempt(prompt=PROMPTS[0], seed=3)
    half = model.trajectory(model.noise(3)[None], model.embed([PROMPTS[0]]), sampling, until=2)
    entered = Attempt(prompt=PROMPTS[0], seed=99, start="half", start_step=2)
    drawn = model.draw([whole, entered], sampling, tensors={"half": half[0]})
    assert difference(*drawn) < 1
    assert model.picture_cost(entered, sampling).forwards == 2 * 3
    elsewhere = Attempt(prompt=PROMPTS[0], seed=99, start="half", start_step=3)
    assert difference(drawn[0], model.draw([elsewhere], sampling, tensors={"half": half[0]})[0]) > 1


def test_a_walk_cannot_begin_beyond_its_end() -> None:
    beyond = Attempt(prompt="", seed=0, start="x", start_step=4)
    with pytest.raises(BadSetting, match="start step from 0 to 3, got 4"):
        tiny_model().draw([beyond], Sampling(steps=4), tensors={"x": torch.zeros(4, 8, 8)})


class Seer(Model):
    """Knows the noise: it sees one clean picture in whatever it is shown."""

    clean: Tensor

    def predict_noise(self, latents: Tensor, step: Any, text: Any) -> Tensor:
        alpha = self._alpha(torch.as_tensor(step).expand(len(latents)), latents)
        return (latents - alpha**0.5 * self.clean) / (1 - alpha) ** 0.5


@pytest.mark.parametrize("name", SCHEDULERS)
def test_latents_enter_and_leave_a_walk_in_the_scale_of_the_forward_process(name: Any) -> None:
    model = Seer(Parts.of(tiny_pipeline()), device="cpu", batch=2)
    model.clean = model.noise(8)
    sampling = Sampling(scheduler=name, steps=8)
    text, step = model.embed([PROMPTS[0]]), model.schedule(sampling)[4]
    half = model.trajectory(model.noise(1)[None], text, sampling, until=4)
    alpha = model._alpha(torch.as_tensor(step), half)
    noise = (half[0] - alpha**0.5 * model.clean) / (1 - alpha) ** 0.5
    assert noise.std() == pytest.approx(1, abs=0.1)
    assert (model.trajectory(model.noise(1)[None], text, sampling) - model.clean).abs().mean() < 0.05
    # Begun half-way, from a point of the forward process, without the past that some samplers go by.
    walk = Walk(model.scheduler.config, name, 8, model.device)
    entered = model.noised(model.clean, model.noise(2), step)[None]
    next_one = denoise(model, entered, text, walk, guidance=None, start=4, until=5)[0]
    expected = model.noised(model.clean, model.noise(2), model.schedule(sampling)[5])
    torch.testing.assert_close(next_one, expected, rtol=0, atol=1e-3)


def test_chosen_words_are_drawn_in_place_of_the_prompts_own() -> None:
    model = tiny_model()
    other = model.vocabulary[model.tokens(PROMPTS[1])]
    plain = [Attempt(prompt=prompt, seed=1) for prompt in PROMPTS[:2]]
    chosen = Attempt(prompt=PROMPTS[0], seed=1, words="other")
    drawn = model.draw([*plain, chosen], Sampling(steps=3), tensors={"other": other})
    assert difference(drawn[2], drawn[1]) == 0
    assert difference(drawn[2], drawn[0]) > 0
    # Both prompts, the empty one, and the chosen words: what fills the batch up is no work.
    assert model.meter.encodes == 4


def test_pictures_come_in_the_order_asked_for_whatever_their_kind() -> None:
    model = tiny_model(batch=2)
    sampling = Sampling(steps=3, draft_steps=2)
    attempts = [
        Attempt(prompt=PROMPTS[n % 3], seed=n, draft=n % 2 == 0, guidance=1.0 if n == 3 else None) for n in range(5)
    ]
    together = model.draw(attempts, sampling)
    alone = [model.draw([attempt], sampling)[0] for attempt in attempts]
    assert [difference(*pair) for pair in zip(together, alone, strict=True)] == [0] * 5
    assert model.draw([], sampling) == []


def test_a_picture_comes_back_from_its_latents() -> None:
    model = tiny_model()
    picture = model.draw([Attempt(prompt=PROMPTS[0], seed=1)], Sampling(steps=2))[0]
    assert picture.size == model.picture_size == (16, 16)
    assert model.encode_picture(picture).shape == model.latent_shape
    with pytest.raises(ValueError, match=r"expected a picture of \(16, 16\), got \(8, 16\)"):
        model.encode_picture(picture.resize((8, 16)))


def test_bad_sampling_is_refused() -> None:
    with pytest.raises(UnknownName, match="no scheduler called 'heun'; there are: ddim, dpmsolver"):
        Sampling(scheduler="heun")  # type: ignore[arg-type]
    with pytest.raises(BadSetting, match="steps >= 1, got 0"):
        Sampling(steps=0)


# Asking --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [None, 5.0])
@pytest.mark.parametrize("wrt", ["words", "latents"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_gradients_are_finite_differences(wrt: Wrt, guidance: float | None, prediction_type: Any) -> None:
    # The text encoder's plain attention takes its softmax in single precision, which would drown the differences.
    model = Model(
        Parts.of(tiny_pipeline(prediction_type=prediction_type)),
        dtype=torch.float64,
        device="cpu",
        attention="sdpa",
        batch=3,
    )
    asked = probe(model, 4, wrt=wrt, guidance=guidance)
    point = asked.words if wrt == "words" else asked.latents
    assert point is not None
    away = torch.randn(point.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * point.std()
    small = 1e-4
    here, ahead, behind = model.ask(
        [
            asked,
            probe(model, 4, wrt=wrt, guidance=guidance, **{wrt: point + small * away}),
            probe(model, 4, wrt=wrt, guidance=guidance, **{wrt: point - small * away}),
        ]
    )
    assert here.gradient is not None and ahead.loss is not None and behind.loss is not None
    expected = (ahead.loss - behind.loss) / (2 * small)
    assert abs(expected) > 1e-4
    assert float((here.gradient * away).sum()) == pytest.approx(expected, rel=1e-5)


def test_a_loss_on_the_text_states_has_its_gradient() -> None:
    model = Model(Parts.of(tiny_pipeline()), dtype=torch.float64, device="cpu", attention="sdpa", batch=3)
    target = model.embed([PROMPTS[1]]).states[0]

    def loss(answer: Tensor, latents: Tensor | None) -> Tensor:
        assert latents is None
        return (answer - target).square().sum()

    tokens = model.tokens(PROMPTS[0])
    words = model.vocabulary[tokens]
    away = 0.02 * torch.randn(words.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    here, ahead, behind = model.ask(
        [
            Probe(tokens=tokens, words=words + move, loss=loss, wrt="words")
            for move in (0 * away, away / 1e4, away / -1e4)
        ]
    )
    assert here.gradient is not None and ahead.loss is not None and behind.loss is not None
    assert here.cost == Cost(encodes=1)
    assert float((here.gradient * away).sum()) == pytest.approx((ahead.loss - behind.loss) * 5e3, rel=1e-5)


def test_words_that_are_the_tokens_own_change_nothing() -> None:
    model = tiny_model()
    own = probe(model, 1)
    plain = probe(model, 1, words=None)
    given = probe(model, 1, words=model.vocabulary[own.tokens])
    assert same(*model.ask([plain, given]))
    encoded = model.encode(own.tokens[None])
    assert torch.equal(encoded.states, model.encode(own.tokens[None], model.vocabulary[own.tokens][None]).states)


@pytest.mark.parametrize("attention", ["plain", "sdpa"])
@pytest.mark.parametrize("guidance", [None, 5.0])
@pytest.mark.parametrize("wrt", ["words", "latents"])
def test_neighbours_and_order_change_nothing_to_the_last_bit(wrt: Wrt, guidance: float | None, attention: Any) -> None:
    model = Model(Parts.of(tiny_pipeline()), device="cpu", attention=attention, batch=4)
    probes = [probe(model, seed, wrt=wrt, guidance=guidance) for seed in range(4)]
    first = model.ask(probes)
    order = [2, 0, 3, 1]
    permuted = model.ask([probes[place] for place in order])
    assert all(same(first[place], permuted[at]) for at, place in enumerate(order))
    among_others = model.ask([probe(model, 7, wrt=wrt, guidance=guidance), probes[1], probes[1]])
    assert same(first[1], among_others[1]) and same(first[1], among_others[2])
    assert same(first[3], model.ask([probes[3]])[0])
    assert not same(first[0], first[3])


def test_neighbours_and_order_change_no_picture() -> None:
    model = tiny_model(batch=4)
    attempts = [Attempt(prompt=PROMPTS[seed % 3], seed=seed) for seed in range(6)]
    first = model.draw(attempts, Sampling(steps=3))
    backwards = model.draw(attempts[::-1], Sampling(steps=3))[::-1]
    assert [difference(*pair) for pair in zip(first, backwards, strict=True)] == [0] * 6


def test_a_mixed_lot_of_probes_is_answered_in_order() -> None:
    model, base = tiny_model(batch=2), tiny_model(seed=1, batch=2)
    lot = [
        probe(model, 0),
        probe(model, 1, wrt=None, loss=None),
        probe(model, 2, wrt="latents", guidance=4.0),
        probe(model, 3, of="base"),
        Probe(tokens=model.tokens(PROMPTS[0])),
        probe(model, 5),
        probe(model, 6),
    ]
    slopes = model.ask(lot, base=base)
    for place in (0, 2, 5, 6):
        assert same(slopes[place], model.ask([lot[place]])[0])
    assert slopes[1].gradient is None and slopes[1].loss is None
    assert same(slopes[3], base.ask([probe(base, 3, words=lot[3].words)])[0])
    assert slopes[4].answer.shape == (model.context, model.vocabulary.shape[1])
    assert model.ask([]) == []
    with pytest.raises(ValueError, match="expected a base"):
        model.ask([lot[3]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": None}, "latents and step together"),
        ({"loss": None}, "expected a loss"),
        ({"latents": None, "step": None, "wrt": "latents"}, "expected latents"),
    ],
)
def test_a_probe_that_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        probe(tiny_model(), 0, **changes)


def test_answers_are_epsilon_whatever_the_denoiser_says() -> None:
    """A v-prediction denoiser with a given answer v means epsilon = sqrt(a) v + sqrt(1 - a) x."""
    model = tiny_model(prediction_type="v_prediction")
    latents, step, text = model.noise(1)[None], 500, model.embed([PROMPTS[0]])
    v = model.unet(latents, step, encoder_hidden_states=text.states).sample
    noise = model.predict_noise(latents, step, text)
    signal = float(model.alphas_cumprod[500])
    torch.testing.assert_close(noise, signal**0.5 * v + (1 - signal) ** 0.5 * latents)
    torch.testing.assert_close(model.as_trained(noise, latents, step), v)
    clean = model.noise(2)
    x_t = model.noised(clean, latents[0], step)
    expected = model.training_target(clean, latents[0], step)
    torch.testing.assert_close(model.as_trained(latents, x_t[None], step)[0], expected)


# Cost ----------------------------------------------------------------------------------------------------------------


def test_the_meter_counts_what_was_asked_for_and_no_padding() -> None:
    model = tiny_model(batch=4)
    probes = [probe(model, n, guidance=3.0 if n == 2 else None, wrt=None if n == 1 else "words") for n in range(3)]
    slopes = model.ask(probes)
    assert [slope.cost.passes for slope in slopes] == [2, 1, 4]
    # One encode each, and the empty prompt's, which is remembered.
    assert model.meter == Cost(forwards=4, backwards=3, encodes=3 + 1)
    sampling = Sampling(scheduler="pndm", steps=3)
    attempts = [Attempt(prompt=PROMPTS[0], seed=seed) for seed in range(3)]
    before = model.meter
    model.draw(attempts, sampling)
    # PNDM evaluates its second timestep twice. One prompt is encoded once, but charged to each picture.
    assert (model.meter - before) == Cost(forwards=3 * 2 * 4, encodes=1)
    assert [model.picture_cost(attempt, sampling) for attempt in attempts] == [Cost(forwards=8, encodes=1)] * 3


def test_a_guard_is_drawn_and_asked_through() -> None:
    class Triple(Model):
        """Guidance with one more branch, away from the empty prompt twice."""

        branches = 3
        guard = "triple"

        def guided_noise(self, latents: Tensor, step: Any, text: Any, guidance: Any, memory: Any = None) -> Any:
            noise, _ = super().guided_noise(latents, step, text, guidance)
            calls.append(memory)
            return noise + self.predict_noise(latents, step, text), (memory or 0) + 1

    calls: list[int | None] = []
    plain = tiny_model()
    guarded = Triple(Parts.of(tiny_pipeline()), device="cpu", batch=4)
    attempt, sampling = Attempt(prompt=PROMPTS[0], seed=1), Sampling(steps=3)
    assert difference(guarded.draw([attempt], sampling)[0], plain.draw([attempt], sampling)[0]) > 1
    assert calls == [None, 1, 2]
    assert guarded.meter.forwards == guarded.picture_cost(attempt, sampling).forwards == 9
    slope = guarded.ask([probe(guarded, 0, guidance=3.0)])[0]
    assert slope.cost == Cost(forwards=3, backwards=3, encodes=1)
    assert not torch.equal(slope.answer, plain.ask([probe(plain, 0, guidance=3.0)])[0].answer)
    assert guarded.guarded and not plain.guarded
    assert guarded.fingerprint != plain.fingerprint
    assert type(guarded.with_weights({})) is Triple


# Text ----------------------------------------------------------------------------------------------------------------


def test_facts_are_the_pipelines_own() -> None:
    model = tiny_model(prediction_type="v_prediction")
    assert (model.start_token, model.end_token, model.pad_token) == (0, 1, 1)
    assert model.special_tokens == {0, 1}
    assert model.context == 16
    assert model.vocabulary.shape == (len(tiny_tokenizer()), 16)
    assert model.latent_shape == (4, 8, 8)
    assert model.prediction_type == "v_prediction"
    assert model.scaling_factor == 0.7
    assert model.timesteps == len(model.alphas_cumprod) == 1000


def test_tokens_go_round_and_too_many_are_counted() -> None:
    model = tiny_model()
    tokens = model.tokens(" ".join(WORDS[:5]))
    assert tokens.tolist()[0] == model.start_token and tokens.tolist()[6:] == [model.end_token] * 10
    assert model.text(tokens) == " ".join(WORDS[:5])
    assert model.dropped(" ".join(WORDS[:14])) == 0
    long = " ".join(WORDS[:20])
    assert model.dropped(long) == 6
    assert model.tokens(long).shape == (16,)
    assert model.text(model.tokens(long)) == " ".join(WORDS[:14])


def test_a_prompt_is_tokenised_once_by_each_tokeniser(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    tokenise, asked = model.tokenizer, []

    class Counting:
        def __getattr__(self, name: str) -> object:
            return getattr(tokenise, name)

        def __call__(self, prompt: str, **how: object) -> object:
            asked.append(prompt)
            return tokenise(prompt, **how)

    monkeypatch.setattr(model, "tokenizer", Counting())
    first = model.tokens("a dog")
    expected = first.clone()
    first.zero_()  # whoever asks may do with the answer what they like
    assert torch.equal(model.tokens("a dog"), expected)
    assert model.tokens("a cat")[2] != expected[2]
    assert asked == ["a dog", "a cat"]
    monkeypatch.undo()
    spelt = model.tokens("zebra")
    taught = model.with_token("zebra", model.vocabulary[0])
    assert taught.tokens("zebra")[1] == len(taught.tokenizer) - 1 != spelt[1]
    assert torch.equal(model.tokens("zebra"), spelt)


def test_prompts_are_remembered_and_stay_fit_for_gradients() -> None:
    model = tiny_model()
    attempts: Sequence[Attempt] = [Attempt(prompt=PROMPTS[0], seed=seed) for seed in range(2)]
    model.draw(attempts, Sampling(steps=2))
    encodes = model.meter.encodes
    model.draw(attempts, Sampling(steps=2))
    assert model.meter.encodes == encodes == 2
    # The empty prompt was first encoded for a picture, in inference mode; a guided probe flows through it.
    assert model.ask([probe(model, 0, guidance=3.0)])[0].gradient is not None
    assert not model.remembered([""]).states.is_inference()
