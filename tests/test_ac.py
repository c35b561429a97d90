"""Concept ablation against a plain loop that shares no code with it."""

import copy
from dataclasses import dataclass

import pytest
import torch

from cases import concept
from palimpsest.erasers import Ac
from palimpsest.errors import BadSetting
from plain import Plain
from tiny import tiny_model

PAIRS = (("a photo of a church at night", "a photo of a house at night"), ("a church", "a tree"))
CHURCH = concept("church", pairs=PAIRS)
SETTINGS = {"iterations": 3, "lr": 1e-2, "batch": 2, "pictures": 3, "steps": 2}
KEYS = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
CLOSE = 1e-6


@pytest.fixture(scope="module")
def model():
    return tiny_model(dtype=torch.float64, batch=2)


@dataclass(kw_only=True)
class Loop(Plain):
    """Published concept ablation, in plain PyTorch; a mutation changes one thing in it."""

    form: str = "model"
    prior: float = 0.0
    mutation: str = ""

    def run(self) -> torch.Tensor:
        random = torch.Generator().manual_seed(0)
        pairs = [PAIRS[at % 2] for at in range(3)]
        student = copy.deepcopy(self.model.unet)
        mine = [
            weight.requires_grad_()
            for name, weight in student.named_parameters()
            if "attn2.to_k" in name or "attn2.to_v" in name
        ]
        adam = torch.optim.AdamW(mine, lr=SETTINGS["lr"] * (1 if self.mutation == "lr" else SETTINGS["batch"]))
        drawn = [pair[0] if self.mutation == "pictures of the concept" else pair[1] for pair in pairs]
        clean = self.pictures(drawn, random)
        for _ in range(SETTINGS["iterations"]):
            x, t, noise, rows = self.noised(clean, random, batch=2)
            target = noise
            if (self.form == "model") != (self.mutation == "the other target"):
                with torch.no_grad():
                    teacher = self.model.unet if self.mutation == "frozen target" else student
                    target = teacher(x, t, self.states([pairs[row][1] for row in rows])).sample
            loss = ((student(x, t, self.states([pairs[row][0] for row in rows])).sample - target) ** 2).mean()
            if self.prior:
                x, t, noise, rows = self.noised(clean, random, batch=2)
                said = student(x, t, self.states([pairs[row][1] for row in rows])).sample
                loss = loss + self.prior * ((said - noise) ** 2).mean()
            adam.zero_grad()
            loss.backward()
            if self.mutation != "uncut":
                torch.nn.utils.clip_grad_norm_(mine, NORM)
            adam.step()
        return dict(student.named_parameters())[KEYS.removeprefix("unet.")].detach()


NORM = 1e-4
"""Short enough to matter; Adam hardly minds, so what is left of its epsilon does."""


def erased(model, concepts=(CHURCH,), **settings):
    eraser = Ac(**(SETTINGS | {"norm": NORM} | settings))
    return eraser.erase(model, concepts, random=torch.Generator().manual_seed(0))


CASES = {"model": {}, "noise": {"form": "noise"}, "prior": {"prior": 0.5}}


@pytest.fixture(scope="module", params=CASES)
def case(request, model):
    """(the plain loop's settings, the weight that concept ablation comes to)."""
    settings = CASES[request.param]
    return settings, erased(model, **settings).weights()[KEYS]


def test_equals_a_plain_loop(model, case):
    settings, found = case
    assert (found - model.weights()[KEYS]).abs().max() > 1e-2
    torch.testing.assert_close(found, Loop(model=model, **settings).run(), atol=CLOSE, rtol=0)


@pytest.mark.parametrize("mutation", ["the other target", "pictures of the concept", "lr", "uncut"])
def test_another_method_does_not_pass(model, case, mutation):
    settings, found = case
    assert (found - Loop(model=model, **settings, mutation=mutation).run()).abs().max() > 10 * CLOSE


def test_the_target_is_what_the_student_says_by_then(model):
    frozen = Loop(model=model, mutation="frozen target").run()
    assert (erased(model).weights()[KEYS] - frozen).abs().max() > 10 * CLOSE


def test_the_student_answers_the_concept_as_its_anchor():
    model = tiny_model(batch=4)
    random = torch.Generator().manual_seed(1)
    x, t = torch.randn(8, *model.latent_shape, generator=random), torch.randint(0, 1000, (8,), generator=random)
    student = erased(model, iterations=30, lr=2e-3, batch=4, pictures=8)

    def apart(one):
        with torch.no_grad():
            church, tree = (one.predict_noise(x, t, one.embed([prompt] * 8)) for prompt in PAIRS[1])
        return float(((church - tree) ** 2).mean())

    assert apart(student) < 0.5 * apart(model)


def test_only_the_words_of_the_name_change_in_the_table(model):
    before, after = model.vocabulary, erased(model, weights="embedding").vocabulary
    changed = (before != after).any(dim=1).nonzero().flatten().tolist()
    assert changed == sorted(set(model.tokens("church").tolist()) - model.special_tokens)


@pytest.mark.parametrize(
    ("kind", "weights", "lr", "iterations", "prior"),
    [("object", "kv", 2e-6, 200, 0.0), ("style", "kv", 2e-6, 200, 0.0), ("content", "attn", 4e-6, 800, 1.0)],
)
def test_the_defaults_are_the_papers(model, kind, weights, lr, iterations, prior):
    one, few = concept("church", kind, pairs=PAIRS), {"pictures": 2, "steps": 1, "every": 1}
    stages = Ac(**few).stages(model, [one], random=torch.Generator().manual_seed(0))
    written = Ac(**few, weights=weights, lr=lr, iterations=2, prior=prior)
    expected = written.stages(model, [one], random=torch.Generator().manual_seed(0))
    assert next(stages)[1].fingerprint == next(expected)[1].fingerprint
    assert (Ac().batch, Ac().pictures, Ac().norm) == (4, 1000, 1.0)


@pytest.mark.parametrize(
    ("one", "settings", "told"),
    [
        (concept("church"), {}, "church' to have pairs of prompts .* or an anchor, got neither"),
        (CHURCH, {"anchor": "Church "}, "an anchor other than concept 'church' itself, got 'Church '"),
        (concept("church", anchor="church"), {}, "an anchor other than concept 'church' itself"),
        (concept("church", pairs=(("a church", "a red church"),)), {}, "without any concept that is to be erased"),
        (
            concept("church", pairs=(("a tree", "a dog"),)),
            {"weights": "embedding"},
            "with a word of 'church', got 'a tree'",
        ),
    ],
)
def test_refuses_a_concept_that_it_cannot_ablate(model, one, settings, told):
    with pytest.raises(BadSetting, match=told):
        erased(model, (one,), **settings)


@pytest.mark.parametrize("setting", ["iterations", "batch", "pictures", "steps"])
def test_refuses_none_of_something(setting):
    with pytest.raises(BadSetting, match=f"expected {setting} >= 1, got 0"):
        Ac(**{setting: 0})
