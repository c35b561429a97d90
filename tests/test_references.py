"""Reference pictures of the user's: what is taken, what is refused, and that the attack aims at them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from palimpsest.attacks.base import Attack, Case, Need, Search, look
from palimpsest.audit_file import parse_references
from palimpsest.cli import app
from palimpsest.errors import BadAudit, UnknownName
from palimpsest.forecast import forecast
from palimpsest.jobs import jobs
from palimpsest.model import Model
from palimpsest.records import Attempt, Goal
from scripted import CHURCH, FISH, audit, run
from tiny import tiny_model

seen: dict[Goal, torch.Tensor] = {}


@dataclass(frozen=True, kw_only=True)
class Aim(Attack):
    """Writes down what it is given to aim at."""

    name = "aim"
    needs = frozenset({Need.REFERENCE})

    def search(self, case: Case) -> Search:
        assert case.reference is not None
        seen[case.goal] = case.reference
        yield from look([Attempt(prompt=case.goal.prompt, seed=case.goal.seed)])


def pictures(folder: Path, *colours: str, size: tuple[int, int] = (16, 16)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for colour in colours:
        Image.new("RGB", size, colour).save(folder / f"{colour}.png")
    return folder


def planned(**changes):
    return audit(**({"attacks": ["direct", Aim()], "erasers": ["nothing"], "goals": 3, "batch": 4} | changes))


def test_goals_take_the_given_pictures_in_turn_and_the_base_draws_the_rest(tmp_path, monkeypatch) -> None:
    seen.clear()
    drawn: list[Attempt] = []
    plain = Model.draw

    def draw(model: Model, attempts: Sequence[Attempt], sampling, **more):
        drawn.extend(attempts)
        return plain(model, attempts, sampling, **more)

    monkeypatch.setattr(Model, "draw", draw)
    (folder := pictures(tmp_path / "mine", "blue", "red")).joinpath("notes.txt").write_text("no picture")
    asked = planned(concepts=[CHURCH, FISH], references={"church": str(folder)})
    base = tiny_model()
    assert forecast(asked, base, jobs(asked)).pictures == 3  # the fish's
    run(tmp_path / "run", asked, base=base)
    colours = [base.encode_picture(Image.new("RGB", (16, 16), colour)) for colour in ("blue", "red")]
    assert not torch.equal(*colours)
    for number, goal in enumerate(asked.goals_for(CHURCH)):
        assert torch.equal(seen[goal], colours[number % 2])
    for goal in asked.goals_for(FISH):
        (own,) = plain(base, [Attempt(prompt=goal.prompt, seed=goal.seed)], asked.sampling)
        torch.testing.assert_close(seen[goal], base.encode_picture(own), rtol=1e-2, atol=1e-2)
    # One look serves all attacks; the fish's goals are drawn once more, as references.
    for concept, times in ((CHURCH, 1), (FISH, 2)):
        for goal in asked.goals_for(concept):
            assert drawn.count(Attempt(prompt=goal.prompt, seed=goal.seed)) == times


def test_the_pictures_are_part_of_the_protocol_and_an_audit_without_any_has_the_hash_it_had(tmp_path) -> None:
    folder = pictures(tmp_path, "blue")
    assert "references" not in planned().table()
    given = planned(references={"church": str(folder)})
    first = given.protocol
    assert len({first, planned().protocol}) == 2 and 'church = [\n    "' in given.toml()
    Image.new("RGB", (16, 16), "green").save(folder / "blue.png")
    assert planned(references={"church": str(folder)}).protocol != first


def test_a_picture_of_another_size_stops_the_run_before_anything_is_drawn(tmp_path) -> None:
    folder = pictures(tmp_path / "mine", "blue", size=(16, 24))
    asked = planned(references={"church": [str(folder / "blue.png")]})
    with pytest.raises(BadAudit, match="blue.png: expected a picture of 16 x 16 pixels, .* got 16 x 24"):
        run(tmp_path / "run", asked)
    assert not (tmp_path / "run" / "trials.jsonl").exists()


def test_what_is_no_picture_is_refused_before_a_model_is_opened(tmp_path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty").mkdir()
    for path, message in (
        ("text.png", "text.png: expected a picture, got cannot identify image file"),
        ("empty", "empty: expected pictures .* got a folder without any"),
        ("nowhere", "nowhere: expected a picture or a folder of pictures, got neither"),
    ):
        with pytest.raises(BadAudit, match=message):
            planned(references={"church": str(tmp_path / path)})
    with pytest.raises(BadAudit, match="audit: expected pictures of 'church', got none"):
        planned(references={"church": []})
    with pytest.raises(UnknownName, match="no concept of audit called 'boat'; there are: church"):
        planned(references={"boat": str(tmp_path)})


def test_a_torn_picture_is_refused(tmp_path) -> None:
    whole = (pictures(tmp_path, "blue", size=(64, 64)) / "blue.png").read_bytes()
    (tmp_path / "blue.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadAudit, match="blue.png: expected a picture, got"):
        planned(references={"church": str(tmp_path)})


def test_the_command_line_takes_them(monkeypatch) -> None:
    told = {}

    def plan(source, settings):
        told.update(settings)
        raise BadAudit("enough")

    monkeypatch.setattr("palimpsest.auditing.plan", plan)
    CliRunner().invoke(app, ["audit", "--reference", "van gogh=a/", "--reference", "van gogh=b=c.png"])
    assert told == {"references": {"van gogh": ("a/", "b=c.png")}}
    for text in ("church", "=a", "church="):
        with pytest.raises(BadAudit, match="expected CONCEPT=PATH for a reference"):
            parse_references([text])
