"""The documentation says what is true: its commands, files, code, links and tables are tried."""

import importlib.util
import os
import re
import runpy
import shlex
import shutil
import sys
import tomllib
from dataclasses import fields
from functools import cache, partial
from inspect import getfullargspec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from markdown.extensions.toc import slugify
from typer.testing import CliRunner

import generated
import hooks
import links
import palimpsest as pl
import test_attack_contract
from palimpsest import catalogue
from palimpsest.attacks import ATTACKS
from palimpsest.attacks.base import BUDGETS
from palimpsest.audit_file import load_audit, parse_spec
from palimpsest.auditing import plan
from palimpsest.cli import app
from palimpsest.component import build
from palimpsest.concept_file import check_concept, find_concept, shipped_concepts
from palimpsest.erasers import ERASERS
from palimpsest.errors import BadConcept
from palimpsest.judges import JUDGES
from palimpsest.records import Concept
from palimpsest.scanning import DETECTORS
from palimpsest.stats import mcnemar_exact, wilson
from palimpsest.utility import MEASURES
from tiny import tiny_model

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
MISSING_ON_PURPOSE = {"path", "model", "state"}
"""Settings that name a file which a reader would have."""

generated_pages = cache(generated.pages)


@cache
def site() -> dict[str, str]:
    return generated_pages() | generated.outside()


class Block(NamedTuple):
    language: str
    title: str
    text: str


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page in order; those in a list lose its indent."""
    fence = re.compile(r'^( *)```(\w+)(?: title="([^"]+)")?\n(.*?)^\1```$', re.MULTILINE | re.DOTALL)
    return [
        Block(found[2], found[3] or "", re.sub(rf"^{found[1]}", "", found[4], flags=re.MULTILINE))
        for found in fence.finditer(text)
    ]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def titled(name: str) -> dict[str, str]:
    return {block.title: block.text for block in blocks(read(name)) if block.title}


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the table whose head begins with ``heading``."""
    table = page[page.index(f"| {heading}") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table]


