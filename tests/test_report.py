"""The numbers of a report, against counts made by hand."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from scipy.stats import binomtest

from palimpsest import report
from palimpsest.errors import BadRun
from synthetic import SyntheticRun, audit, demonstration, line, won

DOCUMENTATION = Path(__file__).parent.parent / "docs" / "report-schema.md"


def test_cells_are_counted(tmp_path: Path) -> None:
    run = SyntheticRun(kinds={"church": "object"}, goals=4)
    run.cell("church", "nothing", "direct", [1, 1, 1, None])
    run.cell("church", "esd", "direct", [None, None, None, None])
    run.cell("church", "esd", "unlearn_diff", [3, None, 2, None], looks=5)
    rows = {(row["eraser"], row["attack"]): row for row in report.table(run.write(tmp_path))}
    assert list(rows) == [("esd", "direct"), ("esd", "unlearn_diff"), ("nothing", "direct")]
    row = rows["esd", "unlearn_diff"]
    interval = binomtest(2, 4).proportion_ci(method="wilson")
    assert row == {
        "concept": "church",
        "kind": "object",
        "eraser": "esd",
        "attack": "unlearn_diff",
        "access": "gradients+reference",
        "successes": 2,
        "n": 4,
        "rate": 0.5,
        "low": pytest.approx(interval.low),
        "high": pytest.approx(interval.high),
        "looks": 3 + 5 + 2 + 5,
        "passes": 50 * (3 + 5 + 2 + 5),
        "seconds": pytest.approx(0.5 * (2 + 4 + 1 + 4)),
    }
    assert rows["nothing", "direct"]["access"] == "prompts"
    assert (rows["nothing", "direct"]["successes"], rows["nothing", "direct"]["n"]) == (3, 4)


def test_the_order_of_the_ledger_means_nothing(tmp_path: Path) -> None:
    run = audit(random_words=4, attack=11)
    run.goal("church", "esd", "unlearn_diff", 20, looks=3, end="error")
    names = ("report.html", "report.md", "report.json")
    written = []
    for order in (None, 1, 2):
        folder = report.write(run.write(tmp_path / str(order), order=order)).parent
        written.append([(folder / name).read_text(encoding="utf-8") for name in names])
    assert written[0] == written[1] == written[2]


def test_a_goal_counts_once_it_has_ended(tmp_path: Path) -> None:
    run = audit(random_words=4, attack=11)
    whole = report.summary(run.write(tmp_path / "whole"))
    # The first looks of a goal that was interrupted, then done again from its start; and one that was never finished.
    again = [trial for trial in run.trials if trial.attack == "unlearn_diff"][:2]
    run.trials = [*again, *run.trials]
    run.goal("church", "esd", "unlearn_diff", 20, looks=3)
    run.trials[-1] = replace(run.trials[-1], end=None)
    assert report.summary(run.write(tmp_path / "interrupted")) == whole


def test_a_goal_that_is_only_retained_is_no_target(tmp_path: Path) -> None:
    run = audit()
    before = report.table(run.write(tmp_path / "before"))
    run.goal("church", "esd", "direct", 30, won_at=1)
    run.trials[-1] = replace(run.trials[-1], goal=replace(run.trials[-1].goal, role="retained"))
    assert report.table(run.write(tmp_path / "after")) == before


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    run = audit()
    whole = report.summary(run.write(tmp_path))
    with (tmp_path / "trials.jsonl").open("a", encoding="utf-8") as ledger:
        ledger.write(line(run.trials[0])[:70])
    assert report.summary(tmp_path) == whole


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    audit().write(tmp_path)
    ledger = tmp_path / "trials.jsonl"
    lines = ledger.read_text(encoding="utf-8").splitlines()
    lines[2] = lines[2].replace('"number":0', '"number":"many"')
    ledger.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(BadRun, match=r"trials\.jsonl, line 3, number: expected a Trial, got"):
        report.summary(tmp_path)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRun, match="expected a run's folder"):
        report.write(tmp_path)


def test_a_run_without_provenance_is_read(tmp_path: Path) -> None:
    folder = audit(attack=11).write(tmp_path)
    (folder / "provenance.json").unlink()
    said = report.summary(folder)
    assert said["provenance"] == {}
    assert len(said["protocol"]) == 64
    assert {row["access"] for row in said["cells"]} == {"unknown"}
    assert report.write(folder).is_file()


def test_an_empty_run_is_reported(tmp_path: Path) -> None:
    folder = SyntheticRun(kinds={}, goals=20).write(tmp_path)
    assert report.summary(folder)["cells"] == []
    assert "no goal has finished yet" in report.write(folder).read_text(encoding="utf-8")


def test_attacks_are_compared_at_equal_looks(tmp_path: Path) -> None:
    run = SyntheticRun(kinds={"church": "object"}, goals=6)
    run.cell("church", "esd", "direct", won(0, 6))
    # The attack's passes end after 5 looks; random words go on to 8, and what they win there is not counted.
    run.cell("church", "esd", "unlearn_diff", [2, 3, 5, 4, None, None], looks=5)
    run.cell("church", "esd", "random_prefix", [2, 7, 8, None, 5, 6], looks=8)
    (row,) = report.summary(run.write(tmp_path))["comparisons"]
    assert (row["control"], row["looks"], row["pairs"]) == ("random_prefix", 5, 6)
    assert (row["both"], row["only_attack"], row["only_control"]) == (1, 3, 1)
    assert row["p"] == pytest.approx(binomtest(1, 4, 0.5).pvalue)


def test_an_attack_that_wins_every_goal_was_never_stopped(tmp_path: Path) -> None:
    run = SyntheticRun(kinds={"church": "object"}, goals=3)
    run.cell("church", "esd", "unlearn_diff", [1, 1, 2])
    run.cell("church", "esd", "random_prefix", [6, None, 1], looks=8)
    (row,) = report.summary(run.write(tmp_path))["comparisons"]
    assert (row["looks"], row["both"], row["only_attack"], row["only_control"]) == (8, 2, 1, 0)


def test_all_concepts_are_compared_together(tmp_path: Path) -> None:
    run = SyntheticRun(kinds={"church": "object", "fish": "object"}, goals=10)
    for eraser, attack in (("esd", 6), ("uce", 3)):
        for concept in run.kinds:
            run.cell(concept, eraser, "random_prefix", won(0, 10), looks=8)
            run.cell(concept, eraser, "unlearn_diff", won(attack, 10, at=2), looks=8)
    rows = [row for row in report.summary(run.write(tmp_path))["comparisons"] if row["concept"] == ""]
    assert [(row["eraser"], row["pairs"], row["only_attack"]) for row in rows] == [("esd", 20, 12), ("uce", 20, 6)]
    smaller, larger = binomtest(0, 12, 0.5).pvalue, binomtest(0, 6, 0.5).pvalue
    # Holm over the two: the smaller p-value twice, the larger once.
    assert [row["p_holm"] for row in rows] == pytest.approx([2 * smaller, larger])


def test_errors_and_untold_verdicts_are_counted(tmp_path: Path) -> None:
    run = audit(attack=11)
    run.goals = 25
    run.goal("church", "esd", "unlearn_diff", 20, looks=3, end="error")
    run.goal("church", "esd", "unlearn_diff", 21, looks=3, untold=True)
    run.goal("church", "esd", "unlearn_diff", 22, won_at=2, dropped_tokens=4)
    folder = run.write(tmp_path)
    said = report.summary(folder)
    row = next(row for row in said["cells"] if row["attack"] == "unlearn_diff")
    assert (row["successes"], row["n"]) == (12, 23)
    trouble = {row["attack"]: row for row in said["troubles"] if row["eraser"] == "esd"}
    counts = {name: trouble["unlearn_diff"][name] for name in ("errors", "untold", "dropped", "missing")}
    assert counts == {"errors": 1, "untold": 1, "dropped": 1, "missing": 2}
    assert trouble["direct"]["missing"] == 5
    assert "What went wrong" in report.write(folder).read_text(encoding="utf-8")


def test_utility_is_weighted_by_pictures_and_set_beside_the_base(tmp_path: Path) -> None:
    run = audit(neighbours=None)
    for eraser, fish, house in (("nothing", 9, 36), ("esd", 3, 24)):
        run.reading("church", eraser, "fish", fish, 10)
        run.reading("church", eraser, "house", house, 40)
    folder = run.write(tmp_path)
    rows = {(row["eraser"], row["measure"]): row["value"] for row in report.summary(folder)["utility"]}
    assert rows == {
        ("esd", "neighbours"): pytest.approx(27 / 50),
        ("esd", "neighbours: fish"): pytest.approx(3 / 10),
        ("esd", "neighbours: house"): pytest.approx(24 / 40),
        ("nothing", "neighbours"): pytest.approx(45 / 50),
        ("nothing", "neighbours: fish"): pytest.approx(9 / 10),
        ("nothing", "neighbours: house"): pytest.approx(36 / 40),
    }
    assert "54%, 60% of the base's" in report.write(folder).read_text(encoding="utf-8")


def test_false_alarms_are_no_utility(tmp_path: Path) -> None:
    run = audit()
    run.reading("church", "nothing", "church", 1, 100, measure="false_alarms")
    said = report.summary(run.write(tmp_path))
    assert not [row for row in said["utility"] if "false_alarms" in row["measure"]]
    page = report.write(tmp_path).read_text(encoding="utf-8")
    assert "100 pictures, of this run" in page
    assert "1.0%" in page  # one look at a picture that shows nothing


def test_victims_off_the_main_line_are_told_apart(tmp_path: Path) -> None:
    run = audit(attack=11)
    for attack, change in (("direct", {"depth": 50}), ("unlearn_diff", {"revision": 2}), ("direct", {"plant": "link"})):
        run.goal("church", "esd", attack, 0, won_at=1)
        run.trials[-1] = replace(run.trials[-1], victim=replace(run.trials[-1].victim, **change))
    said = report.summary(run.write(tmp_path))
    assert {(row["eraser"], row["attack"]) for row in said["cells"] if row["n"] == 1} == {
        ("esd [depth 50]", "direct"),
        ("esd", "unlearn_diff [revision 2]"),
        ("esd", "direct [plant link]"),
    }
    assert [row["eraser"] for row in said["verdicts"]] == ["esd"]


def test_only_seconds_tell_two_runs_apart(tmp_path: Path) -> None:
    run = audit(attack=11)
    first = report.summary(run.write(tmp_path / "first"))
    run.trials = [replace(trial, cost=replace(trial.cost, seconds=trial.cost.seconds * 3 + 1)) for trial in run.trials]
    second = report.summary(run.write(tmp_path / "second"))
    assert first != second
    for said in (first, second):
        for row in said["cells"]:
            del row["seconds"]
    assert first == second


def test_report_json_is_what_its_documentation_says(tmp_path: Path) -> None:
    folder = report.write(demonstration(pictures=False).write(tmp_path)).parent
    said = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert said == report.summary(folder)
    assert said["version"] == 1
    documented = DOCUMENTATION.read_text(encoding="utf-8")
    for field in said:
        assert f"| `{field}` |" in documented
    for part in ("verdicts", "cells", "utility", "comparisons", "troubles"):
        section = documented.split(f"### `{part}`")[1].split("\n#")[0]
        assert said[part]
        for field in said[part][0]:
            assert f"`{field}`" in section, f"{part}: {field}"
    for part, key in (
        ("verdicts", ("concept", "eraser")),
        ("cells", ("concept", "eraser", "attack")),
        ("utility", ("concept", "eraser", "measure")),
        ("comparisons", ("concept", "eraser", "attack")),
    ):
        keys = [tuple(row[name] for name in key) for row in said[part]]
        assert keys == sorted(keys), part


def test_the_markdown_is_one_table_row_per_cell(tmp_path: Path) -> None:
    run = audit(random_words=4, attack=11, concept="a|b <c>")
    folder = report.write(run.write(tmp_path)).parent
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "| esd | unlearn_diff | gradients+reference | 11 | 20 | 55% | 34% to 74% |" in text
    assert "a\\|b &lt;c>" in text and "<c>" not in text


def test_fields_of_a_trial_are_those_that_the_report_knows() -> None:
    """A new field of a victim must be given a place in a cell's key, or rates of different victims are mixed."""
    from palimpsest.records import Victim

    assert {field.name for field in fields(Victim)} == {
        "base",
        "concept",
        "eraser",
        "plant",
        "depth",
        "revision",
        "fingerprint",
    }
