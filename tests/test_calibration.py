"""Judges are calibrated on the base's own pictures: thresholds, errors, controls, and going on."""

import json
from dataclasses import dataclass, replace
from io import StringIO
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL.Image import Image
from rich.console import Console
from transformers import ViTConfig, ViTForImageClassification
from typer.testing import CliRunner

from palimpsest.audit_file import make_audit
from palimpsest.calibrating import (
    Calibration,
    Measured,
    Source,
    calibrations,
    described,
    measured,
    scored,
    sources_left,
)
from palimpsest.cli import app
from palimpsest.concept_file import find_concept
from palimpsest.display import Display
from palimpsest.errors import BadRun
from palimpsest.forecast import Forecast, forecast
from palimpsest.jobs import jobs
from palimpsest.judges import JUDGES, Clip, ImageClassifier, Miniature
from palimpsest.judges.base import Judge
from palimpsest.model import Model
from palimpsest.protocol import Audit
from palimpsest.records import Attempt, Scored
from palimpsest.report.judged import judged
from palimpsest.run import Run
from palimpsest.runner import Event
from palimpsest.stats import auroc, threshold, wilson
from palimpsest.store import Store
from scripted import CHURCH, FISH, VAN_GOGH, Chosen, Hash, Seeds, audit, run, trials
from test_judges_of_others import clip, processor  # noqa: F401
from tiny import tiny_model, tiny_pipeline

PARROT = replace(FISH, name="parrot", prompts=("a photo of a dog",))