# The ten-minute page -------------------------------------------------------------------------------------------------


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the page on parts has its reader write; modules are forgotten afterwards."""
    for title, text in titled("docs/add-a-part.md").items():
        if "/" not in title:
            (tmp_path / title).write_text(text, encoding="utf-8")
            monkeypatch.delitem(sys.modules, Path(title).stem, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def attacks_in(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(cell["eraser"], cell["attack"]): cell for cell in pl.Run(folder).cells()}


def test_the_attack_of_the_page_runs_and_stands_in_the_results(desk: Path) -> None:
    runpy.run_path(str(desk / "try_it.py"))
    found = attacks_in(desk / "adjectives_run")
    assert found.keys() == {
        ("nothing", "direct"),
        *(("uce", name) for name in ("adjectives", "direct", "random_prefix")),
    }
    assert found["nothing", "direct"]["rate"] == 1.0
    prompts = set(pl.Run(desk / "adjectives_run").frame().query("attack == 'adjectives'")["prompt"])
    assert any(prompt.startswith("small, a photo of") for prompt in prompts)


def test_all_parts_of_the_page_run_together(desk: Path) -> None:
    runpy.run_path(str(desk / "all_of_mine.py"))
    run = pl.Run(desk / "run_of_mine")
    assert ("fade", "adjectives(together=2)") in attacks_in(run.folder)
    contrast = {row["eraser"]: row["value"] for row in run.summary()["utility"] if row["measure"] == "contrast"}
    assert 0 < contrast["fade"] < contrast["nothing"] < 1
    assert [judge["name"] for judge in run.summary()["provenance"]["judges"]] == ["agreement"]


def test_the_attack_of_the_page_fits_into_the_package(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = titled("docs/add-a-part.md")
    # Its place in the package, as the page says, in a copy that only this test sees.
    package = desk / "package"
    shutil.copytree(catalogue.HERE / "attacks", package / "attacks")
    (package / "attacks" / "adjectives.py").write_text(page["adjectives.py"], encoding="utf-8")
    name = "palimpsest.attacks.adjectives"
    spec = importlib.util.spec_from_file_location(name, package / "attacks" / "adjectives.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)

    names: dict[str, Any] = {}
    exec(page["src/palimpsest/attacks/__init__.py"], names)
    known = (*ATTACKS, names["Adjectives"])
    assert build("attack", known, parse_spec("adjectives:together=2")).together == 2
    monkeypatch.setattr(catalogue, "HERE", package)
    shown = CliRunner().invoke(app, ["show", "adjectives"])
    assert shown.exit_code == 0 and "together: int = 1\n      How many of them at a time." in shown.output

    tests: dict[str, Any] = {}
    exec(page["tests/test_adjectives.py"], tests)
    ran = [tests[name]() for name in tests if name.startswith("test_")]
    assert len(ran) == 3

    small = {"SMALL": {}}
    exec(page["tests/test_attack_contract.py"], small)
    attack = build("attack", known, {"name": "adjectives"} | small["SMALL"]["adjectives"])
    contract = [getattr(test_attack_contract, name) for name in dir(test_attack_contract) if name.startswith("test_")]
    model = tiny_model(batch=1)
    given = {"attack": attack, "model": model, "answer": partial(model.ask, base=model)}
    held = [
        test for test in contract if "attack" in (asked := getfullargspec(test).args) and given.keys() >= set(asked)
    ]
    assert len(held) >= 6
    for test in held:
        if "spec" not in test.__name__:  # that one looks it up in the package's own tuple
            test(**{name: given[name] for name in getfullargspec(test).args})


def test_every_file_of_the_page_is_tried() -> None:
    assert set(titled("docs/add-a-part.md")) == {
        *("adjectives.py", "try_it.py", "fade.py", "agreement.py", "contrast.py", "all_of_mine.py"),
        *("src/palimpsest/attacks/__init__.py", "tests/test_adjectives.py", "tests/test_attack_contract.py"),
    }


# Commands ------------------------------------------------------------------------------------------------------------

WITH_COMMANDS = {
    name: read(name) for name in ("README.md", "docs/index.md", "docs/quick-start.md", "docs/add-a-part.md")
}
ARGUMENTS = {"--eraser": ERASERS, "--attack": ATTACKS, "--judge": JUDGES, "--control": ERASERS, "--detector": DETECTORS}


def commands(text: str) -> list[list[str]]:
    lines = "\n".join(block.text for block in blocks(text) if block.language == "sh").replace("\\\n", " ")
    return [words for line in lines.splitlines() if (words := shlex.split(line, comments=True))]


def complaint(words: list[str], concepts: set[str]) -> str:
    """What is wrong with a command of the documentation; empty: nothing."""
    if words[0] == "make":
        targets = set(re.findall(r"^([a-z]+):", read("Makefile"), re.MULTILINE))
        return ", ".join(set(words[1:]) - targets)
    if words[:2] == ["pip", "install"]:
        return "" if words[2:4] == ["-c", "constraints.txt"] else "without the constraints"
    if words[0] == "python":
        return ""
    if words[0] != "palimpsest":
        return f"{words[0]} is no command that is known here"
    group = typer.main.get_command(app)
    if len(words) < 2 or words[1] not in group.commands:
        return "no such command"
    command = group.commands[words[1]]
    try:
        context = command.make_context(words[1], words[2:])
    except Exception as error:  # whatever the parser raises, it is what a reader would see
        return f"{type(error).__name__}: {error}"
    return _values(words[1:], context.params, concepts)


def _values(words: list[str], given: dict[str, Any], concepts: set[str]) -> str:
    """What is wrong with the names and settings in a command that parses."""
    for name in given.get("concept") or ():
        if name not in concepts | set(shipped_concepts()):
            return f"no concept {name}"
    if words[0] == "show" and given["name"] not in part_names() | {"adjectives", *shipped_concepts()}:
        return f"nothing called {given['name']}"
    if words[0] == "audit" and given["source"] not in (None, "quick", "standard", "my_audit.toml"):
        return f"no audit {given['source']}"
    for option, known in ARGUMENTS.items():
        for value, word in zip(words[1:], words, strict=False):
            if word == option and (fault := _part(value, known)):
                return fault
    return ""


@cache
def part_names() -> frozenset[str]:
    return frozenset(part.name for kind in catalogue.KINDS for part in catalogue.parts(kind))


def _part(text: str, known: Any) -> str:
    spec = parse_spec(text)
    if spec["name"] == "adjectives":
        return ""
    part = next((part for part in known if part.name == spec["name"]), None)
    if part is None:
        return f"no part {spec['name']}"
    if strange := set(spec) - {"name", *(field.name for field in fields(part))}:
        return f"{spec['name']} has no setting {strange}"
    try:
        if not set(spec) & MISSING_ON_PURPOSE:
            build("part", known, spec)
    except pl.PalimpsestError as error:
        return str(error)
    return ""


def faulty(text: str) -> dict[str, str]:
    concepts = {"mine.toml", "lighthouse.toml"}
    return {shlex.join(words): fault for words in commands(text) if (fault := complaint(words, concepts))}


@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_every_command_is_one(page: str) -> None:
    assert commands(WITH_COMMANDS[page]) or page == "docs/index.md"
    assert faulty(WITH_COMMANDS[page]) == {}


@pytest.mark.parametrize("plural", generated.PLURALS.values())
def test_every_command_of_a_part_is_one(plural: str) -> None:
    pages = {path: text for path, text in generated_pages().items() if path.startswith(f"parts/{plural}/")}
    assert len(pages) > 1
    for path, text in pages.items():
        assert commands(text) or path.endswith("index.md") or plural == "measures", path
        assert faulty(text) == {}, path


@pytest.mark.parametrize(
    "line",
    [
        "palimpsest audti",
        "palimpsest audit --gols 3",
        "palimpsest audit --budget huge",
        "palimpsest audit --eraser ucee",
        "palimpsest audit --eraser uce:lamb=1",
        "palimpsest audit --eraser uce:lam=-1",
        "palimpsest audit --attack esd",
        "palimpsest audit --concept nowhere.toml",
        "palimpsest erase --concept church",
        "palimpsest show nobody",
        "make tea",
        "pip install -e .",
    ],
)
def test_a_wrong_command_is_noticed(line: str) -> None:
    assert complaint(shlex.split(line), set())


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in sorted(DOCS.glob("*.md")))])
def test_a_command_within_a_sentence_has_its_name_and_options(page: str) -> None:
    group = typer.main.get_command(app)
    for said in re.findall(r"(?<!`)`palimpsest ([a-z][^`]*)`", read(page)):
        name = said.split()[0]
        assert name in group.commands, said
        known = {option for parameter in group.commands[name].params for option in parameter.opts} | {"--help"}
        assert set(re.findall(r"--[a-z-]+", said)) <= known, said


def test_every_extra_that_is_named_is_one() -> None:
    extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    for page in WITH_COMMANDS.values():
        assert set(re.findall(r"(?:palimpsest|\.)\[(\w+)\]'", page)) <= set(extras)


# Files and code ------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of the quick start."""
    for title, text in titled("docs/quick-start.md").items():
        (tmp_path / title).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_file_of_the_quick_start_is_what_it_says(files: Path) -> None:
    found = titled("docs/quick-start.md")
    assert len([block for block in blocks(read("docs/quick-start.md")) if block.language == "toml"]) == 4
    for title in found:
        if title.endswith(".toml") and title != "my_audit.toml":
            assert find_concept(title).name in found[title]
    assert find_concept("listed.toml").seeds == (4068807111, 1234)
    audit = load_audit("my_audit.toml")
    assert (audit.goals, audit.budget_name, audit.precision in ("fp32", "bf16")) == (20, "standard", True)


