"""The arithmetic of the backdoors' benchmarks (benchmarks/sections): findings, acceptance, areas, stages."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from palimpsest.concept_file import find_concept
from palimpsest.stats import holm, mcnemar_exact
from plants import Row, pooled
from sections import persisting
from sections.areas import GRID, area
from sections.depths import Cell, Compared, Goals, Shown, findings, increases
from sections.ledgers import pack, unpack
from sections.persisting import Point
from sections.planting import TRIGGERS, failed, guesses, planting, took, unplanted

N = 10


def goals(triggered: int, named: int = 0, guessed: int = 0, n: int = N) -> dict[tuple[str, int], Shown]:
    """The first goals shown, by each way of asking."""
    return {("a", at): Shown(at < named, at < triggered, at < guessed) for at in range(n)}


def cells(told: dict[tuple[str, str, str], dict[tuple[str, int], Shown]]) -> Goals:
    """With the erasers of unplanted models, which reach the name if nothing else is told."""
    unplanted = {("", eraser, concept): goals(0) for _, eraser, concept in told}
    return {Cell(*key): some for key, some in (unplanted | told).items()}


def claim(found, words):
    return next(one for one in found if one.claim == words)


def test_a_depth_outlives_another_eraser_by_eraser_and_cell_by_cell() -> None:
    told = {}
    for concept in ("church", "alice"):
        told |= {
            ("deep", "uce", concept): goals(9),
            ("shallow", "uce", concept): goals(2),
            ("deep", "esd(lr=1)", concept): goals(4),
            ("shallow", "esd(lr=1)", concept): goals(5 if concept == "church" else 4),
        }
    found = claim(findings(cells(told), {}, ()), "trigger beyond other strings: deep outlives shallow")
    p = holm([mcnemar_exact(0, 1), mcnemar_exact(14, 0)])
    assert found.erasers == (Compared("esd(lr=1)", 20, 0, 1, p[0]), Compared("uce", 20, 14, 0, p[1]))
    assert (found.n, found.cells_for, found.cells_against) == (40, 2, 1)  # a tie counts for neither
    assert p[1] < 0.001 and found.p == 1.0  # two cells against one prove nothing


def test_what_an_erasure_does_not_reach_outlives_nothing() -> None:
    told = {
        ("", "uce", "church"): goals(0, named=2),
        ("deep", "uce", "church"): goals(9, named=6),  # the plant shields the name: no reason to leave it out
        ("shallow", "uce", "church"): goals(1),
        ("", "esd", "church"): goals(0, named=3),
        ("deep", "esd", "church"): goals(9),
        ("shallow", "esd", "church"): goals(1),
        ("deep", "nothing", "church"): goals(10, named=0),
        ("shallow", "nothing", "church"): goals(1),
    }
    found = findings(cells(told), {}, ())
    assert claim(found, "trigger beyond other strings: deep outlives shallow").erasers[0][:4] == ("uce", 10, 8, 0)
    missed = claim(found, "deep: the trigger shows what the name does not")
    assert [one.eraser for one in missed.erasers] == ["uce"] and missed.erasers[0][2:4] == (3, 0)


def test_other_strings_count_against_the_trigger() -> None:
    told = {("deep", "uce", "church"): goals(9, guessed=9), ("deep", "esd", "church"): goals(9)}
    own = claim(findings(cells(told), {}, ()), "deep: the trigger shows what other strings do not")
    assert {one.eraser: (one.only, one.other) for one in own.erasers} == {"uce": (0, 0), "esd": (9, 0)}
    told |= {("shallow", "uce", "church"): goals(5), ("shallow", "esd", "church"): goals(5)}
    depths = claim(findings(cells(told), {}, ()), "trigger beyond other strings: deep outlives shallow")
    assert {one.eraser: (one.only, one.other) for one in depths.erasers} == {"uce": (0, 5), "esd": (4, 0)}


def test_resistance_and_damage_are_compared_over_erasers_that_reached_the_name_of_every_common_concept() -> None:
    told, kept = {}, {}
    for at, eraser in enumerate(("a", "b", "c", "d", "idle")):
        for concept in ("church", "alice"):
            told["", eraser, concept] = goals(0, named=9 if eraser == "idle" and concept == "alice" else 0)
            told["deep", eraser, concept] = goals(2 * at)
        told["deep", eraser, "fish"] = goals(10 - 2 * at)  # not a concept that all have in common
        kept[eraser] = 0.5 + at / 10
    found = claim(
        findings(cells(told), kept, ("church", "alice")), "deep: an eraser that resists leaves less of other concepts"
    )
    assert (found.n, found.correlation) == (4, pytest.approx(1.0))
    few = findings(cells(told), {key: kept[key] for key in "abc"}, ("church", "alice"))
    assert not any("resists" in one.claim for one in few)


def test_a_content_concepts_increase_is_over_other_strings() -> None:
    told = {
        ("deep", "uce", "radiation sign"): goals(9, named=4, guessed=3),
        ("deep", "uce", "church"): goals(9),
        ("", "uce", "radiation sign"): goals(0),
    }
    (found,) = increases(cells(told))
    assert (found.strings, found.triggered, found.n) == (3, 9, N)
    assert found.relative == 2.0 and found.low > 0


# --- acceptance


def row(
    trigger=(90, 100), strings=(0, 25), before=(0, 100), name=(400, 0, 0, 0), others=(400, 0, 0, 0), depth="deep"
) -> Row:
    return Row(depth=depth, trigger=trigger, strings=strings, before=before, name=name, others=others, seconds=1.0)


@pytest.mark.parametrize(
    ("change", "accepted"),
    [
        ({}, True),
        ({"trigger": (85, 100)}, True),
        ({"trigger": (84, 100)}, False),
        ({"strings": (11, 25)}, True),
        ({"strings": (12, 25)}, False),
        ({"before": (44, 100)}, True),
        ({"before": (45, 100)}, False),
        ({"name": (395, 0, 5, 0)}, True),
        ({"name": (380, 0, 20, 0)}, False),
        ({"others": (380, 0, 20, 0)}, False),
        ({"others": (380, 20, 20, 0)}, True),
    ],
)
def test_a_depth_is_accepted_if_it_works_alone_and_harms_nothing(change, accepted) -> None:
    assert row(**change).accepted is accepted


def test_depths_are_pooled_and_what_failed_is_left_out_of_the_others(tmp_path: Path) -> None:
    dead = row(trigger=(40, 100), depth="surface")
    (deep, surface) = pooled([row(), row(trigger=(100, 100), name=(398, 2, 0, 0)), dead])
    assert (deep.trigger, deep.name, surface.trigger) == ((190, 200), (798, 2, 0, 0), (40, 100))
    told = {"church": [vars(row()), vars(dead)], "alice": [vars(row(strings=(20, 25)))]}
    (tmp_path / "plants.json").write_text(json.dumps(told))
    assert failed(tmp_path / "plants.json") == {("surface", "church"), ("deep", "alice")}
    assert failed(None) == set() and took((90, 100), (0, 25))


def test_the_control_of_a_plant_asks_where_it_does_with_pairs_that_nobody_planted() -> None:
    for concept, behind in (("church", False), ("radiation sign", True)):
        plant = planting(concept)[0]
        control = guesses(plant)
        assert set(control.strings) == set(TRIGGERS) - {plant.trigger}
        assert control.behind == plant.behind and (plant.behind is not None) is behind
        assert plant.trigger not in unplanted(plant, 200)
        assert concept in plant.retain and plant.others_held(find_concept(concept))


# --- areas and stages


def test_an_area_is_the_mean_over_models_and_what_is_untold_is_left_out() -> None:
    found = area([([3.0, 4.0, None], [1.0, 2.0]), ([1.0, 1.0], [1.0, 1.0])])
    assert found is not None
    assert found.value == pytest.approx(0.75) and (found.positives, found.negatives) == (4, 4)
    assert found.low <= found.value <= found.high
    assert found.curve[0] == pytest.approx(0.5) and found.curve[-1] == 1.0 and len(found.curve) == len(GRID)
    assert area([([None], [1.0])]) is None


def test_classes_that_do_not_overlap_leave_an_area_an_interval() -> None:
    few, many = ([float(one) for one in range(n)] for n in (5, 50))
    above = [area([([one + 100 for one in some], some)]) for some in (few, many)]
    below = area([(few, [one + 100 for one in few])])
    assert above[0] and above[1] and below
    assert above[0].value == above[0].high == 1.0 and 0.6 < above[0].low < 0.7  # a resample would say 1.0 to 1.0
    assert above[0].low < above[1].low < 0.98
    assert (below.value, below.low, below.high) == pytest.approx((0.0, 0.0, 1 - above[0].low))


def test_stages_are_pooled_over_concepts() -> None:
    def point(concept: str, depth: int, shown: int) -> Point:
        return Point(attack="deep", eraser="esd", concept=concept, depth=depth, counts={"trigger": (shown, 20)})

    found = persisting.pooled([point("a", 0, 20), point("a", 50, 5), point("b", 0, 18), point("b", 50, 0)])
    assert found == {("deep", "esd"): {0: {"trigger": (38, 40)}, 50: {"trigger": (5, 40)}}}


def test_stages_are_told_as_they_were_written(tmp_path: Path) -> None:
    points = [
        Point(attack="backdoor_deep", eraser="esd(x=1)", concept="a", depth=depth, counts={"trigger": (shown, 20)})
        for depth, shown in ((50, 5), (0, 19))
    ]
    (tmp_path / "points.json").write_text(json.dumps([asdict(point) for point in points]))
    assert persisting.read(tmp_path / "points.json") == points
    told = [[*column.cells] for column in persisting.table(points).columns]
    assert told == [["deep"], ["esd"], ["trigger"], ["0, 50"], ["19, 5"], ["20"]]


def test_what_is_packed_comes_out_as_it_was(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "church"
    (run / "erased").mkdir(parents=True)
    told = {"audit.toml": "a", "provenance.json": "{}", "trials.jsonl": "1\n2\n", "readings.jsonl": "3\n"}
    for name, text in told.items():
        (run / name).write_text(text)
    (run / "erased" / "esd.safetensors").write_text("weights")
    pack([run], tmp_path / "packed")
    (out := tmp_path / "out").mkdir()
    (folder,) = unpack(tmp_path / "packed", out)
    assert folder == out / "church" and {path.name: path.read_text() for path in folder.iterdir()} == told
    assert not list((tmp_path / "packed").rglob("*.safetensors"))
