"""FIA against its equations, followed on the pipeline itself in numpy."""

from functools import cache

import numpy as np
import pytest
import torch
from diffusers import PNDMScheduler

from cases import concept
from palimpsest.erasers import Fia
from palimpsest.errors import BadModel, BadSetting
from palimpsest.pruning import PATTERNS, Mask
from tiny import tiny_model, tiny_pipeline

CHURCH = concept(
    "church",
    pairs=(
        ("a church on the sea", "the sea"),
        ("a red church in the snow", "the snow"),
        ("a church at night", "a desert"),
    ),
)
TREE = concept("tree", pairs=(("a tree on the sea", "the sea"), ("a red tree", "red"), ("a tree in snow", "snow")))
VAN_GOGH = concept(
    "van gogh",
    "style",
    pairs=(("a house by van gogh", "a photo of a house"), ("a dog by van gogh", "a photo of a dog")),
)
R1, R2, TAU = 0.3, 0.05, 4
SHORT = {"r1": R1, "r2": R2, "tau": TAU, "steps": 10}


@pytest.fixture(scope="module")
def model():
    return tiny_model(batch=2)


@pytest.fixture(scope="module")
def seen():
    """Prompt -> weight's name -> (X, Y) of the linear at each step, read off the pipeline as it draws each alone."""
    pipeline = tiny_pipeline()
    pipeline.scheduler = PNDMScheduler.from_config(pipeline.scheduler.config, skip_prk_steps=True)
    told = {}
    for prompt in {prompt for one in (CHURCH, TREE) for pair in one.pairs for prompt in pair}:
        rows, undo = told.setdefault(prompt, {}), []
        for name, module in pipeline.unet.named_modules():
            if name.endswith("ff.net.2"):
                steps = rows.setdefault(f"unet.{name}.weight", [])

                def record(module, inputs, output, steps=steps):
                    steps.append(tuple(part.flatten(0, 1).numpy().astype(np.float64) for part in (inputs[0], output)))

                undo.append(module.register_forward_hook(record))
        pipeline(
            prompt,
            num_inference_steps=10,
            guidance_scale=7.5,
            generator=torch.Generator().manual_seed(1244),
            output_type="latent",
        )
        for hook in undo:
            hook.remove()
    return told


def unified(size, x, y, *, form, mutation):
    """U of one prompt at one step."""
    if form == "released":
        if mutation != "rows as they are":
            x = x / np.linalg.norm(x, axis=1, keepdims=True)
        return size * np.linalg.norm(x, axis=0)
    lengths = np.linalg.norm(x, axis=0)
    if mutation == "no cosine":
        return size * lengths
    cosine = y.T @ x / (np.linalg.norm(y, axis=0)[:, None] * lengths)
    return size * lengths * (cosine if mutation == "signed cosine" else np.abs(cosine))


def by_hand(model, seen, record, *, form="released", mutation="", r2=R2):
    """Weight's name -> Q (out, in) bool."""
    made = {}
    for name, weight in model.weights(PATTERNS["ff2"]).items():
        size = np.abs(weight.detach().double().numpy())
        saliency = []
        for step in range(1 if mutation == "the first step alone" else TAU):
            given, absent = (
                np.stack([unified(size, *seen[prompt][name][step], form=form, mutation=mutation) for prompt in prompts])
                for prompts in zip(*record.pairs, strict=True)
            )
            spread = {"no spread": 0, "sample's spread": absent.std(0, ddof=1)}.get(mutation, absent.std(0))
            saliency.append(np.maximum(0, given.mean(0) - absent.mean(0) - spread))
        saliency = np.stack(saliency)
        strength = saliency.mean(0)
        if (form == "released") != (mutation == "scaled otherwise"):
            strength = strength / strength.max()
        least = np.sort(saliency.reshape(len(saliency), -1), axis=1)[:, -int(R1 * size.size)]
        persistence = (saliency > least[:, None, None]).mean(0)
        score = {"strength alone": strength, "persistence alone": persistence}.get(
            mutation, strength / 2 + persistence / 2
        )
        in_row = score >= np.sort(score, axis=1)[:, -int(r2 * size.shape[1])][:, None]
        in_all = score >= np.sort(score.flatten())[-int(r2 * size.size)]
        both = {"rows alone": in_row, "matrix alone": in_all, "either": in_row | in_all}.get(mutation, in_row & in_all)
        made[name] = both & (score > 0)
    return made


def found(model, *concepts, **settings):
    mask = Fia(**(SHORT | settings)).mask(model, concepts)
    return {name: marks.numpy() for name, marks in mask.entries.items()}


@pytest.fixture(scope="module")
def church(model):
    """What each form prunes for the church."""
    return cache(lambda form: found(model, CHURCH, form=form))


def disagreement(ours, theirs):
    """Share of the entries that either prunes and not both do."""
    assert ours.keys() == theirs.keys()
    either = sum((ours[name] | marks).sum() for name, marks in theirs.items())
    return sum((ours[name] ^ marks).sum() for name, marks in theirs.items()) / either


