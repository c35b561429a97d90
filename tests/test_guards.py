"""Guards: safe latent diffusion and the negative prompt against diffusers' own pipelines, and in a whole audit."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from diffusers import PNDMScheduler, StableDiffusionPipelineSafe
from diffusers.pipelines.deprecated.stable_diffusion_safe import SafetyConfig
from typer.testing import CliRunner

from cases import concept
from palimpsest.attacks import P4D, PalimpsestSearch, Pez, SoftPrompt, TextGradient, UnlearnDiff
from palimpsest.cli import app
from palimpsest.erasers import NegativePrompt, Sld
from palimpsest.erasing import is_at_hand
from palimpsest.errors import BadModel, BadSetting
from palimpsest.forecast import forecast
from palimpsest.jobs import jobs
from palimpsest.model import Model, Probe, Sampling
from palimpsest.model.loading import Parts
from palimpsest.records import Attempt, Cost
from scripted import Hash, audit, run, trials
from tiny import tiny_model, tiny_pipeline

CHURCH, FISH = concept("church", synonyms=("chapel",)), concept("fish")
PROMPTS, SEEDS, STEPS = ("a photo of a church at night", "a drawing of a dog"), (3, 4), 18
"""More steps than the longest warm-up."""
STRENGTHS = ("weak", "medium", "strong", "max")


def erased(eraser, model, concepts=(CHURCH,)):
    return eraser.erase(model, concepts, random=torch.Generator())


def loud_pipeline():
    """The tiny pipeline, whose untrained denoiser hardly listens, with louder cross-attention."""
    pipeline = tiny_pipeline()
    with torch.no_grad():
        for name, weight in pipeline.unet.named_parameters():
            if "attn2.to_out.0.weight" in name:
                weight.mul_(100)
    return pipeline


@pytest.fixture(scope="module")
def model():
    return Model(Parts.of(loud_pipeline()), device="cpu", batch=2)


def drawn(model, *, scheduler="ddim", guidance=7.5):
    attempts = [Attempt(prompt=prompt, seed=seed) for prompt, seed in zip(PROMPTS, SEEDS, strict=True)]
    return pixels(model.draw(attempts, Sampling(scheduler=scheduler, steps=STEPS, guidance=guidance)))


@pytest.fixture(scope="module")
def drawn_by(model):
    """What is drawn behind the guard of each strength, and without one, once for all tests."""

    def by(strength, scheduler):
        return drawn(erased(Sld(strength=strength), model) if strength else model, scheduler=scheduler)

    return cache(by)


def pixels(pictures):
    return np.stack([np.array(picture).astype(int) for picture in pictures])


def theirs(pipeline, *, scheduler="ddim", **settings):
    """What a pipeline of diffusers draws of the same prompts and seeds."""
    if scheduler == "pndm":
        pipeline.scheduler = PNDMScheduler.from_config(pipeline.scheduler.config, skip_prk_steps=True)
    pictures = [
        pipeline(
            prompt,
            num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
            **settings,
        ).images[0]
        for prompt, seed in zip(PROMPTS, SEEDS, strict=True)
    ]
    return (np.stack(pictures) * 255).round().astype(int)


def safe_pipeline(text):
    plain = loud_pipeline()
    pipeline = StableDiffusionPipelineSafe(
        **{name: plain.components[name] for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")},
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.safety_concept = text
    return pipeline


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scheduler", ["ddim", pytest.param("pndm", marks=pytest.mark.slow)])
@pytest.mark.parametrize("strength", STRENGTHS)
def test_sld_draws_what_diffusers_safe_pipeline_draws(drawn_by, strength, scheduler):
    expected = theirs(safe_pipeline("church"), scheduler=scheduler, **getattr(SafetyConfig, strength.upper()))
    assert np.abs(drawn_by(strength, scheduler) - expected).max() <= 1
    for other in {None, *STRENGTHS} - {strength}:
        assert np.abs(drawn_by(other, scheduler) - expected).max() > 2


def test_the_negative_prompt_is_that_of_diffusers(model):
    expected = theirs(loud_pipeline(), negative_prompt="church, fish", guidance_scale=5.0)
    assert np.abs(drawn(erased(NegativePrompt(), model, (CHURCH, FISH)), guidance=5.0) - expected).max() <= 1
    assert np.abs(drawn(model, guidance=5.0) - expected).max() > 10


@pytest.mark.parametrize(
    "settings", [{"warmup": 1}, {"scale": 3.0}, {"threshold": -0.01}, {"momentum": 0.9}, {"beta": 0.9}], ids=str
)
def test_each_number_of_sld_is_a_setting(model, drawn_by, settings):
    plain, changed = (erased(Sld(strength="strong", **more), model) for more in ({}, settings))
    assert changed.numbers == Sld(strength="strong", **settings).numbers != plain.numbers
    assert changed.fingerprint != plain.fingerprint
    assert np.abs(drawn(changed) - drawn_by("strong", "ddim")).max() > 1


@pytest.mark.parametrize(
    ("eraser", "unwanted"),
    [
        (Sld(), "church, fish"),
        (Sld(synonyms=True), "church, chapel, fish"),
        (Sld(text="a red sign"), "a red sign"),
        (NegativePrompt(synonyms=True), "church, chapel, fish"),
    ],
)
def test_what_is_steered_away_from(model, eraser, unwanted):
    guarded = erased(eraser, model, (CHURCH, FISH))
    assert guarded.unwanted == unwanted
    assert repr(unwanted) in guarded.guard
    assert guarded.fingerprint != model.fingerprint
    weights = guarded.weights()
    assert all(weight is weights[name] for name, weight in model.weights().items())


# Questions -----------------------------------------------------------------------------------------------------------


def asked(model, *, loss=None, wrt=None, words=None):
    random = torch.Generator().manual_seed(1)
    latents = torch.randn(model.latent_shape, generator=random, dtype=torch.float64)
    return Probe(
        tokens=model.tokens(PROMPTS[0]), words=words, latents=latents, step=600, guidance=3.0, loss=loss, wrt=wrt
    )


def test_a_question_is_answered_as_past_the_warm_up_without_momentum():
    model = tiny_model(dtype=torch.float64, batch=1)
    guarded = erased(Sld(strength="medium"), model)
    probe = asked(model)
    branches = [
        model.predict_noise(probe.latents[None], 600, model.embed([text]))[0] for text in (PROMPTS[0], "", "church")
    ]
    given, without, unwanted = branches
    strength = (1000 * (given - unwanted).abs()).clamp(max=1) * (given - unwanted < 0.01)
    assert 0.2 < float((strength > 0).double().mean()) < 0.9
    expected = without + 3 * (given - without - strength * (unwanted - without))
    torch.testing.assert_close(guarded.ask([probe])[0].answer, expected, atol=1e-12, rtol=0)
    assert guarded.ask([probe])[0].cost == Cost(forwards=3, encodes=1)


# Where eps_c - eps_S is lambda, the answer leaps: not at a lambda of 0, nor at one that is never reached. A scale of
# thousands turns the answer within less than a difference's step.
@pytest.mark.parametrize(
    "eraser", [NegativePrompt(), Sld(strength="weak"), Sld(strength="max", scale=20.0, threshold=1e6)], ids=str
)
@pytest.mark.parametrize("wrt", ["words", "latents"])
def test_gradients_through_the_guard_are_those_of_finite_differences(eraser, wrt):
    model = erased(eraser, Model(Parts.of(loud_pipeline()), dtype=torch.float64, device="cpu", batch=1))
    direction = torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def loss(answer, latents):
        return (answer * direction).sum()

    words = model.vocabulary[model.tokens(PROMPTS[0])]
    start = words if wrt == "words" else asked(model).latents
    slope = model.ask([asked(model, loss=loss, wrt=wrt, words=words)])[0]
    random = torch.Generator().manual_seed(3)
    # The text encoder's softmax is in single precision whatever the weights are.
    size, close = (1e-5, 1e-3) if wrt == "words" else (1e-6, 1e-6)
    for _ in range(3):
        push = size * torch.randn(start.shape, generator=random, dtype=torch.float64)
        there, back = (
            model.ask([replace(asked(model, loss=loss, words=words), **{wrt: start + sign * push})])[0].loss
            for sign in (1, -1)
        )
        assert (there - back) / 2 == pytest.approx(float((slope.gradient * push).sum()), rel=close)
    assert slope.cost == Cost(forwards=model.branches, backwards=model.branches, encodes=1)


# A whole audit -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eraser", [NegativePrompt(), Sld(strength="max")], ids=str)
def test_a_whole_audit_goes_through_the_guard_and_resumes(tmp_path, eraser):
    planned = audit(
        erasers=["nothing", eraser],
        attacks=["direct", UnlearnDiff(steps=1, iterations=2)],
        judges=[Hash(limit=2.0)],
        budget={"looks": 3, "passes": 100},
    )
    base = tiny_model(batch=1)
    left = jobs(planned)
    (job,) = [job for job in left if job.eraser == eraser]
    assert is_at_hand(job, base, seed=planned.seed, store=None)
    expected = forecast(planned, base, left)
    assert expected.erasing == 0
    run(tmp_path / "whole", planned, base=base)
    whole = trials(tmp_path / "whole")
    assert not any(trial.error for trial in whole)
    branches = eraser.guard.branches
    ends = {(trial.victim.eraser, trial.attack): trial.cost.passes for trial in whole if trial.end}
    picture = planned.sampling.steps * branches
    assert ends[eraser.label, "direct"] == picture
    # Two looks, and two probes of as many forwards and backwards as the guard has branches; without it only one.
    attack = planned.attacks[1].label
    assert ends[eraser.label, attack] == 2 * picture + 2 * 2 * branches
    assert ends["nothing", attack] == 2 * 2 * planned.sampling.steps + 2 * 2
    assert not list((tmp_path / "whole" / "erased").glob("*"))
    killed = tmp_path / "killed"
    run(killed, planned, base=base)
    lines = (killed / "trials.jsonl").read_text().splitlines(keepends=True)
    (killed / "trials.jsonl").write_text("".join(lines[: len(lines) // 2]))
    run(killed, planned, base=tiny_model(batch=1))
    assert trials(killed) == whole


@pytest.mark.parametrize("attack", [UnlearnDiff, TextGradient, P4D, Pez, SoftPrompt, PalimpsestSearch])
def test_an_attack_that_does_not_adapt_asks_past_the_guard_and_is_drawn_through_it(tmp_path, attack):
    short = {"iterations": 2} if attack is not PalimpsestSearch else {"vocabulary": 4, "heeded": 2}
    attacks = [attack(**short), attack(**short, adaptive=False)]
    planned = audit(
        erasers=[Sld()], attacks=attacks, judges=[Hash(limit=2.0)], goals=1, budget={"looks": 2, "passes": 100}
    )
    run(tmp_path, planned, base=tiny_model(batch=1))
    ends = {trial.attack: trial.cost for trial in trials(tmp_path) if trial.end and trial.victim.eraser != "nothing"}
    through, past = (ends[attack.label] for attack in attacks)
    pictures = 2 * planned.sampling.steps * Sld().guard.branches
    assert through.looks == past.looks == 2
    asked = past.passes - pictures
    assert asked > 0
    assert through.passes - pictures > asked


def test_a_forecast_counts_the_guards_branches():
    passes = []
    for eraser in (NegativePrompt(), Sld()):
        planned = audit(erasers=["nothing", eraser], attacks=["direct"], goals=2)
        passes.append(forecast(planned, tiny_model(batch=1), jobs(planned)).passes)
    assert passes[1] - passes[0] == 2 * planned.sampling.steps


# Errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["folder", "file.safetensors"])
@pytest.mark.parametrize("name", ["sld:strength=max", "negative_prompt"])
def test_what_no_weights_hold_is_not_saved(tmp_path, name, out):
    tiny_pipeline(tmp_path / "base")
    arguments = ["erase", "--base", str(tmp_path / "base"), "--concept", "church", "--eraser", name]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / out)])
    assert isinstance(result.exception, BadModel)
    assert "weights hold no guard" in str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_one_guard_at_a_time(model):
    with pytest.raises(BadSetting, match="expected a model without a guard, got one behind NegativePrompted"):
        erased(Sld(), erased(NegativePrompt(), model))


@pytest.mark.parametrize("eraser", [Sld, NegativePrompt])
@pytest.mark.parametrize(
    ("text", "message"),
    [(" ", "expected a text to steer away from, got ' '"), ("church " * 20, "of at most 16 tokens")],
)
def test_refuses_a_text_that_says_nothing_or_does_not_fit(model, eraser, text, message):
    with pytest.raises(BadSetting, match=message):
        erased(eraser(text=text), model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup": -1}, "expected warmup >= 0, got -1"),
        ({"scale": -1.0}, "expected scale >= 0, got -1.0"),
        ({"momentum": -1.0}, "expected momentum >= 0, got -1.0"),
        ({"beta": 1.0}, "expected 0 <= beta < 1, got 1.0"),
    ],
)
def test_refuses_what_is_out_of_range(settings, message):
    with pytest.raises(BadSetting, match=message):
        Sld(**settings)


def test_a_guard_of_v_prediction_draws():
    plain = Model(Parts.of(tiny_pipeline(prediction_type="v_prediction")), device="cpu", batch=1)
    guarded = erased(Sld(strength="max"), plain)
    attempt = Attempt(prompt=PROMPTS[0], seed=0)
    assert (
        np.abs(
            pixels(guarded.draw([attempt], Sampling(steps=3))) - pixels(plain.draw([attempt], Sampling(steps=3)))
        ).max()
        > 1
    )
