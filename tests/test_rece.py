"""RECE against the paper's equations, written out in numpy matrix by matrix."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from cases import concept
from palimpsest.erasers import Rece, Uce
from palimpsest.errors import BadSetting
from tiny import tiny_model

CHURCH = concept("church", synonyms=("chapel",), neighbours=("house", "tree"))
VAN_GOGH, NIGHT = concept("van gogh", "style"), concept("night", "content")
KV = r"unet\..*\.attn2\.to_[kv]\.weight"


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@dataclass
class Equations:
    """The published iteration; a mutation changes one thing in it."""

    model: object
    names: tuple[tuple[str, str, float, int], ...]
    """(name, anchor, rho, epochs)."""
    retained: tuple[str, ...] = ("",)
    lam: float = 0.1
    p: float = 0.1
    mutation: str = ""

    def states(self, prompt):
        tokens = self.model.tokenizer(
            prompt, padding="max_length", max_length=self.model.context, truncation=True, return_tensors="pt"
        )
        with torch.no_grad():
            states = self.model.text_encoder(tokens.input_ids)[0][0]
        return states.double().numpy(), int(tokens.attention_mask.sum()) - 2

    def edited(self, weights, keys, anchors, p):
        """UCE's closed form for each matrix on its own."""
        edited = []
        for w in weights:
            left, right = self.lam * w, self.lam * np.eye(w.shape[1])
            left, right = left + w @ anchors.T @ keys, right + keys.T @ keys
            for prompt in self.retained:
                r = self.states(prompt)[0]
                left, right = left + p * w @ r.T @ r, right + p * r.T @ r
            edited.append(left @ np.linalg.inv(right))
        return edited

    def adversarial(self, weights, originals, name, rho):
        if self.mutation == "the concept itself":
            return self.states(name)[0]
        size = weights[0].shape[1]
        left, right = rho * np.eye(size), np.zeros((size, size))
        for w, original in zip(weights, originals, strict=True):
            if self.mutation == "keys alone" and len(w) % 2:
                continue
            left, right = left + w.T @ w, right + w.T @ (w if self.mutation == "no original" else original)
        if self.mutation == "transposed":
            right = right.T
        c = self.states(name)[0]
        return c @ (np.linalg.inv(left) @ right).T

    def run(self):
        """The weights after UCE, and after each epoch."""
        originals = [w.detach().double().numpy() for w in self.model.weights(KV).values()]
        keys, anchors = [], []
        for name, anchor, _, _ in self.names:
            (c, i), (a, j) = self.states(name), self.states(anchor)
            length = len(c) - max(i, j)
            keys.append(c[i : i + length])
            anchors.append(a[j : j + length])
        start = self.edited(originals, np.concatenate(keys), np.concatenate(anchors), max(0.1, 1 / len(self.retained)))
        stages = [originals if self.mutation == "without uce" else start]
        for epoch in range(1, 1 + max(epochs for *_, epochs in self.names)):
            taken = [row for row in self.names if epoch <= row[3]]
            keys = [self.adversarial(stages[-1], originals, name, rho) for name, _, rho, _ in taken]
            anchors = [self.states(anchor)[0] for _, anchor, _, _ in taken]
            if self.mutation == "last token":
                last = self.states(self.names[0][0])[1]
                keys, anchors = [key[last:] for key in keys], [anchor[last:] for anchor in anchors]
            from_here = originals if self.mutation == "from the original" else stages[-1]
            stages.append(self.edited(from_here, np.concatenate(keys), np.concatenate(anchors), self.p))
        return [dict(zip(self.model.weights(KV), stage, strict=True)) for stage in stages]


def stages(model, concepts, **settings):
    found = list(Rece(**settings).stages(model, concepts, random=torch.Generator()))
    assert [number for number, _ in found] == list(range(1, 1 + len(found)))
    return [stage.weights(KV) for _, stage in found]


def gap(found, expected):
    return max(float(np.abs(found[name].double().numpy() - weight).max()) for name, weight in expected.items())


def distance(expected, others):
    return max(float(np.abs(others[name] - weight).max()) for name, weight in expected.items())


