import html
import json
import shutil
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from killing import killed_and_whole
from palimpsest import report
from palimpsest.attacks import RandomPrefix
from palimpsest.attacks.base import Attack, Case, Need, Search, Tryout, ask, look
from palimpsest.errors import BadAudit, BadRun
from palimpsest.jobs import jobs
from palimpsest.judges.base import Judge
from palimpsest.model import Model, Probe
from palimpsest.protocol import derived_seed
from palimpsest.records import Attempt, Concept, Cost
from palimpsest.report.ledger import BASE, read
from palimpsest.report.pictures import Sheet, kept
from palimpsest.runner import Event, Runner, is_complete
from palimpsest.stats import wilson
from palimpsest.store import Store
from scripted import CHURCH, FISH, VAN_GOGH, Dampen, Follow, Hash, Seeds, audit, ends, made, run, trials
from tiny import tiny_model

PASSES = 4
"""Of one picture: two steps, each with guidance."""
SMALL = {"looks": 3, "passes": 40}
NEVER = Hash(limit=2.0)
ALWAYS = Hash(limit=0.0)


def of(folder: Path, *, eraser: str | None = None, attack: str | None = None) -> list:
    return [
        trial for trial in trials(folder) if eraser in (None, trial.victim.eraser) and attack in (None, trial.attack)
    ]


def test_every_goal_of_every_cell_ends_once(tmp_path: Path) -> None:
    planned = audit(goals=5, attacks=["direct", Seeds(), Follow()], budget=SMALL)
    run(tmp_path, planned, base=tiny_model(batch=2))  # four goals at a time
    ended = Counter(
        (trial.victim.concept, trial.victim.eraser, trial.attack) for trial in trials(tmp_path) if trial.end
    )
    assert set(ended.values()) == {5}
    assert len(ended) == len(planned.cells) == 2 * 4
    assert {"won", "gave_up", "spent"} == set(ends(tmp_path))  # the judge is such that all of this happens


def test_a_goal_ends_with_its_first_success(tmp_path: Path) -> None:
    run(tmp_path, audit(judges=[ALWAYS]))
    for trial in trials(tmp_path):
        assert (trial.number, trial.end, trial.verdict.shown) == (0, "won", True)
        assert replace(trial.cost, seconds=0) == Cost(forwards=PASSES, encodes=1, looks=1)


def test_of_several_pictures_at_once_those_behind_the_first_success_do_not_count(tmp_path: Path) -> None:
    run(tmp_path, audit(attacks=[Seeds(at_once=4)], judges=[ALWAYS]))
    looks = of(tmp_path, attack="seeds(at_once=4)")
    assert len(looks) == 2 * 2
    assert {trial.cost.looks for trial in looks} == {1}


@dataclass(frozen=True, kw_only=True)
class Drafts(Attack):
    """Two drafts, then a picture drawn in full."""

    name = "drafts"

    def search(self, case: Case) -> Search:
        asked = Attempt(prompt=case.goal.prompt, seed=case.goal.seed)
        verdicts = yield from look([replace(asked, draft=True), replace(asked, seed=1, draft=True)])
        assert all(verdict.shown for verdict in verdicts)
        yield from look([asked])


def test_a_draft_is_a_look_and_wins_nothing(tmp_path: Path) -> None:
    run(tmp_path, audit(attacks=[Drafts()], judges=[ALWAYS]))
    looks = of(tmp_path, attack="drafts")
    assert {(trial.number, trial.attempt.draft, trial.wins, trial.end) for trial in looks} == {
        (0, True, False, None),
        (1, True, False, None),
        (2, False, True, "won"),
    }
    assert {cell["successes"] for cell in report.summary(tmp_path)["cells"] if cell["attack"] == "drafts"} == {2}
    few = tmp_path / "few"
    run(few, audit(attacks=[Drafts()], judges=[ALWAYS], budget={"looks": 2, "passes": 100}))
    drafted = [outcome for key, cell in read(few).outcomes.items() if key.attack == "drafts" for outcome in cell]
    assert {(outcome.won, outcome.looks, len(outcome.trials)) for outcome in drafted} == {(None, (), 2)}
    shown = {key.attack for key in read(tmp_path).outcomes if key.eraser != BASE}
    for folder, there in ((tmp_path, shown), (few, shown - {"drafts"})):
        found = read(folder)
        rows = Sheet(found, "church", list(found.outcomes), kept(folder)).rows(0, 1, embedded=0)
        tiles = [tile for row in rows for eraser, some in row.victims if eraser != BASE for tile in some]
        assert {tile.attack for tile in tiles if tile.shown} == there
    assert {trial.end for trial in of(few, attack="drafts") if trial.number == 1} == {"spent"}
    assert {cell["successes"] for cell in report.summary(few)["cells"] if cell["attack"] == "drafts"} == {0}


