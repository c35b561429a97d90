from cases import case, drive
from palimpsest.attacks import Direct
from tiny import tiny_model


def test_asks_once_with_the_goals_own_prompt_and_seed():
    log = drive(Direct().search(case(tiny_model())))
    assert [(attempt.prompt, attempt.seed) for attempt in log.looks] == [("a photo of a church", 7)]
    assert log.gave_up
