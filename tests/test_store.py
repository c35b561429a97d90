import logging
import os
import resource
from pathlib import Path

import pytest
import torch
from PIL import Image

from palimpsest.errors import BadRun
from palimpsest.records import Attempt, Cost, End, Goal, Reading, Trial, Verdict, Victim
from palimpsest.store import Key, Store
from scripted import CHURCH, audit

VICTIM = Victim(base="tiny", concept="church", eraser="uce", fingerprint="abc")


def goal(number: int) -> Goal:
    return Goal(concept="church", prompt="a photo of a church", seed=number)


def trial(number: int, look: int = 0, end: End | None = "gave_up") -> Trial:
    return Trial(
        victim=VICTIM,
        attack="seeds",
        goal=goal(number),
        number=look,
        attempt=Attempt(prompt="a photo of a church", seed=look),
        verdict=Verdict(scores={"hash": 0.25}, shown=False),
        cost=Cost(forwards=4, looks=look + 1, seconds=0.5),
        end=end,
    )


def key(number: int) -> Key:
    return Key.of(VICTIM, "seeds", goal(number))


def finished(folder: Path) -> list[int]:
    """Which of the first few goals a new opening takes for done."""
    with Store(folder, audit()) as store:
        return [number for number in range(5) if store.is_finished(key(number))]


def test_what_was_finished_is_found_again(tmp_path: Path) -> None:
    with Store(tmp_path / "run", audit()) as store:
        store.finish([trial(0, 0, None), trial(0, 1)])
        store.finish([trial(2)])
        assert store.is_finished(key(0))
    assert finished(tmp_path / "run") == [0, 2]


def test_a_goal_is_known_whatever_its_victims_weights(tmp_path: Path) -> None:
    with Store(tmp_path, audit()) as store:
        store.finish([trial(0)])
        assert store.is_finished(Key.of(Victim(base="tiny", concept="church", eraser="uce"), "seeds", goal(0)))
        assert not store.is_finished(Key.of(Victim(base="tiny", concept="church", eraser="esd"), "seeds", goal(0)))


