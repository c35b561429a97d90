"""A run as tables: what the report counts can be counted again from them, in any program."""

import json
import lzma
import re
from functools import cache
from pathlib import Path

import duckdb
import pandas
import pytest
from numpy.testing import assert_allclose
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.errors import BadRun, MissingExtra, UnknownName
from palimpsest.report.export import FORMATS, LOOKS, TABLES, export, rows
from palimpsest.run import Run

DOCS = Path(__file__).parent.parent / "docs"
CELL = ["concept", "eraser", "attack"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the audit whose ledgers are kept in the documentation every fifth goal: 1,693 looks, in every cell."""
    folder = tmp_path_factory.mktemp("runs") / "audit"
    folder.mkdir()
    for path in (DOCS / "results" / "audit").iterdir():
        data = path.read_bytes()
        (folder / path.name.removesuffix(".xz")).write_bytes(lzma.decompress(data) if path.suffix == ".xz" else data)
    lines = (folder / "trials.jsonl").read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["goal"]["seed"] % 5 == 0]
    (folder / "trials.jsonl").write_bytes(b"".join(kept))
    return folder


@cache
def counted(run: Path) -> list[tuple]:
    return [(*(cell[name] for name in CELL), cell["successes"], cell["n"]) for cell in Run(run).cells()]


def opened(path: Path) -> pandas.DataFrame:
    if path.suffix == ".csv":
        return pandas.read_csv(path)
    return pandas.read_json(path) if path.suffix == ".json" else pandas.read_parquet(path)


@pytest.mark.parametrize("to", FORMATS)
def test_the_looks_count_up_to_the_reports_cells(run: Path, tmp_path: Path, to: str) -> None:
    path = tmp_path / f"looks.{to}"
    export(run, path, to=to)
    goals = opened(path).groupby([*CELL, "goal_prompt", "goal_seed"])["shown"].max().reset_index()
    found = goals.groupby(CELL)["shown"].agg(["sum", "count"]).reset_index()
    assert [(*row[:3], int(row[3]), int(row[4])) for row in found.itertuples(index=False)] == counted(run)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("table", TABLES)
def test_every_format_holds_the_same(run: Path, tmp_path: Path, table: str) -> None:
    for to in FORMATS:
        export(run, tmp_path / f"{table}.{to}", to=to, table=table)
    tables = [opened(tmp_path / f"{table}.{to}") for to in FORMATS]
    for one in tables:
        assert list(one.columns) == list(tables[0].columns) and len(one) == len(rows(run, table))
        for name in {"shown", "successes", "passes", "value", "look"} & set(one.columns):
            assert_allclose(one[name].astype(float), tables[0][name].astype(float), rtol=1e-12, err_msg=name)


def test_the_columns_are_those_of_the_documentation(run: Path) -> None:
    text = (DOCS / "report-schema.md").read_text()
    section = text.partition("## Tables for other programs")[2].partition("```sql")[0]
    named = re.findall(r"`(\w+)`", " ".join(line.split("|")[1] for line in section.splitlines() if line[:3] == "| `"))
    looks = rows(run)
    assert named == list(LOOKS)
    assert {tuple(row) for row in looks} == {(*LOOKS, "score_miniature", "score_miniature_second")}
    for row in looks[:50]:
        assert all(value is None or isinstance(value, LOOKS[name]) for name, value in row.items() if name in LOOKS)


def test_the_documented_query_counts_what_the_report_counts(run: Path) -> None:
    query = re.search(r"```sql\n(.*?)```", (DOCS / "report-schema.md").read_text(), re.DOTALL)
    assert query
    found = duckdb.sql(query[1].replace("runs/*/trials.jsonl", str(run / "trials.jsonl"))).fetchall()
    assert found == counted(run)


def test_a_notebook_gets_a_frame(run: Path) -> None:
    frame = Run(run).frame("cells")
    assert list(frame["successes"]) == [cell["successes"] for cell in Run(run).cells()]
    assert len(Run(run).frame()) == len(rows(run))


def test_an_empty_run_is_an_empty_table(tmp_path: Path) -> None:
    (tmp_path / "trials.jsonl").write_text("")
    for to in FORMATS:
        export(tmp_path, tmp_path / f"looks.{to}", to=to)
    assert (tmp_path / "looks.csv").read_text().strip() == ",".join(LOOKS)
    assert json.loads((tmp_path / "looks.json").read_text()) == []
    assert list(pandas.read_parquet(tmp_path / "looks.parquet").columns) == list(LOOKS)


def test_what_cannot_be_exported_is_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownName, match="no table called 'goals'; there are: "):
        rows(run, "goals")
    with pytest.raises(UnknownName, match="no format called 'xls'; there are: "):
        export(run, tmp_path / "x.xls", to="xls")
    with pytest.raises(BadRun, match="expected a run's folder"):
        export(tmp_path, tmp_path / "x.csv", to="csv")
    with pytest.raises(BadRun, match="cannot be written"):
        export(run, tmp_path / "nowhere" / "x.csv", to="csv")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"Parquet needs pyarrow.*pip install 'palimpsest\[tables\]'"):
        export(run, tmp_path / "x.parquet", to="parquet")
    assert not list(tmp_path.iterdir())


def test_the_command_writes_into_the_run_and_overwrites_no_file_of_the_user(run: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export", str(run), "--table", "cells"])
    assert done.exit_code == 0 and len((run / "cells.csv").read_text().splitlines()) == len(counted(run)) + 1
    mine = tmp_path / "mine.csv"
    mine.write_text("mine")
    done = CliRunner().invoke(app, ["export", str(run), "--out", str(mine)])
    assert isinstance(done.exception, BadRun) and mine.read_text() == "mine"