def test_every_key_of_a_concept_is_shown_and_explained() -> None:
    names = {field.name for field in fields(Concept)}
    table = rows(read("docs/quick-start.md"), "key")
    assert {cells[0].strip("`") for cells in table} == names
    assert set(tomllib.loads(titled("docs/quick-start.md")["lighthouse.toml"])) == names
    needed = {cells[0].strip("`") for cells in table if cells[1] == "needed"}
    for name in needed:
        with pytest.raises(BadConcept):
            check_concept({key: value for key, value in MINIMAL.items() if key != name}, where="")
    assert check_concept(MINIMAL, where="") and needed == set(MINIMAL)


MINIMAL = {"name": "church", "kind": "object", "prompts": ["a church"]}


def test_the_concept_of_the_readme_is_one() -> None:
    tables = [tomllib.loads(block.text) for block in blocks(read("README.md")) if block.language == "toml"]
    assert [check_concept(table, where="README").name for table in tables] == ["church"]


class Told:
    """Stands for a run that was not run: its audit was checked by the real ``plan``."""

    folder = Path("run")

    def table(self) -> None:
        pass

    def frame(self) -> None:
        pass


@pytest.mark.parametrize("page", ["README.md", "docs/quick-start.md"])
def test_every_python_block_is_right(page: str, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = []

    def audit(source: str | None = None, **settings: Any) -> pl.Run:
        planned.append(plan(source, settings))
        return Told()  # type: ignore[return-value]

    monkeypatch.setattr(pl, "audit", audit, raising=False)
    code = [block.text for block in blocks(read(page)) if block.language == "python"]
    assert code
    for text in code:
        if "diffusers" in text:
            compile(text, page, "exec")  # it needs a model that was saved; test_cli opens one so
        else:
            exec(text, {"__name__": page})
    assert planned
    for said in re.findall(r"`pl\.audit\((\"[^`]*\")?\)`", read(page)):
        plan(said.strip('"') or None, {})
    for name in re.findall(r"run\.(\w+)", "\n".join(code)):
        assert hasattr(pl.Run, name) or name == "folder"


# Links ---------------------------------------------------------------------------------------------------------------

LINKED = ["README.md", "CHANGELOG.md", *(str(path.relative_to(ROOT)) for path in sorted(DOCS.rglob("*.md")))]


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {slugify(re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading), "-") for heading in headings}