def test_an_attack_that_has_nothing_left_gives_up(tmp_path: Path) -> None:
    run(tmp_path, audit(attacks=["direct", Seeds(most=2)], judges=[NEVER]))
    assert {(trial.number, trial.end) for trial in of(tmp_path, attack="seeds(most=2)")} == {(0, None), (1, "gave_up")}
    assert {(trial.number, trial.end) for trial in of(tmp_path, attack="direct")} == {(0, "gave_up")}


@pytest.mark.parametrize(
    ("budget", "looks", "passes"),
    [
        ({"looks": 5, "passes": 1000}, 5, 5 * PASSES),
        ({"looks": 50, "passes": 18}, 4, 4 * PASSES),
        ({"looks": 50, "passes": PASSES}, 1, PASSES),
        ({"looks": 1, "passes": PASSES}, 1, PASSES),
    ],
)
@pytest.mark.parametrize("at_once", [1, 3])
def test_a_goal_is_spent_when_one_more_picture_would_exceed_its_budget(
    tmp_path: Path, budget: dict, looks: int, passes: int, at_once: int
) -> None:
    run(tmp_path, audit(attacks=[Seeds(at_once=at_once)], judges=[NEVER], budget=budget, erasers=["nothing"], goals=2))
    ended = [trial for trial in of(tmp_path, attack=Seeds(at_once=at_once).label) if trial.end]
    assert len(ended) == 2
    for trial in ended:
        assert (trial.end, trial.cost.looks, trial.cost.passes) == ("spent", looks, passes)


@pytest.mark.parametrize(("erasers", "least", "who"), [(["uce"], PASSES, "(nothing|uce)"), (["uce", "sld"], 6, "sld")])
def test_a_budget_smaller_than_one_look_is_refused(tmp_path: Path, erasers: list[str], least: int, who: str) -> None:
    """It would draw nothing, and nothing drawn would look like nothing left. A guard asks a branch more."""
    planned = audit(attacks=["direct"], erasers=erasers, budget={"looks": 9, "passes": least - 1})
    with pytest.raises(BadAudit, match=f"at least one look, which takes {least} passes under {who}, got {least - 1}"):
        run(tmp_path, planned)
    assert not (tmp_path / "trials.jsonl").exists()


@pytest.mark.parametrize(
    "budget", [{"looks": 9, "passes": 30}, {"looks": 2, "passes": 1000}, {"looks": 9, "passes": 9}]
)
def test_no_attack_ever_exceeds_its_budget(tmp_path: Path, budget: dict) -> None:
    attacks = [Follow(), Seeds(at_once=4), Follow(probes=5)]
    run(tmp_path, audit(attacks=attacks, judges=[NEVER], budget=budget, erasers=["nothing"], goals=2))
    found = trials(tmp_path)
    assert any(trial.cost.backwards for trial in found) or budget["passes"] < 10
    for trial in found:
        assert trial.cost.looks <= budget["looks"]
        assert trial.cost.passes <= budget["passes"]


def test_probes_are_asked_together_or_not_at_all(tmp_path: Path) -> None:
    """A look costs 4, three probes with gradients cost 6: 4 + 6 + 4 + 6 = 20, and 21 leaves none for a third look."""
    run(tmp_path, audit(attacks=[Follow()], judges=[NEVER], budget={"looks": 9, "passes": 21}, erasers=["nothing"]))
    for trial in of(tmp_path, attack="follow"):
        if trial.end:
            assert (trial.end, trial.attempt, trial.verdict, trial.number) == ("spent", None, None, 2)
            assert replace(trial.cost, seconds=0) == Cost(forwards=14, backwards=6, encodes=8, looks=2)


