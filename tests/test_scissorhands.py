"""Scissorhands against a plain loop that shares no code with it."""

import copy
import math
from dataclasses import dataclass
from functools import cache

import pytest
import torch

from cases import concept
from palimpsest.erasers import Scissorhands
from palimpsest.erasers.scissorhands import middle_self_attention, projecting
from palimpsest.errors import BadModel, BadSetting
from plain import Plain
from tiny import tiny_model

PAIRS = (("a photo of a church at night", "a photo of a house at night"), ("a church", "a tree"))
CHURCH = concept("church", pairs=PAIRS)
SETTINGS = {"sparsity": 0.9, "saliency": 2, "epochs": 1, "lr": 1e-2, "batch": 2, "pictures": 5, "steps": 2}
SELF = "up_blocks.1.attentions.1.transformer_blocks.0.attn1.to_v.weight"
CLOSE = 1e-5
"""The samplers keep their schedule in single precision, and weights begun anew magnify the difference."""


@pytest.fixture(scope="module")
def model():
    return tiny_model(dtype=torch.float64, batch=4)


def start():
    return torch.Generator().manual_seed(0)


@dataclass(kw_only=True)
class Loop(Plain):
    """Published Scissorhands, in plain PyTorch; a mutation changes one thing in it."""

    form: str = "ascent"
    where: str = "attn1"
    project: bool = False
    mutation: str = ""

    def said(self, unet, x, t, prompts):
        return unet(x, t, self.states(prompts)).sample

    def chosen(self, clean, random):
        """Masks of all weights, in the order of the denoiser's."""
        unet = copy.deepcopy(self.model.unet).requires_grad_()
        sums = [torch.zeros(weight.shape) for weight in unet.parameters()]
        for _ in range(2):
            x, t, noise, rows = self.noised(clean, random, batch=2)
            said = self.said(unet, x, t, [self.pairs[row][0] for row in rows])
            if (self.form == "ascent") != (self.mutation == "the other saliency"):
                said = 8.5 * said - 7.5 * self.said(unet, x, t, [""] * 2)
            unet.zero_grad()
            ((said - noise) ** 2).mean().backward()
            for total, weight in zip(sums, unet.parameters(), strict=True):
                total += weight.grad if self.mutation == "signed" else weight.grad.abs()
        for total, weight in zip(sums, unet.parameters(), strict=True):
            total *= 1.0 if self.mutation == "without the weight" else weight.detach().float()
        everything = torch.cat([total.abs().flatten() for total in sums])
        bound = everything.kthvalue(int(0.9 * len(everything))).values
        return [total.abs() > bound for total in sums]

    def cut(self, clean, random):
        """A denoiser with what was chosen begun anew."""
        unet = copy.deepcopy(self.model.unet)
        for (name, weight), marked in zip(unet.named_parameters(), self.chosen(clean, random), strict=True):
            inside = any(f"up_blocks.{block}.attentions.1.transformer_blocks.0.attn1." in name for block in (1, 2))
            if not marked.any() or not (inside or self.where == "all"):
                continue
            fresh = torch.full(weight.shape, 1.0 if weight.ndim == 1 and name.endswith("weight") else 0.0)
            if weight.ndim > 1 and (self.form == "pseudo") != (self.mutation == "the other beginning"):
                bound = math.sqrt(6 / (weight[0].numel()))
                fresh = torch.empty(weight.shape).uniform_(-bound, bound, generator=random)
            elif weight.ndim > 1:
                torch.nn.init.trunc_normal_(fresh, std=0.02, generator=random)
            if self.mutation == "zeroed":
                fresh.zero_()
            weight.copy_(torch.where(marked, fresh.double(), weight))
        return unet

    def run(self) -> torch.Tensor:
        random = start()
        self.pairs = [PAIRS[at % 2] for at in range(5)]
        keep = [pair[1] for pair in self.pairs]
        clean = self.pictures([pair[0] for pair in self.pairs], random)
        student = self.cut(clean, random).requires_grad_()
        retained = self.pictures(keep, random)
        adam = torch.optim.Adam(student.parameters(), lr=SETTINGS["lr"])
        against = self.away(student, clean, random) if self.project else None
        for _ in range(3):
            x, t, noise, rows = self.noised(retained, random, batch=2)
            loss = ((self.said(student, x, t, [keep[row] for row in rows]) - noise) ** 2).mean()
            x, t, noise, rows = self.noised(clean, random, batch=2)
            said = self.said(student, x, t, [self.pairs[row][0] for row in rows])
            if (self.form == "pseudo") != (self.mutation == "the other form"):
                with torch.no_grad():
                    noise = self.said(student, x, t, [self.pairs[row][1] for row in rows])
                loss = loss + 0.1 * ((said - noise) ** 2).mean()
            else:
                loss = loss - 0.1 * ((said - noise) ** 2).mean()
            adam.zero_grad()
            loss.backward()
            if against is not None:
                self.turned(student, against)
            adam.step()
        return dict(student.named_parameters())[SELF].detach()

    def away(self, student, clean, random):
        x, t, noise, rows = self.noised(clean, random, batch=2)
        said = self.said(student, x, t, [self.pairs[row][0] for row in rows])
        gradients = torch.autograd.grad(-((said - noise) ** 2).mean(), list(student.parameters()))
        # Kept in single precision by the eraser.
        return torch.cat([gradient.flatten() for gradient in gradients]).float().double()

    @staticmethod
    def turned(student, against):
        gradient = torch.cat([weight.grad.flatten() for weight in student.parameters()])
        if gradient @ against < 0:
            gradient = gradient + max(0.5, -(gradient @ against) / (against @ against + 1e-3)) * against
            torch.nn.utils.vector_to_parameters(gradient, [weight.grad for weight in student.parameters()])


