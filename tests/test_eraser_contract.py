"""What every eraser keeps to."""

import re

import pytest
import torch
from safetensors.torch import save_file

from cases import concept
from palimpsest.component import build
from palimpsest.erasers import ERASERS
from palimpsest.model import Sampling
from palimpsest.records import Attempt
from tiny import tiny_model

KV = r"unet\..*\.attn2\.to_[kv]\.weight"
ESD = {"name": "esd", "iterations": 2, "lr": 1e-2, "steps": 3}
FF2 = r"unet\..*\.ff\.net\.2\.weight"
PRUNE = {"name": "concept_prune", "q": 0.2, "tau": 2, "steps": 4}
FIA = {"name": "fia", "r2": 0.1, "tau": 2, "steps": 4}
KEPT = r"(time_embedding|conv_norm_out|conv_out)\."

CASES = {
    "nothing": ({"name": "nothing"}, r"(?!)"),
    "checkpoint": ({"name": "checkpoint"}, r"unet\..*"),
    "cad": ({"name": "cad", "ratio": 0.1, "steps": 2}, r"unet\..*\.ff\.net\.(0\.proj|2)\.weight"),
    "conceal": ({"name": "conceal", "pruner": PRUNE}, FF2),
    "conceal trained": ({"name": "conceal", "pruner": PRUNE, "fill": "levelled", "iterations": 2}, FF2),
    "concept_prune": (PRUNE, FF2),
    "concept_prune ff1": (PRUNE | {"layers": "ff1"}, r"unet\..*\.ff\.net\.0\.proj\.weight"),
    "concept_prune keys": (PRUNE | {"layers": "keys"}, r"unet\..*\.attn2\.to_k\.weight"),
    "concept_prune values": (PRUNE | {"layers": "values"}, r"unet\..*\.attn2\.to_v\.weight"),
    "concept_prune text": (PRUNE | {"layers": "text"}, r"text_encoder\..*\.mlp\.fc2\.weight"),
    "esd x": (ESD, r"unet\..*\.attn2\..*"),
    "esd x-strict": (ESD | {"variant": "x-strict"}, KV),
    "esd u": (ESD | {"variant": "u"}, rf"unet\.(?!.*\.attn2\.)(?!{KEPT}).*"),
    "esd self": (ESD | {"variant": "self"}, r"unet\..*\.attn1\..*"),
    "esd all": (ESD | {"variant": "all"}, r"unet\..*"),
    "esd 2024 x": (ESD | {"form": "2024"}, r"unet\..*\.attn2\..*"),
    "esd 2024 u": (ESD | {"form": "2024", "variant": "u"}, r"unet\.(?!.*\.attn2\.)(?!.*norm).*"),
    "fia": (FIA, FF2),
    "fia paper": (FIA | {"form": "paper"}, FF2),
    "magnitude": ({"name": "magnitude"}, FF2),
    "uce": ({"name": "uce", "retain": True}, KV),
    "uce 2023": ({"name": "uce", "form": "2023", "target": "tensor"}, KV),
}
"""Name -> (spec, which weights it may change; those it says it changes)."""

CONCEPTS = [
    concept(
        "church", neighbours=("house",), pairs=(("a church on the sea", "the sea"), ("a church at night", "night"))
    ),
    concept(
        "van gogh",
        "style",
        pairs=(("a house by van gogh", "a photo of a house"), ("a tree by van gogh", "a photo of a tree")),
    ),
]


@pytest.fixture(scope="module")
def model():
    return tiny_model(batch=1)


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    spec, pattern = CASES[request.param]
    if spec["name"] == "checkpoint":
        path = tmp_path_factory.mktemp("checkpoint") / "theirs.safetensors"
        save_file({key: weight + 0.01 for key, weight in tiny_model().unet.state_dict().items()}, path)
        spec = spec | {"path": str(path)}
    return build("eraser", ERASERS, spec), re.compile(pattern)


@pytest.fixture(scope="module")
def erased(case, model):
    """What the eraser made of the model, once for all tests that only look at it."""
    return erase(case[0], model)


def erase(eraser, model, *, concepts=CONCEPTS):
    return eraser.erase(model, concepts, random=torch.Generator().manual_seed(0))


def test_every_eraser_has_a_case():
    assert {spec["name"] for spec, _ in CASES.values()} == {eraser.name for eraser in ERASERS}


def test_leaves_its_input_alone(case, model):
    eraser, _ = case
    model.forget()
    before, outside = model.fingerprint, torch.get_rng_state()
    for _, stage in eraser.stages(model, CONCEPTS, random=torch.Generator().manual_seed(0)):
        assert not any(weight.requires_grad for weight in stage.weights().values())
    model.forget()
    assert model.fingerprint == before
    assert all(weight.grad is None and not weight.requires_grad for weight in model.weights().values())
    assert torch.equal(torch.get_rng_state(), outside)


def test_the_spec_rebuilds_it_and_the_same_seed_gives_the_same_weights(case, model, erased):
    eraser, _ = case
    again = build("eraser", ERASERS, eraser.spec)
    assert again == eraser
    assert erase(again, model).fingerprint == erased.fingerprint


def test_changes_the_weights_it_says_and_shares_all_others(case, model, erased):
    _, pattern = case
    after = erased.weights()
    changed = {name for name, weight in model.weights().items() if not torch.equal(weight, after[name])}
    allowed = {name for name in after if pattern.fullmatch(name)}
    assert changed <= allowed
    # What has no gradient at all stays: a bias that a norm takes out again, say. All else that may change does.
    assert len(changed) >= 0.9 * len(allowed)
    before = model.weights()
    assert all(after[name].data_ptr() == before[name].data_ptr() for name in before.keys() - allowed)


def test_the_model_it_gives_draws(erased):
    (picture,) = erased.draw([Attempt(prompt="a church", seed=0)], Sampling(steps=2))
    assert picture.size == erased.picture_size


@pytest.mark.parametrize("name", ["cad", "concept_prune", "esd x", "fia", "fia paper", "uce", "uce 2023"])
def test_each_of_several_concepts_counts(name, model):
    eraser = build("eraser", ERASERS, CASES[name][0] | ({"iterations": 8} if "esd" in name else {}))
    both = erase(eraser, model).fingerprint
    assert both not in {erase(eraser, model, concepts=[one]).fingerprint for one in CONCEPTS}


def test_names_are_their_own():
    assert len({eraser.name for eraser in ERASERS}) == len(ERASERS)
    for eraser in ERASERS:
        assert eraser.__module__ == f"palimpsest.erasers.{eraser.name}"
        assert eraser.__name__.lower() == eraser.name.replace("_", "")