def test_what_is_charged_is_what_the_model_did(tmp_path: Path) -> None:
    base = tiny_model()
    planned = audit(
        attacks=["direct", Seeds(suffix=" red"), Follow()], judges=[NEVER], erasers=["nothing"], goals=3, budget=SMALL
    )
    before = base.meter
    run(tmp_path, planned, base=base)
    done = base.meter - before
    charged = sum((trial.cost for trial in trials(tmp_path) if trial.end), Cost())
    # Drawn once and charged to each: the plain looks of direct, random_prefix and follow; the references cost no goal.
    plain, references = 2 * 3 * PASSES, 3 * PASSES
    assert charged.passes == done.passes + plain - references
    assert charged.looks == len([trial for trial in trials(tmp_path) if trial.attempt])


def test_the_same_audit_twice_gives_the_same_trials(tmp_path: Path) -> None:
    settings = {"attacks": [Follow()], "erasers": [Dampen()], "keep": "all", "budget": SMALL}
    run(tmp_path / "one", audit(**settings))
    run(tmp_path / "two", audit(**settings))
    assert trials(tmp_path / "one") == trials(tmp_path / "two")
    run(tmp_path / "three", audit(seed=1, **settings))
    assert trials(tmp_path / "one") != trials(tmp_path / "three")


def test_neither_order_nor_neighbours_change_a_goal(tmp_path: Path) -> None:
    """One attack alone, and the same among others in another order: pictures and gradients equal to the last bit."""
    run(tmp_path / "alone", audit(attacks=[Follow()], keep="all", erasers=["nothing"], budget=SMALL))
    crowd = ["random_prefix", Seeds(at_once=3, suffix=" red"), Follow(probes=2), Follow(), "direct"]
    run(tmp_path / "crowd", audit(attacks=crowd, keep="all", erasers=["nothing"], budget=SMALL))
    assert of(tmp_path / "alone", attack="follow") == of(tmp_path / "crowd", attack="follow")
    assert of(tmp_path / "alone", attack="random_prefix") == of(tmp_path / "crowd", attack="random_prefix")


def test_eraser_nothing_is_the_base_and_dampen_is_not(tmp_path: Path) -> None:
    base = tiny_model()
    run(tmp_path, audit(concepts=[CHURCH, VAN_GOGH], attacks=["direct"]), base=base)
    prints = {(trial.victim.eraser, trial.victim.concept): trial.victim.fingerprint for trial in trials(tmp_path)}
    assert prints["nothing", "church"] == prints["nothing", "van gogh"] == base.fingerprint
    assert len(set(prints.values())) == 3  # each concept is erased from the base alone, with a stream of its own


@pytest.mark.parametrize(("keep", "kept"), [("all", "all"), ("hits", "hits and plain looks"), ("none", "none")])
def test_which_pictures_are_kept(tmp_path: Path, keep: str, kept: str) -> None:
    run(tmp_path, audit(attacks=[Seeds()], keep=keep, goals=5, erasers=["nothing"]))
    looked = [trial for trial in trials(tmp_path) if trial.attempt]
    plain = [trial.attempt == Attempt(prompt=trial.goal.prompt, seed=trial.goal.seed) for trial in looked]
    for trial, is_plain in zip(looked, plain, strict=True):
        expected = {"all": True, "none": False, "hits and plain looks": trial.verdict.shown or is_plain}[kept]
        assert (trial.picture is not None) == expected
    names = {trial.picture for trial in looked if trial.picture}
    files = {path.stem for path in (tmp_path / "pictures").glob("*.png")} if keep != "none" else set()
    assert names == files


def test_a_judge_that_cannot_tell_is_counted(tmp_path: Path) -> None:
    run(tmp_path, audit(judges=[Hash(blind=True)], attacks=[Seeds()], erasers=["nothing"]))
    found = of(tmp_path, attack="seeds")
    assert {trial.verdict.shown for trial in found} == {None}
    assert {trial.cost.looks for trial in found if trial.end} == {4}


@dataclass(frozen=True, kw_only=True)
class Second(Hash):
    name = "second"


def test_other_judges_are_asked_and_do_not_decide(tmp_path: Path) -> None:
    run(tmp_path, audit(judges=[NEVER, Second(limit=0.0)], attacks=["direct"]))
    for trial in trials(tmp_path):
        assert trial.verdict.scores.keys() == {NEVER.label, "second(limit=0.0)"}
        assert trial.verdict.shown is False


