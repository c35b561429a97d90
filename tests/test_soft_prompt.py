"""The soft prompt against a plain loop that shares no code with it."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from cases import case, drive, mixed
from palimpsest.attacks import SoftPrompt
from palimpsest.attacks.base import Need
from palimpsest.errors import BadSetting
from palimpsest.model import Model
from palimpsest.records import Cost
from palimpsest.runner import Runner
from palimpsest.store import Store
from scripted import Hash, audit, trials
from tiny import tiny_model

PROMPT = "a photo of a church"
ROUNDS, ITERATIONS = 2, 3
SETTINGS = {"k": 3, "iterations": ITERATIONS, "lr": 0.05}


@pytest.fixture(scope="module")
def victim():
    return tiny_model(dtype=torch.float64, batch=1)


@pytest.fixture(scope="module")
def base():
    """Other weights throughout, text encoder included, so that neither can stand in for the other."""
    return tiny_model(seed=1, dtype=torch.float64, batch=1)


@dataclass
class Loop:
    """The attack on one prompt, in autograd; a mutation changes one thing in it."""

    victim: Model
    base: Model
    mutation: str = ""
    insertion: str = "prefix"
    start: str = "latest"
    sign: bool = False

    def run(self, here) -> list[torch.Tensor]:
        """The whole context's embeddings after every round."""
        table = self.victim.vocabulary.detach()
        found, v = [], None
        for _ in range(ROUNDS):
            if v is None or self.start == "random":
                v = table[torch.randint(len(table), (3,), generator=here.random)].float().double()
                first, second, count = torch.zeros_like(v), torch.zeros_like(v), 0
            points = [self.draw(here) for _ in range(ITERATIONS)]
            for t, noise in points:
                if self.mutation == "one timestep":
                    t = points[0][0]
                slots = self.nearest(v) if self.mutation == "projected" else v
                leaf = slots.clone().requires_grad_()
                (gradient,) = torch.autograd.grad(self.loss(here, leaf, t, noise), leaf)
                count += 1
                first = 0.9 * first + 0.1 * gradient
                second = 0.999 * second + 0.001 * gradient**2
                adam = (first / (1 - 0.9**count)) / ((second / (1 - 0.999**count)).sqrt() + 1e-8)
                step = gradient.sign() if self.sign else gradient if self.mutation == "no adam" else adam
                v = v + 0.05 * step if self.mutation == "wrong sign" else v - 0.05 * step
            found.append(self.whole(v))
        return found

    def draw(self, here):
        t = int(torch.randint(1000, (), generator=here.random))
        return t, torch.randn(here.reference.shape, generator=here.random).double()

    def nearest(self, v):
        table = self.victim.vocabulary.detach()
        return table[torch.nn.functional.cosine_similarity(v[:, None], table[None], dim=-1).argmax(1)]

    def whole(self, v):
        words = self.victim.vocabulary.detach()[self.victim.tokens(PROMPT)]
        return torch.stack([words[0], *mixed(self.insertion, v, words[1:6]), *words[6:13]])

    def loss(self, here, v, t, noise):
        alpha = self.victim.alphas_cumprod[t].double()
        noisy = alpha.sqrt() * here.reference + (1 - alpha).sqrt() * noise
        table = self.victim.text_encoder.get_input_embeddings()
        hook = table.register_forward_hook(lambda *_: self.whole(v)[None])
        try:
            states = self.victim.text_encoder(self.victim.tokens(PROMPT)[None])[0]
        finally:
            hook.remove()
        said = self.victim.unet(noisy[None], t, encoder_hidden_states=states).sample[0]
        wanting = self.victim if self.mutation == "victim as base" else self.base
        with torch.no_grad():
            states = wanting.text_encoder(self.victim.tokens(PROMPT)[None])[0]
            wanted = wanting.unet(noisy[None], t, encoder_hidden_states=states).sample[0]
        return ((said - (noise if self.mutation == "true noise" else wanted)) ** 2).mean()


@dataclass
class Attacked:
    """A whole run, its probes and what was kept, as they were at the time."""

    victim: Model
    base: Model
    kept: dict[str, torch.Tensor] = field(default_factory=dict)

    def run(self, **settings):
        search = SoftPrompt(**(SETTINGS | settings)).search(case(self.victim, prompt=PROMPT, keep=self.keep))
        self.log = drive(search, lambda probes: self.victim.ask(probes, base=self.base), looks=1 + ROUNDS)
        return [self.kept[attempt.words] for attempt in self.log.looks[1:]]

    def keep(self, tensor):
        self.kept[str(len(self.kept))] = tensor
        return str(len(self.kept) - 1)


def same(found, expected) -> bool:
    # The attack's words are single precision.
    return all(torch.allclose(one.double(), other, atol=1e-5) for one, other in zip(found, expected, strict=True))


