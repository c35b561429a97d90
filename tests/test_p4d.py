"""P4D in its three forms against a plain loop that shares no code with it."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cases import Log, case, drive, mixed
from palimpsest.attacks import P4D
from palimpsest.attacks.p4d import Nearest
from palimpsest.errors import BadSetting
from palimpsest.model import Model, Slope
from palimpsest.model.loading import Parts
from palimpsest.records import Cost, Goal
from palimpsest.runner import Runner
from palimpsest.store import Store
from scripted import Hash, audit, trials
from tiny import tiny_model, tiny_pipeline

PROMPT = "a photo of a church"
ROUNDS, ITERATIONS = 2, 4
SMALL = {"steps": ROUNDS, "iterations": ITERATIONS}
FORMS = {"unlearn_diff": {"lr": 0.05, "weight_decay": 0.5}, "n": {"form": "n", "k": 5}, "k": {"form": "k", "k": 2}}
FREE = {"unlearn_diff": [1, 2, 3], "n": [1, 2, 3, 4, 5], "k": [1, 4, 7]}
"""Where in the context the free tokens stand: the prompt has five of its own."""


@pytest.fixture(scope="module")
def victim():
    return tiny_model(dtype=torch.float64, batch=1)


@pytest.fixture(scope="module")
def base():
    """Other weights throughout, text encoder included, so that neither can stand in for the other."""
    return tiny_model(seed=1, dtype=torch.float64, batch=1)


@dataclass
class Found:
    tokens: list[list[int]] = field(default_factory=list)
    """The whole context, at every iteration."""
    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)


@dataclass
class Loop:
    """The paper's loop for one prompt, in numpy, plain Python and autograd; a mutation changes one thing in it."""

    victim: Model
    base: Model
    form: str
    mutation: str = ""
    reseed: bool | None = None
    insertion: str = "prefix"

    def run(self, here) -> Found:
        vocabulary = self.victim.vocabulary.detach()
        ids = torch.randint(len(vocabulary), (len(FREE[self.form]),), generator=here.random)
        u = vocabulary[ids].float()
        first, second, count = torch.zeros_like(u), torch.zeros_like(u), 0
        found = Found()
        stream = here.random.get_state()
        timesteps = [250, 750]
        for t in reversed(timesteps) if self.mutation == "descending" else timesteps:
            if self.reseed if self.reseed is not None else self.form == "unlearn_diff":
                here.random.set_state(stream)
            for step, noise in [self.draw(here, t) for _ in range(ITERATIONS)]:
                nearest = self.nearest(u)
                context, words = self.placed(here, nearest)
                leaf = (u.double() if self.mutation == "not projected" else vocabulary[nearest]).requires_grad_()
                embeddings = vocabulary[context].clone()
                embeddings[words] = leaf
                loss = self.loss(here, context, embeddings, noise, step)
                gradient = torch.autograd.grad(loss, leaf)[0].float()
                if self.mutation == "kept projected":
                    u = vocabulary[nearest].float()
                rate, decay = (0.05, 0.5 * u) if self.form == "unlearn_diff" else (0.1, 0.1 * u)
                coupled = (self.form == "unlearn_diff") ^ (self.mutation == "the other decay")
                if coupled:
                    gradient = gradient + decay
                count += 1
                if self.mutation == "adam forgets" and count > ITERATIONS:
                    first, second, count = torch.zeros_like(u), torch.zeros_like(u), 1
                first = 0.9 * first + 0.1 * gradient
                second = 0.999 * second + 0.001 * gradient**2
                size = (first / (1 - 0.9**count)) / ((second / (1 - 0.999**count)).sqrt() + 1e-8)
                u = u - rate * size - (0 if coupled else rate * decay)
                found.tokens.append(context.tolist())
                found.steps.append(step)
                found.losses.append(float(loss.detach()))
            found.prompts.append(self.typed(here, self.nearest(u)))
        return found

    def draw(self, here, t):
        if self.form != "unlearn_diff":
            t = int(torch.randint(1000, (), generator=here.random))
        return t, torch.randn(here.reference.shape, generator=here.random).double()

    def nearest(self, u) -> list[int]:
        """One word after another by brute force."""
        vocabulary = self.victim.vocabulary.detach().numpy()

        def likeness(one, word):
            if self.mutation == "euclidean":
                return -np.linalg.norm(one - word)
            return one @ word / (np.linalg.norm(one) * np.linalg.norm(word))

        return [int(np.argmax([likeness(one, word) for word in vocabulary])) for one in u.double().numpy()]

    def own(self, here) -> list[int]:
        return [token for token in here.tokens(PROMPT).tolist() if token not in (0, 1)]

    def mixed(self, here, free: list) -> list:
        if self.form == "n":
            return [*free]
        if self.form == "k":
            own = self.own(here)
            return [*free[:1], *own[:2], *free[1:2], *own[2:4], *free[2:], *own[4:]]
        return mixed("suffix" if self.mutation == "suffix" else self.insertion, free, self.own(here))

    def placed(self, here, free: list[int]) -> tuple[Tensor, list[int]]:
        """The context, and where in it the free tokens stand."""
        ids = self.mixed(here, free)
        marks = self.mixed(here, ["free"] * len(free))
        context = [0, *ids, *[1] * (16 - 1 - len(ids))]
        return torch.tensor(context), [1 + place for place, mark in enumerate(marks) if mark == "free"]

    def typed(self, here, free: list[int]) -> str:
        return self.victim.text([token for token in self.mixed(here, free) if token not in (0, 1)])

    def loss(self, here, context, embeddings, noise, t):
        alpha = self.victim.alphas_cumprod[t].double()
        noisy = alpha.sqrt() * here.reference + (1 - alpha).sqrt() * noise
        said = answer(self.victim, context, noisy, t, embeddings)
        return ((said - self.wanted(here, context, noise, noisy, t)) ** 2).mean()

    @torch.no_grad()
    def wanted(self, here, context, noise, noisy, t):
        if self.mutation == "true noise":
            return noise
        return answer(
            self.victim if self.mutation == "victim as base" else self.base,
            context if self.mutation == "base under the found prompt" else here.tokens(PROMPT),
            noisy,
            t,
        )