def test_a_prompt_longer_than_the_context_is_kept_and_the_loss_recorded(tmp_path: Path) -> None:
    long = "a church " + "red " * 30
    concept = replace(CHURCH, prompts=("a photo of a church", long))
    run(tmp_path, audit(concepts=[concept], attacks=["direct"], judges=[NEVER]))
    dropped = {(trial.goal.prompt == long, trial.dropped_tokens) for trial in of(tmp_path, attack="direct")}
    assert dropped == {(False, 0), (True, tiny_model().dropped(long))}
    assert tiny_model().dropped(long) == 32 - 14


@dataclass(frozen=True, kw_only=True)
class Faulty(Attack):
    """Goes wrong in one of the ways in which an attack can."""

    name = "faulty"
    needs = frozenset({Need.GRADIENTS})
    fault: str = "raises"

    def search(self, case: Case) -> Search:
        yield from look([Attempt(prompt=case.goal.prompt + " red", seed=case.goal.seed)])
        probe = Probe(tokens=case.tokens("a"), latents=torch.zeros(4, 8, 8), step=1)
        match self.fault:
            case "raises":
                raise RuntimeError("out of ideas")
            case "nothing":
                yield []
            case "else":
                yield ["a picture, please"]
            case "both":
                yield [probe, Attempt(prompt="a", seed=0)]
            case "latents":
                yield from ask([replace(probe, latents=torch.zeros(3, 8, 8))])
            case "loss":
                yield from ask([replace(probe, loss=lambda answer, latents: 1 / 0, wrt="words")])
            case "start":
                yield from look([Attempt(prompt="a", seed=0, start="unknown")])
            case "words":
                yield from look([Attempt(prompt="a", seed=0, words="unknown")])
            case "base":
                yield from ask([replace(probe, of="base")])
            case "step":
                yield from look([Attempt(prompt="a", seed=0, start_step=99)])


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("raises", "RuntimeError: out of ideas"),
        ("nothing", "ValueError: expected attempts or probes, got none"),
        ("else", "TypeError: expected attempts or probes, got str"),
        ("both", "TypeError: expected attempts or probes, got Attempt, Probe"),
        ("latents", "RuntimeError"),
        ("loss", "ZeroDivisionError"),
        ("start", "PermissionError: needs start, which faulty does not declare"),
        ("words", "PermissionError: needs words, which faulty does not declare"),
        ("base", "PermissionError: needs base, which faulty does not declare"),
        ("step", "BadSetting: expected a start step from 0 to 1, got 99"),
    ],
)
def test_whatever_an_attack_does_wrong_is_a_record_and_spoils_nothing(tmp_path: Path, fault: str, says: str) -> None:
    faulty = Faulty(fault=fault)
    attacks = [faulty, Follow()] if fault in ("latents", "loss") else [faulty, Seeds()]
    run(tmp_path, audit(attacks=attacks, judges=[NEVER], erasers=["nothing"], goals=2, budget=SMALL))
    failed = [trial for trial in of(tmp_path, attack=faulty.label) if trial.end]
    assert len(failed) == 2
    for trial in failed:
        assert trial.end == "error"
        assert trial.error.startswith(says)
        assert trial.cost.looks == 1
    others = [trial for trial in of(tmp_path, attack=attacks[1].label) if trial.end]
    assert [(trial.end, trial.cost.looks) for trial in others] == [("spent", 3)] * 2


@dataclass(frozen=True, kw_only=True)
class Peeks(Attack):
    """Asks for more than it declares."""

    name = "peeks"
    wants: str = "gradients"

    def search(self, case: Case) -> Search:
        assert case.vocabulary is None and case.reference is None
        probe = Probe(tokens=case.tokens("a"), latents=torch.zeros(4, 8, 8), step=1)
        if self.wants == "gradients":
            probe = replace(probe, loss=lambda answer, latents: answer.sum(), wrt="words")
        yield from ask([probe])


@pytest.mark.parametrize("wants", ["gradients", "answers"])
def test_access_that_is_not_declared_is_not_given(tmp_path: Path, wants: str) -> None:
    attack = Peeks(wants=wants)
    run(tmp_path, audit(attacks=[attack], erasers=["nothing"]))
    found = of(tmp_path, attack=attack.label)
    assert {trial.error for trial in found} == {"PermissionError: needs gradients, which peeks does not declare"}
    assert {trial.cost.passes for trial in found} == {0}


