"""What measures share: pictures drawn once, a forecast that is true, readings that are no shares, what is left out."""

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from palimpsest import report
from palimpsest.assets import clip_folder
from palimpsest.cli import app
from palimpsest.errors import BadAudit, BadSetting
from palimpsest.forecast import forecast
from palimpsest.jobs import jobs
from palimpsest.model import Model
from palimpsest.records import Reading, to_json
from palimpsest.report.export import export
from palimpsest.report.findings import find
from palimpsest.report.ledger import read
from palimpsest.run import Run
from palimpsest.runner import Runner
from palimpsest.store import Store
from palimpsest.utility import ClipScore, Kid, Neighbours, PairedDistance
from scripted import CHURCH, FISH, Dampen, Hash, audit, run
from synthetic import audit as synthetic
from tiny import tiny_model

CLIP = str(clip_folder())
HOUSE = replace(FISH, name="house", prompts=("a house",))
ALL = [
    Neighbours(pictures=3),
    ClipScore(pictures=3, model=CLIP),
    Kid(pictures=3, features=CLIP),
    PairedDistance(pictures=3, features=CLIP),
]


@pytest.fixture(scope="module", autouse=True)
def survivors() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("palimpsest.protocol.shipped_concepts", lambda: {"fish": FISH, "house": HOUSE})
        yield


def planned(**changes):
    judge = Hash(limit=0.5, knows=("church", "fish", "house"))
    return audit(**({"measures": ALL, "judges": [judge], "attacks": ["direct"], "erasers": [Dampen()]} | changes))