@pytest.fixture(autouse=True)
def neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Church, fish and parrot are all the objects that there are."""
    shipped = {one.name: one for one in (CHURCH, FISH, PARROT)}
    monkeypatch.setattr("palimpsest.protocol.shipped_concepts", lambda: shipped)


CHOSEN = Chosen(knows=("church", "fish", "parrot", "van gogh"))
SMALL = {"looks": 2, "passes": 20}
SURVIVORS = {"name": "neighbours", "pictures": 2}


# numbers -------------------------------------------------------------------------------------------------------------


def test_below_a_thousand_negatives_none_may_reach_the_threshold() -> None:
    negatives = [number / 1000 for number in range(999)]
    assert threshold([0.2, 0.9, 1.0], negatives) == pytest.approx((0.998 + 1.0) / 2)
    assert threshold([0.9985, 1.0], negatives) == pytest.approx((0.998 + 0.9985) / 2)


def test_of_a_thousand_negatives_one_may() -> None:
    negatives = [0.1] * 998 + [0.7, 0.9]
    assert threshold([0.8], negatives) == pytest.approx((0.7 + 0.8) / 2)
    assert threshold([0.8], [0.1] * 998 + [0.9, 0.9]) > 0.9


def test_where_nothing_separates_nothing_is_seen() -> None:
    scores = [0.3, 0.4, 1.0]
    assert threshold(scores, scores) > 1.0
    assert threshold([], [0.5]) == np.nextafter(0.5, 1)


def test_the_area_is_the_chance_to_be_told_apart() -> None:
    stream = np.random.default_rng(0)
    positives, negatives = stream.integers(3, 9, 40).tolist(), stream.integers(0, 7, 30).tolist()
    brute = np.mean([(one > other) + 0.5 * (one == other) for one, other in product(positives, negatives)])
    assert auroc(positives, negatives) == pytest.approx(brute)
    assert (auroc([2.0], [1.0]), auroc([1.0], [1.0]), auroc([1.0], [2.0])) == (1.0, 0.5, 0.0)


def made_up(judge: Judge, own: list[float | None], other: list[float | None]) -> Measured:
    def source(name: str, n: int) -> Source:
        return Source(name=name, attempts=tuple(Attempt(prompt=name, seed=number) for number in range(n)))

    calibration = Calibration(
        judge=judge,
        concept=CHURCH,
        own=source("church", len(own)),
        others=(source("fish", len(other)),),
        against="pictures of fish",
    )
    label = judge.label
    return calibration.measured({(label, "church", "church"): tuple(own), (label, "church", "fish"): tuple(other)})


def test_the_error_is_counted_on_pictures_that_did_not_set_the_threshold() -> None:
    """Even pictures are told apart at one half; in odd ones the judge is wrong, and only the error may know it."""
    found = made_up(CHOSEN, [0.9, 0.2, 0.9, 0.9, 0.9, None], [0.1, 0.8, 0.1, 0.1])
    assert found.threshold == pytest.approx(0.5)
    assert (found.hits, found.false_alarms) == ((1, 3), (1, 2))
    assert found.auroc == auroc([0.2, 0.9, -1.0], [0.8, 0.1])
    better = made_up(CHOSEN, [0.9] * 6, [0.1] * 4)
    assert (found.rule, better.rule) == ("none of 2 other pictures",) * 2
    assert (better.threshold, better.hits, better.false_alarms) == (found.threshold, (3, 3), (0, 2))


def test_of_a_rule_that_was_set_the_error_is_counted_on_all_pictures() -> None:
    found = made_up(Hash(limit=0.75), [0.9, 0.2, 0.9, 0.9, 0.9, None], [0.1, 0.8, 0.1, 0.1])
    assert (found.threshold, found.hits, found.false_alarms) == (0.75, (4, 6), (1, 4))
    assert found.rule == "as it was set"


# what is drawn -------------------------------------------------------------------------------------------------------


def of(planned: Audit, concept: str) -> Calibration:
    (found,) = [one for one in calibrations(planned) if one.concept.name == concept]
    return found


def test_a_concept_is_held_against_its_neighbours_without_prompts_that_name_it() -> None:
    mixed = replace(FISH, prompts=("a fish before a Chapel", "a photo of a fish"))
    church = replace(CHURCH, synonyms=("chapel",), neighbours=("van gogh",))
    planned = audit(concepts=[church, mixed, VAN_GOGH], judges=[CHOSEN])
    found = of(planned, "church")
    assert found.against == "pictures of fish, parrot, van gogh"
    assert [attempt.prompt for attempt in found.own.attempts] == [*CHURCH.prompts] * 3
    scores = {found.key(source): (0.5,) * 6 for source in found.sources}
    assert (
        found.measured(scores).false_alarms.n == 1 + 3 + 3
    )  # every second: of three of the fish's six, and of the rest
    assert found.measured(scores).hits.n == 3


def test_without_neighbours_the_prompts_without_it_or_neutral_ones_stand_against_it() -> None:
    paired = replace(VAN_GOGH, pairs=(("van gogh painting of a cat", "a cat"), ("vincent", "a van gogh house")))
    against = of(audit(concepts=[paired], judges=[CHOSEN]), "van gogh")
    assert against.against == "pictures of its prompts without it"
    assert {attempt.prompt for attempt in against.others[0].attempts} == {"a cat"}
    street = replace(VAN_GOGH, synonyms=("street",))
    neutral = of(audit(concepts=[street], judges=[replace(CHOSEN, pictures=8)]), "van gogh")
    assert neutral.against == "pictures of neutral prompts"
    asked = {attempt.prompt for attempt in neutral.others[0].attempts}
    assert len(asked) == 7 and "a photo of a street" not in asked


def test_no_picture_has_a_goals_seed_and_more_begin_with_the_same_ones() -> None:
    planned = audit(judges=[CHOSEN])
    drawn = of(planned, "church").own.attempts
    seeds = tuple(attempt.seed for attempt in drawn[:2])
    clash = of(audit(judges=[CHOSEN], concepts=[replace(CHURCH, seeds=seeds)]), "church").own.attempts
    assert not {attempt.seed for attempt in clash} & set(seeds)
    assert clash[2:] == drawn[2:]
    assert of(audit(judges=[replace(CHOSEN, pictures=9)]), "church").own.attempts[:6] == drawn
    other = of(audit(judges=[CHOSEN], seed=1), "church").own.attempts
    assert not {attempt.seed for attempt in other} & {attempt.seed for attempt in drawn}


@dataclass(frozen=True, kw_only=True)
class ChosenToo(Chosen):
    name = "chosen_too"


def test_judges_share_pictures_and_only_a_chief_that_measures_knows_the_neighbours() -> None:
    more = ChosenToo(pictures=8, knows=CHOSEN.knows)
    for measures, concepts in (([], ["church"]), (["neighbours"], ["church", "fish", "parrot"])):
        asked = calibrations(audit(judges=[CHOSEN, more], measures=measures))
        assert [one.concept.name for one in asked if one.judge == CHOSEN] == concepts
        assert [one.concept.name for one in asked if one.judge == more] == ["church"]
        assert {source.name: len(source.attempts) for source in sources_left(asked, [])} == dict.fromkeys(
            ["church", "fish", "parrot"], 8
        )
    assert calibrations(audit(judges=[Hash()])) == []


# runs ----------------------------------------------------------------------------------------------------------------


def known(folder: Path) -> dict:
    (judge,) = json.loads((folder / "provenance.json").read_text())["judges"]
    return judge


def test_a_run_calibrates_before_it_attacks(tmp_path: Path) -> None:
    doing: list[str] = []
    planned = audit(judges=[CHOSEN], attacks=["direct", Seeds()], measures=[SURVIVORS], budget=SMALL)
    run(tmp_path, planned, watch=lambda event: doing.append(event.doing))
    assert doing[: 2 * 3 + 1] == ["calibrating judges"] * 6 + ["judges are calibrated"]
    assert "calibrating judges" not in doing[7:]
    judge = known(tmp_path)
    assert set(judge["thresholds"]) == {"church", "fish", "parrot"}
    assert judge["hits"]["church"]["n"] == 3 and judge["false_alarms"]["church"]["n"] == 6
    assert judge["false_alarms"]["church"]["high"] == wilson(round(6 * judge["false_alarms"]["church"]["rate"]), 6).high
    for trial in trials(tmp_path):
        if trial.verdict:
            assert trial.verdict.shown == (trial.verdict.scores[CHOSEN.label] >= judge["thresholds"]["church"])
    scores = [Scored(**json.loads(line)) for line in (tmp_path / "calibration.jsonl").read_text().splitlines()]
    assert len(scores) == 9 and {len(one.scores) for one in scores} == {6}


def test_the_protocol_holds_the_settings_and_not_what_was_measured(tmp_path: Path) -> None:
    planned = audit(judges=[CHOSEN])
    run(tmp_path, planned)
    told = json.loads((tmp_path / "provenance.json").read_text())
    assert told["protocol"] == planned.protocol == audit(judges=[CHOSEN]).protocol
    assert str(known(tmp_path)["thresholds"]["church"]) not in (tmp_path / "audit.toml").read_text()
    assert audit(judges=[replace(CHOSEN, pictures=8)]).protocol != planned.protocol


@pytest.mark.parametrize("when", [1, 4, 7])
def test_a_calibration_that_was_stopped_goes_on_and_is_not_done_twice(tmp_path: Path, when: int) -> None:
    planned = audit(judges=[CHOSEN], attacks=["direct"], measures=[SURVIVORS], erasers=["nothing"])
    run(tmp_path / "whole", planned)
    events: list[Event] = []

    def stop(event: Event) -> None:
        events.append(event)
        if len(events) == when:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", planned, watch=stop)
    before = (
        len((tmp_path / "stopped" / "calibration.jsonl").read_text().splitlines())
        if (tmp_path / "stopped" / "calibration.jsonl").exists()
        else 0
    )
    assert before == 3 * min(when // 2, 3)
    with Store(tmp_path / "stopped", planned) as store:
        left = 6 * (3 - before // 3)
        assert forecast(planned, tiny_model(), jobs(planned), store=store).pictures - left == 2 * 2
    again: list[Event] = []
    run(tmp_path / "stopped", planned, watch=again.append)
    assert sum(event.aside for event in again if event.doing == "calibrating judges") == left
    for name in ("calibration.jsonl", "readings.jsonl"):
        assert (tmp_path / "stopped" / name).read_text() == (tmp_path / "whole" / name).read_text()
    assert known(tmp_path / "stopped") == known(tmp_path / "whole")
    assert trials(tmp_path / "stopped") == trials(tmp_path / "whole")


def test_a_folder_with_another_audits_calibration_is_refused(tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if event.aside:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, audit(judges=[CHOSEN]), watch=stop)
    with pytest.raises(BadRun, match="holds another audit"):
        run(tmp_path, audit(judges=[CHOSEN], seed=1))


@dataclass(frozen=True, kw_only=True)
class Blind(Chosen):
    """Sees the same in every picture."""

    name = "blind"

    def score(self, pictures, concept):
        return [0.4] * len(pictures)


def test_a_judge_that_tells_nothing_apart_is_said_so_loudly_and_one_that_does_is_not(tmp_path: Path) -> None:
    planned, written = audit(judges=[Blind(knows=CHOSEN.knows)]), StringIO()
    expected = Forecast(goals=4, looks=4, pictures=18, passes=100, passes_per_second=1, erasing=0, bytes=0)
    display = Display(Console(file=written), planned, tiny_model(), jobs(planned), expected)
    run(tmp_path, planned, watch=display.watch)
    label = Blind(knows=CHOSEN.knows).label
    warning = f"udge {label} does not tell the base's own pictures of church from others: AUROC 0.50, hits 0/3"
    said = written.getvalue()
    assert 0 < said.index(f"Warning: j{warning}") < said.index("church · dampen")
    Run(tmp_path).write_report()
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    assert f"J{warning}" in text and "does not tell the base" in page
    assert "0/3 (0.0%, 0.0% to 56.1%)" in page and "0/6 (0.0%, 0.0% to 39.0%)" in page
    written = StringIO()
    Run(tmp_path).table(Console(file=written, width=200))
    assert "0/3" in written.getvalue() and "0.0% - 39.0%" in written.getvalue()
    good = {
        "name": "j",
        "thresholds": {"church": 0.5},
        "rules": {"church": "as it was set"},
        "hits": {"church": {"rate": 0.96, "n": 25}},
        "false_alarms": {"church": {"rate": 0.0, "n": 250}},
        "auroc": {"church": 0.999},
        "against": {"church": "pictures of fish"},
    }
    for change, doubt in (
        ({}, None),
        ({"hits": {"church": {"rate": 0.4, "n": 25}}}, "in only 40% of the base's own pictures of it (10/25)"),
        (
            {"false_alarms": {"church": {"rate": 0.2, "n": 250}}},
            "in 20% of the base's pictures of other things (50/250)",
        ),
        ({"false_alarms": {"church": {"rate": 0.02, "n": 50}}}, None),  # one picture proves nothing
        ({"auroc": {"church": 0.6}}, "does not tell"),
    ):
        (row,) = judged([good | change])
        assert row.doubt is None if doubt is None else doubt in row.doubt
    assert judged([{"name": "j", "thresholds": {"church": 0.5}}]) == []


def test_calibrate_says_it_without_an_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("palimpsest.audit_file.JUDGES", (*JUDGES, Hash, Chosen))
    monkeypatch.setattr("palimpsest.audit_file.find_concept", lambda name: {"church": CHURCH}[name])
    tiny_pipeline(tmp_path / "base")
    command = ["calibrate", "--base", tmp_path / "base", "--concept", "church", "--steps", 2, "--guidance", 3]
    spec = "chosen:knows=['church','fish','parrot','van gogh']"

    def call(*more: object) -> str:
        done = CliRunner().invoke(app, [str(word) for word in (*command, *more)])
        assert done.exit_code == 0, done.output
        return done.stdout

    (told,) = json.loads(call("--judge", spec, "--batch", 4, "--json"))
    run(tmp_path / "run", audit(judges=[CHOSEN]))
    assert told == {key: value for key, value in known(tmp_path / "run").items() if key != "chief"}
    said = call("--judge", spec, "--batch", 4)  # bits hang on the batch, and the judge on bits
    assert "AUROC" in said and f"{round(3 * told['hits']['church']['rate'])}/3" in said
    done = CliRunner().invoke(app, [str(word) for word in (*command, "--judge", "hash")])
    assert "expected judges that are calibrated on pictures of the base, got hash" in str(done.exception)


# the miniature -------------------------------------------------------------------------------------------------------

N = 10


def kappa(one: list[bool], other: list[bool]) -> float:
    """Cohen's: agreement beyond chance."""
    a, b = np.array(one), np.array(other)
    chance = a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean())
    return float(((a == b).mean() - chance) / (1 - chance))


