import re

import pytest

from cases import case, drive
from palimpsest.attacks import RandomTrigger
from palimpsest.errors import BadSetting
from tiny import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def drawn(model, attack, pattern, **settings):
    """The string, one for each of five goals; asked once."""
    found = []
    for seed in range(5):
        log = drive(attack.search(case(model, seed=seed, **settings)), looks=20)
        (look,) = log.looks
        found.append(re.fullmatch(pattern, look.prompt).group(1))
    return found


def test_another_string_stands_in_the_names_place_at_every_goal(model):
    found = drawn(model, RandomTrigger(), r"a photo of a ([a-zA-Z]{8}) at night", prompt="a photo of a Church at night")
    assert len(set(found)) == 5
    assert found == drawn(model, RandomTrigger(), r".* a (\w+) at night", prompt="a photo of a church at night")


@pytest.mark.parametrize(("settings", "kind"), [({"place": "append"}, "object"), ({}, "content")])
def test_it_stands_behind_the_prompt_where_a_backdoors_would(model, settings, kind):
    attack = RandomTrigger(length=3, behind=("a dog by the sea",), **settings)
    drawn(model, attack, r"a dog by the sea ([a-zA-Z]{3})", prompt="a church by the sea", kind=kind)


def test_strings_of_the_triggers_own_kind_can_be_given(model):
    kind = ("blue moon", "red dusk", "pink dunes")
    found = drawn(model, RandomTrigger(strings=kind), r"a photo of a (\w+ \w+)", prompt="a photo of a church")
    assert set(found) <= set(kind) and len(set(found)) > 1


def test_bad_settings(model):
    with pytest.raises(BadSetting, match="random_trigger: expected length >= 1, got 0"):
        RandomTrigger(length=0)
    with pytest.raises(BadSetting, match="random_trigger: expected strings that are not empty"):
        RandomTrigger(strings=("blue moon", " "))
    with pytest.raises(BadSetting, match="random_trigger: expected prompts that name concept 'church'.*'a house'"):
        drive(RandomTrigger().search(case(model, prompt="a house")))
