"""ConceptPrune against the authors' procedure, followed on the pipeline itself in numpy."""

import numpy as np
import pytest
import torch
from diffusers import PNDMScheduler

from cases import concept
from palimpsest.erasers import ConceptPrune
from palimpsest.errors import BadSetting
from tiny import tiny_model, tiny_pipeline

CHURCH = concept(
    "church",
    pairs=(
        ("a church on the sea", "the sea"),
        ("a red church in the snow", "the snow"),
        ("a church at night", "a desert"),
    ),
)
ALICE = concept("alice", "identity", pairs=(("a photo of alice", "a photo"),))
LINEARS = r"unet\..*\.ff\.net\.2\.weight"
Q, TAU = 0.2, 4


@pytest.fixture(scope="module")
def model():
    return tiny_model(batch=2)


@pytest.fixture(scope="module")
def pipeline():
    made = tiny_pipeline()
    made.scheduler = PNDMScheduler.from_config(made.scheduler.config, skip_prk_steps=True)
    made.set_progress_bar_config(disable=True)
    return made


def norms(pipeline, prompts, mutation=""):
    """Weight's name -> (steps, in): A of the docstring, read off the pipeline while it draws each prompt alone."""
    rows, undo = {}, []
    for name, module in pipeline.unet.named_modules():
        if name.endswith("ff.net.2"):
            seen = rows.setdefault(f"unet.{name}.weight", [])
            undo.append(module.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0].numpy())))
    for number, prompt in enumerate(prompts):
        seed = number if mutation == "noise of its own" else 0
        pipeline(
            prompt,
            num_inference_steps=10,
            guidance_scale=7.5,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
        )
    for hook in undo:
        hook.remove()
    told = {}
    for name, seen in rows.items():
        total = []
        for step in range(TAU):
            of_step = seen[step :: len(seen) // len(prompts)]
            if mutation == "one branch":
                of_step = [both[1:] for both in of_step]
            z = np.concatenate([both.reshape(-1, both.shape[-1]) for both in of_step]).astype(np.float64)
            if mutation != "rows as they are":
                z = z / np.linalg.norm(z, axis=1, keepdims=True)
            total.append(np.sqrt((z**2).sum(0)))
        told[name] = np.stack(total)
    return told


def masks(pipeline, record, *, mutation="", select_ratio=0.0):
    """Weight's name -> (out, in) bool."""
    given, absent = (norms(pipeline, prompts, mutation) for prompts in zip(*record.pairs, strict=True))
    made = {}
    for name, weight in pipeline.unet.state_dict().items():
        key = f"unet.{name}"
        if key not in given:
            continue
        size = np.abs(weight.double().numpy())
        count = np.zeros(size.shape)
        for step in range(1 if mutation == "the first step alone" else TAU):
            score, other = size * given[key][step], size * absent[key][step]
            if mutation == "magnitude":
                score = size
            kept = int(Q * size.shape[1])
            if mutation == "per matrix":
                top = score >= np.sort(score.flatten())[-kept * len(score)]
            else:
                top = score >= np.sort(score, axis=1)[:, -kept][:, None]
            count += top & ((score > other) | (mutation == "also what others need more"))
        made[key] = count > select_ratio * TAU
    return made


def found(model, **settings):
    eraser = ConceptPrune(**({"q": Q, "tau": TAU, "steps": 10} | settings))
    return {name: mask.numpy() for name, mask in eraser.mask(model, CHURCH).items()}


def disagreement(ours, theirs):
    """Share of the entries that either prunes and not both do."""
    assert ours.keys() == theirs.keys()
    either = sum((ours[name] | mask).sum() for name, mask in theirs.items())
    return sum((ours[name] ^ mask).sum() for name, mask in theirs.items()) / either


@pytest.mark.parametrize("select_ratio", [0.0, 0.5])
def test_equals_the_authors_procedure(model, pipeline, select_ratio):
    theirs = masks(pipeline, CHURCH, select_ratio=select_ratio)
    assert sum(mask.sum() for mask in theirs.values()) > 100
    # A tie may fall otherwise in another order of sums.
    assert disagreement(found(model, select_ratio=select_ratio), theirs) < 0.005


@pytest.mark.parametrize(
    "mutation",
    [
        "rows as they are",
        "one branch",
        "noise of its own",
        "the first step alone",
        "also what others need more",
        "magnitude",
        "per matrix",
    ],
)
def test_another_method_does_not_pass(model, pipeline, mutation):
    assert disagreement(found(model), masks(pipeline, CHURCH, mutation=mutation)) > 0.02


def test_zeroes_the_mask_and_nothing_else(model):
    eraser = ConceptPrune(q=Q, tau=TAU, steps=10)
    mask = eraser.mask(model, CHURCH)
    pruned = eraser.erase(model, [CHURCH], random=torch.Generator()).weights(LINEARS)
    for name, weight in model.weights(LINEARS).items():
        assert torch.equal(pruned[name], weight * ~mask[name])
        assert (mask[name].sum(1) <= TAU * int(Q * weight.shape[1])).all()


def test_masks_of_several_concepts_are_joined(model):
    eraser = ConceptPrune(q=Q, tau=TAU, steps=10)
    both = eraser.erase(model, [CHURCH, ALICE], random=torch.Generator()).weights(LINEARS)
    church, alice = eraser.mask(model, CHURCH), eraser.mask(model, ALICE)
    assert all(torch.equal(weight == 0, church[name] | alice[name]) for name, weight in both.items())
    assert any((church[name] != alice[name]).any() for name in both)


def test_shares_and_steps_are_the_papers_for_the_kind(model, monkeypatch):
    told = []
    monkeypatch.setattr(ConceptPrune, "_taken", lambda self, weight, given, absent, q: told.append((len(given), q)))
    for kind in ("object", "style", "identity", "content"):
        ConceptPrune().mask(model, concept("church", kind, pairs=CHURCH.pairs[:1]))
    assert list(dict.fromkeys(told)) == [(10, 0.02), (10, 0.01), (9, 0.01)]


def test_refuses_a_concept_without_pairs(model):
    with pytest.raises(BadSetting, match="expected concept 'church' to have pairs of prompts"):
        ConceptPrune().mask(model, concept("church"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"q": 0.0}, "expected 0 < q <= 1, got 0.0"),
        ({"q": 1.5}, "expected 0 < q <= 1, got 1.5"),
        ({"tau": 0}, "expected tau from 1 to steps"),
        ({"tau": 51}, r"expected tau from 1 to steps \(50\), got 51"),
        ({"select_ratio": 1.0}, "expected 0 <= select_ratio < 1, got 1.0"),
        ({"guidance": 1.0}, "expected guidance > 1, got 1.0"),
    ],
)
def test_refuses_what_the_method_does_not_hold_for(settings, message):
    with pytest.raises(BadSetting, match=message):
        ConceptPrune(**settings)
