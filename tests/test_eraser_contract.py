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
from tiny import tiny_model, tiny_pipeline

KV = r"unet\..*\.attn2\.to_[kv]\.weight"
ESD = {"name": "esd", "iterations": 2, "lr": 1e-2, "steps": 3}
FF2 = r"unet\..*\.ff\.net\.2\.weight"
PRUNE = {"name": "concept_prune", "q": 0.2, "tau": 2, "steps": 4}
FIA = {"name": "fia", "r2": 0.1, "tau": 2, "steps": 4}
AC = {"name": "ac", "iterations": 2, "lr": 1e-2, "pictures": 4, "steps": 2}
FMN = {"name": "fmn", "iterations": 2, "lr": 1e-2, "pictures": 2, "steps": 2}
SALUN = {"name": "salun", "share": 1.0, "epochs": 1, "lr": 1e-2, "pictures": 4, "batch": 2, "steps": 2}
SCISSORHANDS = {"name": "scissorhands", "sparsity": 0.5, "saliency": 2, "epochs": 1, "lr": 1e-2}
SCISSORHANDS |= {"pictures": 4, "batch": 2, "steps": 2}
KEPT = r"(time_embedding|conv_norm_out|conv_out)\."

ADVERSARIAL = {"name": "advunlearn", "iterations": 2, "warm_up": 1, "lr": 1e-2, "steps": 2, "attack_steps": 1}
RECELER = {"name": "receler", "iterations": 2, "lr": 1e-2, "steps": 2, "attack_steps": 1, "soft": 2, "hidden": 8}
STEREO = {"name": "stereo", "rounds": 1, "iterations": 2, "lr": 1e-2, "steps": 2, "inversions": 1, "pictures": 1}

CASES = {
    "nothing": ({"name": "nothing"}, r"(?!)"),
    "chain": ({"name": "chain", "erasers": ["uce", ESD]}, r"unet\..*\.attn2\..*"),
    "checkpoint": ({"name": "checkpoint"}, r"unet\..*"),
    "ac": (AC, KV),
    "ac attn": (AC | {"weights": "attn", "prior": 1.0}, r"unet\..*\.attn2\..*"),
    "ac full": (AC | {"weights": "full", "form": "noise"}, r"unet\..*"),
    "ac embedding": (AC | {"weights": "embedding"}, r"text_encoder\..*token_embedding\.weight"),
    "advunlearn": (ADVERSARIAL, r"text_encoder\..*"),
    "advunlearn fast_at": (ADVERSARIAL | {"attack": "fast_at"}, r"text_encoder\..*"),
    "cad": ({"name": "cad", "ratio": 0.1, "steps": 2}, r"unet\..*\.ff\.net\.(0\.proj|2)\.weight"),
    "conceal": ({"name": "conceal", "pruner": PRUNE}, FF2),
    "conceal trained": ({"name": "conceal", "pruner": PRUNE, "fill": "levelled", "iterations": 2}, FF2),
    "concept_prune": (PRUNE, FF2),
    "concept_prune ff1": (PRUNE | {"layers": "ff1"}, r"unet\..*\.ff\.net\.0\.proj\.weight"),
    "concept_prune keys": (PRUNE | {"layers": "keys"}, r"unet\..*\.attn2\.to_k\.weight"),
    "concept_prune values": (PRUNE | {"layers": "values"}, r"unet\..*\.attn2\.to_v\.weight"),
    "concept_prune text": (PRUNE | {"layers": "text"}, r"text_encoder\..*\.mlp\.fc2\.weight"),
    "erase_again": ({"name": "erase_again", "vectors": 2, "pictures": 1, "inversions": 2}, KV),
    "esd x": (ESD, r"unet\..*\.attn2\..*"),
    "esd x-strict": (ESD | {"variant": "x-strict"}, KV),
    "esd u": (ESD | {"variant": "u"}, rf"unet\.(?!.*\.attn2\.)(?!{KEPT}).*"),
    "esd self": (ESD | {"variant": "self"}, r"unet\..*\.attn1\..*"),
    "esd all": (ESD | {"variant": "all"}, r"unet\..*"),
    "esd 2024 x": (ESD | {"form": "2024"}, r"unet\..*\.attn2\..*"),
    "esd 2024 u": (ESD | {"form": "2024", "variant": "u"}, r"unet\.(?!.*\.attn2\.)(?!.*norm).*"),
    "fia": (FIA, FF2),
    "fia paper": (FIA | {"form": "paper"}, FF2),
    "fmn": (FMN, r"unet\..*"),
    "fmn attn2": (FMN | {"variant": "attn2", "inversion": 2, "end": False}, r"unet\..*\.attn2\..*"),
    "mace": ({"name": "mace", "iterations": 2, "lr": 1e-2, "lam": 1.0, "pictures": 2, "steps": 2}, KV),
    "magnitude": ({"name": "magnitude"}, FF2),
    "negative_prompt": ({"name": "negative_prompt"}, r"(?!)"),
    "rece": ({"name": "rece", "epochs": 2}, KV),
    "receler": (RECELER, r"unet\..*\.attn2\.to_out\.1\.(down|up)\.(weight|bias)"),
    "reset": ({"name": "reset"}, KV),
    "salun": (SALUN, r"unet\..*"),
    "salun attn2": (SALUN | {"layers": "attn2"}, r"unet\..*\.attn2\..*"),
    "scissorhands": (SCISSORHANDS, r"unet\..*"),
    "scissorhands all": (SCISSORHANDS | {"where": "all", "project": True}, r"unet\..*"),
    "scissorhands pseudo": (SCISSORHANDS | {"form": "pseudo"}, r"unet\..*"),
    "sld": ({"name": "sld", "strength": "max"}, r"(?!)"),
    "stereo xattn": (STEREO | {"variant": "xattn"}, r"unet\..*\.attn2\..*"),
    "stereo noxattn": (STEREO, r"unet\.(?!.*\.attn2\.)(?!.*norm).*"),
    "text_perturbation": ({"name": "text_perturbation"}, r"(?!)"),
    "uce": ({"name": "uce", "retain": True}, KV),
    "uce 2023": ({"name": "uce", "form": "2023", "target": "tensor"}, KV),
    "widened": ({"name": "widened", "words": ["qz"]}, KV),
}
"""Name -> (spec, which weights it may change; those it says it changes)."""

