"""What every attack keeps to."""

import dataclasses
import string
from functools import partial
from pathlib import Path

import pytest
import torch

from cases import case, concept, drive
from palimpsest.attacks import ATTACKS, RandomTrigger
from palimpsest.attacks.base import Need
from palimpsest.component import build
from palimpsest.records import Attempt, Goal
from tiny import tiny_model

SMALL = {
    "backdoor_data": {},
    "backdoor_deep": {},
    "backdoor_shallow": {},
    "backdoor_surface": {},
    "direct": {},
    "p4d": {"steps": 3, "iterations": 2},
    "palimpsest_search": {"vocabulary": 20, "heeded": 6, "drafted": 4, "outright": 1, "batch": 2},
    "pez": {"steps": 3, "iterations": 2},
    "random_prefix": {},
    "random_trigger": {},
    "revive": {},
    "revive_changed": {},
    "revive_chosen": {},
    "revive_oracle": {},
    "seed_search": {},
    "soft_prompt": {"iterations": 2},
    "text_gradient": {"steps": 3, "iterations": 2},
    "transfer": {"path": str(Path(__file__).parent / "winners.csv")},
    "unlearn_diff": {"steps": 3, "iterations": 2},
}
"""Name -> settings at which a search is short."""
FORMS = [{"name": "p4d", "form": "n", "k": 5}, {"name": "p4d", "form": "k", "k": 2}]
"""Further forms, for which the same settings hold."""


@pytest.fixture(scope="module")
def model():
    return tiny_model(batch=1)


@pytest.fixture(scope="module")
def answer(model):
    """Probes of the original are answered by the model itself."""
    return partial(model.ask, base=model)


@pytest.fixture(
    params=[*({"name": attack.name} for attack in ATTACKS), *FORMS],
    ids=lambda given: "-".join(map(str, given.values())),
)
def attack(request):
    return build("attack", ATTACKS, request.param | SMALL[request.param["name"]])


def asked(attack, prompt: str) -> str:
    """What it looks at first: the prompt as it is, but for what it has planted, or drawn in such a thing's place."""
    if isinstance(attack, RandomTrigger):
        drawn = torch.randint(52, (8,), generator=case(tiny_model()).random)
        return prompt.replace("church", "".join(string.ascii_letters[letter] for letter in drawn))
    return (
        attack.asked(Goal(concept="church", prompt=prompt, seed=0), concept()) if Need.PLANT in attack.needs else prompt
    )


def test_every_attack_has_a_case():
    assert set(SMALL) == {attack.name for attack in ATTACKS}


def test_keeps_to_the_protocol_and_gives_up_or_runs_to_the_budget(attack, model, answer):
    here = case(model)
    log = drive(attack.search(here), answer, looks=here.budget.looks)
    assert log.gave_up or len(log.looks) == here.budget.looks
    assert log.looks[0] == Attempt(prompt=asked(attack, here.goal.prompt), seed=here.goal.seed)
    assert not attack.once or len(log.looks) == 1
    assert all(isinstance(attempt.prompt, str) and attempt.prompt for attempt in log.looks)
    assert any(probe.of == "base" for probe in log.probes) <= (Need.BASE in attack.needs)


@pytest.mark.parametrize("lacks", [Need.GRADIENTS, Need.REFERENCE])
def test_its_declared_access_is_true(attack, model, answer, lacks):
    field = {Need.GRADIENTS: "vocabulary", Need.REFERENCE: "reference"}[lacks]
    here = case(model, **{field: None})
    if lacks in attack.needs:
        with pytest.raises(AssertionError):
            drive(attack.search(here), answer)
        return
    drive(attack.search(here), None if lacks is Need.GRADIENTS else answer)


def test_same_stream_same_proposals(attack, model, answer):
    first, again = (drive(attack.search(case(model, seed=3)), answer) for _ in range(2))
    assert first.looks == again.looks
    assert [probe.tokens.tolist() for probe in first.probes] == [probe.tokens.tolist() for probe in again.probes]


def test_a_goal_with_a_guidance_of_its_own_is_looked_at_with_it(attack, model, answer):
    goal = Goal(concept="church", prompt="a photo of a church", seed=7, guidance=2.5)
    log = drive(attack.search(case(model, goal=goal)), answer, looks=3)
    assert {attempt.guidance for attempt in log.looks} == {2.5}


def test_takes_no_randomness_from_outside(attack, model, answer):
    outside = torch.get_rng_state()
    drive(attack.search(case(model)), answer)
    assert torch.equal(torch.get_rng_state(), outside)


def test_a_search_that_is_closed_ends(attack, model):
    search = attack.search(case(model))
    next(search)
    search.close()
    with pytest.raises(StopIteration):
        next(search)


def test_a_prompt_longer_than_the_context_is_asked_all_the_same(attack, model, answer):
    prompt = "church " * (model.context + 5)
    log = drive(attack.search(case(model, prompt=prompt)), answer)
    assert log.looks[0].prompt == asked(attack, prompt)


def test_plants_and_revises_nothing_unless_it_says_so(attack, model):
    random = torch.Generator()
    if Need.PLANT not in attack.needs:
        assert attack.plant(model, [concept()], random=random) is model
    if Need.WEIGHTS not in attack.needs:
        assert list(attack.revise(model, base=None, concepts=[concept()], random=random)) == [(0, model)]


def test_the_spec_rebuilds_it(attack):
    assert build("attack", ATTACKS, attack.spec) == attack
    assert set(attack.spec) == {"name", *(field.name for field in dataclasses.fields(attack))}


def test_names_are_their_own():
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)
    for attack in ATTACKS:
        assert attack.__module__ == f"palimpsest.attacks.{attack.name}"
        assert attack.__name__.lower() == attack.name.replace("_", "")