CASES = {
    "object": ([CHURCH], {}, (("church", "", 0.1, 1),), {}),
    "style": ([VAN_GOGH], {}, (("van gogh", "", 0.001, 1),), {}),
    "content": ([NIGHT], {}, (("night", "", 0.1, 3),), {}),
    "several": (
        [CHURCH, VAN_GOGH, NIGHT],
        {},
        (("church", "", 0.1, 1), ("van gogh", "", 0.001, 1), ("night", "", 0.1, 3)),
        {},
    ),
    "settings": (
        [CHURCH],
        {"epochs": 2, "rho": 0.01, "lam": 0.3, "p": 0.7, "retain": True},
        (("church", "", 0.01, 2),),
        {"lam": 0.3, "p": 0.7, "retained": ("", "house", "tree")},
    ),
    "synonyms and an anchor": (
        [CHURCH],
        {"synonyms": True, "anchor": "a house"},
        (("church", "a house", 0.1, 1), ("chapel", "a house", 0.1, 1)),
        {},
    ),
}
"""Name -> concepts, settings, and what they come to: rows of names, and the equations' numbers."""


@pytest.mark.parametrize("name", CASES)
def test_equals_the_papers_iteration(model, name):
    concepts, settings, names, numbers = CASES[name]
    expected = Equations(model, names=names, **numbers).run()
    found = stages(model, concepts, **settings)
    assert len(found) == len(expected) - 1
    for stage, weights in zip(found, expected[1:], strict=True):
        assert gap(stage, weights) < 1e-6
    # The last epoch is more than rounding away from the one before, so that one less would be seen.
    assert distance(expected[-1], expected[-2]) > 1e-4


MUTATIONS = ["the concept itself", "no original", "transposed", "last token", "from the original", "without uce"]


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_another_method_does_not_pass(model, mutation):
    mutated = Equations(model, names=(("night", "", 0.1, 3),), mutation=mutation).run()[-1]
    assert gap(stages(model, [NIGHT])[-1], mutated) > 1e-5


def test_the_adversarial_states_mean_the_concept_to_the_edited_weights_and_an_epoch_erases_them(model):
    """What UCE leaves open is found and closed: before the epoch those states are answered as the concept once was."""
    equations = Equations(model, names=(("church", "", 1e-6, 1),))
    originals = [w.detach().double().numpy() for w in model.weights(KV).values()]
    start = list(equations.run()[0].values())
    c, last = equations.states("church")
    found = equations.adversarial(start, originals, "church", 1e-6)[last]
    anchor = equations.states("")[0][last]

    def far(weights, state, target):
        pairs = zip(weights, originals, strict=True)
        return np.sqrt(sum(((w @ state - original @ target) ** 2).sum() for w, original in pairs))

    after = [w.detach().double().numpy() for w in stages(model, [CHURCH], rho=1e-6)[-1].values()]
    whole = far(originals, anchor, c[last])
    assert far(start, c[last], c[last]) > 0.5 * whole  # UCE has erased the concept,
    assert far(start, found, c[last]) < 0.05 * whole  # the states found bring it back,
    assert far(after, found, c[last]) > 0.5 * whole  # and after the epoch they do not.


def test_starts_where_uce_ends(model):
    uce = Uce(form="2023", lam=0.1).erase(model, [CHURCH], random=torch.Generator()).weights(KV)
    assert gap(uce, Equations(model, names=(("church", "", 0.1, 1),)).run()[0]) < 1e-6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "expected epochs >= 1, got 0"),
        ({"rho": 0.0}, "expected rho > 0, got 0.0: the equation would have no solution"),
        ({"lam": 0.0}, "expected lam > 0, got 0.0: the equation would have no solution"),
        ({"p": -1.0}, "expected p >= 0, got -1.0"),
    ],
)
def test_refuses_what_the_equations_do_not_hold_for(settings, message):
    with pytest.raises(BadSetting, match=message):
        Rece(**settings)


@pytest.mark.parametrize("eraser", [Rece, Uce])
def test_refuses_an_anchor_that_is_the_concept_and_concepts_that_contradict_each_other(model, eraser):
    def erase(*concepts, **settings):
        eraser(**settings).erase(model, concepts, random=torch.Generator())

    with pytest.raises(BadSetting, match="expected an anchor that is not the concept, got 'Church' for 'church'"):
        erase(CHURCH, anchor="Church")
    with pytest.raises(BadSetting, match=r"got 'church' \(to 'house'\) and 'CHURCH' \(to 'tree'\), which coincide"):
        erase(concept("church", anchor="house"), concept("CHURCH", anchor="tree"))
    erase(concept("church", anchor="house"), concept("CHURCH", anchor="house"))