def erased(model, concepts=(CHURCH,), **settings):
    return Scissorhands(**(SETTINGS | settings)).erase(model, concepts, random=start())


@pytest.fixture(scope="module")
def found(model):
    """The weight that the eraser comes to, once for each of its settings."""
    return cache(lambda **settings: erased(model, **settings).weights()[f"unet.{SELF}"])


CASES = {"ascent": {}, "pseudo": {"form": "pseudo"}, "all, projected": {"where": "all", "project": True}}


@pytest.fixture(scope="module", params=CASES)
def case(request, found):
    """(the plain loop's settings, the weight that it comes to)."""
    settings = CASES[request.param]
    return settings, found(**settings)


def test_equals_a_plain_loop(model, case):
    settings, weight = case
    assert (weight - model.weights()[f"unet.{SELF}"]).abs().max() > 1e-2
    torch.testing.assert_close(weight, Loop(model=model, **settings).run(), atol=CLOSE, rtol=0)


MUTATIONS = ["the other form", "the other beginning", "zeroed", "the other saliency", "without the weight", "signed"]


@pytest.mark.parametrize(
    "mutation",
    [pytest.param(name, marks=[pytest.mark.slow] if number > 2 else []) for number, name in enumerate(MUTATIONS)],
)
@pytest.mark.parametrize("form", ["ascent", pytest.param("pseudo", marks=pytest.mark.slow)])
def test_another_method_does_not_pass(model, found, form, mutation):
    weight = found(**({} if form == "ascent" else {"form": form}))
    assert (weight - Loop(model=model, form=form, mutation=mutation).run()).abs().max() > 10 * CLOSE


def test_what_begins_anew_lies_where_it_may(model):
    for where, allowed in (("attn1", "attentions.1.transformer_blocks.0.attn1."), ("all", "unet.")):
        mask = Scissorhands(**SETTINGS, where=where).mask(model, [CHURCH], random=start())
        assert all(allowed in name for name in mask.entries)
    size = sum(weight.numel() for weight in model.weights(r"unet\..*").values())
    assert mask.count == size - int(0.9 * size)


def test_the_middle_is_that_of_the_authors_code():
    """output_blocks 4 and 7 of Stable Diffusion 1, whose blocks up have three transformers each, but for the first."""
    part = "transformer_blocks.0.attn1.to_q.weight"
    names = [f"unet.up_blocks.{block}.attentions.{at}.{part}" for block in (1, 2, 3) for at in range(3)]
    names += [f"unet.down_blocks.1.attentions.1.{part}", names[1].replace("attn1", "attn2")]
    assert middle_self_attention(names) == [f"unet.up_blocks.{block}.attentions.1.{part}" for block in (1, 2)]
    with pytest.raises(BadModel, match="with self-attention on its way up"):
        middle_self_attention(names[-2:])


def test_a_projected_gradient_no_longer_leads_against_the_direction():
    weight, direction = torch.nn.Parameter(torch.zeros(2)), torch.tensor([1.0, 0.0])
    optimiser = torch.optim.SGD([weight], lr=1.0)
    projecting(optimiser, [direction])
    for gradient, left in (([-3.0, 1.0], [0.0, 1.0]), ([-0.1, 1.0], [0.4, 1.0]), ([2.0, 1.0], [2.0, 1.0])):
        weight.grad = torch.tensor(gradient)
        optimiser.step()
        torch.testing.assert_close(weight.grad, torch.tensor(left), atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("kind", "own"),
    [("object", ("ascent", 0.999, 2e-5, 3, 8)), ("content", ("pseudo", 0.995, 1e-5, 5, 16))],
)
def test_the_defaults_are_those_of_the_launch_script(kind, own):
    part = Scissorhands()
    assert part._own([concept("church", kind)]) == own
    assert (part.lam, part.saliency, part.where, part.project) == (0.1, 10, "attn1", False)
    assert Scissorhands(batch=3)._own([concept("church", kind)]) == (*own[:-1], 3)


@pytest.mark.parametrize(
    ("one", "settings", "told"),
    [
        (concept("church"), {}, "church' to have pairs of prompts .* or an anchor, got neither"),
        (concept("church", pairs=(("a church", ""),)), {}, "expected prompts to retain, got none"),
        (CHURCH, {"pseudo": "a church"}, "an anchor other than concept 'church' itself, got 'a church'"),
        (CHURCH, {"sparsity": 0.99999}, "expected a sparsity below 0.99999, or where=all: of the"),
        (CHURCH, {"sparsity": 1.0}, "expected 0 <= sparsity < 1, got 1.0"),
        (CHURCH, {"saliency": 0}, "expected saliency >= 1, got 0"),
    ],
)
def test_refuses_what_it_cannot_work_with(model, one, settings, told):
    with pytest.raises(BadSetting, match=told):
        erased(model, (one,), **settings)