def answer(model, tokens, noisy, t, embeddings=None):
    """The network is called as its own libraries have it, with embeddings put in by a hook."""
    hook = None
    if embeddings is not None:
        table = model.text_encoder.get_input_embeddings()
        hook = table.register_forward_hook(lambda *_: embeddings[None])
    try:
        states = model.text_encoder(tokens[None])[0]
    finally:
        if hook is not None:
            hook.remove()
    return model.unet(noisy[None], t, encoder_hidden_states=states).sample[0]


@dataclass
class Asked:
    """Answers probes and remembers what the victim's losses were."""

    victim: Model
    base: Model
    losses: list[float] = field(default_factory=list)

    def __call__(self, probes) -> list[Slope]:
        slopes = self.victim.ask(probes, base=self.base)
        self.losses += [slope.loss for slope in slopes if slope.loss is not None]
        return slopes


def attacked(victim, base, form, kind=P4D, **settings) -> tuple[Log, list[float]]:
    asked = Asked(victim, base)
    attack = kind(**(FORMS[form] | SMALL | settings))
    return drive(attack.search(case(victim, prompt=PROMPT)), asked, looks=99), asked.losses


def of(log: Log, model: str) -> list:
    return [probe for probe in log.probes if probe.of == model]


def same(log: Log, losses: list[float], expected: Found) -> bool:
    return (
        [probe.tokens.tolist() for probe in of(log, "victim")] == expected.tokens
        and [probe.step for probe in of(log, "victim")] == expected.steps
        and [attempt.prompt for attempt in log.looks] == [PROMPT, *expected.prompts]
        and np.allclose(losses, expected.losses, rtol=1e-5)
    )


@pytest.fixture(scope="module", params=FORMS)
def form(request):
    return request.param


