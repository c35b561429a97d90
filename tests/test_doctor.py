"""What the doctor says of a sound installation, and of one in which something is broken."""

import json
from dataclasses import asdict
from importlib import metadata

import pytest
import torch
from typer.testing import CliRunner

from palimpsest import assets, doctor
from palimpsest.cli import app
from palimpsest.doctor import PARTS, examine
from palimpsest.errors import BadAsset


def found() -> dict[str, doctor.Finding]:
    return {one.what: one for one in examine(seconds=0.05)}


def test_all_is_well_here() -> None:
    told = found()
    assert all(one.good for one in told.values())
    assert told["torch"].says == torch.__version__
    assert "passes/s in fp32" in told["speed"].says
    assert {path.relative_to(assets.SHIPPED).parts[0] for path in assets.SHIPPED.iterdir() if path.is_dir()} == {
        part.partition("/")[0] for part in PARTS
    }


def test_a_damaged_file_is_bad_and_the_rest_is_still_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(part: str) -> None:
        if part == "twin":
            raise BadAsset("the shipped file twin/x is damaged")

    monkeypatch.setattr(doctor, "checked", damaged)
    told = found()
    assert [one.what for one in told.values() if not one.good] == ["shipped twin", "speed"]
    assert told["shipped twin"].advice == "reinstall palimpsest" and told["shipped clip"].good


def test_a_library_that_is_too_old_or_missing_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["torch>=1000", "no-such-library>=1", "numpy>=1", "pandas>=1000; extra == 'tables'"]
    monkeypatch.setattr(metadata, "requires", lambda _: wanted)
    told = found()
    assert not told["torch"].good and told["torch"].advice == "pip install 'torch>=1000'"
    assert told["no-such-library"].says == "not installed" and not told["no-such-library"].good
    assert told["numpy"].good and told["pandas"].good


def test_idle_cores_and_slow_numbers_are_pointed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("os.cpu_count", lambda: 1000)
    assert "unset OMP_NUM_THREADS" in found()["device"].advice
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False}, raising=False)
    assert found()["precision"].says.startswith("auto is fp32")


def test_the_command_ends_with_1_where_something_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = doctor.Finding(what="x", says="broken", good=False, advice="mend it")
    well = doctor.Finding(what="y", says="well")
    monkeypatch.setattr(doctor, "examine", lambda: iter([bad, well]))
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1 and "BAD x" in done.output and "mend it" in done.output
    monkeypatch.setattr(doctor, "examine", lambda: iter([well]))
    done = CliRunner().invoke(app, ["doctor", "--json"])
    assert done.exit_code == 0 and json.loads(done.output) == [asdict(well)]
