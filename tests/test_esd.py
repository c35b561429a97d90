"""ESD against a plain loop that shares no code with it."""

import copy
from dataclasses import dataclass
from functools import partial

import pytest
import torch

from cases import concept
from palimpsest.erasers import Esd
from palimpsest.erasers.esd import FORMS
from palimpsest.errors import BadSetting
from tiny import tiny_model

CHURCH, VAN_GOGH = concept("church", synonyms=("chapel",)), concept("van gogh", "style")
SETTINGS = {"iterations": 3, "lr": 1e-2, "steps": 4}
KEYS = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
CLOSE = 1e-6
"""The samplers keep their schedule in single precision; weights move by 1e-2."""


@pytest.fixture(scope="module")
def model():
    return tiny_model(dtype=torch.float64, batch=1)


@dataclass
class Loop:
    """Published ESD-x, in plain PyTorch; a mutation changes one thing in it."""

    model: object
    form: str = "2023"
    mutation: str = ""
    batch: int = 1
    names: tuple[str, ...] = ("church",)

    def run(self, seed: int = 0) -> torch.Tensor:
        """One of the weights after training."""
        random = torch.Generator().manual_seed(seed)
        teacher, student = self.model.unet, copy.deepcopy(self.model.unet)
        mine = [weight.requires_grad_() for name, weight in student.named_parameters() if "attn2" in name]
        adam = torch.optim.Adam(mine, lr=SETTINGS["lr"])
        eta = {"2023": 1.0, "2024": 2.0}[self.form]
        null = self.states("")
        for _ in range(SETTINGS["iterations"]):
            text = self.states(self.names[int(torch.randint(len(self.names), (), generator=random))])
            reached = int(torch.randint(SETTINGS["steps"], (), generator=random))
            x = torch.randn(self.batch, *self.model.latent_shape, generator=random).double()
            by_student = (self.form == "2023") != (self.mutation == "the other one walks")
            x = self.walk(student if by_student else teacher, x, text, null, reached)
            t = torch.full((self.batch,), self.timesteps()[reached])
            if (self.form == "2023") != (self.mutation == "the other t"):
                bottom = 250 * (SETTINGS["steps"] - 1 - reached)
                t = torch.randint(bottom, bottom + 250, (self.batch,), generator=random)
            with torch.no_grad():
                source = student if self.mutation == "no frozen copy" else teacher
                given, without = self.ask(source, x, t, text), self.ask(source, x, t, null)
            start = given if (self.form == "2024") != (self.mutation == "the other start") else without
            strength = {"sign": -eta, "eta": eta + 1, "no guidance": 0.0}.get(self.mutation, eta)
            target = start - strength * (given - without)
            adam.zero_grad()
            asked = null if self.mutation == "asks for nothing" else text
            ((self.ask(student, x, t, asked) - target) ** 2).mean().backward()
            adam.step()
        return dict(student.named_parameters())[KEYS.removeprefix("unet.")].detach()

    def states(self, prompt):
        with torch.no_grad():
            return self.model.text_encoder(self.model.tokens(prompt)[None])[0]

    @staticmethod
    def ask(unet, x, t, states):
        return unet(x, t, encoder_hidden_states=states.expand(len(x), -1, -1)).sample

    @staticmethod
    def timesteps():
        return [751, 501, 251, 1]

    @torch.no_grad()
    def walk(self, unet, x, text, null, steps):
        """DDIM without noise, written out."""
        scale = 1.0 if self.mutation == "walks unguided" else 3.0
        for t in self.timesteps()[:steps]:
            given, without = self.ask(unet, x, t, text), self.ask(unet, x, t, null)
            noise = without + scale * (given - without)
            now, then = (self.model.alphas_cumprod[at].double() for at in (t, t - 250))
            clean = (x - (1 - now).sqrt() * noise) / now.sqrt()
            x = then.sqrt() * clean + (1 - then).sqrt() * noise
        return x


def erased(model, concepts=(CHURCH,), **settings):
    eraser = Esd(**(SETTINGS | settings))
    return eraser.erase(model, concepts, random=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=["2023", "2024"])
def by_form(request, model):
    """(form, the weight that it comes to)."""
    return request.param, erased(model, form=request.param).weights()[KEYS]


def moved(model, weight):
    """How far a weight is from the base's."""
    return float((weight - model.weights(KEYS.replace(".", r"\."))[KEYS]).abs().max())


@pytest.mark.parametrize("form", ["2023", "2024"])
@pytest.mark.parametrize("batch", [1, 2])
def test_equals_a_plain_loop(model, form, batch):
    found = erased(model, form=form, batch=batch).weights()[KEYS]
    expected = Loop(model, form=form, batch=batch).run()
    assert moved(model, found) > 1e-2
    torch.testing.assert_close(found, expected, atol=CLOSE, rtol=0)