@pytest.fixture(scope="module")
def everything(survivors: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every measure."""
    folder = tmp_path_factory.mktemp("everything")
    run(folder, planned())
    return folder


def test_no_picture_is_drawn_twice_and_the_forecast_counts_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, seen = [], []
    plain = Model.draw

    def draw(model, attempts, sampling, **more):
        drawn.extend((model.fingerprint, attempt) for attempt in attempts)
        return plain(model, attempts, sampling, **more)

    monkeypatch.setattr(Model, "draw", draw)
    concepts = [CHURCH, replace(CHURCH, name="house", prompts=HOUSE.prompts)]
    asked, base = planned(concepts=concepts, erasers=[Dampen(), Dampen(by=0.2)], goals=1), tiny_model()
    told = forecast(asked, base, jobs(asked)).pictures
    with Store(tmp_path, asked) as store:
        Runner(audit=asked, store=store, base=base, watch=seen.append).run()
    measuring = len(drawn) - 6  # two concepts by three models asked plainly, once each
    # Of each concept two others survive: 2 x 3 pictures of each of 2 x 2 victims; of the base, of three, twice 3.
    assert measuring == told == sum(event.aside for event in seen) == 4 * 6 + 2 * 9
    assert len(set(drawn)) == len(drawn)


def test_neighbours_says_the_same_beside_other_measures(everything: Path, tmp_path: Path) -> None:
    def neighbours(folder: Path) -> set[str]:
        lines = (folder / "readings.jsonl").read_text().splitlines()
        return {line for line in lines if json.loads(line)["measure"] in ("neighbours", "false_alarms")}

    run(tmp_path, planned(measures=ALL[:1]))
    assert neighbours(everything) == neighbours(tmp_path) != set()


def test_a_run_shows_every_measure_with_interval_and_base(everything: Path, tmp_path: Path) -> None:
    rows = {(row["eraser"], row["measure"]): row for row in report.summary(everything)["utility"]}
    names = ("clip_score", "clip_score_change", "kid", "neighbours", "paired_distance")
    assert {measure for _, measure in rows if ":" not in measure} == set(names)
    for name in names:
        erased, base = rows["dampen", name], rows["nothing", name]
        assert erased["low"] <= erased["value"] <= erased["high"] and erased["n"] == 6
        assert erased["base"] == base["value"]
        assert erased["unit"] == ("share" if name == "neighbours" else "number")
    assert rows["nothing", "paired_distance"]["value"] == 0 < rows["dampen", "paired_distance"]["low"]
    assert ("dampen", "kid: fish") not in rows and rows["dampen", "clip_score: fish"]["n"] == 3
    console = Console(record=True, width=120)
    Run(everything).table(console)
    screen = console.export_text()
    folder = report.write(everything).parent
    said = rows["dampen", "clip_score"]
    for text in (screen, (folder / "report.md").read_text(), (folder / "report.html").read_text()):
        assert "paired_distance" in text and "by clip" in text
        assert all(f"{said[key]:.2f}" in text for key in ("value", "low", "high", "base"))
    export(everything, tmp_path / "utility.csv", to="csv", table="utility")
    with (tmp_path / "utility.csv").open() as file:
        exported = {(row["eraser"], row["measure"]): row for row in csv.DictReader(file)}
    assert {key: float(row["value"]) for key, row in exported.items()} == {
        key: row["value"] for key, row in rows.items()
    }
    assert exported["dampen", "kid"]["unit"] == "number"


def test_a_verdict_rests_on_neighbours_alone_and_nothing_else_is_kept(tmp_path: Path) -> None:
    plain = synthetic(attack=2)
    before = report.summary(plain.write(tmp_path / "before"))["verdicts"]
    for eraser, value in (("nothing", 0.01), ("esd", 40.0)):
        plain.readings.append(
            Reading(
                victim=plain.victim("church", eraser),
                measure="kid",
                concept="",
                value=value,
                n=9,
                low=value - 1,
                high=value + 1,
                unit="number",
            )
        )
    folder = plain.write(tmp_path / "after")
    assert report.summary(folder)["verdicts"] == before
    kept = {row.measure: row.kept for row in find(read(folder)).utility if row.eraser == "esd" and not row.thing}
    assert kept == {"neighbours": pytest.approx(56 / 58), "kid": None}
    report.write(folder)
    text = (folder / "report.md").read_text()
    assert "| esd | kid | 40.00 | 39.00 to 41.00 | 0.01 | 9 |" in text
    assert "4000%" not in text and "4,000%" not in text


def test_a_reading_of_an_older_ledger_is_a_share(tmp_path: Path) -> None:
    old = synthetic()
    folder = old.write(tmp_path)
    new = report.summary(folder)["utility"]
    lines = [json.loads(line) for line in (folder / "readings.jsonl").read_text().splitlines()]
    assert all(line.pop("unit") == "share" for line in lines)
    (folder / "readings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert report.summary(folder)["utility"] == new
    assert '"unit":"share"' in to_json(old.readings[0])


def test_a_measure_of_ones_own_without_a_whole_has_no_interval_for_all_together(tmp_path: Path) -> None:
    own = synthetic(neighbours=None)
    for thing, value in (("fish", 2.0), ("cat", 4.0)):
        own.reading("church", "esd", thing, 1, 10, measure="mine")
        own.readings[-1] = replace(own.readings[-1], value=value, unit="number")
    row = report.summary(own.write(tmp_path))["utility"][0]
    assert (row["measure"], row["value"], row["low"], row["high"], row["base"]) == ("mine", 3.0, None, None, None)


def test_what_the_machine_lacks_is_left_out_and_said_and_taken_once_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = Kid(pictures=3, features="inception")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    asked = planned(measures=[ALL[0], lacking])
    with run(tmp_path, asked) as store:
        assert {one.measure for one in store.readings} == {"neighbours", "false_alarms"}
    said = "kid(pictures=3,features=inception)"
    (left,) = report.summary(tmp_path)["left_out"]
    assert left["measure"] == said and "pip install 'palimpsest[inception]'" in left["why"]
    console = Console(record=True, width=200)
    Run(tmp_path).table(console)
    folder = report.write(tmp_path).parent
    for text in (console.export_text(), (folder / "report.md").read_text(), (folder / "report.html").read_text()):
        assert f"Not measured: {said}. InceptionV3 needs torch-fidelity, which is not installed" in text
    # As if it were installed now: its features are the CLIP's, for the test.
    monkeypatch.setattr(Kid, "lacking", lambda measure: "")
    monkeypatch.setattr("palimpsest.utility.kid.inception_features", Kid(features=CLIP)._network.embeddings)
    with run(tmp_path, asked) as store:
        assert {one.victim.eraser for one in store.readings if one.measure == "kid"} == {"nothing", "dampen"}
    assert report.summary(tmp_path)["left_out"] == []


def test_what_cannot_be_measured_stops_an_audit_before_it_begins(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="clip_score: expected model=FOLDER"):
        audit(measures=["clip_score"])
    with pytest.raises(BadSetting, match="kid: expected a model of transformers, got 'none/'"):
        audit(measures=["kid:features=none/"])
    with pytest.raises(BadAudit, match="expected each measure once, got 'kid' more than once"):
        audit(measures=[Kid(features=CLIP), Kid(features=CLIP, pictures=5)])


def test_the_command_line_asks_for_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {}

    def plan(source, settings):
        told.update(settings)
        raise BadAudit("enough")

    monkeypatch.setattr("palimpsest.auditing.plan", plan)
    CliRunner().invoke(app, ["audit", "--measure", "kid", "--measure", "clip_score:pictures=4"])
    assert told == {"measures": ["kid", "clip_score:pictures=4"]}