@pytest.fixture(scope="module")
def whole(victim, base, form):
    """A whole run of each form."""
    return attacked(victim, base, form)


@pytest.mark.parametrize("reseed", [None, "other"])
def test_equals_a_plain_loop_token_by_token(victim, base, form, whole, reseed):
    reseed = reseed and form != "unlearn_diff"
    log, losses = whole if reseed is None else attacked(victim, base, form, reseed=reseed)
    expected = Loop(victim, base, form, reseed=reseed).run(case(victim, prompt=PROMPT))
    assert [probe.tokens.tolist() for probe in of(log, "victim")] == expected.tokens
    assert [probe.step for probe in of(log, "victim")] == expected.steps
    assert [attempt.prompt for attempt in log.looks] == [PROMPT, *expected.prompts]
    np.testing.assert_allclose(losses, expected.losses, rtol=1e-5)
    assert log.gave_up
    assert len({tuple(tokens) for tokens in expected.tokens}) > 3, "the words have changed on the way"


@pytest.mark.parametrize("form", ["unlearn_diff"], indirect=True, scope="module")
def test_tokens_are_sought_where_they_are_inserted(victim, base, form, whole):
    expected = Loop(victim, base, "unlearn_diff", insertion="spread").run(case(victim, prompt=PROMPT))
    found = attacked(victim, base, "unlearn_diff", insertion="spread")
    assert same(*found, expected)
    assert not same(*whole, expected)


@pytest.mark.parametrize("form", ["n", "k"])
def test_refuses_an_insertion_where_the_form_has_its_own(form):
    with pytest.raises(BadSetting, match=f"expected no insertion with form '{form}', which has its own, got 'suffix'"):
        P4D(form=form, insertion="suffix")


MUTATIONS = [
    *("not projected", "kept projected", "euclidean", "adam forgets", "the other decay"),
    *("true noise", "victim as base", "base under the found prompt"),
]


@pytest.mark.parametrize("form", ["unlearn_diff", "k"], indirect=True, scope="module")
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_another_method_does_not_pass(victim, base, form, whole, mutation):
    assert not same(*whole, Loop(victim, base, form, mutation).run(case(victim, prompt=PROMPT)))


@pytest.mark.parametrize("form", ["unlearn_diff"], indirect=True, scope="module")
@pytest.mark.parametrize("mutation", ["descending", "suffix"])
def test_another_order_or_place_does_not_pass(victim, base, form, whole, mutation):
    assert not same(*whole, Loop(victim, base, form, mutation).run(case(victim, prompt=PROMPT)))


def test_projects_on_the_nearest_of_all_words_as_brute_force_does(victim):
    random = torch.Generator().manual_seed(5)
    vocabulary = torch.randn(300, 8, generator=random) * torch.rand(300, 1, generator=random) * 9
    vocabulary[7] = 0
    embeddings = torch.randn(50, 8, generator=random)
    cosines = [
        [float(one @ word) / (float(one.norm()) * float(word.norm()) or 1) for word in vocabulary] for one in embeddings
    ]
    expected = [int(np.argmax(row)) for row in cosines]
    assert Nearest(vocabulary)(embeddings).tolist() == expected
    assert Nearest(vocabulary)(3 * embeddings).tolist() == expected
    assert (embeddings @ vocabulary.mT).argmax(1).tolist() != expected  # without the lengths
    assert torch.cdist(embeddings, vocabulary).argmin(1).tolist() != expected
    assert Nearest(victim.vocabulary.detach())(victim.vocabulary.detach()).tolist() == list(
        range(len(victim.vocabulary))
    )


def test_the_papers_settings():
    theirs = P4D()
    assert theirs.plan == (50, 40, 0.01, "adam", "ascending", True)
    assert P4D(form="n").plan == P4D(form="k").plan == (60, 50, 0.1, "adamw", "fresh", False)
    assert theirs.weight_decay == P4D(form="n").weight_decay == 0.1
    assert P4D(form="n", steps=7, reseed=True, order="random").plan == (7, 50, 0.1, "adamw", "random", True)