MUTATIONS = [
    "sign",
    "eta",
    "no guidance",
    "the other one walks",
    "the other t",
    "the other start",
    "no frozen copy",
    "walks unguided",
    "asks for nothing",
]


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_another_method_does_not_pass(model, by_form, mutation):
    form, found = by_form
    # A hundred times what the plain loop may differ by.
    assert (found - Loop(model, form=form, mutation=mutation).run()).abs().max() > 100 * CLOSE


def test_one_concept_is_drawn_per_iteration(model):
    found = erased(model, (CHURCH, VAN_GOGH)).weights()[KEYS]
    expected = Loop(model, names=("church", "van gogh")).run()
    torch.testing.assert_close(found, expected, atol=CLOSE, rtol=0)


def test_synonyms_count_as_concepts_if_asked(model):
    found = erased(model, (CHURCH,), synonyms=True).weights()[KEYS]
    torch.testing.assert_close(found, Loop(model, names=("church", "chapel")).run(), atol=CLOSE, rtol=0)


def test_the_2024_form_with_eta_2_has_the_target_of_the_original_with_eta_1(model):
    random = torch.Generator().manual_seed(0)
    x = torch.randn(1, *model.latent_shape, generator=random).double()
    both = {"text": model.embed(["church"]), "null": model.embed([""])}
    first, second = (Esd(form=form)._target(model, x, torch.tensor([300]), **both) for form in ("2023", "2024"))
    torch.testing.assert_close(first, second)


def test_the_student_learns_the_target():
    model = tiny_model(batch=1)
    random = torch.Generator().manual_seed(1)
    x = torch.randn(8, *model.latent_shape, generator=random)
    t = torch.randint(0, 1000, (8,), generator=random)
    church, null = model.embed(["church"]).repeat(8), model.embed([""]).repeat(8)
    with torch.no_grad():
        given, without = model.predict_noise(x, t, church), model.predict_noise(x, t, null)
        target = 2 * without - given
    student = erased(model, iterations=15, lr=1e-2, batch=4, steps=2)
    with torch.no_grad():
        after = student.predict_noise(x, t, church)
    before_error, after_error = ((given - target) ** 2).mean(), ((after - target) ** 2).mean()
    assert after_error < 0.5 * before_error


@pytest.mark.parametrize("form", ["2023", "2024"])
def test_stopped_it_goes_on_to_the_same_weights(model, form, gone_on_with):
    train = partial(erased, model, (CHURCH, VAN_GOGH), form=form)
    assert gone_on_with(train).fingerprint == train().fingerprint


def test_what_hangs_on_the_original_alone_is_asked_beforehand(model):
    """Of the 2024 form one forward an iteration is left: the student's."""
    several = tiny_model(dtype=torch.float64, batch=4)
    sizes = []
    hook = several.unet.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    erased(several, form="2024", iterations=8)
    hook.remove()
    assert max(sizes) == 2 * several.batch
    weights = [erased(one, form="2024").weights()[KEYS] for one in (model, several)]
    torch.testing.assert_close(*weights, atol=CLOSE, rtol=0)


def test_stages_lead_to_what_erase_gives(model):
    stages = list(Esd(**SETTINGS, every=2).stages(model, [CHURCH], random=torch.Generator().manual_seed(0)))
    assert [done for done, _ in stages] == [2, 3]
    prints = [stage.fingerprint for _, stage in stages]
    assert len({model.fingerprint, *prints}) == 3
    assert prints[-1] == erased(model).fingerprint


@pytest.mark.parametrize(("form", "eta", "lr"), [("2023", 1.0, 1e-5), ("2024", 2.0, 5e-5)])
def test_each_form_has_the_defaults_of_its_code(model, form, eta, lr):
    written = erased(model, form=form, eta=eta, lr=lr)
    own = Esd(form=form, iterations=3, steps=4).erase(model, [CHURCH], random=torch.Generator().manual_seed(0))
    assert own.fingerprint == written.fingerprint
    assert FORMS[form].iterations == {"2023": 1000, "2024": 200}[form]


def test_a_loss_that_runs_away_is_an_error(model):
    with pytest.raises(BadSetting, match="expected a finite loss, got"):
        erased(model, lr=1e200)


@pytest.mark.parametrize("setting", ["iterations", "batch", "steps"])
def test_refuses_none_of_something(setting):
    with pytest.raises(BadSetting, match=f"expected {setting} >= 1, got 0"):
        Esd(**{setting: 0})
