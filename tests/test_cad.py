"""CAD-Erase against its equation, followed on the pipeline's own denoiser."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from cases import concept
from palimpsest.erasers import Cad
from palimpsest.errors import BadModel, BadSetting
from palimpsest.pruning import Mask
from tiny import tiny_model, tiny_pipeline

CHURCH, VAN_GOGH = concept(), concept("van gogh", "style")
STEPS, RATIO = 4, 0.15
SHORT = {"steps": STEPS, "ratio": RATIO}


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def church(model):
    return Cad(**SHORT).mask(model, [CHURCH])


@pytest.fixture(scope="module")
def pipeline():
    made = tiny_pipeline()
    made.unet.requires_grad_(False)
    made.scheduler = DDIMScheduler.from_config(made.scheduler.config)
    return made


def trajectory(pipeline, noise, prompt, guidance):
    """z_t at every step of the pipeline's picture, its noise before and what is drawn at the end left out."""
    told = [noise]
    pipeline(
        prompt,
        latents=noise,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        output_type="latent",
        callback_on_step_end=lambda _, step, time, state: told.append(state["latents"].clone()) or {},
    )
    return told[:-1]


def answers(pipeline, latents, time, prompts):
    """eps of each prompt, each asked alone."""
    tokens = pipeline.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        states = pipeline.text_encoder(tokens).last_hidden_state
    return [pipeline.unet(latents, time, encoder_hidden_states=state[None]).sample for state in states]


def points(pipeline, prompt, *, mutation=""):
    """(z_t, t)"""
    random = torch.Generator().manual_seed(0)
    for done in range(STEPS):
        noise = torch.randn(1, 4, 8, 8, generator=random)
        guidance = 7.5 if mutation == "guided more" else 3.0
        path = trajectory(pipeline, noise, "" if mutation == "base's trajectory" else prompt, guidance)
        times = pipeline.scheduler.timesteps
        yield path[0 if mutation == "noise alone" else done], times[done]
        if mutation == "one step":
            return


def by_hand(pipeline, prompt="church", *, base="", mutation=""):
    """Weight's name -> a (out, in)."""
    weights = {name: weight for name, weight in pipeline.unet.named_parameters() if weight.ndim == 2 and ".ff." in name}
    sums = {name: np.zeros(tuple(weight.shape)) for name, weight in weights.items()}
    for latents, time in points(pipeline, prompt, mutation=mutation):
        for weight in weights.values():
            weight.requires_grad_(True).grad = None
        mine, other = answers(pipeline, latents, time, [prompt, base])
        loss = ((mine - (other if mutation == "both move" else other.detach())) ** 2).sum()
        loss.backward()
        for name, weight in weights.items():
            sums[name] += weight.grad.double().numpy()
            weight.requires_grad_(False).grad = None
    told = {}
    for name, weight in weights.items():
        size = np.ones(tuple(weight.shape)) if mutation == "gradient alone" else weight.detach().double().numpy()
        told[f"unet.{name}"] = size * sums[name]
    return told


@pytest.fixture(scope="module")
def scores(pipeline):
    """The equation's attribution of the church."""
    return by_hand(pipeline)


def marked(scores, *, per="row", mutation=""):
    """Weight's name -> (out, in) bool."""
    made = {}
    for name, score in scores.items():
        ranked = {"signs turned": -score, "size alone": np.abs(score)}.get(mutation, score)
        rows = ranked if per == "row" else ranked.reshape(1, -1)
        count = int(RATIO * rows.shape[1])
        top = (rows >= np.sort(rows, axis=1)[:, -count][:, None]).reshape(score.shape)
        made[name] = top & (ranked > 0)
    return made


def disagreement(mask, theirs):
    """Share of the entries that either prunes and not both do."""
    ours = {name: marks.numpy() for name, marks in mask.entries.items()}
    assert ours.keys() == theirs.keys()
    either = sum((ours[name] | marks).sum() for name, marks in theirs.items())
    return sum((ours[name] ^ marks).sum() for name, marks in theirs.items()) / either


@pytest.mark.parametrize("per", ["row", "matrix"])
def test_equals_the_equation(model, scores, per):
    theirs = marked(scores, per=per)
    assert sum(marks.sum() for marks in theirs.values()) > 500
    assert disagreement(Cad(**SHORT, per=per).mask(model, [CHURCH]), theirs) < 0.01