def test_on_the_miniature_clip_is_worth_something_and_a_random_network_is_not(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    clip: str,  # noqa: F811
) -> None:
    names = ("church", "fish", "van gogh", "photo")
    concepts = {name: find_concept(name) for name in names}
    monkeypatch.setattr("palimpsest.protocol.shipped_concepts", lambda: concepts)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        labels = dict(enumerate(names))
        config = ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=64,
            patch_size=8,
        )
        config.id2label, config.label2id = labels, {name: number for number, name in labels.items()}
        ViTForImageClassification(config).save_pretrained(tmp_path)
    processor(tmp_path)
    seeing, random = Clip(model=clip, calibration=N), ImageClassifier(model=str(tmp_path), top=0, calibration=N)
    planned = make_audit(
        {
            "concepts": ["church", "fish", "van gogh"],
            "erasers": ["nothing"],
            "attacks": ["direct"],
            "judges": [seeing, random, ImageClassifier(model=str(tmp_path), calibration=N)],
            "measures": [],
            "sampling": {"steps": 8, "guidance": 5.0},
        }
    )
    model, asked, told = Model.load("miniature", batch=N), calibrations(planned), list[Scored]()
    drawn: dict[str, list[Image]] = {}
    for source in sources_left(asked, told):
        drawn[source.name] = model.draw(source.attempts, planned.sampling)
        told += scored(asked, source, drawn[source.name], told)
    found = {(one.judge, one.concept): one for one in measured(asked, told)}
    ours, theirs = [], []
    for name in ("church", "fish", "van gogh"):
        judge = seeing.calibrated({name: found[seeing.label, name].threshold})
        own = Miniature()
        for calibration in asked:
            if (calibration.judge, calibration.concept.name) == (seeing, name):
                unseen = [picture for source in calibration.sources for picture in drawn[source.name][1::2]]
        ours += [score >= judge.threshold(concepts[name]) for score in judge.score(unseen, concepts[name])]
        theirs += [score >= own.threshold(concepts[name]) for score in own.score(unseen, concepts[name])]
    assert len(ours) == 3 * N
    assert 5 <= sum(theirs) <= 25
    assert kappa(ours, theirs) >= 0.5
    rows = [row for one in found.values() for row in judged(described([{"name": one.judge}], [one]))]
    assert [row.concept for row in rows if row.judge == random.label and not row.doubt] == []
    assert any(not row.doubt for row in rows if row.judge == seeing.label)
