import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import tomli_w
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

import palimpsest
from palimpsest import catalogue
from palimpsest.attacks import ATTACKS
from palimpsest.auditing import QUICK, folder_of, plan
from palimpsest.cli import app, main
from palimpsest.component import Component
from palimpsest.erasers import ERASERS
from palimpsest.errors import PalimpsestError
from palimpsest.judges import JUDGES
from palimpsest.runner import Runner
from palimpsest.scanning import DETECTORS
from palimpsest.store import Store
from palimpsest.utility import MEASURES
from scripted import FISH, Dampen, Follow, Hash, Seeds
from tiny import tiny_pipeline


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_pipeline(folder)
    return folder


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, a concept of one's own, and parts that work on the tiny model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("palimpsest.audit_file.JUDGES", (*JUDGES, Hash))
    monkeypatch.setattr("palimpsest.audit_file.ATTACKS", (*ATTACKS, Seeds, Follow))
    monkeypatch.setattr("palimpsest.audit_file.ERASERS", (*ERASERS, Dampen))
    monkeypatch.setattr("palimpsest.protocol.shipped_concepts", lambda: {"fish": FISH})
    concept = {"name": "church", "kind": "object", "prompts": ["a photo of a church"]}
    (tmp_path / "mine.toml").write_text(tomli_w.dumps(concept))
    table = {
        "concepts": [concept],
        "erasers": ["nothing", "dampen"],
        "attacks": ["direct", "seeds"],
        "judges": ["hash"],
        "measures": [{"name": "neighbours", "pictures": 2}],
        "goals": 2,
        "batch": 4,
        "budget": {"looks": 3, "passes": 40},
        "sampling": {"steps": 2},
    }
    (tmp_path / "small.toml").write_text(tomli_w.dumps(table))
    return tmp_path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def ledger(folder: Path) -> list[str]:
    return sorted((folder / "trials.jsonl").read_text().splitlines())


def test_one_command_ends_with_a_table_and_a_report(place: Path, base: Path) -> None:
    done = call("audit", "small.toml", "--base", base, "--out", "run")
    assert done.exit_code == 0, done.output
    for said in (
        "church",
        "dampen",
        "seeds",
        "random_prefix",
        "95 % interval",
        "random_prefix ",
        "Report: run/report.html",
    ):
        assert said in done.output
    assert "(added)" in done.output
    assert (place / "run" / "report.html").stat().st_size > 1000
    report = json.loads((place / "run" / "report.json").read_text())
    assert {(cell["eraser"], cell["attack"]) for cell in report["cells"]} == {
        (eraser, attack) for eraser in ("nothing", "dampen") for attack in ("direct", "seeds", "random_prefix")
    }
    assert {cell["n"] for cell in report["cells"]} == {2}
    assert {row["measure"] for row in report["utility"]} >= {"neighbours"}


def test_the_same_command_again_says_that_all_is_done(place: Path, base: Path) -> None:
    command = ("audit", "small.toml", "--base", base)
    first = call(*command)
    (folder,) = (place / "runs").iterdir()
    before = ledger(folder)
    again = call(*command)
    assert (first.exit_code, again.exit_code) == (0, 0)
    assert f"All is done in runs/{folder.name}." in again.output
    assert "Report: " in again.output
    assert ledger(folder) == before
    assert list((place / "runs").iterdir()) == [folder]