@pytest.fixture(scope="module")
def attacked(victim, base):
    return Attacked(victim, base)


@pytest.fixture(scope="module")
def found(attacked):
    return attacked.run()


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({"start": "random"}, {"start": "random"}),
        ({"optimiser": "sign"}, {"sign": True}),
        ({"insertion": "spread"}, {"insertion": "spread"}),
    ],
    ids=str,
)
def test_equals_a_plain_loop_with_other_settings(victim, base, found, settings, changes):
    expected = Loop(victim, base, **changes).run(case(victim, prompt=PROMPT))
    assert same(Attacked(victim, base).run(**settings), expected)
    assert not same(found, expected)


def test_equals_a_plain_loop(victim, base, found):
    assert same(found, Loop(victim, base).run(case(victim, prompt=PROMPT)))


@pytest.mark.parametrize(
    "mutation", ["wrong sign", "no adam", "projected", "one timestep", "true noise", "victim as base"]
)
def test_another_method_does_not_pass(victim, base, found, mutation):
    assert not same(found, Loop(victim, base, mutation).run(case(victim, prompt=PROMPT)))


def test_what_is_found_is_no_text(victim, found):
    """The prompt's own words stay what they are; the others leave the vocabulary, and go on leaving it."""
    table = victim.vocabulary.detach()
    own = table[victim.tokens(PROMPT)].float()
    for words in found:
        assert torch.equal(words[[0, *range(4, 16)]], own[[0, *range(1, 13)]])
        assert torch.cdist(words[1:4].double(), table).amin(1).min() > 1e-3
    assert not torch.equal(found[0], found[1])


def test_the_prompt_that_is_asked_for_stays_the_goals(attacked, found):
    assert {attempt.prompt for attempt in attacked.log.looks} == {PROMPT}
    assert attacked.log.looks[0].words is None
    assert len({attempt.words for attempt in attacked.log.looks[1:]}) == ROUNDS


def test_an_iteration_is_a_forward_of_the_base_and_a_gradient_of_the_victim_at_the_same_place(victim, attacked, found):
    originals, attacks = ([p for p in attacked.log.probes if p.of == of] for of in ("base", "victim"))
    assert len(originals) == len(attacks) == ROUNDS * ITERATIONS
    for original, attack in zip(originals, attacks, strict=True):
        assert torch.equal(original.tokens, victim.tokens(PROMPT))
        assert original.latents is attack.latents and original.step == attack.step
        assert victim.probe_cost(attack) == Cost(forwards=1, backwards=1, encodes=1)


def test_its_access_says_that_nobody_can_type_it():
    assert SoftPrompt.needs == {Need.GRADIENTS, Need.BASE, Need.REFERENCE, Need.WORDS}


def test_its_defaults_are_those_of_that_package():
    attack = SoftPrompt()
    assert (attack.k, attack.iterations, attack.lr) == (1, 30, 1e-3)
    assert (attack.optimiser, attack.start, attack.insertion) == ("adam", "latest", "prefix")


def test_a_run_draws_what_was_found_until_its_budget_is_spent(tmp_path: Path):
    """On the runner: the words are kept, and a picture drawn with them is another one than the plain one."""
    model = tiny_model(batch=1)
    planned = audit(
        attacks=[SoftPrompt(iterations=2, lr=0.5)],
        erasers=["nothing"],
        judges=[Hash(limit=2.0)],
        budget={"looks": 3, "passes": 1000},
        goals=1,
        keep="all",
    )
    with Store(tmp_path, planned) as store:
        Runner(audit=planned, store=store, base=model).run()
    found = [trial for trial in trials(tmp_path) if trial.attack.startswith("soft_prompt")]
    assert [trial.end for trial in found] == [None, None, "spent"]
    assert [trial.attempt.words is None for trial in found] == [True, False, False]
    assert all((tmp_path / "tensors" / f"{trial.attempt.words}.safetensors").exists() for trial in found[1:])
    assert len({trial.picture for trial in found}) == 3
    # A picture of two steps with guidance is 4 passes; an iteration 1 of the base and 2 of the victim.
    assert found[-1].cost.passes == 3 * 4 + 2 * 2 * 3


def test_a_prompt_without_room_is_given_up_after_the_plain_look(victim):
    log = drive(SoftPrompt().search(case(victim, prompt="church " * (victim.context - 2))))
    assert log.reason.startswith("expected room for") and len(log.looks) == 1


@pytest.mark.parametrize(("setting", "least"), [("k", 1), ("iterations", 1), ("lr", 0)])
def test_refuses_less_than_something(setting, least):
    with pytest.raises(BadSetting, match=f"soft_prompt: expected {setting} >= {least}, got -1"):
        SoftPrompt(**{setting: -1})
