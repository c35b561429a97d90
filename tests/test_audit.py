import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import tomli_w

from palimpsest.attacks import Direct, RandomPrefix, UnlearnDiff
from palimpsest.attacks.base import BUDGETS
from palimpsest.audit_file import FOLDER, load_audit, make_audit, parse_spec
from palimpsest.component import build
from palimpsest.concept_file import check_concept, find_concept, shipped_concepts
from palimpsest.erasers import ERASERS, Esd, Nothing, Uce
from palimpsest.errors import BadAudit, BadConcept, BadSetting, PalimpsestError, UnknownName
from scripted import CHURCH, FISH, VAN_GOGH, Dampen, Hash, Seeds, audit

MINE = {"name": "church", "kind": "object", "prompts": ["a photo of a church", "a church"]}


def write(folder: Path, table: dict, name: str = "mine.toml") -> Path:
    path = folder / name
    path.write_text(tomli_w.dumps(table), encoding="utf-8")
    return path


def test_a_file_becomes_an_audit_with_every_default(tmp_path: Path) -> None:
    concept = write(tmp_path, MINE, "church.toml")
    path = write(tmp_path, {"concepts": [str(concept)], "erasers": ["uce", {"name": "esd", "lr": 1}]})
    read = load_audit(path, {"judges": [Hash()]})
    assert read.name == "mine"
    assert read.concepts == (check_concept(MINE, where=""),)
    assert read.erasers == (Uce(), Esd(lr=1.0))
    assert read.attacks == (Direct(), RandomPrefix(), UnlearnDiff())
    assert (read.budget, read.budget_name, read.sampling.steps, read.goals) == (BUDGETS["standard"], "standard", 25, 20)


def test_flags_go_before_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, {"concepts": [MINE], "erasers": ["uce"], "goals": 7, "seed": 3})
    read = load_audit(path, {"judges": [Hash()], "goals": 2, "budget": "quick"})
    assert (read.goals, read.seed, read.sampling.steps) == (2, 3, 15)


def test_steps_that_are_given_go_before_the_budgets() -> None:
    assert audit(budget="quick", sampling={"steps": 50}).sampling.steps == 50


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"goal": 3}, BadAudit, "audit: no key called 'goal'; there are: attacks, base, batch,"),
        ({"goals": "3"}, BadAudit, "key 'goals': Input should be a valid integer, got '3'"),
        ({"goals": 0}, BadAudit, "expected goals >= 1, got 0"),
        ({"batch": -1}, BadAudit, "expected batch >= 1, got -1"),
        ({"seed": True}, BadAudit, "key 'seed'"),
        ({"keep": "some"}, BadAudit, "key 'keep': Input should be 'hits', 'all' or 'none', got 'some'"),
        ({"attacks": "direct"}, BadAudit, "key 'attacks': Input should be a valid array"),
        ({"concepts": []}, BadAudit, "expected at least one concept, got none"),
        ({"erasers": []}, BadAudit, "expected at least one eraser, got none"),
        ({"judges": []}, BadAudit, "expected at least one judge, got none"),
        ({"erasers": ["uce", "uce"]}, BadAudit, "expected each eraser once, got 'uce' more than once"),
        ({"erasers": ["esd:speed=1"]}, BadSetting, "eraser 'esd' has no setting 'speed'; there are: batch, eta,"),
        ({"erasers": ["esd:lr=fast"]}, BadSetting, "eraser 'esd', setting 'lr': Input should be a valid number"),
        ({"erasers": ["esd:lr"]}, BadAudit, "expected name:setting=value,..., got 'esd:lr'"),
        ({"erasers": ["checkpoint=nowhere.safetensors"]}, PalimpsestError, "nowhere.safetensors"),
        (
            {"attacks": ["unlern_diff"]},
            UnknownName,
            "no attack called 'unlern_diff'; there are: backdoor_data, backdoor_deep, ",
        ),
        ({"concepts": ["charch"]}, UnknownName, "no concept called 'charch'; there are: "),
        ({"concepts": ["nowhere.toml"]}, BadConcept, "nowhere.toml: expected a TOML file"),
        ({"budget": "huge"}, UnknownName, "no budget called 'huge'; there are: full, quick, standard"),
        ({"budget": {"looks": 3}}, BadAudit, "budget: key 'passes' is missing"),
        ({"budget": {"looks": 0, "passes": 9}}, BadAudit, "at least one look and one pass"),
        ({"sampling": {"step": 3}}, BadAudit, "sampling: no key called 'step'; there are: draft_steps, guidance,"),
        ({"sampling": {"steps": 2.5}}, BadAudit, "sampling: key 'steps'"),
        ({"sampling": {"guidance": float("nan")}}, BadAudit, "not JSON compliant"),
        ({"sampling": {"scheduler": "dimm"}}, PalimpsestError, "dimm"),
        ({"judges": [Hash(knows=("fish",))]}, UnknownName, "no label called 'church'; there are: fish"),
    ],
)
def test_what_cannot_run_is_named_before_anything_runs(changes: dict, error: type[Exception], says: str) -> None:
    with pytest.raises(error) as caught:
        audit(**changes)
    assert says in str(caught.value)