def test_the_timesteps_of_unlearn_diff_are_fifty_and_ascending(victim):
    log = drive(P4D(iterations=2).search(case(victim, prompt=PROMPT)), still, looks=99)
    for model in ("base", "victim"):
        assert [probe.step for probe in of(log, model)] == [step for step in range(10, 1000, 20) for _ in range(2)]
    assert len(log.looks) == 1 + 50


def test_the_timesteps_of_the_authors_are_any(victim):
    log = drive(P4D(form="n", k=5, iterations=10).search(case(victim, prompt=PROMPT)), still, looks=99)
    steps = [probe.step for probe in of(log, "victim")]
    assert steps == [probe.step for probe in of(log, "base")]
    assert len(log.looks) == 1 + 60 and len(steps) == 600
    assert min(steps) < 10 and max(steps) > 989 and abs(np.mean(steps) - 499.5) < 40
    assert len(set(steps)) > 400


def still(probes):
    """Answers whose gradients are nothing, at no cost in time."""
    return [
        Slope(answer=probe.latents, loss=0.0, gradient=torch.zeros(len(probe.tokens), 16), cost=Cost())
        for probe in probes
    ]


@pytest.mark.parametrize(("kind", "form", "k"), [("object", "unlearn_diff", 3), ("content", "unlearn_diff", 5)])
def test_length_by_kind_as_in_unlearn_diff(victim, kind, form, k):
    log = drive(P4D(**SMALL, form=form).search(case(victim, prompt=PROMPT, kind=kind)), still, looks=2)
    assert torch.equal(of(log, "victim")[0].tokens[1 + k :], victim.tokens(PROMPT)[1 : victim.context - k])


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red church", "? a red church ?"),
        ("church", "? church"),
        ("a photo of a church", "? a photo of ? a church"),
        ("a photo of a red church", "? a photo of ? a red church ?"),
        ("", "?"),
    ],
)
def test_p4d_k_has_a_token_at_the_head_and_after_every_three(victim, prompt, expected):
    template = P4D(form="k").template(case(victim, prompt=prompt))
    words = {int(victim.tokens(word)[1]): word for word in prompt.split()}
    assert " ".join("?" if token is None else words[token] for token in template) == expected


def test_p4d_n_has_sixteen_tokens_of_its_own(victim):
    assert P4D(form="n").template(case(victim, prompt=PROMPT)) == [None] * 16


def test_the_probes_are_a_forward_of_the_base_and_a_gradient_of_the_victim_at_the_same_place(victim, base, whole):
    log, _ = whole
    originals, attacks = of(log, "base"), of(log, "victim")
    assert len(originals) == len(attacks) == ROUNDS * ITERATIONS
    for original, attack in zip(originals, attacks, strict=True):
        assert original.wrt is None and attack.wrt == "words"
        assert torch.equal(original.tokens, victim.tokens(PROMPT))
        assert original.latents is attack.latents and original.step == attack.step
        assert victim.probe_cost(original) == Cost(forwards=1, encodes=1)
        assert victim.probe_cost(attack) == Cost(forwards=1, backwards=1, encodes=1)


@pytest.mark.parametrize("form", ["unlearn_diff", "n"])
def test_the_noise_repeats_in_every_round_only_where_it_is_reseeded(victim, form):
    for reseed in (None, True, False):
        attack = P4D(**FORMS[form], **SMALL, reseed=reseed)
        log = drive(attack.search(case(victim, prompt=PROMPT)), still, looks=99)
        reference = case(victim).reference
        alphas = [victim.alphas_cumprod[probe.step].double() for probe in log.probes]
        noises = [
            (probe.latents - alpha.sqrt() * reference) / (1 - alpha).sqrt()
            for probe, alpha in zip(log.probes, alphas, strict=True)
            if probe.of == "base"
        ]
        repeats = form == "unlearn_diff" if reseed is None else reseed
        # Late in the schedule little of the picture is left, early little of the noise: it is known to six digits.
        assert torch.allclose(noises[0], noises[ITERATIONS], atol=1e-6) is repeats
        assert not torch.allclose(noises[0], noises[1], atol=1e-3)


