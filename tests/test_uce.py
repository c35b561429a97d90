"""UCE against the paper's equation, solved by numpy."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from cases import concept
from palimpsest.erasers import Uce
from palimpsest.errors import BadSetting
from tiny import tiny_model

CHURCH = concept("church", synonyms=("chapel",), neighbours=("house", "tree"))
VAN_GOGH = concept("van gogh", "style", neighbours=("monet",))
KV = r"unet\..*\.attn2\.to_[kv]\.weight"


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@dataclass
class Equation:
    """The published edit, term by term in numpy; a mutation changes one thing in it."""

    model: object
    form: str = "current"
    target: str = "replace"
    mutation: str = ""
    lam: float = 0.5
    e: float = 1.0
    p: float | None = None

    def states(self, prompt):
        """(context, width) and the place of the last token."""
        tokens = self.model.tokenizer(
            prompt, padding="max_length", max_length=self.model.context, truncation=True, return_tensors="pt"
        )
        with torch.no_grad():
            states = self.model.text_encoder(tokens.input_ids)[0][0]
        last = int(tokens.attention_mask.sum()) - 2
        return states.double().numpy(), {"first token": 1, "end token": last + 1}.get(self.mutation, last)

    def rows(self, old, new):
        (c, i), (a, j) = self.states(old), self.states(new)
        if (self.form == "current") != (self.mutation == "the other tokens"):
            return c[i : i + 1], a[j : j + 1]
        length = self.model.context - max(i, j)
        return c[i : i + length], a[j : j + length]

    def retained(self, prompt):
        states, last = self.states(prompt)
        return states[last : last + 1] if self.form == "current" else states

    def solve(self, edits, kept):
        """Name -> the new weight."""
        p = self.p if self.p is not None else 1.0 if self.form == "current" else max(0.1, 1 / len(kept))
        changed = {}
        for name, weight in self.model.weights(KV).items():
            w = weight.detach().double().numpy()
            left, right = self.lam * w, self.lam * np.eye(w.shape[1])
            for old, new in edits:
                c, a = self.rows(old, new)
                answers = a @ w.T
                if self.target == "tensor":
                    u = c @ w.T
                    u = u / (1 if self.mutation == "no norm" else np.sqrt((u**2).sum()))
                    answers = answers - (u * answers).sum() * u
                for key, value, anchor in zip(c, answers, a, strict=True):
                    pair = np.outer(w @ key, anchor) if self.mutation == "transposed" else np.outer(value, key)
                    left = left + self.e * pair
                    right = right + self.e * np.outer(key, key)
            for prompt in kept:
                for r in self.retained(prompt):
                    left = left + p * np.outer(w @ r, r)
                    right = right + p * np.outer(r, r)
            inverse = right if self.mutation == "not inverted" else np.linalg.inv(right)
            changed[name] = torch.tensor(left @ inverse, dtype=torch.float32)
        return changed


def erased(model, concepts, **settings):
    return Uce(**settings).erase(model, concepts, random=torch.Generator()).weights(KV)


def gap(found, expected):
    return max(float((found[name] - weight).abs().max()) for name, weight in expected.items())


BOTH = [CHURCH, VAN_GOGH]
CASES = {
    "current": ([CHURCH], {}, [("church", "")], []),
    "current, style": ([VAN_GOGH], {}, [("van gogh", "art")], []),
    "several": (BOTH, {}, [("church", ""), ("van gogh", "art")], []),
    "retained": ([CHURCH], {"retain": True}, [("church", "")], ["house", "tree"]),
    "synonyms": ([CHURCH], {"synonyms": True}, [("church", ""), ("chapel", "")], []),
    "anchor": ([VAN_GOGH], {"anchor": "a painting"}, [("van gogh", "a painting")], []),
    "empty anchor": ([VAN_GOGH], {"anchor": ""}, [("van gogh", "")], []),
    "concept's anchor": ([concept("church", anchor="house")], {}, [("church", "house")], []),
    "2023": ([CHURCH], {"form": "2023"}, [("church", "")], [""]),
    "2023, style": ([VAN_GOGH], {"form": "2023"}, [("van gogh", "")], [""]),
    "2023, longer anchor": ([CHURCH], {"form": "2023", "anchor": "a van gogh"}, [("church", "a van gogh")], [""]),
    "2023, retained": (
        BOTH,
        {"form": "2023", "retain": True},
        [("church", ""), ("van gogh", "")],
        ["", "house", "tree", "monet"],
    ),
    "2023, tensor": ([CHURCH], {"form": "2023", "target": "tensor"}, [("church", "")], [""]),
}
"""Name -> concepts, settings, and what they come to: (concept, anchor) and retained prompts."""


@pytest.mark.parametrize("name", CASES)
def test_equals_the_papers_equation(model, name):
    concepts, settings, edits, kept = CASES[name]
    equation = Equation(model, form=settings.get("form", "current"), target=settings.get("target", "replace"))
    expected = equation.solve(edits, kept)
    found = erased(model, concepts, **settings)
    assert found.keys() == expected.keys()
    assert gap(found, expected) < 1e-6
    assert gap(model.weights(KV), expected) > 1e-3


@pytest.mark.parametrize("mutation", ["transposed", "not inverted", "first token", "end token", "the other tokens"])
@pytest.mark.parametrize("name", ["current, style", "2023, style"])
def test_another_method_does_not_pass(model, name, mutation):
    concepts, settings, edits, kept = CASES[name]
    mutated = Equation(model, form=settings.get("form", "current"), mutation=mutation).solve(edits, kept)
    assert gap(erased(model, concepts, **settings), mutated) > 1e-4


def test_another_projection_does_not_pass(model):
    concepts, settings, edits, kept = CASES["2023, tensor"]
    mutated = Equation(model, form="2023", target="tensor", mutation="no norm").solve(edits, kept)
    assert gap(erased(model, concepts, **settings), mutated) > 1e-4


@pytest.mark.parametrize(
    ("settings", "terms"),
    [
        ({"lam": 0.1}, {"lam": 0.1}),
        ({"erase_scale": 3.0}, {"e": 3.0}),
        ({"preserve_scale": 0.2}, {"p": 0.2}),
        ({"preserve_scale": 0.0}, {"p": 0.0}),
    ],
)
def test_scales_are_the_equations(model, settings, terms):
    expected = Equation(model, **terms).solve([("church", "")], ["house", "tree"])
    assert gap(erased(model, [CHURCH], retain=True, **settings), expected) < 1e-6
    assert gap(erased(model, [CHURCH], retain=True), expected) > 1e-5


@pytest.mark.parametrize(
    ("subject", "anchor", "phrases"),
    [
        (CHURCH, "", ["image of", "photo of", "portrait of", "picture of", "painting of"]),
        (VAN_GOGH, "art", ["painting by", "art by", "artwork by", "picture by", "style of"]),
    ],
)
def test_expanded_names(model, subject, anchor, phrases):
    prompts = [subject.name, *(f"{phrase} {subject.name}" for phrase in phrases)]
    expected = Equation(model).solve([(prompt, anchor) for prompt in prompts], [])
    assert gap(erased(model, [subject], expand=True), expected) < 1e-6


def test_an_erased_concept_is_not_retained_as_anothers_neighbour(model):
    house = concept("house", neighbours=("church",))
    expected = Equation(model).solve([("church", ""), ("house", "")], ["tree"])
    assert gap(erased(model, [CHURCH, house], retain=True), expected) < 1e-6


def test_the_concept_is_answered_as_the_anchor_and_the_retained_as_before(model):
    def answers(weights, prompt):
        """Every edited layer's answer to the prompt's last token."""
        states, last = Equation(model).states(prompt)
        state = torch.tensor(states[last], dtype=torch.float32)
        return torch.cat([weight.detach() @ state for weight in weights.values()])

    before, after = model.weights(KV), erased(model, [CHURCH], retain=True, lam=0.01)
    anchor, house = answers(before, ""), answers(before, "house")
    distance = (answers(before, "church") - anchor).norm()
    assert (answers(after, "church") - anchor).norm() < 0.1 * distance
    assert (answers(after, "house") - house).norm() < 0.1 * distance
    without = erased(model, [CHURCH], lam=0.01)
    assert (answers(without, "house") - house).norm() > 2 * (answers(after, "house") - house).norm()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lam": 0.0}, "expected lam > 0, got 0.0"),
        ({"erase_scale": -1.0}, "expected erase_scale >= 0, got -1.0"),
        ({"preserve_scale": -1.0}, "expected preserve_scale >= 0, got -1.0"),
        ({"target": "tensor"}, "expected form '2023' with target 'tensor'"),
    ],
)
def test_refuses_what_the_equation_does_not_hold_for(settings, message):
    with pytest.raises(BadSetting, match=message):
        Uce(**settings)