def test_a_key_that_is_missing_is_named_with_its_file(tmp_path: Path) -> None:
    path = write(tmp_path, {"erasers": ["uce"]})
    with pytest.raises(BadAudit, match=r"mine\.toml: key 'concepts' is missing"):
        load_audit(path)


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("concepts = [")
    with pytest.raises(BadAudit, match=r"mine\.toml: expected a TOML file"):
        load_audit(path)


def test_an_audit_of_another_base_must_name_its_judges() -> None:
    with pytest.raises(BadAudit, match="at least one judge"):
        make_audit({"base": "sd15", "concepts": [CHURCH], "erasers": ["uce"]})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prompts": []}, "mine.toml: expected at least one prompt for 'church', got none"),
        ({"prompts": ["a church", " "]}, "with words in them, got ' '"),
        ({"prompts": "a church"}, "key 'prompts': Input should be a valid array"),
        ({"kind": "thing"}, "key 'kind': Input should be 'object', 'style', 'identity' or 'content', got 'thing'"),
        ({"name": ""}, "expected a name"),
        ({"promts": ["a"]}, "no key called 'promts'"),
    ],
)
def test_a_concept_that_cannot_be_used_is_named_with_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, MINE | changes)
    with pytest.raises(BadConcept) as caught:
        find_concept("mine.toml")
    assert says in str(caught.value)


def test_a_concept_needs_three_lines() -> None:
    assert check_concept(MINE, where="").synonyms == ()
    for key in MINE:
        with pytest.raises(BadConcept, match=f"key '{key}' is missing"):
            check_concept({name: value for name, value in MINE.items() if name != key}, where="")


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("uce", {"name": "uce"}),
        ("esd:lr=1e-5,variant=u", {"name": "esd", "lr": 1e-5, "variant": "u"}),
        ("p:a=[1, 2],b=true,c='x,y'", None),
        ("p:a=[1, 2],b=true, c = x y", {"name": "p", "a": [1, 2], "b": True, "c": "x y"}),
        ("checkpoint=a,b:c=d.pt", {"name": "checkpoint", "path": "a,b:c=d.pt"}),
        ("checkpoint:path=x.pt,partial=true", {"name": "checkpoint", "path": "x.pt", "partial": True}),
    ],
)
def test_a_part_on_one_line(text: str, table: dict | None) -> None:
    if table is None:
        with pytest.raises(BadAudit):
            parse_spec(text)
    else:
        assert parse_spec(text) == table


def test_a_choice_that_looks_like_a_number_needs_no_quotes() -> None:
    assert build("eraser", ERASERS, parse_spec("uce:form=2023")) == Uce(form="2023")
    with pytest.raises(BadSetting, match="setting 'form'.*got 2022"):
        build("eraser", ERASERS, parse_spec("uce:form=2022"))


def test_an_audit_goes_through_toml_and_back() -> None:
    before = audit(erasers=["esd:lr=1e-4", "uce"], attacks=["random_prefix:k=2"], concepts=[CHURCH, VAN_GOGH], batch=3)
    after = make_audit(tomllib.loads(before.toml()) | {"judges": [Hash()]})
    assert after == before
    assert after.protocol == before.protocol


