"""Transfer: what it takes out of a run or a list, whom it leaves alone, and that a replayed prompt wins again."""

from dataclasses import replace
from pathlib import Path

import pytest

from cases import case, concept, drive
from palimpsest.attacks import Transfer
from palimpsest.attacks.base import Budget
from palimpsest.audit_file import make_audit
from palimpsest.errors import BadConcept, BadRun, UnknownName
from palimpsest.records import Attempt, Goal
from palimpsest.report.ledger import Key, read
from scripted import CHURCH, FISH, Dampen, Hash, Seeds, audit, run, trials
from tiny import tiny_model

GOALS = 6


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which the words behind the prompt, or another seed, win some goals of some victims."""
    folder = tmp_path_factory.mktemp("source") / "run"
    attacks = ["direct", Seeds(suffix=" at night", most=1)]
    concepts = [CHURCH, FISH]
    judge = Hash(limit=0.7)
    run(folder, audit(concepts=concepts, attacks=attacks, goals=GOALS, judges=[judge], erasers=[Dampen()]))
    return folder


@pytest.fixture(scope="module")
def model():
    return tiny_model(batch=1)


def won(folder: Path, eraser: str, attack: str) -> dict[Goal, Attempt]:
    """The winning attempts of a cell of the church, those left out that are plain."""
    (key,) = (key for key in read(folder).outcomes if key[:2] == ("church", eraser) and key.attack.startswith(attack))
    found = {outcome.goal: outcome.won.attempt for outcome in read(folder).outcomes[key] if outcome.won}
    return {goal: attempt for goal, attempt in found.items() if attempt.prompt != goal.prompt}


def test_what_won_a_goal_is_looked_at_there_and_nowhere_else(source, model) -> None:
    there = won(source, "dampen", "seeds")
    assert 0 < len(there) < GOALS
    attack = Transfer(path=str(source), eraser="dampen", attack="seeds")
    for goal in audit(goals=GOALS).goals_for(CHURCH):
        log = drive(attack.search(case(model, goal=goal)))
        plain = Attempt(prompt=goal.prompt, seed=goal.seed)
        assert log.looks == [plain, *([there[goal]] if goal in there else [])]
        assert log.gave_up and bool(log.reason) == (goal not in there)
        assert goal in there or "no prompt but the plain one is known to have won this goal" in log.reason


def test_others_are_those_of_the_concepts_other_goals_behind_its_own(source, model) -> None:
    there = won(source, "dampen", "seeds")
    goal = list(there)[-1]
    log = drive(Transfer(path=str(source), others=True).search(case(model, goal=goal)), looks=100)
    assert log.looks[:2] == [Attempt(prompt=goal.prompt, seed=goal.seed), there[goal]]
    assert set(there.values()) <= set(log.looks[1:])
    assert all("church" in attempt.prompt for attempt in log.looks)
    assert len(set(log.looks)) == len(log.looks)


def test_a_concept_that_nothing_won_is_given_up_without_a_look_and_the_report_says_why(source, tmp_path) -> None:
    house = replace(CHURCH, name="house", prompts=("a house",))
    judge = Hash(limit=0.7, knows=("house",))
    planned = audit(concepts=[house], attacks=["direct", Transfer(path=str(source))], judges=[judge], goals=2)
    run(tmp_path, planned)
    found = read(tmp_path)
    (key,) = (key for key in found.idle if key.eraser == "dampen")
    assert found.reasons[key] == f"nothing won 'house' in {source}"


def test_replayed_on_the_same_victim_it_wins_what_was_won_and_the_reason_stands_in_the_ledger(source, tmp_path) -> None:
    attack = Transfer(path=str(source), eraser="dampen", attack="seeds")
    planned = audit(attacks=["direct", attack], erasers=[Dampen()], goals=GOALS, judges=[Hash(limit=0.7)])
    run(tmp_path, planned)
    cell = read(tmp_path).outcomes[Key("church", "dampen", attack.label)]
    there = won(source, "dampen", "seeds")
    for outcome in cell:
        if outcome.trials[0].verdict.shown:
            continue
        assert (outcome.won is not None) == (outcome.goal in there)
        if outcome.won:
            assert outcome.won.attempt == there[outcome.goal] and outcome.won.number == 1
    lost = [trial for trial in trials(tmp_path) if trial.attack == attack.label and trial.end == "gave_up"]
    assert lost and all("no prompt but the plain one" in trial.reason for trial in lost)


def test_what_is_replayed_is_part_of_the_protocol(source, tmp_path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("prompt\na chapel\n")
    first = audit(attacks=[f"transfer={path}"]).protocol
    assert audit(attacks=[f"transfer={path}"]).protocol == first
    path.write_text("prompt\na cathedral\n")
    assert audit(attacks=[f"transfer={path}"]).protocol != first


@pytest.mark.parametrize(
    ("text", "looks"),
    [
        ("prompt\na chapel\n", [("a chapel", 7, None)]),
        ("prompt,seed\na chapel,7\nanother,8\n", [("a chapel", 7, None)]),
        ("prompt,evaluation_seed,seed\na chapel,7,8\n", [("a chapel", 7, None)]),
        ("prompt,seed,evaluation_guidance\na chapel,7,3.5\n", [("a chapel", 7, 3.5)]),
        ("prompt,concept\na chapel,church\na tench,fish\n", [("a chapel", 7, None)]),
        ("prompt,shown\na chapel,True\nanother,False\n", [("a chapel", 7, None)]),
        ("prompt,shown,draft\na chapel,True,\nanother,True,True\n", [("a chapel", 7, None)]),
        ("prompt,shown\na chapel,True\nnobody could tell,\n,\n", [("a chapel", 7, None)]),
        ("prompt,seed,guidance\na chapel,,\n", [("a chapel", 7, None)]),
    ],
)
def test_a_list_of_prompts_is_a_source_too(tmp_path, model, text, looks) -> None:
    path = tmp_path / "found.csv"
    path.write_text(text)
    log = drive(Transfer(path=str(path)).search(case(model)))
    assert [(look.prompt, look.seed, look.guidance) for look in log.looks[1:]] == looks


def test_an_exported_run_says_the_same_as_its_folder(source, tmp_path, model) -> None:
    from palimpsest.report.export import export

    path = tmp_path / "looks.csv"
    export(source, path, to="csv")
    goal = list(won(source, "dampen", "seeds"))[0]
    ours, theirs = (
        drive(Transfer(path=str(of), others=True).search(case(model, goal=goal)), looks=100) for of in (source, path)
    )
    assert set(ours.looks) == set(theirs.looks)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"path": "/no/such/run"}, BadRun, "expected a run's folder"),
        ({"path": "/no/such.csv"}, BadConcept, "expected a CSV file of prompts"),
        ({"path": "{run}", "eraser": "esd"}, UnknownName, "no eraser in .* called 'esd'; there are: dampen, nothing"),
        ({"path": "{run}", "attack": "p4d"}, UnknownName, "no attack in .* called 'p4d'; there are: direct, random_pr"),
    ],
)
def test_a_source_that_is_none_is_refused_before_anything_runs(source, settings, error, message) -> None:
    settings = {key: value.format(run=source) for key, value in settings.items()}
    with pytest.raises(error, match=message):
        make_audit({"concepts": ["church"], "erasers": ["uce"], "attacks": [{"name": "transfer"} | settings]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("words,seed\nx,1\n", "expected a column 'prompt', got words, seed"),
        ("prompt,seed\nx,one\n", "row 2, seed: expected a number, got 'one'"),
        ("prompt,seed\nx,1\ny,-4\n", "row 3: expected a whole number from 0 on as seed, got -4"),
        ("prompt,seed\n ,1\n", "row 2: expected a prompt with words in it, got ' '"),
    ],
)
def test_a_list_that_cannot_be_used_says_where(tmp_path, text, message) -> None:
    path = tmp_path / "found.csv"
    path.write_text(text)
    with pytest.raises(BadConcept, match=message):
        Transfer(path=str(path))


def test_embeddings_are_not_replayed_as_prompts(source, tmp_path, model) -> None:
    lines = (source / "trials.jsonl").read_text()
    (tmp_path / "audit.toml").write_text("")
    (tmp_path / "trials.jsonl").write_text(lines.replace('"words":null', '"words":"abc"'))
    log = drive(Transfer(path=str(tmp_path)).search(case(model, concept=concept())))
    assert (log.looks, log.reason) == ([], f"nothing won 'church' in {tmp_path}")


def test_looks_stay_within_the_budget(tmp_path) -> None:
    path = tmp_path / "found.csv"
    path.write_text("prompt\n" + "".join(f"prompt {number}\n" for number in range(20)))
    blind = Hash(limit=2.0)
    planned = audit(attacks=["direct", Transfer(path=str(path))], judges=[blind], goals=1, erasers=[Dampen()])
    assert planned.budget == Budget(looks=4, passes=60)
    run(tmp_path / "run", planned)
    looked = [trial for trial in trials(tmp_path / "run") if trial.attack.startswith("transfer")]
    assert len(looked) == 4 and looked[-1].end == "spent"