def test_lines_of_a_goal_without_its_end_are_dropped(tmp_path: Path) -> None:
    with Store(tmp_path, audit()) as store:
        store.finish([trial(0)])
        store.finish([trial(1, 0, None)])
    assert finished(tmp_path) == [0]
    assert len((tmp_path / "trials.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_a_torn_last_line_is_cut_off_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture, cut: int) -> None:
    path = tmp_path / "trials.jsonl"
    with Store(tmp_path, audit()) as store:
        store.finish([trial(0)])
        store.finish([trial(1, 0, None), trial(1, 1)])
    path.write_bytes(path.read_bytes()[:-cut])
    with caplog.at_level(logging.WARNING):
        assert finished(tmp_path) == [0]
    assert "the last line is torn" in caplog.text
    with Store(tmp_path, audit()) as store:
        store.finish([trial(1)])
    assert finished(tmp_path) == [0, 1]


@pytest.mark.parametrize("name", ["trials.jsonl", "readings.jsonl"])
def test_a_damaged_line_is_named(tmp_path: Path, name: str) -> None:
    with Store(tmp_path, audit()) as store:
        for number in range(3):
            store.finish([trial(number)])
        readings = [
            Reading(victim=VICTIM, measure="m", concept=str(number), value=1, n=1, low=0, high=1) for number in range(3)
        ]
        store.add_readings(readings)
    path = tmp_path / name
    lines = path.read_bytes().split(b"\n")
    lines[1] = lines[1][:30]
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(BadRun, match=rf"{name}:2: expected a (Trial|Reading)"):
        Store(tmp_path, audit())


def test_two_runs_cannot_use_one_folder(tmp_path: Path) -> None:
    with Store(tmp_path, audit()), pytest.raises(BadRun, match="is in use by another run"):
        Store(tmp_path, audit())
    with Store(tmp_path, audit()):  # and it is free again
        pass


def test_a_folder_of_another_audit_is_refused(tmp_path: Path) -> None:
    with Store(tmp_path, audit()) as store:
        store.finish([trial(0)])
    with pytest.raises(BadRun, match="holds another audit"):
        Store(tmp_path, audit(seed=1))
    with Store(tmp_path, audit(keep="all", name="other")):  # changes no result
        pass


def test_a_folder_in_which_nothing_is_finished_may_be_taken_over(tmp_path: Path) -> None:
    with Store(tmp_path, audit()):
        pass
    with Store(tmp_path, audit(seed=1)) as store:
        assert store.provenance["protocol"] == audit(seed=1).protocol


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(BadRun, match=r"an empty folder or a run's, got .* with thesis\.txt in it"):
        Store(tmp_path, audit())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.txt"]


def test_the_model_must_be_the_same_when_a_run_goes_on(tmp_path: Path) -> None:
    with Store(tmp_path, audit()) as store:
        store.confirm({"weights": {"base": "abc"}, "device": "cpu"})
    with Store(tmp_path, audit()) as store:
        store.confirm({"weights": {"base": "abc"}, "device": "cpu"})
        with pytest.raises(BadRun, match="was begun with device cpu, got cuda"):
            store.confirm({"weights": {"base": "abc"}, "device": "cuda"})


def test_provenance_says_what_the_report_needs(tmp_path: Path) -> None:
    with Store(tmp_path, audit()) as store:
        known = store.provenance
    assert known["protocol"] == audit().protocol
    assert known["concepts"]["church"]["goals"] == 2
    assert known["concepts"]["church"]["kind"] == "object"
    assert known["attacks"] == {"direct": {"needs": []}, "random_prefix": {"needs": []}, "seeds": {"needs": []}}
    assert known["judges"] == [{"name": "hash", "chief": True, "thresholds": {"church": 0.75}}]
    assert known["added_controls"] == ["nothing x random_prefix", "dampen x random_prefix"]


def test_pictures_and_tensors_are_stored_by_content(tmp_path: Path) -> None:
    with Store(tmp_path, audit()) as store:
        red, blue = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
        names = [store.keep_picture(picture) for picture in (red, blue, red.copy())]
        assert names[0] == names[2] != names[1]
        assert len(list((tmp_path / "pictures").iterdir())) == 2
        with Image.open(tmp_path / "pictures" / f"{names[1]}.png") as stored:
            assert stored.tobytes() == blue.tobytes()
        assert store.keep_tensor(torch.ones(2)) == store.keep_tensor(torch.ones(2)) != store.keep_tensor(torch.zeros(2))


def test_weights_come_back_bit_by_bit(tmp_path: Path) -> None:
    weights = {"a": torch.randn(3, 2).T, "b": torch.tensor(1.5, dtype=torch.bfloat16)}
    with Store(tmp_path, audit()) as store:
        assert store.weights("uce-church") is None
        store.keep_weights("uce-church", weights, {"made": "here"})
        found = store.weights("uce-church")
        assert found is not None
        assert all(torch.equal(found[name], weights[name]) for name in weights)
        path = tmp_path / "erased" / "uce-church.safetensors"
        path.write_bytes(path.read_bytes()[:-3])
        with pytest.raises(BadRun, match=r"uce-church\.safetensors: cannot be read .* delete it"):
            store.weights("uce-church")


@pytest.fixture
def full_disk():
    """Calling it with a size: no file can grow beyond it, and a write that reaches it is cut short."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_error_and_leaves_the_ledger_whole(tmp_path: Path, full_disk) -> None:
    path = tmp_path / "trials.jsonl"
    with Store(tmp_path, audit()) as store:
        store.finish([trial(0)])
        whole = path.read_bytes()
        full_disk(len(whole) + 100)
        with pytest.raises(BadRun, match=r"cannot write .*trials\.jsonl: .*; what was finished is kept"):
            store.finish([trial(1, 0, None), trial(1, 1)])
        full_disk(resource.RLIM_INFINITY)
        assert path.read_bytes() == whole
        assert not store.is_finished(key(1))
    assert finished(tmp_path) == [0]


def test_a_full_disk_leaves_no_half_picture(tmp_path: Path, full_disk) -> None:
    with Store(tmp_path, audit()) as store:
        full_disk(30)
        with pytest.raises(BadRun, match=r"cannot write .*\.png"):
            store.keep_picture(Image.effect_noise((32, 32), 50))
        full_disk(resource.RLIM_INFINITY)
        assert list((tmp_path / "pictures").iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadRun, match="cannot write"):
        Store(tmp_path / "file" / "run", audit())


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_read_only_folder_is_one_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(BadRun, match="cannot write"):
        Store(tmp_path, audit(concepts=[CHURCH]))