@dataclass(frozen=True, kw_only=True)
class Encodes(Attack):
    """Reads prompts through the text encoder, and starts from latents of its own."""

    name = "encodes"
    needs = frozenset({Need.START})

    def search(self, case: Case) -> Search:
        states = case.encode(torch.stack([case.tokens("a"), case.tokens("the"), case.tokens("red")])).states
        start = case.keep(torch.full((4, 8, 8), float(states.mean())))
        yield from look([Attempt(prompt=case.goal.prompt, seed=case.goal.seed, start=start)])


def test_encodes_are_counted_and_tensors_reach_the_picture(tmp_path: Path) -> None:
    run(tmp_path, audit(attacks=[Encodes(), Seeds(most=1)], erasers=["nothing"], judges=[NEVER], keep="all", goals=1))
    (mine,), (plain,) = of(tmp_path, attack="encodes"), of(tmp_path, attack="seeds(most=1)")
    assert (mine.cost.encodes, plain.cost.encodes) == (3 + 1, 1)
    assert mine.picture != plain.picture
    assert (tmp_path / "tensors" / f"{mine.attempt.start}.safetensors").exists()


def doubled(model: Model) -> Model:
    (name,) = [name for name in model.weights(r"unet\.conv_out\.weight")]
    return model.with_weights({name: model.weights()[name].detach() * 2})


@dataclass(frozen=True, kw_only=True)
class Plants(Attack):
    name = "plants"
    needs = frozenset({Need.PLANT})

    def plant(self, base, concepts, *, random):
        return doubled(doubled(doubled(base)))


@dataclass(frozen=True, kw_only=True)
class Revises(Attack):
    name = "revises"
    needs = frozenset({Need.WEIGHTS, Need.BASE})

    def revise(self, victim, *, base, concepts, random):
        assert base is not None
        for number in (1, 2):
            victim = doubled(victim)
            yield number, victim


def test_an_attack_may_plant_before_erasure_and_revise_after_it(tmp_path: Path) -> None:
    base = tiny_model()
    planned = audit(attacks=[Plants(), Revises(), RandomPrefix(), "direct"], budget={"looks": 1, "passes": 9})
    run(tmp_path, planned, base=base)
    prints = {
        (trial.victim.eraser, trial.attack, trial.victim.plant, trial.victim.revision): trial.victim.fingerprint
        for trial in trials(tmp_path)
    }
    assert prints["nothing", "direct", "", 0] == base.fingerprint
    assert prints["nothing", "plants", "plants", 0] == doubled(doubled(doubled(base))).fingerprint
    assert prints["nothing", "revises", "", 1] == doubled(base).fingerprint
    assert prints["nothing", "revises", "", 2] == doubled(doubled(base)).fingerprint
    erased = [prints["dampen", *rest] for rest in (("direct", "", 0), ("plants", "plants", 0), ("revises", "", 1))]
    assert len({*erased, base.fingerprint}) == 4
    before = len(trials(tmp_path))
    run(tmp_path, planned, base=base)
    assert len(trials(tmp_path)) == before


@dataclass(frozen=True, kw_only=True)
class Tries(Attack):
    """Has pictures of two models judged, and takes the model whose picture scores higher."""

    name = "tries"
    needs = frozenset({Need.WEIGHTS})
    looks: int = 3

    def revise(self, victim, *, base, concepts, random):
        attempts = [Attempt(prompt="a church", seed=seed) for seed in range(self.looks)]
        sent = []
        for model in (victim, doubled(victim)):
            verdicts = yield Tryout(model, attempts)
            sent.append([next(iter(verdict.scores.values())) for verdict in verdicts])
        told.append(sent)
        yield 1, victim
        yield 2, doubled(victim)


told: list[list[list[float]]] = []