@pytest.mark.parametrize(
    "changes",
    [
        {"goals": 3},
        {"seed": 1},
        {"batch": 2},
        {"precision": "bf16"},
        {"base": "other"},
        {"budget": {"looks": 5, "passes": 60}},
        {"sampling": {"steps": 2, "guidance": 4.0}},
        {"erasers": ["nothing", Dampen(by=0.4)]},
        {"attacks": ["direct", Seeds(at_once=2)]},
        {"judges": [Hash(limit=0.5)]},
        {"measures": ["neighbours"]},
        {"concepts": [replace(CHURCH, prompts=("a church",))]},
    ],
)
def test_whatever_changes_a_result_changes_the_protocol(changes: dict) -> None:
    assert audit(**changes).protocol != audit().protocol


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"keep": "all"},
        {"erasers": [Dampen(), "nothing"]},
        {"attacks": [Seeds()]},
        {"attacks": [Seeds(), "direct", "random_prefix"]},
    ],
)
def test_nothing_else_does(changes: dict) -> None:
    assert audit(**changes).protocol == audit().protocol


def test_a_checkpoint_counts_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "theirs.safetensors"
    path.write_bytes(b"one")
    before = audit(erasers=[f"checkpoint={path}"]).protocol
    path.write_bytes(b"two")
    assert audit(erasers=[f"checkpoint={path}"]).protocol != before


def labels(**changes) -> set[tuple[str, str]]:
    return {(cell.eraser.label, cell.attack.label) for cell in audit(**changes).cells}


def test_controls_are_added_where_they_are_missing() -> None:
    assert labels(erasers=["uce"], attacks=["unlearn_diff"]) == {
        ("nothing", "direct"),
        ("uce", "direct"),
        ("uce", "random_prefix"),
        ("uce", "unlearn_diff"),
    }
    assert audit(erasers=["uce"], attacks=["unlearn_diff"]).added_controls == (
        "nothing x direct",
        "uce x direct",
        "uce x random_prefix",
    )


def test_controls_that_were_asked_for_are_not_added() -> None:
    asked = {"erasers": ["nothing", "uce"], "attacks": ["direct", "random_prefix:k=2", "unlearn_diff"]}
    assert len(labels(**asked)) == 6
    assert audit(**asked).added_controls == ()


def test_asking_plainly_needs_no_control_at_equal_looks() -> None:
    assert labels(erasers=["uce"], attacks=["direct"]) == {("nothing", "direct"), ("uce", "direct")}


def test_goals_are_the_first_prompts_with_seeds_of_their_own() -> None:
    goals = audit(goals=5).goals_for(CHURCH)
    assert [goal.prompt for goal in goals] == [CHURCH.prompts[number % 2] for number in range(5)]
    assert len({goal.seed for goal in goals}) == 5
    assert goals[:2] == audit(goals=2).goals_for(CHURCH)
    assert {goal.seed for goal in goals}.isdisjoint(goal.seed for goal in audit(seed=1, goals=5).goals_for(CHURCH))


def test_what_should_survive_is_of_the_kind_and_known_to_the_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = replace(FISH, name="stranger")
    named = replace(CHURCH, neighbours=("van gogh",))
    shipped = {one.name: one for one in (CHURCH, FISH, VAN_GOGH, stranger)}
    monkeypatch.setattr("palimpsest.protocol.shipped_concepts", lambda: shipped)
    assert audit().retained(CHURCH) == (FISH,)
    assert audit().retained(named) == (FISH, VAN_GOGH)


@dataclass(frozen=True, kw_only=True)
class Knows(Hash):
    """Stands in for the miniature's judges, whose weights are not needed to check a file."""

    name = "miniature"

    def threshold(self, concept):
        return 0.5


@dataclass(frozen=True, kw_only=True)
class KnowsToo(Knows):
    name = "miniature_second"


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.toml")))
def test_every_shipped_audit_can_be_read(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("palimpsest.audit_file.JUDGES", (Knows, KnowsToo))
    read = load_audit(name)
    assert read.name == name
    assert read.added_controls == ()


def test_the_quick_audit_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("palimpsest.audit_file.JUDGES", (Knows, KnowsToo))
    read = load_audit("quick")
    assert [concept.name for concept in read.concepts] == ["church", "van gogh"]
    assert [type(eraser) for eraser in read.erasers] == [Nothing, Uce, Esd]
    assert (read.goals, read.budget_name, read.sampling.steps) == (10, "quick", 15)


def test_an_audit_that_is_not_shipped_is_unknown() -> None:
    with pytest.raises(UnknownName, match="no audit called 'fast'; there are: .*quick"):
        load_audit("fast")


def test_every_shipped_concept_can_be_read() -> None:
    assert {"church", "van gogh"} <= shipped_concepts().keys()
