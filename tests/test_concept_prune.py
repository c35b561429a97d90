"""ConceptPrune against the authors' procedure, followed on the pipeline itself in numpy."""

from functools import cache

import numpy as np
import pytest
import torch
from diffusers import PNDMScheduler

from cases import concept
from palimpsest.erasers import ConceptPrune
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
ALICE = concept("alice", "identity", pairs=(("a photo of alice", "a photo"),))
LINEARS = PATTERNS["ff2"]
ENDS = {"ff2": "ff.net.2", "ff1": "ff.net.0.proj", "keys": "attn2.to_k", "values": "attn2.to_v", "text": "mlp.fc2"}
Q, TAU = 0.2, 4


@pytest.fixture(scope="module")
def model():
    return tiny_model(batch=2)


@pytest.fixture(scope="module")
def ours(model):
    """What the eraser prunes."""
    return found(model)


@cache
def pipeline():
    made = tiny_pipeline()
    made.scheduler = PNDMScheduler.from_config(made.scheduler.config, skip_prk_steps=True)
    made.set_progress_bar_config(disable=True)
    return made


@cache
def seen(prompt, seed):
    """Weight's name -> what its linear is given at each forward, read off the pipeline while it draws the prompt."""
    told, undo = {}, []
    for part in ("unet", "text_encoder"):
        for name, module in getattr(pipeline(), part).named_modules():
            if name.endswith(tuple(ENDS.values())):
                rows = told.setdefault(f"{part}.{name}.weight", [])
                undo.append(
                    module.register_forward_pre_hook(lambda _, inputs, rows=rows: rows.append(inputs[0].numpy()))
                )
    pipeline()(
        prompt,
        num_inference_steps=10,
        guidance_scale=7.5,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
    )
    for hook in undo:
        hook.remove()
    return told


def norms(prompts, mutation="", layers="ff2"):
    """Weight's name -> (steps, in): A of the docstring."""
    each = [seen(prompt, number if mutation == "noise of its own" else 0) for number, prompt in enumerate(prompts)]
    told = {}
    for name in each[0]:
        if not name.endswith(f"{ENDS[layers]}.weight"):
            continue
        total = []
        for step in range(1 if layers == "text" else TAU):
            # The text encoder reads each prompt and the empty one, and that is all.
            of_step = [both for one in each for both in (one[name] if layers == "text" else one[name][step : step + 1])]
            if mutation == "one branch":
                of_step = [both[1:] for both in of_step]
            z = np.concatenate([both.reshape(-1, both.shape[-1]) for both in of_step]).astype(np.float64)
            if mutation != "rows as they are":
                z = z / np.linalg.norm(z, axis=1, keepdims=True)
            total.append(np.sqrt((z**2).sum(0)))
        told[name] = np.stack(total)
    return told


def masks(record, *, mutation="", select_ratio=0.0, layers="ff2"):
    """Weight's name -> (out, in) bool."""
    given, absent = (norms(prompts, mutation, layers) for prompts in zip(*record.pairs, strict=True))
    made = {}
    for key in given:
        part, _, name = key.partition(".")
        weight = getattr(pipeline(), part).state_dict()[name]
        size = np.abs(weight.double().numpy())
        count = np.zeros(size.shape)
        for step in range(1 if mutation == "the first step alone" else len(given[key])):
            score, other = size * given[key][step], size * absent[key][step]
            if mutation == "magnitude":
                score = size
            kept = int(Q * size.shape[1])
            if mutation == "per matrix":
                top = score >= np.sort(score.flatten())[-kept * len(score)]
            else:
                top = score >= np.sort(score, axis=1)[:, -kept][:, None]
            count += top & ((score > other) | (mutation == "also what others need more"))
        made[key] = count > select_ratio * len(given[key])
    return made


def found(model, **settings):
    eraser = ConceptPrune(**({"q": Q, "tau": TAU, "steps": 10} | settings))
    return {name: marks.numpy() for name, marks in eraser.mask(model, [CHURCH]).entries.items()}


