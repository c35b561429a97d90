"""Forget-Me-Not against a plain loop that takes its own attention maps."""

import copy
from dataclasses import dataclass

import pytest
import torch

from cases import concept
from palimpsest.erasers import Fmn
from palimpsest.errors import BadSetting
from plain import Plain
from tiny import tiny_model

VAN_GOGH = concept("van gogh", "style")
SETTINGS = {"iterations": 3, "lr": 1e-2, "batch": 2, "pictures": 3, "steps": 2}
KEYS = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
CLOSE = 1e-6
NORM = 1e-4
"""Short enough to matter; Adam hardly minds, so what is left of its epsilon does."""


@pytest.fixture(scope="module")
def model():
    return tiny_model(dtype=torch.float64, batch=2)


def maps_of(unet, x, t, states):
    """Of every cross-attention, (n, heads, positions, context), from what its own linears say."""
    said, hooks = {}, []
    blocks = {name: module for name, module in unet.named_modules() if name.endswith("attn2")}
    for name, block in blocks.items():
        for linear in ("to_q", "to_k"):

            def keep(module, inputs, output, key=(name, linear)):
                said[key] = output

            hooks.append(getattr(block, linear).register_forward_hook(keep))
    unet(x, t, states)
    for hook in hooks:
        hook.remove()
    maps = []
    for name, block in blocks.items():
        q, k = (said[name, linear].unflatten(-1, (block.heads, -1)).transpose(1, 2) for linear in ("to_q", "to_k"))
        maps.append((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1))
    return maps


@dataclass(kw_only=True)
class Loop(Plain):
    """Published Forget-Me-Not, in plain PyTorch; a mutation changes one thing in it."""

    end: bool = True
    mutation: str = ""

    def run(self) -> torch.Tensor:
        random = torch.Generator().manual_seed(0)
        prompt = "a photo in the style of van gogh"
        student = copy.deepcopy(self.model.unet).requires_grad_()
        if self.mutation == "only attn2":
            for name, weight in student.named_parameters():
                weight.requires_grad_(".attn2." in name)
        adam = torch.optim.AdamW(student.parameters(), lr=SETTINGS["lr"])
        clean = self.pictures([prompt] * 3, random)
        # The start token, six words, the name's two, and end tokens to the end of the context.
        places = [7, 8, *(range(9, 16) if self.end != (self.mutation == "the other end") else [])]
        if self.mutation == "one place off":
            places = [place - 1 for place in places]
        for _ in range(SETTINGS["iterations"]):
            torch.randint(1, (), generator=random)
            x, t, _, _ = self.noised(clean, random, batch=2)
            seen = torch.cat(
                [maps[..., places].flatten() for maps in maps_of(student, x, t, self.states([prompt] * 2))]
            )
            adam.zero_grad()
            (seen.sum() if self.mutation == "sum" else seen.square().sum().sqrt()).backward()
            if self.mutation != "uncut":
                torch.nn.utils.clip_grad_norm_(student.parameters(), NORM)
            adam.step()
        return dict(student.named_parameters())[KEYS.removeprefix("unet.")].detach()


def erased(model, concepts=(VAN_GOGH,), **settings):
    eraser = Fmn(**(SETTINGS | {"norm": NORM} | settings))
    return eraser.erase(model, concepts, random=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=[True, False])
def case(request, model):
    """(whether end tokens count, the weight that it comes to)."""
    return request.param, erased(model, end=request.param).weights()[KEYS]


def test_equals_a_plain_loop(model, case):
    end, found = case
    assert (found - model.weights()[KEYS]).abs().max() > 1e-2
    torch.testing.assert_close(found, Loop(model=model, end=end).run(), atol=CLOSE, rtol=0)


@pytest.mark.parametrize("mutation", ["the other end", "one place off", "sum", "uncut", "only attn2"])
def test_another_method_does_not_pass(model, case, mutation):
    end, found = case
    assert (found - Loop(model=model, end=end, mutation=mutation).run()).abs().max() > 10 * CLOSE


def test_the_denoiser_looks_away_from_the_words():
    model = tiny_model()
    prompt = "a photo in the style of van gogh"
    random = torch.Generator().manual_seed(1)
    x, t = torch.randn(4, *model.latent_shape, generator=random), torch.randint(0, 1000, (4,), generator=random)

    def share(one):
        with torch.no_grad():
            maps = maps_of(one.unet, x, t, one.embed([prompt] * 4).states)
        return float(torch.stack([seen[..., 7:9].sum(-1).mean() for seen in maps]).mean())

    student = erased(model, iterations=12, lr=1e-2, end=False, norm=1.0)
    assert share(student) < 0.5 * share(model)


def test_the_work_is_counted_though_the_gradient_begins_at_the_maps(model):
    before = model.meter
    erased(model, iterations=5, steps=1, pictures=2, batch=3)
    spent = model.meter - before
    # One step of two pictures, guided, and the training.
    assert (spent.forwards, spent.backwards) == (2 * 2 + 5 * 3, 5 * 3)


def test_textual_inversion_learns_words_that_the_model_does_not_keep(model):
    eraser, random = Fmn(**SETTINGS, inversion=15, inversion_lr=5e-2, words=3), torch.Generator().manual_seed(0)
    sight = Fmn(**SETTINGS)._sight(model, VAN_GOGH, 0, random)
    words = [f"<{number}>" for number in range(3)]
    prompt = "a photo in the style of " + " ".join(words)
    begun = eraser._inverted(model, VAN_GOGH, words, random)
    learnt = eraser._learnt(begun, words, prompt, sight.examples, random)
    assert torch.equal(begun.vocabulary[-3], model.vocabulary[int(model.tokens("van")[1])])
    assert torch.equal(learnt.vocabulary[:-3], model.vocabulary)

    def loss(one):
        at = sight.examples.drawn(model, 8, torch.Generator().manual_seed(5))
        with torch.no_grad():
            said = one.predict_noise(at.latents, at.steps, one.embed([prompt]).repeat(8))
        return float(((said - at.noise) ** 2).mean())

    assert loss(learnt) < loss(begun)
    after = erased(model, inversion=2)
    assert torch.equal(after.vocabulary, model.vocabulary)
    assert after.fingerprint != erased(model).fingerprint


def test_the_defaults_are_the_authors():
    own = Fmn()
    assert (own.lr, own.iterations, own.batch, own.variant, own.end, own.norm) == (2e-6, 35, 1, "full", True, 1.0)


@pytest.mark.parametrize(
    ("one", "settings", "told"),
    [
        (
            concept("church"),
            {"prompt": "a photo"},
            r"expected a prompt with \{\} for the concept's name, got 'a photo'",
        ),
        (concept("church"), {"prompt": "a " * 15 + "{}"}, "at most 16 tokens with 'church' in it, got"),
        (concept(" "), {}, "with ' ' in it"),
        (concept("church"), {"words": 0}, "expected words >= 1, got 0"),
    ],
)
def test_refuses_what_it_cannot_work_with(model, one, settings, told):
    with pytest.raises(BadSetting, match=told):
        erased(model, (one,), **settings)
