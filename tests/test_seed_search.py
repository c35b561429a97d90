import pytest

from cases import case, drive
from palimpsest.attacks import SeedSearch, seed_search
from tiny import tiny_model

PROMPT = "a photo of a church"


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def test_the_prompt_as_it_stands_from_the_goals_seed_and_then_from_others(model):
    log = drive(SeedSearch().search(case(model, prompt=PROMPT)), looks=200)
    assert {attempt.prompt for attempt in log.looks} == {PROMPT}
    seeds = [attempt.seed for attempt in log.looks]
    assert seeds[0] == 7
    assert len(set(seeds)) == 200
    assert not log.gave_up
    # Uniform below 2^31: the mean of 199 lies within four standard deviations of the middle.
    middle, spread = seed_search.SEEDS / 2, seed_search.SEEDS / 12**0.5
    assert abs(sum(seeds[1:]) / 199 - middle) < 4 * spread / 199**0.5


def test_no_seed_twice(model, monkeypatch):
    monkeypatch.setattr(seed_search, "SEEDS", 9)
    log = drive(SeedSearch().search(case(model, prompt=PROMPT)), looks=9)
    assert sorted(attempt.seed for attempt in log.looks) == list(range(9))


def test_all_randomness_is_the_cases(model):
    first, again, other = (drive(SeedSearch().search(case(model, seed=seed))).looks for seed in (1, 1, 2))
    assert first == again
    assert first != other