VARIANTS = [name for name in CASES if " " in name and name not in ("esd x", "stereo xattn")]
"""Further settings of erasers that have a case already: slow tests."""

SEVERAL = ["ac", "ac embedding", "cad", "concept_prune", "esd x", "fia", "fia paper", "fmn", "salun", "scissorhands"]
SEVERAL += ["mace", "negative_prompt", "rece", "sld", "uce", "uce 2023", "widened", "erase_again", "chain"]
PROVEN = ["cad", "concept_prune", "esd x", "fia", "mace", "rece"]
"""Of these, those whose own file holds several concepts against the method's equations: slow tests here."""

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


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] * (name in VARIANTS)) for name in CASES]
)
def case(request, tmp_path_factory):
    spec, pattern = CASES[request.param]
    if spec["name"] == "checkpoint":
        path = tmp_path_factory.mktemp("checkpoint") / "theirs.safetensors"
        save_file({key: weight + 0.01 for key, weight in tiny_model().unet.state_dict().items()}, path)
        spec = spec | {"path": str(path)}
    if spec["name"] == "reset":
        folder, pipeline = tmp_path_factory.mktemp("before"), tiny_pipeline()
        with torch.no_grad():
            for name, weight in pipeline.unet.named_parameters():
                if re.fullmatch(pattern, f"unet.{name}"):
                    weight += 0.1 * torch.outer(torch.ones(len(weight)), torch.arange(weight.shape[1]))
        pipeline.save_pretrained(folder)
        spec = spec | {"base": str(folder)}
    return build("eraser", ERASERS, spec), re.compile(pattern)


@pytest.fixture(scope="module")
def untouched(model):
    """The fingerprint before any eraser."""
    return model.fingerprint


@pytest.fixture(scope="module")
def erased(case, model, untouched):
    """What the eraser made of the model, once for all tests that only look at it."""
    found = erase(case[0], model)
    PRINTS[repr(case[0])] = found.fingerprint
    return found


PRINTS: dict[str, str] = {}
"""What each eraser that has run made of the model."""


def erase(eraser, model, *, concepts=CONCEPTS):
    return eraser.erase(model, concepts, random=torch.Generator().manual_seed(0))


def test_every_eraser_has_a_case():
    assert {spec["name"] for spec, _ in CASES.values()} == {eraser.name for eraser in ERASERS}


def test_the_same_spec_and_seed_give_the_same_weights_and_leave_the_input_alone(case, model, untouched, erased):
    eraser, _ = case
    again = build("eraser", ERASERS, eraser.spec)
    assert again == eraser
    torch.rand(())  # else who seeds the global generator twice alike would not be noticed
    outside, stage = torch.get_rng_state(), model
    for _, stage in again.stages(model, CONCEPTS, random=torch.Generator().manual_seed(0)):
        assert not any(weight.requires_grad for weight in stage.weights().values())
    assert stage.fingerprint == erased.fingerprint
    model.forget()
    assert model.fingerprint == untouched
    assert all(weight.grad is None and not weight.requires_grad for weight in model.weights().values())
    assert torch.equal(torch.get_rng_state(), outside)


def test_changes_the_weights_it_says_and_shares_all_others(case, model, erased):
    _, pattern = case
    after = erased.weights()
    before = model.weights()
    changed = {name for name, weight in after.items() if name not in before or not torch.equal(weight, before[name])}
    allowed = {name for name in after if pattern.fullmatch(name)}
    assert changed <= allowed
    # What has no gradient at all stays: a bias that a norm takes out again, say. All else that may change does.
    assert len(changed) >= 0.9 * len(allowed)
    assert all(after[name].data_ptr() == before[name].data_ptr() for name in before.keys() - allowed)


def test_the_model_it_gives_draws(erased):
    (picture,) = erased.draw([Attempt(prompt="a church", seed=0)], Sampling(steps=2))
    assert picture.size == erased.picture_size


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in VARIANTS + PROVEN)) for name in SEVERAL]
)
def test_each_of_several_concepts_counts(name, model):
    eraser = build("eraser", ERASERS, CASES[name][0] | ({"iterations": 5} if "esd" in name else {}))
    both = PRINTS.get(repr(eraser)) or erase(eraser, model).fingerprint
    assert both not in {erase(eraser, model, concepts=[one]).fingerprint for one in CONCEPTS}


def test_names_are_their_own():
    assert len({eraser.name for eraser in ERASERS}) == len(ERASERS)
    for eraser in ERASERS:
        assert eraser.__module__ == f"palimpsest.erasers.{eraser.name}"
        assert eraser.__name__.lower() == eraser.name.replace("_", "")