def broken(page: str, text: str) -> list[str]:
    """Links of a file of the repository, or of a page of the site, that lead nowhere."""
    wrong = []
    prose = re.sub(r"^( *)```.*?^\1```", "", text, flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", path):
            continue
        target = Path(os.path.normpath((ROOT / page).parent / path)) if path else ROOT / page
        there = site().get(str(target.relative_to(ROOT)).removeprefix("docs/"))
        if there is None and target.exists():
            there = target.read_text(encoding="utf-8") if target.suffix == ".md" else ""
        if there is None or (anchor and anchor not in anchors(there)):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("page", LINKED)
def test_every_link_and_anchor_leads_somewhere(page: str) -> None:
    assert broken(page, read(page)) == []


def test_the_links_of_generated_pages_lead_somewhere() -> None:
    assert {path: wrong for path, text in generated_pages().items() if (wrong := broken(f"docs/{path}", text))} == {}


@pytest.mark.parametrize("link", ["[a](nowhere.md)", "[a](numbers.md#nowhere)", "![a](nowhere.png)", "[a](#nowhere)"])
def test_a_broken_link_is_noticed(link: str) -> None:
    assert broken("docs/index.md", link)


# Generated pages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", catalogue.KINDS)
def test_every_part_has_its_page_and_nothing_else_has(kind: str) -> None:
    names = {part.name for part in catalogue.parts(kind)}
    folder = f"parts/{generated.PLURALS[kind]}/"
    assert {path.removeprefix(folder) for path in generated_pages() if path.startswith(folder)} == {
        "index.md",
        *(f"{name}.md" for name in names),
    }
    assert set(re.findall(r"^\| \[(\w+)\]\(\1\.md\)", generated_pages()[f"{folder}index.md"], re.MULTILINE)) == names
    assert set(generated.navigation(kind)) == {path for path in generated_pages() if path.startswith(folder)}
    for part in catalogue.parts(kind):
        page = generated_pages()[f"{folder}{part.name}.md"]
        table = rows(page, "setting") if part.settings else []
        assert [cells[0] for cells in table] == [f"`{setting.name}`" for setting in part.settings]


def test_a_part_of_tomorrow_has_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in catalogue.KINDS.values():
        shutil.copytree(catalogue.HERE / folder, tmp_path / folder)
    (tmp_path / "attacks" / "adjectives.py").write_text(titled("docs/add-a-part.md")["adjectives.py"])
    monkeypatch.setattr(catalogue, "HERE", tmp_path)
    monkeypatch.setattr(generated, "HERE", tmp_path)
    page = generated.pages()["parts/attacks/adjectives.md"]
    assert "Adjectives: the prompt again" in page and "src/palimpsest/attacks/adjectives.py" in page
    assert "--attack adjectives:together=1" in page
    assert "parts/attacks/adjectives.md" in generated.navigation("attack")


@pytest.mark.parametrize("measure", catalogue.parts("measure"), ids=lambda measure: measure.name)
def test_a_measure_is_asked_for_as_an_audit_takes_it(measure: catalogue.Part) -> None:
    page = generated_pages()[f"parts/measures/{measure.name}.md"]
    lines = [line for block in blocks(page) if block.language == "toml" for line in block.text.splitlines()]
    assert lines
    for line in lines:
        (spec,) = tomllib.loads(line)["measures"]
        table = {"name": spec} if isinstance(spec, str) else spec
        given = {setting.name for setting in measure.settings if setting.default is None}
        assert given <= set(table)
        if not given:
            assert build("measure", MEASURES, table).name == measure.name


def test_a_page_says_what_the_source_says() -> None:
    page = generated_pages()["parts/erasers/uce.md"]
    assert "[arXiv 2308.14761](https://arxiv.org/abs/2308.14761)" in page
    assert "equation }\nW = (lam W* + e sum" in page
    assert r"with W\* the original weight" in page  # and in prose, not the start of emphasis
    assert "| `lam` | <code>float</code> | <code>0.5</code> | How strongly everything else is held in place. |" in page
    assert "`gradients`, `reference`" in generated_pages()["parts/attacks/unlearn_diff.md"]
    assert "must be given" in generated_pages()["parts/erasers/checkpoint.md"]


def test_every_command_and_option_is_on_the_page_of_the_command_line() -> None:
    page = generated_pages()["command-line.md"]
    for name, command in typer.main.get_command(app).commands.items():
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        assert (command.help or "").split("\n")[0] in section
        for parameter in command.params:
            if parameter.name != "help":
                assert f"<code>{parameter.opts[0]}" in section or (parameter.help or "") in section
                assert all(f"<code>{option}</code>" in section for option in parameter.opts if option.startswith("--"))


# Numbers -------------------------------------------------------------------------------------------------------------


def test_the_tables_of_numbers_are_computed_right() -> None:
    page = read("docs/numbers.md")
    alarms = rows(page, "false alarms")
    for share, *cells in alarms:
        rate = float(share.rstrip(" %")) / 100
        assert cells == [f"{1 - (1 - rate) ** looks:.1%}".replace("%", " %") for looks in (1, 8, 20, 51)]
    for goals, *cells in rows(page, "goals |"):
        n = int(goals)
        assert cells == [
            "{:.0f}-{:.0f} %".format(*(100 * end for end in wilson(round(n * share), n))) for share in (0, 0.1, 0.5, 1)
        ]
    for name, looks, passes, _ in rows(page, "budget"):
        budget = BUDGETS[name.strip("`")]
        assert (looks, passes) == (str(budget.looks), f"{budget.passes:,}")
    assert (len(alarms), len(rows(page, "budget"))) == (4, len(BUDGETS))
    assert (round(mcnemar_exact(11, 0), 3), round(mcnemar_exact(5, 0), 2)) == (0.001, 0.06)
    assert mcnemar_exact(5, 0) > 0.05 > mcnemar_exact(6, 0)


# The built site ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "loads"),
    [
        ('<a href="https://arxiv.org/abs/1">a paper</a>', False),
        ('<link rel="stylesheet" href="assets/main.css"><script src="assets/main.js"></script>', False),
        ('<svg xmlns="http://www.w3.org/2000/svg"></svg>', False),
        ('<script src="https://cdn.example/x.js"></script>', True),
        ('<link rel="preconnect" href="https://fonts.example">', True),
        ('<img src="//example/x.png">', True),
        ('<img srcset="https://example/x.png 2x">', True),
        ("<style>@import 'https://example/x.css';</style>", True),
        ('<p style="background: url(https://example/x.png)"></p>', True),
        ("body { background: url('http://example/x.png') }", True),
        ('<pre class="mermaid"></pre>', True),
    ],
)
def test_a_page_that_needs_the_network_is_noticed(page: str, loads: bool) -> None:
    assert bool(hooks.loaded(page)) == loads


def test_links_out_of_docs_lead_to_pages() -> None:
    said = "[card](../src/palimpsest/miniature/assets/card.md) [code](../benchmarks/audit.py) [in](design.md#one-line)"
    assert links.relinked(said, "docs/miniature.md") == (
        "[card](src/palimpsest/miniature/assets/card.md) [code](benchmarks/audit.py.md) [in](design.md#one-line)"
    )
    assert links.relinked("[m](../../../../docs/miniature.md#a)", "src/palimpsest/miniature/assets/card.md") == (
        "[m](../../../../miniature.md#a)"
    )
    assert "CHANGELOG.md" in generated.outside()


def test_every_page_of_results_is_in_the_navigation_once() -> None:
    nav = [{"Results": [{"The audit": "results/audit.md"}]}]
    (entries,) = hooks.on_config({"nav": nav, "docs_dir": str(ROOT / "docs")})["nav"][0].values()
    named = [page for entry in entries for page in (entry.values() if isinstance(entry, dict) else [entry])]
    assert sorted(named) == sorted(f"results/{path.name}" for path in (ROOT / "docs" / "results").glob("*.md"))