def disagreement(ours, theirs):
    """Share of the entries that either prunes and not both do."""
    assert ours.keys() == theirs.keys()
    either = sum((ours[name] | mask).sum() for name, mask in theirs.items())
    return sum((ours[name] ^ mask).sum() for name, mask in theirs.items()) / either


@pytest.mark.parametrize("select_ratio", [0.0, 0.5])
def test_equals_the_authors_procedure(model, select_ratio):
    theirs = masks(CHURCH, select_ratio=select_ratio)
    assert sum(mask.sum() for mask in theirs.values()) > 100
    # A tie may fall otherwise in another order of sums.
    assert disagreement(found(model, select_ratio=select_ratio), theirs) < 0.005


@pytest.mark.parametrize("layers", ["ff1", "keys", "values", "text"])
def test_equals_the_authors_procedure_for_other_layers(model, layers):
    theirs = masks(CHURCH, layers=layers)
    assert sum(mask.sum() for mask in theirs.values()) > 20
    assert disagreement(found(model, layers=layers), theirs) < 0.005
    pruned = ConceptPrune(q=Q, tau=TAU, steps=10, layers=layers).erase(model, [CHURCH], random=torch.Generator())
    changed = Mask.of_zeros(pruned, r"(unet|text_encoder)\..*").entries
    assert changed.keys() == {name for name, mask in theirs.items() if mask.any()}


def test_the_text_encoder_reads_the_empty_prompt_too(model, monkeypatch):
    theirs = masks(CHURCH, layers="text")
    embed = type(model).embed
    monkeypatch.setattr(type(model), "embed", lambda self, prompts: embed(self, [text for text in prompts if text]))
    assert disagreement(found(model, layers="text"), theirs) > 0.02


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
def test_another_method_does_not_pass(ours, mutation):
    assert disagreement(ours, masks(CHURCH, mutation=mutation)) > 0.02


def test_zeroes_the_mask_and_nothing_else(model):
    eraser = ConceptPrune(q=Q, tau=TAU, steps=10)
    mask = eraser.mask(model, [CHURCH])
    pruned = eraser.erase(model, [CHURCH], random=torch.Generator()).weights(LINEARS)
    for name, weight in model.weights(LINEARS).items():
        assert torch.equal(pruned[name], weight * ~mask.entries[name])
        assert (mask.entries[name].sum(1) <= TAU * int(Q * weight.shape[1])).all()


def test_masks_of_several_concepts_are_joined(model):
    eraser = ConceptPrune(q=Q, tau=TAU, steps=10)
    both = eraser.erase(model, [CHURCH, ALICE], random=torch.Generator())
    church, alice = eraser.mask(model, [CHURCH]), eraser.mask(model, [ALICE])
    assert Mask.of_zeros(both).overlap(church | alice).jaccard == 1
    assert church.overlap(alice).jaccard < 0.9


def test_shares_and_steps_are_the_papers_for_the_kind(model, monkeypatch):
    told = []

    def taken(self, weight, given, absent, q):
        told.append((len(given), q))
        return torch.ones_like(weight, dtype=torch.bool)

    monkeypatch.setattr(ConceptPrune, "_taken", taken)
    for kind in ("object", "style", "identity", "content"):
        ConceptPrune().mask(model, [concept("church", kind, pairs=CHURCH.pairs[:1])])
    assert list(dict.fromkeys(told)) == [(10, 0.02), (10, 0.01), (9, 0.01)]


def test_refuses_a_concept_without_pairs(model):
    with pytest.raises(BadSetting, match="expected concept 'church' to have pairs of prompts"):
        ConceptPrune().mask(model, [concept("church")])


def test_refuses_a_share_of_no_entry(model):
    with pytest.raises(BadSetting, match="expected a share that takes an entry of at least one row, got none"):
        ConceptPrune(q=0.001, tau=1, steps=2).mask(model, [CHURCH])


def test_refuses_a_model_without_such_layers(model, monkeypatch):
    monkeypatch.setitem(PATTERNS, "keys", r"unet\..*\.no_keys\.weight")
    with pytest.raises(BadModel, match="expected a model with matrices called"):
        ConceptPrune(layers="keys").mask(model, [CHURCH])


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