@pytest.mark.parametrize("form", ["released", "paper"])
def test_equals_its_equations(model, seen, church, form):
    theirs = by_hand(model, seen, CHURCH, form=form)
    assert sum(marks.sum() for marks in theirs.values()) > 100
    # Single precision may order two equal scores otherwise.
    assert disagreement(church(form), theirs) < 0.005


@pytest.mark.parametrize(
    ("form", "mutation"),
    [
        ("released", "rows as they are"),
        ("released", "scaled otherwise"),
        ("released", "no spread"),
        ("released", "sample's spread"),
        ("released", "the first step alone"),
        ("released", "strength alone"),
        ("released", "persistence alone"),
        ("released", "rows alone"),
        ("released", "matrix alone"),
        ("released", "either"),
        ("paper", "no cosine"),
        ("paper", "signed cosine"),
        ("paper", "scaled otherwise"),
    ],
)
def test_another_method_does_not_pass(model, seen, church, form, mutation):
    theirs = by_hand(model, seen, CHURCH, form=form, mutation=mutation)
    assert disagreement(church(form), theirs) > 0.02


def test_the_two_forms_differ(church):
    assert disagreement(church("released"), church("paper")) > 0.1


def test_what_most_concepts_take_is_kept(model, seen):
    one, other = (by_hand(model, seen, record, r2=0.15) for record in (CHURCH, TREE))
    # ceil(0.6 * 2) = 2: what both take is agnostic.
    one_alone = {name: one[name] ^ other[name] for name in one}
    assert sum((one[name] & other[name]).sum() for name in one) > 20
    ours = found(model, CHURCH, TREE, r2=0.15)
    assert disagreement(ours, one_alone) < 0.005
    assert disagreement(ours, {name: one[name] | other[name] for name in one}) > 0.02


def test_the_bound_is_that_of_the_paper():
    many = [CHURCH] * 10
    assert [Fia(alpha=alpha)._bound(many) for alpha in (0.6, 0.7, 0.75, 1.0)] == [6, 7, 8, 10]
    assert [Fia()._bound([one] * 5) for one in (CHURCH, VAN_GOGH)] == [3, 4]
    assert Fia()._bound([CHURCH, CHURCH, CHURCH, CHURCH, VAN_GOGH]) == 4


def test_a_single_concept_is_pruned_without_fusion(model, seen):
    alone = found(model, CHURCH, alpha=0.6)
    assert sum(marks.sum() for marks in alone.values()) > 100
    assert disagreement(alone, by_hand(model, seen, CHURCH)) < 0.005


def test_an_alpha_that_would_keep_all_is_refused(model):
    with pytest.raises(BadSetting, match=r"expected alpha > 1 / 2 for 2 concepts, got 0.5"):
        found(model, CHURCH, TREE, alpha=0.5)


def test_zeroes_the_mask_and_nothing_else(model):
    eraser = Fia(**SHORT)
    mask = eraser.mask(model, [CHURCH])
    pruned = eraser.erase(model, [CHURCH], random=torch.Generator())
    before = model.weights()
    for name, weight in pruned.weights().items():
        one = before[name]
        assert torch.equal(weight, one * ~mask.entries[name]) if name in mask.entries else weight is one
    assert Mask.of_zeros(pruned).overlap(mask).jaccard == 1


def test_shares_are_the_papers_for_the_concept(model, monkeypatch):
    told = []

    def largest(scores, share, **_):
        told.append(share)
        return torch.ones_like(scores, dtype=torch.bool)

    monkeypatch.setattr("palimpsest.erasers.fia.largest", largest)
    for name, kind in (
        ("church", "object"),
        ("monet", "style"),
        ("alice", "identity"),
        ("sign", "content"),
        ("van gogh", "style"),
        ("parachute", "object"),
    ):
        Fia(tau=1, steps=2).mask(model, [concept(name, kind, pairs=CHURCH.pairs)])
    assert list(dict.fromkeys(told)) == [0.007, 0.02, 0.01, 0.03]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ((), "expected concept 'church' to have pairs of prompts"),
        ((("a church", "a house"),), "at least 2 prompts without it, for their standard deviation, got 1"),
        ((("a church", "a house"), ("a red church", "a house")), "standard deviation, got 1"),
    ],
)
def test_refuses_a_concept_without_enough_pairs(model, pairs, message):
    with pytest.raises(BadSetting, match=message):
        Fia().mask(model, [concept("church", pairs=pairs)])


def test_refuses_a_model_without_feed_forwards(model, monkeypatch):
    monkeypatch.setitem(PATTERNS, "ff2", r"unet\..*\.no_ff\.weight")
    with pytest.raises(BadModel, match="expected a model with matrices called"):
        Fia().mask(model, [CHURCH])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r1": 0.0}, "expected 0 < r1 <= 1, got 0.0"),
        ({"r2": 0.0}, "expected 0 < r2 <= 1, got 0.0"),
        ({"alpha": 1.5}, "expected 0 < alpha <= 1, got 1.5"),
        ({"tau": 51}, r"expected tau from 1 to steps \(50\), got 51"),
        ({"guidance": 1.0}, "expected guidance > 1, got 1.0"),
    ],
)
def test_refuses_what_the_method_does_not_hold_for(settings, message):
    with pytest.raises(BadSetting, match=message):
        Fia(**settings)
