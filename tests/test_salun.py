"""SalUn against a plain loop that shares no code with it."""

import copy
from dataclasses import dataclass

import pytest
import torch

from cases import concept
from palimpsest.erasers import Salun
from palimpsest.errors import BadSetting
from palimpsest.pruning import Mask
from plain import Plain
from tiny import tiny_model

PAIRS = (("a photo of a church at night", "a photo of a house at night"), ("a church", "a tree"))
CHURCH = concept("church", pairs=PAIRS)
SETTINGS = {"epochs": 1, "lr": 1e-2, "batch": 2, "pictures": 5, "steps": 2}
KEYS = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
CLOSE = 1e-6


@pytest.fixture(scope="module")
def model():
    return tiny_model(dtype=torch.float64, batch=4)


def start():
    return torch.Generator().manual_seed(0)


@dataclass(kw_only=True)
class Loop(Plain):
    """Published SalUn, in plain PyTorch; a mutation changes one thing in it."""

    mutation: str = ""

    def forget(self, random):
        self.pairs = [PAIRS[at % 2] for at in range(5)]
        return self.pictures([pair[0] for pair in self.pairs], random)

    def marks(self, clean, random):
        """(a mask of each weight, in the order of the denoiser's)."""
        unet = copy.deepcopy(self.model.unet).requires_grad_()
        sums = [torch.zeros(weight.shape) for weight in unet.parameters()]
        for rows in ([0, 1], [2, 3], [4]):
            x, t, noise, _ = self.noised(clean, random, rows=rows)
            given = unet(x, t, self.states([self.pairs[row][0] for row in rows])).sample
            without = unet(x, t, self.states([""] * len(rows))).sample
            said = given if self.mutation == "unguided saliency" else 8.5 * given - 7.5 * without
            unet.zero_grad()
            (-((said - noise) ** 2).mean()).backward()
            for total, weight in zip(sums, unet.parameters(), strict=True):
                total += weight.grad.abs() if self.mutation == "sizes" else weight.grad
        sizes = [total.abs() for total in sums]
        if self.mutation == "SNIP":
            sizes = [size * weight.detach().abs() for size, weight in zip(sizes, unet.parameters(), strict=True)]
        if self.mutation == "weight by weight":
            return [size >= size.flatten().sort(descending=True).values[size.numel() // 2 - 1] for size in sizes]
        everything = torch.cat([size.flatten() for size in sizes])
        least = everything.sort(descending=True).values[len(everything) // 2 - 1]
        return [(size < least) if self.mutation == "the other half" else (size >= least) for size in sizes]

    def run(self) -> torch.Tensor:
        random = start()
        clean = self.forget(random)
        marks = self.marks(clean, random)
        keep = [("a photo of a house at night", "a tree")[at % 2] for at in range(5)]
        retained = self.pictures(keep, random)
        student = copy.deepcopy(self.model.unet).requires_grad_()
        adam = torch.optim.Adam(student.parameters(), lr=SETTINGS["lr"])
        for _ in range(3):
            x, t, _, rows = self.noised(clean, random, batch=2)
            pseudo = student if self.mutation != "frozen pseudo" else self.model.unet
            with torch.no_grad():
                target = pseudo(x, t, self.states([self.pairs[row][1] for row in rows])).sample
            lost = ((student(x, t, self.states([self.pairs[row][0] for row in rows])).sample - target) ** 2).mean()
            x, t, noise, rows = self.noised(retained, random, batch=2)
            kept = ((student(x, t, self.states([keep[row] for row in rows])).sample - noise) ** 2).mean()
            adam.zero_grad()
            (lost + (0.0 if self.mutation == "nothing retained" else 0.5) * kept).backward()
            for weight, marked in zip(student.parameters(), marks, strict=True):
                weight.grad *= marked | (self.mutation == "no mask")
            adam.step()
        return dict(student.named_parameters())[KEYS.removeprefix("unet.")].detach()


def erased(model, concepts=(CHURCH,), **settings):
    return Salun(**(SETTINGS | settings)).erase(model, concepts, random=start())


@pytest.fixture(scope="module")
def found(model):
    return erased(model)


@pytest.fixture(scope="module")
def mask(model):
    return Salun(**SETTINGS).mask(model, [CHURCH], random=start())


def test_equals_a_plain_loop(model, found):
    weight = found.weights()[KEYS]
    assert (weight - model.weights()[KEYS]).abs().max() > 1e-2
    torch.testing.assert_close(weight, Loop(model=model).run(), atol=CLOSE, rtol=0)


MUTATIONS = ["frozen pseudo", "nothing retained", "no mask", "the other half", "weight by weight", "SNIP", "sizes"]


@pytest.mark.parametrize("mutation", [*MUTATIONS, "unguided saliency"])
def test_another_method_does_not_pass(model, found, mutation):
    assert (found.weights()[KEYS] - Loop(model=model, mutation=mutation).run()).abs().max() > 100 * CLOSE


def test_the_mask_marks_half_of_all_weights_and_no_other_moves(model, found, mask):
    weights, after = model.weights(r"unet\..*"), found.weights()
    size = sum(weight.numel() for weight in weights.values())
    assert set(mask.entries) == set(weights) and mask.count == size // 2
    for name, weight in weights.items():
        marked = mask.entries[name].reshape(weight.shape)
        assert torch.equal(weight[~marked], after[name][~marked])
    moved = sum(int((weight != after[name]).sum()) for name, weight in weights.items())
    assert moved == mask.count


def test_the_mask_is_a_value_that_is_kept_and_compared(model, mask, tmp_path):
    mask.save(tmp_path / "mask.safetensors")
    again = Mask.load(tmp_path / "mask.safetensors")
    assert mask.overlap(again).jaccard == 1.0
    other = Salun(**SETTINGS, share=0.25).mask(model, [CHURCH], random=start())
    assert other.count < mask.count and mask.overlap(other).shared == other.count


def test_cross_attention_alone_is_trained_of_the_same_mask(model, mask):
    after = erased(model, layers="attn2").weights()
    for name, weight in model.weights(r"unet\..*").items():
        marked = mask.entries[name].reshape(weight.shape)
        assert torch.equal(weight != after[name], marked if ".attn2." in name else torch.zeros_like(marked))


@pytest.mark.parametrize(("kind", "alpha", "epochs"), [("object", 0.5, 5), ("content", 0.1, 1)])
def test_the_defaults_are_the_papers(model, kind, alpha, epochs):
    one, few = concept("church", kind, pairs=PAIRS), {"pictures": 2, "steps": 1}
    written = Salun(**few, alpha=alpha, epochs=epochs).erase(model, [one], random=start())
    assert Salun(**few).erase(model, [one], random=start()).fingerprint == written.fingerprint
    own = Salun()
    assert (own.share, own.scale, own.lr, own.batch, own.pictures) == (0.5, 7.5, 1e-5, 8, 800)


@pytest.mark.parametrize(
    ("one", "settings", "told"),
    [
        (concept("church"), {}, "church' to have pairs of prompts .* or an anchor, got neither"),
        (CHURCH, {"pseudo": "a church"}, "an anchor other than concept 'church' itself, got 'a church'"),
        (CHURCH, {"retain": ("a church at sea",)}, "prompts to retain without concept 'church', got 'a church at sea'"),
        (concept("church", pairs=(("a church", ""),)), {}, "expected prompts to retain, got none"),
        (CHURCH, {"share": 0.0}, "expected 0 < share <= 1, got 0"),
        (CHURCH, {"epochs": 0}, "expected epochs >= 1, got 0"),
    ],
)
def test_refuses_what_it_cannot_work_with(model, one, settings, told):
    with pytest.raises(BadSetting, match=told):
        erased(model, (one,), **settings)