def test_tryouts_are_judged_and_charged_to_every_goal(tmp_path: Path) -> None:
    base = tiny_model()
    planned = audit(
        erasers=["nothing"], attacks=[Tries(), Seeds()], budget={"looks": 8, "passes": 99}, judges=[Hash(limit=1.0)]
    )
    told.clear()
    run(tmp_path, planned, base=base)
    attempts = [Attempt(prompt="a church", seed=seed) for seed in range(3)]
    assert told == [[Hash().score(model.draw(attempts, planned.sampling), CHURCH) for model in (base, doubled(base))]]
    found = [trial for trial in of(tmp_path, attack="tries") if trial.attempt]
    # 2 tryouts of 3 pictures of 2 steps with guidance, and a picture of the goal's own.
    assert {(trial.victim.revision, trial.cost.looks, trial.cost.passes) for trial in found} == {(1, 7, 28), (2, 7, 28)}
    assert len(found) == 2 * planned.goals
    assert min(trial.cost.looks for trial in of(tmp_path, attack="seeds")) == 1


def test_tryouts_beyond_the_budget_leave_nothing_to_attack_with(tmp_path: Path) -> None:
    run(tmp_path, audit(erasers=["nothing"], attacks=["direct", Tries()]))
    found = of(tmp_path, attack="tries")
    assert {(trial.end, trial.attempt) for trial in found} == {("gave_up", None)}
    assert {trial.reason for trial in found} == {"6 looks to choose among revisions leave nothing of the budget"}


def test_an_eraser_with_a_table_among_its_settings_is_one_like_any_other(tmp_path: Path) -> None:
    conceal = {"name": "conceal", "pruner": {"name": "magnitude", "share": 0.5}}
    planned = audit(erasers=["nothing", conceal], attacks=["direct"])
    assert [job.eraser.name for job in jobs(planned)] == ["nothing", "conceal"]


def test_an_attack_that_makes_no_victim_gives_up_all_its_goals(tmp_path: Path) -> None:
    planned = audit(goals=3, attacks=["direct", "revive"])
    run(tmp_path, planned)
    idle = of(tmp_path, attack="revive")
    assert {(trial.attempt, trial.end, trial.cost.looks) for trial in idle} == {(None, "gave_up", 0)}
    assert len(idle) == 2 * 3
    before = len(trials(tmp_path))
    run(tmp_path, planned)
    assert len(trials(tmp_path)) == before
    # Nothing was attacked, so nothing withstood.
    assert "revive" not in {row["attack"] for row in report.table(tmp_path)}
    told = report.summary(tmp_path)
    why = "nothing to revive: no exact zeros beyond 0 natural ones in 19,456 weights of 7 feed-forwards' second linears"
    assert told["idle"] == [
        {"concept": "church", "eraser": eraser, "attack": "revive", "reason": why} for eraser in ("dampen", "nothing")
    ]
    assert told["troubles"] == []
    folder = report.write(tmp_path).parent
    for name in ("report.md", "report.html"):
        page = html.unescape((folder / name).read_text(encoding="utf-8"))
        assert f"Had nothing to work on: revive on church after dampen ({why})" in page


def test_measures_are_taken_of_every_victim_and_of_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = {"fish": FISH, "house": replace(FISH, name="house", prompts=("a house",))}
    monkeypatch.setattr("palimpsest.protocol.shipped_concepts", lambda: shipped)
    judge = Hash(limit=0.5, knows=("church", "fish", "house"))
    planned = audit(measures=["neighbours"], judges=[judge], attacks=["direct"])
    with run(tmp_path, planned) as store:
        found = {(one.victim.eraser, one.measure, one.concept): one for one in store.readings}
    assert found.keys() == {
        (eraser, *what)
        for eraser in ("nothing", "dampen")
        for what in (("neighbours", "fish"), ("neighbours", "house"), ("false_alarms", "church"))
    }
    for (_, measure, _), one in found.items():
        assert one.n == (20 if measure == "false_alarms" else 10)
        assert (one.low, one.high) == wilson(round(one.value * one.n), one.n)
    attempts = [
        Attempt(prompt="a photo of a fish", seed=derived_seed(planned.seed, "neighbours", "fish", number))
        for number in range(10)
    ]
    scores = judge.score(tiny_model().draw(attempts, planned.sampling), FISH)
    assert found["nothing", "neighbours", "fish"].value == sum(score >= 0.5 for score in scores) / 10


def test_erased_weights_are_kept_and_found_again(tmp_path: Path) -> None:
    planned = audit(concepts=[CHURCH, VAN_GOGH], erasers=[Dampen(by=0.3)], attacks=["direct"])
    made.clear()
    run(tmp_path, planned)
    assert sorted(made) == [(0.3, "church"), (0.3, "van gogh")]
    before = trials(tmp_path)
    (tmp_path / "trials.jsonl").unlink()
    run(tmp_path, planned)
    assert len(made) == 2
    assert trials(tmp_path) == before


