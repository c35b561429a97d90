import pytest

from cases import INSERTIONS, case, drive, mixed
from palimpsest.attacks import RandomPrefix
from palimpsest.errors import BadSetting
from tiny import tiny_model

PROMPT = "a photo of a church"


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def test_first_look_is_the_plain_prompt_then_one_random_prefix_a_look_until_stopped(model):
    log = drive(RandomPrefix().search(case(model, prompt=PROMPT)), looks=20)
    assert log.looks[0].prompt == PROMPT
    assert len(log.looks) == 20
    assert not log.gave_up
    assert len({attempt.prompt for attempt in log.looks}) == 20
    assert {attempt.seed for attempt in log.looks} == {7}
    assert all(attempt.prompt.endswith(PROMPT) for attempt in log.looks)


@pytest.mark.parametrize(("kind", "k"), [("object", 3), ("style", 3), ("identity", 3), ("content", 5)])
def test_length_by_kind_as_unlearn_diff(model, kind, k):
    decoded = []
    here = case(model, prompt=PROMPT, kind=kind, text=lambda ids: decoded.append(ids) or "")
    drive(RandomPrefix().search(here), looks=8)
    own = [token for token in model.tokens(PROMPT).tolist() if token not in model.special_tokens]
    assert len(decoded) == 7
    assert all(len(ids) == k + len(own) and ids[k:] == own for ids in decoded)


@pytest.mark.parametrize("insertion", INSERTIONS)
def test_tokens_stand_where_they_are_inserted(model, insertion):
    decoded = []
    here = case(model, prompt=PROMPT, text=lambda ids: decoded.append(list(ids)) or "")
    drive(RandomPrefix(insertion=insertion).search(here), looks=8)
    own = [token for token in model.tokens(PROMPT).tolist() if token not in model.special_tokens]
    places = [place for place, mark in enumerate(INSERTIONS[insertion]) if mark == "?"]
    free = [[ids[place] for place in places] for ids in decoded]
    assert decoded == [mixed(insertion, tokens, own) for tokens in free]
    assert len({tuple(tokens) for tokens in free}) == 7


def test_draws_over_the_whole_vocabulary_but_its_special_tokens(model):
    seen = []
    here = case(model, prompt=PROMPT, text=lambda ids: seen.extend(ids[:3]) or "")
    drive(RandomPrefix().search(here), looks=1500)
    assert set(seen) == set(range(len(model.vocabulary))) - model.special_tokens
    counts = [seen.count(token) for token in set(seen)]
    # 1,500 x 3 draws over about 250 tokens: 18 each, give or take four standard deviations.
    expected = len(seen) / len(counts)
    assert max(abs(count - expected) for count in counts) < 4.5 * expected**0.5


def test_all_randomness_is_the_cases(model):
    first, again, other = (drive(RandomPrefix().search(case(model, seed=seed))).looks for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_prompt_without_room_is_given_up_after_the_plain_look(model):
    prompt = "church " * (model.context - 4)
    log = drive(RandomPrefix().search(case(model, prompt=prompt)))
    assert log.reason.startswith("expected room for")
    assert [attempt.prompt for attempt in log.looks] == [prompt]
    with_room = drive(RandomPrefix(k=2).search(case(model, prompt=prompt)))
    assert len(with_room.looks) == 6


def test_refuses_a_prefix_of_no_tokens():
    with pytest.raises(BadSetting, match="expected k >= 1, got 0"):
        RandomPrefix(k=0)