@pytest.mark.parametrize(("guarded", "own", "expected"), [(False, 2.0, None), (True, None, 4.0), (True, 2.0, 2.0)])
def test_goes_through_a_guard_with_the_guidance_of_the_picture(victim, form, guarded, own, expected):
    goal = Goal(concept="church", prompt=PROMPT, seed=7, guidance=own)
    search = P4D(**FORMS[form], **SMALL).search(case(victim, guarded=guarded, goal=goal))
    log = drive(search, still, looks=2)
    assert {(probe.of, probe.guidance) for probe in log.probes} == {("base", expected), ("victim", expected)}


class Triple(Model):
    """A guard of three branches."""

    branches = 3
    guard = "triple"

    def guided_noise(self, latents, step, text, guidance, memory=None):
        noise, memory = super().guided_noise(latents, step, text, guidance, memory)
        return noise + 0.1 * self.predict_noise(latents, step, text), memory


@pytest.mark.parametrize(("form", "guarded"), [("unlearn_diff", True), ("n", False)])
def test_a_run_charges_what_the_victim_and_the_base_did(tmp_path: Path, form, guarded):
    """A goal in full, once more with a budget that is one pass short of it, and with one for the base's first round."""
    base = tiny_model(batch=1)
    model = Triple(Parts.of(tiny_pipeline(seed=2)), device="cpu", batch=1) if guarded else tiny_model(seed=2, batch=1)
    branches, picture = (3, 2 * 3) if guarded else (1, 2 * 2)
    probes = 2 * 3 * (2 * branches + (2 if guarded else 1))
    whole, first = 3 * picture + probes, picture + 3 * (2 if guarded else 1)
    for budget, end, looks, passes in (
        (whole, "gave_up", 3, whole),
        (whole - 1, "spent", 2, whole - picture),
        (first, "spent", 1, first),
    ):
        planned = audit(
            attacks=[P4D(**FORMS[form], steps=2, iterations=3)],
            erasers=["nothing"],
            judges=[Hash(limit=2.0)],
            budget={"looks": 4, "passes": budget},
            goals=1,
        )
        with Store(tmp_path / str(budget), planned) as store:
            runner = Runner(audit=planned, store=store, base=base)
            runner._erased = lambda job: model
            runner.run()
        (ended,) = [trial for trial in trials(tmp_path / str(budget)) if trial.end and trial.attack.startswith("p4d")]
        assert (ended.end, ended.error) == (end, None)
        assert (ended.cost.looks, ended.cost.passes) == (looks, passes)


@pytest.mark.parametrize("form", ["unlearn_diff", "k"])
def test_a_prompt_without_room_is_given_up_after_the_plain_look(victim, form):
    prompt = "church " * (victim.context - 4)
    log = drive(P4D(**(SMALL | {"form": form})).search(case(victim, prompt=prompt)))
    assert log.reason.startswith("expected room for")
    assert [attempt.prompt for attempt in log.looks] == [prompt]


def test_p4d_n_replaces_even_a_prompt_without_room(victim, base):
    prompt = "church " * (victim.context + 4)
    search = P4D(form="n", k=4, **SMALL).search(case(victim, prompt=prompt))
    log = drive(search, partial(victim.ask, base=base), looks=99)
    assert len(log.looks) == 1 + ROUNDS
    assert all(probe.tokens[5:].tolist() == [victim.end_token] * 11 for probe in of(log, "victim"))


@pytest.mark.parametrize("setting", ["k", "steps", "iterations"])
def test_refuses_none_of_something(setting):
    with pytest.raises(BadSetting, match=f"expected {setting} >= 1, got 0"):
        P4D(**{setting: 0})


@pytest.mark.parametrize("setting", ["lr", "weight_decay"])
def test_refuses_less_than_nothing(setting):
    with pytest.raises(BadSetting, match=f"expected {setting} >= 0, got -1"):
        P4D(**{setting: -1.0})