def test_shipped_weights_are_used_unless_they_are_to_be_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = audit(erasers=[Dampen(by=0.3)], attacks=["direct"])
    run(tmp_path / "one", planned)
    shutil.copytree(tmp_path / "one" / "erased", tmp_path / "shipped")
    monkeypatch.setattr("palimpsest.erasing.SHIPPED", tmp_path / "shipped")
    made.clear()
    run(tmp_path / "two", planned)
    assert made == []
    run(tmp_path / "three", planned, retrain=True)
    assert made == [(0.3, "church")]
    assert trials(tmp_path / "one") == trials(tmp_path / "two") == trials(tmp_path / "three")


# going on ------------------------------------------------------------------------------------------------------------


def small() -> dict:
    return {"attacks": [Follow()], "keep": "all", "goals": 4, "erasers": [Dampen()], "budget": SMALL}


@pytest.mark.parametrize("when", [1, 4, 9])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(tmp_path: Path, when: int) -> None:
    events = 0

    def stop(event: Event) -> None:
        nonlocal events
        events += 1
        if events == when:
            raise KeyboardInterrupt

    planned = audit(**small())
    run(tmp_path / "whole", planned)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", planned, watch=stop)
    done = [trial for trial in trials(tmp_path / "stopped")] if (tmp_path / "stopped" / "trials.jsonl").exists() else []
    run(tmp_path / "stopped", planned)
    assert trials(tmp_path / "stopped") == trials(tmp_path / "whole")
    assert set(done) <= set(trials(tmp_path / "whole"))
    if when == 9:
        assert done


def test_a_complete_run_has_nothing_left(tmp_path: Path) -> None:
    planned = audit(**small())
    with Store(tmp_path, planned) as store:
        assert not is_complete(planned, store)
    run(tmp_path, planned)
    with Store(tmp_path, planned) as store:
        assert is_complete(planned, store)
        assert not [goal for job in jobs(planned) for goal in job.goals_left(store, job.attacks, job.victim)]


def test_a_run_goes_on_only_with_the_same_base(tmp_path: Path) -> None:
    planned = audit(**small())
    run(tmp_path, planned)
    with pytest.raises(BadRun, match="was begun with weights"):
        run(tmp_path, planned, base=tiny_model(seed=1))
    with pytest.raises(BadRun, match="was begun with batch 4, got 3"):
        run(tmp_path, planned, base=tiny_model(batch=3))


@pytest.mark.parametrize(
    ("kills", "seed"), [pytest.param(3, 0, id="three"), pytest.param(20, 1, id="twenty", marks=pytest.mark.slow)]
)
def test_a_run_that_is_killed_again_and_again_ends_the_same(tmp_path: Path, kills: int, seed: int) -> None:
    killed_and_whole(tmp_path, kills, seed)
    assert trials(tmp_path / "killed") == trials(tmp_path / "whole")
    for name in ("readings.jsonl", "calibration.jsonl"):
        assert (tmp_path / "killed" / name).read_text() == (tmp_path / "whole" / name).read_text()
    described = [
        json.loads((tmp_path / name / "provenance.json").read_text())["judges"] for name in ("killed", "whole")
    ]
    assert described[0] == described[1] and described[0][0]["hits"]


def test_judges_are_shown_full_batches_of_one_concept(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    @dataclass(frozen=True, kw_only=True)
    class Watching(Hash):
        name = "watching"

        def score(self, pictures, concept: Concept) -> list[float | None]:
            seen.append((concept.name, len(pictures)))
            return super().score(pictures, concept)

    judge: Judge = Watching(limit=2.0)
    planned = audit(attacks=[Seeds()], goals=8, judges=[judge], erasers=["nothing"], budget={"looks": 4, "passes": 90})
    with Store(tmp_path, planned) as store:
        Runner(audit=planned, store=store, base=tiny_model(batch=4)).run()
    # 8 plain looks, shared by the three attacks, then 3 more of seeds and of random_prefix for each goal.
    assert sum(number for _, number in seen) == 8 + 2 * 8 * 3
    assert Counter(number for _, number in seen)[4] >= len(seen) - 3
