"""AdvUnlearn against a plain loop that shares no code with it."""

import copy
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from safetensors.torch import save_file

from cases import concept
from palimpsest.erasers import AdvUnlearn, Checkpoint
from palimpsest.erasers.advunlearn import COCO
from palimpsest.erasing import difference
from palimpsest.errors import BadSetting
from tiny import tiny_model

CHURCH, VAN_GOGH = concept("church", synonyms=("chapel",), neighbours=("house",)), concept("van gogh", "style")
RETAINED = ("a dog", "a cat", "the sea")
SETTINGS = {
    "iterations": 3,
    "warm_up": 1,
    "lr": 1e-2,
    "steps": 4,
    "attack_steps": 2,
    "attack_lr": 0.3,
    "retain": RETAINED,
    "retain_batch": 2,
}
WEIGHTS = ("embeddings.token_embedding.weight", "encoder.layers.0.mlp.fc1.weight", "final_layer_norm.weight")
CLOSE = 1e-6
"""The samplers keep their schedule in single precision; weights move by 1e-2."""


@pytest.fixture(scope="module")
def model():
    return tiny_model(dtype=torch.float64, batch=1)


def erased(model, concepts=(CHURCH,), **settings):
    return AdvUnlearn(**(SETTINGS | settings)).erase(model, concepts, random=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def found(model):
    return erased(model)


def weight(model):
    """Three of the text encoder's weights, in one."""
    return torch.cat([model.weights()[f"text_encoder.{name}"].detach().flatten() for name in WEIGHTS])


@dataclass
class Loop:
    """Published AdvUnlearn in plain PyTorch; a mutation changes one thing in it."""

    model: object
    attack: str = "pgd"
    mutation: str = ""

    def run(self) -> torch.Tensor:
        self.random = torch.Generator().manual_seed(0)
        teacher, student = self.model.text_encoder, copy.deepcopy(self.model.text_encoder)
        adam = torch.optim.Adam(student.requires_grad_().parameters(), lr=SETTINGS["lr"])
        church, null = self.states(teacher, "church"), self.states(teacher, "")
        for number in range(SETTINGS["iterations"]):
            torch.randint(1, (), generator=self.random)
            asked = self.states(student, "church")
            if number >= SETTINGS["warm_up"] + (self.mutation == "a longer warm-up"):
                word = self.attacked(teacher if self.mutation == "attacks the original" else student, church)
                asked = self.prefixed(student, word)
            kept = [RETAINED[place] for place in torch.randperm(3, generator=self.random)[:2]]
            texts = [self.states(teacher, prompt) for prompt in ("church", *kept)]
            x, t = self.point(torch.cat(texts))
            with torch.no_grad():
                given, without = self.ask(x[:1], t[:1], church), self.ask(x[:1], t[:1], null)
                before = self.ask(x[1:], t[1:], torch.cat(texts[1:]))
            target = without - {"no guidance": 0, "sign": -1}.get(self.mutation, 1) * (given - without)
            held = self.ask(x[1:], t[1:], torch.cat([self.states(student, prompt) for prompt in kept]))
            loss = ((self.ask(x[:1], t[:1], asked) - target) ** 2).mean()
            loss = loss + (1.0 if self.mutation == "w" else 0.3) * ((held - before) ** 2).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        return torch.cat([dict(student.named_parameters())[name].detach().flatten() for name in WEIGHTS])

    def attacked(self, encoder, church):
        table = self.model.text_encoder.get_input_embeddings().weight
        word = table[torch.randint(len(table), (1,), generator=self.random)].detach().clone().requires_grad_()
        adam = torch.optim.Adam([word], lr=SETTINGS["attack_lr"])
        for _ in range(SETTINGS["attack_steps"]):
            x, t = self.point(church)
            wanted = self.ask(x, t, church).detach()
            loss = ((self.ask(x, t, self.prefixed(encoder, word)) - wanted) ** 2).mean()
            if self.mutation == "flees the concept":
                loss = -loss
            (gradient,) = torch.autograd.grad(loss, word)
            if self.attack == "pgd":
                word.grad = gradient
                adam.step()
            else:
                word = (word.detach() - SETTINGS["attack_lr"] * gradient.sign()).requires_grad_()
        return word.detach()

    def prefixed(self, encoder, word):
        """States of the word, then the concept's name; the table's answer for a filler is exchanged."""
        start, name, end = self.model.tokens("church")[:3].tolist()
        ids = [start, name, name, end] + [end] * (self.model.context - 4)
        place = 2 if self.mutation == "behind the name" else 1
        table = encoder.get_input_embeddings()
        one = torch.nn.functional.one_hot(torch.tensor([place]), self.model.context).T.double()
        hook = table.register_forward_hook(lambda module, given, out: out * (1 - one) + one @ word)
        try:
            return encoder(torch.tensor([ids]))[0]
        finally:
            hook.remove()

    def states(self, encoder, prompt):
        with torch.set_grad_enabled(encoder is not self.model.text_encoder):
            return encoder(self.model.tokens(prompt)[None])[0]

    def ask(self, x, t, states):
        return self.model.unet(x, t, encoder_hidden_states=states).sample

    @torch.no_grad()
    def point(self, states):
        """x_t by DDIM with guidance 3, written out, and a t within the step's part."""
        reached = int(torch.randint(4, (), generator=self.random))
        x = torch.randn(len(states), *self.model.latent_shape, generator=self.random).double()
        null = self.states(self.model.text_encoder, "").expand_as(states)
        for at in (751, 501, 251)[:reached]:
            given, without = (self.ask(x, torch.full((len(x),), at), text) for text in (states, null))
            noise = without + 3 * (given - without)
            now, then = (self.model.alphas_cumprod[step].double() for step in (at, at - 250))
            x = then.sqrt() * (x - (1 - now).sqrt() * noise) / now.sqrt() + (1 - then).sqrt() * noise
        bottom = 250 * (3 - reached)
        return x, torch.randint(bottom, bottom + 250, (len(x),), generator=self.random)


@pytest.mark.parametrize("attack", ["pgd", "fast_at"])
def test_equals_a_plain_loop(model, found, attack):
    ours = weight(found if attack == "pgd" else erased(model, attack=attack))
    assert (ours - weight(model)).abs().max() > 1e-2
    torch.testing.assert_close(ours, Loop(model, attack=attack).run(), atol=CLOSE, rtol=0)


MUTATIONS = ["sign", "no guidance", "w", "a longer warm-up", "attacks the original", "flees the concept"]


@pytest.mark.parametrize("mutation", [*MUTATIONS, "behind the name"])
def test_another_method_does_not_pass(model, found, mutation):
    # A hundred times what the plain loop may differ by.
    assert (weight(found) - Loop(model, mutation=mutation).run()).abs().max() > 100 * CLOSE


def test_the_file_of_changed_weights_is_a_plug_in(model, found, tmp_path):
    changed = difference(found, model)
    assert all(name.startswith("text_encoder.") for name in changed)
    save_file(changed, tmp_path / "encoder.safetensors")
    plugged = Checkpoint(path=str(tmp_path / "encoder.safetensors"), partial=True)
    assert plugged.erase(model, [], random=torch.Generator()).fingerprint == found.fingerprint


def test_each_of_several_concepts_is_drawn(model):
    both, *single = (
        erased(model, concepts, iterations=4, warm_up=4) for concepts in ((CHURCH, VAN_GOGH), (CHURCH,), (VAN_GOGH,))
    )
    assert both.fingerprint not in {one.fingerprint for one in single}


def test_stopped_amid_the_attacks_it_goes_on_to_the_same_weights(model, gone_on_with):
    train = partial(erased, model, iterations=4)
    assert gone_on_with(train).fingerprint == train().fingerprint


def test_the_paper_retains_cocos_objects_but_what_names_the_concept():
    assert len(set(COCO)) == 80
    dog = concept("dog", synonyms=("cat",), neighbours=("fish",))
    prompts = AdvUnlearn()._retained([dog])
    assert len(prompts) == 80 - 3  # dog, hot dog, cat
    assert not {"a photo of a dog", "a photo of a hot dog", "a photo of a cat"} & set(prompts)
    assert AdvUnlearn(neighbours=True)._retained([dog]) == [*prompts, "fish"]


@pytest.mark.parametrize("retain", [(), ("a church", "a chapel by the sea")])
def test_refuses_to_retain_nothing(model, retain):
    with pytest.raises(BadSetting, match="expected prompts to retain that do not name the concept, got none"):
        erased(model, retain=retain)


def test_refuses_a_concept_without_a_token(model):
    with pytest.raises(BadSetting, match="advunlearn: expected a concept whose name has a token, got ' '"):
        erased(model, (concept(" "),))


def test_refuses_words_that_do_not_fit(model):
    with pytest.raises(BadSetting, match="expected room for 14 more words in '... church', got 13"):
        erased(model, k=14)


@pytest.mark.parametrize("setting", ["iterations", "batch", "steps", "k", "retain_batch"])
def test_refuses_none_of_something(setting):
    with pytest.raises(BadSetting, match=f"expected {setting} >= 1, got 0"):
        AdvUnlearn(**{setting: 0})