def test_a_styles_prompt_and_another_base(model, pipeline):
    theirs = marked(by_hand(pipeline, "a photo in the style of van gogh", base="a photo"))
    assert disagreement(Cad(**SHORT, base="a photo").mask(model, [VAN_GOGH]), theirs) < 0.01
    assert disagreement(Cad(**SHORT, base="a photo", prompt="{}").mask(model, [VAN_GOGH]), theirs) > 0.1


@pytest.mark.parametrize(
    "mutation", ["both move", "noise alone", "base's trajectory", "guided more", "one step", "gradient alone"]
)
def test_another_attribution_does_not_pass(church, pipeline, mutation):
    assert disagreement(church, marked(by_hand(pipeline, mutation=mutation))) > 0.03


@pytest.mark.parametrize("mutation", ["signs turned", "size alone"])
def test_another_choice_does_not_pass(church, scores, mutation):
    assert disagreement(church, marked(scores, mutation=mutation)) > 0.2


def test_the_attribution_is_by_how_much_j_falls(model, pipeline):
    """Where every entry of a matrix loses the hundredth part, J falls by that of their sum, to first order."""
    path = list(points(pipeline, "church"))

    @torch.no_grad()
    def noises(asked, prompt):
        return [asked.predict_noise(latents, time, asked.embed([prompt])).double() for latents, time in path]

    def j(asked):
        # The base prompt's noise is held constant: it is always the original's.
        return sum(float((c - b).square().sum()) for c, b in zip(noises(asked, "church"), still, strict=True))

    still = noises(model, "")

    scores = Cad(**SHORT).attribution(model, CHURCH)
    name = max(scores, key=lambda name: float(scores[name].sum().abs()))
    fall = j(model) - j(model.with_weights({name: 0.99 * model.weights()[name]}))
    assert fall == pytest.approx(0.01 * float(scores[name].sum()), rel=0.1)


def test_zeroes_the_mask_in_both_linears_and_nothing_else(model, church):
    assert {name.split(".ff.")[1] for name in church.entries} == {"net.0.proj.weight", "net.2.weight"}
    pruned = Cad(**SHORT).erase(model, [CHURCH], random=torch.Generator())
    before = model.weights()
    for name, weight in pruned.weights().items():
        one = before[name]
        assert torch.equal(weight, one * ~church.entries[name]) if name in church.entries else weight is one
    assert Mask.of_zeros(pruned).overlap(church).jaccard == 1


def test_masks_of_several_concepts_are_joined(model, church):
    eraser = Cad(**SHORT)
    van_gogh = eraser.mask(model, [VAN_GOGH])
    both = eraser.mask(model, [CHURCH, VAN_GOGH])
    assert both.overlap(church | van_gogh).jaccard == 1
    assert church.overlap(van_gogh).jaccard < 0.9


def test_other_noise_gives_another_mask(model, church):
    assert church.overlap(Cad(**SHORT, seed=1).mask(model, [CHURCH])).jaccard < 0.95


def test_rows_that_are_too_short_for_the_papers_share_are_no_silent_success(model):
    # 0.001 of at most 128 entries is none.
    with pytest.raises(BadSetting, match=r"cad: expected a share that takes an entry .* got none in .* 16 to 128"):
        Cad(steps=1).mask(model, [CHURCH])
    assert Cad(steps=1, per="matrix").mask(model, [CHURCH]).count > 0


def test_refuses_a_model_without_feed_forwards(model, monkeypatch):
    monkeypatch.setattr("palimpsest.erasers.cad.WEIGHTS", r"unet\..*no_ff.*")
    with pytest.raises(BadModel, match="expected a model with matrices called"):
        Cad().mask(model, [CHURCH])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio": 0.0}, "expected 0 < ratio <= 1, got 0.0"),
        ({"ratio": 1.5}, "expected 0 < ratio <= 1, got 1.5"),
        ({"steps": 0}, "expected steps >= 1, got 0"),
        ({"prompt": "a church"}, "expected a prompt with {} for the concept's name, got 'a church'"),
    ],
)
def test_refuses_what_the_method_does_not_hold_for(settings, message):
    with pytest.raises(BadSetting, match=message):
        Cad(**settings)