def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(place: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("audit", "small.toml", "--base", base, "--out", "run")
    monkeypatch.setattr(sys, "argv", ["palimpsest", *map(str, command)])
    measured = Runner._do

    def interrupted(self: Runner, job) -> None:
        if job.victim.eraser == "dampen":
            raise KeyboardInterrupt
        measured(self, job)

    monkeypatch.setattr(Runner, "_do", interrupted)
    stopped = call(*command)
    assert stopped.exit_code == 130
    assert f"Stopped. To go on: palimpsest audit small.toml --base {base} --out run" in stopped.output
    half = ledger(place / "run")
    assert half
    monkeypatch.setattr(Runner, "_do", measured)
    assert call(*command).exit_code == 0
    assert set(half) < set(ledger(place / "run"))


def test_a_dry_run_says_what_would_run_and_leaves_nothing(place: Path, base: Path) -> None:
    before = sorted(place.iterdir())
    done = call("audit", "small.toml", "--base", base, "--dry-run")
    assert done.exit_code == 0, done.output
    # 12 goals: 4 ask plainly, 8 may look 3 times, at 4 passes a picture; and 2 x 2 pictures of a fish.
    assert "At most 12 goals, 28 looks, 4 other pictures, 128 passes: about" in done.output
    assert "models to erase: 1; " in done.output
    assert "MB of disk." in done.output
    assert sorted(place.iterdir()) == before


def test_flags_alone_are_an_audit(place: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("palimpsest.protocol.shipped_concepts", dict)  # no neighbours to draw
    done = call(
        *("audit", "--base", base, "--concept", "mine.toml", "--eraser", "dampen:by=0.5", "--attack", "direct"),
        *(
            "--judge",
            "hash:limit=0.0",
            "--goals",
            1,
            "--budget",
            "quick",
            "--keep",
            "none",
            "--batch",
            2,
            "--out",
            "run",
        ),
    )
    assert done.exit_code == 0, done.output
    assert "nothing x direct (added)" in done.output
    assert "too few" in done.output.lower()
    assert not (place / "run" / "pictures").exists()


def test_what_a_checkpoint_says_is_found_by_its_content(place: Path, base: Path) -> None:
    """The real job: erase somewhere, audit the changed weights as somebody else's."""
    saved = call("erase", "--base", base, "--concept", "mine.toml", "--eraser", "uce", "--out", "theirs.safetensors")
    assert saved.exit_code == 0, saved.output
    assert all(".attn2.to_" in name for name in load_file(place / "theirs.safetensors"))
    done = call(
        *(
            "audit",
            "--base",
            base,
            "--concept",
            "mine.toml",
            "--attack",
            "direct",
            "--judge",
            "hash",
            "--goals",
            1,
            "--batch",
            2,
        ),
        *("--eraser", "checkpoint:path=theirs.safetensors,partial=true", "--out", "run"),
    )
    assert done.exit_code == 0, done.output
    prints = {
        json.loads(line)["victim"]["eraser"]: json.loads(line)["victim"]["fingerprint"]
        for line in ledger(place / "run")
    }
    assert len(prints) == 2
    assert len(set(prints.values())) == 2


def test_erase_writes_a_folder_that_can_be_a_base(place: Path, base: Path) -> None:
    common = ("--concept", "mine.toml", "--out")
    assert call("erase", "--base", base, "--eraser", "uce", *common, "erased").exit_code == 0
    drawn = [
        call("draw", "a church", "--base", one, "--steps", 2, "--out", one.name) for one in (base, place / "erased")
    ]
    assert [one.exit_code for one in drawn] == [0, 0]
    pictures = [Image.open(place / name / "000.png").tobytes() for name in (base.name, "erased")]
    assert pictures[0] != pictures[1]


def test_draw_draws_every_prompt_with_every_seed(place: Path, base: Path) -> None:
    done = call("draw", "a church", "a fish", "--base", base, "--steps", 2, "--count", 2, "--seed", 5, "--out", "drawn")
    assert done.exit_code == 0, done.output
    assert len({path.read_bytes() for path in (place / "drawn").iterdir()}) == 4
    assert "drawn/003.png  'a fish', seed 6" in done.output


def fault(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a command that cannot be done says on stderr."""
    monkeypatch.setattr(sys, "argv", ["palimpsest", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    said = capsys.readouterr()
    assert caught.value.code == 2
    assert said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("audit --concept church --eraser uce --attack unlern_diff", "no attack called 'unlern_diff'"),
        ("audit --concept church --eraser esd:speed=3", "eraser 'esd' has no setting 'speed'; there are: batch"),
        ("audit --concept church --eraser esd:lr=fast", "eraser 'esd', setting 'lr'"),
        ("audit --concept mine.toml --eraser uce --base somewhere", "expected at least one judge"),
        ("audit small.toml --base somewhere --out run", "somewhere"),
        ("audit slow", "no audit called 'slow'; there are: "),
        ("audit gone.toml", "gone.toml: expected a TOML file"),
        ("audit --eraser uce", "audit: key 'concepts' is missing"),
        ("audit small.toml --goals 0", "expected goals >= 1, got 0"),
        ("report .", "expected a run's folder"),
        ("show nobody", "no concept or part called 'nobody'; there are: "),
        ("erase --concept mine.toml --eraser uce --out small.toml", "got small.toml, which exists"),
        ("draw church --scheduler dimm --base somewhere", "dimm"),
        ("audit small.toml --goals x", "Invalid value for '--goals'"),
        ("audit --sped 3", "No such option: --sped"),
        ("adit", "No such command 'adit'"),
        ("show", "Missing argument 'name'; see palimpsest show --help"),
        (f"scan miniature --prompts {'x' * 300}", "File name too long"),
    ],
)
def test_a_mistake_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: str, says: str
) -> None:
    said = fault(monkeypatch, capsys, *arguments.split())
    assert said.startswith("palimpsest: ")
    assert says in said


def test_a_folder_in_use_and_one_of_another_audit_are_refused(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("audit", "small.toml", "--base", base, "--out", "run")
    planned = plan("small.toml", {"base": str(base)})
    with Store(Path("run"), planned):
        assert "run is in use by another run" in fault(monkeypatch, capsys, *command)
    assert call(*command).exit_code == 0
    assert "run holds another audit" in fault(monkeypatch, capsys, *command, "--seed", 9)


def test_the_network_is_shut_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, offline in (
        (["list"], "1"),
        (["audit", "small.toml", "--download", "--dry-run", "--goals", "0"], None),
    ):
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr(sys, "argv", ["palimpsest", *arguments])
        with pytest.raises(SystemExit):
            main()
        assert os.environ.get("HF_HUB_OFFLINE") == offline
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_a_run_in_python_is_five_lines(place: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = palimpsest.audit("small.toml", base=str(base), attacks=[Seeds(most=2)], out="run")
    run.table()
    said = capsys.readouterr().out
    assert " seeds " in said and "seeds(" not in said.split("\n\n")[0]
    assert {cell["attack"] for cell in run.cells()} == {"direct", "seeds(most=2)", "random_prefix"}
    assert (place / "run" / "report.html").exists()


def test_without_arguments_it_is_the_quick_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple] = []
    monkeypatch.setattr("palimpsest.auditing.load_audit", lambda *arguments: asked.append(arguments))
    plan(None, {})
    plan(None, {"goals": 3})
    plan("own.toml", {"base": "there"})
    assert asked == [(QUICK, {}), (QUICK, {"goals": 3}), ("own.toml", {"base": "there"})]


def test_the_folder_of_an_audit_is_found_again_whatever_the_day(place: Path) -> None:
    planned = plan("small.toml", {})
    new = folder_of(planned)
    assert new.name.endswith(f"-small-{planned.protocol[:8]}")
    old = place / "runs" / new.name.replace(new.name[:10], "2020-01-01")
    old.mkdir(parents=True)
    assert folder_of(planned).resolve() == old
    assert folder_of(plan("small.toml", {"seed": 1})).name[:10] == new.name[:10]


# light ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        *(("attack", ATTACKS), ("eraser", ERASERS), ("judge", JUDGES), ("measure", MEASURES)),
        ("detector", DETECTORS),
    ],
)
def test_what_is_listed_is_what_there_is(kind: str, parts: tuple[type[Component], ...]) -> None:
    """The catalogue reads source, so as not to import it; here it is held against the parts themselves."""
    listed = {part.name: part for part in catalogue.parts(kind)}
    assert listed.keys() == {part.name for part in parts}
    for part in parts:
        told = listed[part.name]
        assert told.meaning and part.__doc__ is not None and told.meaning.split()[0] == part.__doc__.split()[0]
        settings = {setting.name: setting for setting in told.settings}
        assert settings.keys() == {field.name for field in fields(part)}
        for field in fields(part):
            default = settings[field.name].default
            assert default is None or eval(default) == field.default


@pytest.fixture(scope="module")
def all_of_them() -> str:
    return call("list").output


@pytest.mark.parametrize("kind", ["concepts", "erasers", "attacks", "judges", "measures", "detectors"])
def test_list_lists(kind: str, all_of_them: str) -> None:
    one = {
        "concepts": "church",
        "erasers": "uce",
        "attacks": "unlearn_diff",
        "judges": "miniature",
        "measures": "neigh",
        "detectors": "navi",
    }
    assert one[kind] in call("list", kind).output
    assert one[kind] in all_of_them


def test_show_says_settings_defaults_and_paper() -> None:
    said = call("show", "unlearn_diff").output
    for word in ("attack unlearn_diff", "arXiv 2310.11868", "iterations: int = 40", "one probe each"):
        assert word in said
    assert "prompts" in call("show", "church").output


def test_what_only_tells_imports_no_torch() -> None:
    """All of it in one process of its own: what one command does not load, none before it did."""
    code = """
import sys
from palimpsest.cli import main
for command in (["--help"], ["list"], ["show", "esd"], ["audit", "--help"]):
    sys.argv = ["palimpsest", *command]
    try:
        main()
    except SystemExit as end:
        assert not end.code, (command, end.code)
    assert not {"torch", "diffusers", "transformers"} & sys.modules.keys(), (command, "heavy")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_public_names_lead_somewhere() -> None:
    assert palimpsest.Model.__name__ == "Model"
    assert callable(palimpsest.audit)
    assert issubclass(palimpsest.PalimpsestError, PalimpsestError)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = palimpsest.nothing
