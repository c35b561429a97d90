"""A large run: an overview, and pages for every concept that stay small enough to open."""

import re
from pathlib import Path

import pytest
from rich.console import Console

from palimpsest import report
from palimpsest.report import paging
from palimpsest.report.anchors import anchors
from palimpsest.report.cells import short_names
from palimpsest.run import Run
from synthetic import SyntheticRun, audit, won
from test_report_page import embedded, pictured


def large(goals: int = 501, kind: str = "object", *, pictures: bool = False) -> SyntheticRun:
    run = SyntheticRun(kinds={"church": kind}, goals=goals, pictures=pictures)
    run.cell("church", "nothing", "direct", won(goals, goals))
    run.cell("church", "esd", "direct", won(0, goals))
    run.cell("church", "esd", "random_prefix", won(goals // 5, goals, at=2), looks=3)
    run.cell("church", "esd", "unlearn_diff", won(goals // 2, goals, at=3), looks=3)
    return run


def pages(folder: Path) -> dict[str, str]:
    """Every page of a report, by its name below the run's folder."""
    found = [folder / "report.html", *sorted((folder / "concepts").glob("*.html"))]
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in found}


def goals_on(html: str) -> list[str]:
    return re.findall(r'<div class="goal [^>]*>\s*<p><b>(\d+)</b>', html)


def test_the_threshold_is_where_it_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert paging.LARGE_GOALS == 2000
    monkeypatch.setattr(paging, "LARGE_GOALS", 40)
    report.write(large(10).write(tmp_path / "at"))  # in four cells
    assert list(pages(tmp_path / "at")) == ["report.html"]
    assert not (tmp_path / "at" / "concepts").exists()
    report.write(large(11).write(tmp_path / "above"))
    assert len(pages(tmp_path / "above")) > 1


def test_names_and_limits_are_those_of_the_documentation() -> None:
    documented = (Path(__file__).parent.parent / "docs" / "report-schema.md").read_text(encoding="utf-8")
    limits = [name for name in vars(paging) if name.isupper() and name != "FOLDER"]
    assert len(limits) == 7
    for limit in limits:
        assert re.search(rf"`{limit}` = {getattr(paging, limit):,}\b", documented), limit
    assert all(f"`{name}.html`" in documented for name in anchors(["a b", "a-b"]).values())


def test_a_large_run_is_an_overview_and_pages_of_200_goals(tmp_path: Path) -> None:
    report.write(large().write(tmp_path))
    overview, *rest = pages(tmp_path).items()
    assert [name for name, _ in rest] == ["concepts/church.2.html", "concepts/church.3.html", "concepts/church.html"]
    # What was found, judges, comparisons and provenance; no goal, no picture, no prompt.
    for heading in ("Verdicts", "At a glance", "The judge", "at equal looks", "Provenance"):
        assert heading in overview[1]
    assert 'href="concepts/church.html"' in overview[1] and "by name only" in overview[1]
    assert not goals_on(overview[1]) and "<svg" not in overview[1] and "zq2" not in overview[1]
    # Every goal stands on one page, in order; each prompt that won on that of its goal; curves on the first only.
    ordered = [dict(rest)[f"concepts/church{number}.html"] for number in ("", ".2", ".3")]
    assert [len(goals_on(html)) for html in ordered] == [200, 200, 101]
    assert [int(number) for html in ordered for number in goals_on(html)] == list(range(1, 502))
    assert [html.count("<svg") for html in ordered] == [2, 0, 0]
    rows = []
    for html in ordered:
        asked = dict(re.findall(r"<p><b>(\d+)</b> ([^<]+) <small>", html))
        found = re.findall(
            r'<tr class="pick a\d yes"><td class="number">(\d+)</td>.*?<td class="mono">zq\d ([^<]+)</td>', html
        )
        assert all(asked[number] == prompt for number, prompt in found)
        rows += found
    assert len(rows) == 501 // 5 + 501 // 2


def test_every_link_leads_somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "LARGE_GOALS", 10)
    run = large(4, pictures=True)
    run.kinds["fish"] = "object"
    run.cell("fish", "nothing", "direct", won(4, 4))
    run.cell("fish", "esd", "direct", won(0, 4))
    report.write(run.write(tmp_path))
    there = pages(tmp_path)
    assert list(there) == ["report.html", "concepts/church.html", "concepts/fish.html"]
    for name, html in there.items():
        links = [link for link in re.findall(r'(?:href|src)="([^"]+)"', html) if not link.startswith(("data:", "#"))]
        assert links
        for link in links:
            assert ((tmp_path / name).parent / link).resolve().is_file(), (name, link)
        for target in re.findall(r'href="#([^"]+)"', html):
            assert f'id="{target}"' in html
    # The pictures are those of the run's folder, looked at when they are scrolled to.
    assert embedded(there["concepts/church.html"]) == []
    assert (
        len(re.findall(r'<img src="\.\./pictures/[0-9a-f]{64}\.png"[^>]* loading="lazy">', "".join(there.values())))
        == 24
    )


def test_content_is_pixelated_on_pages_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "LARGE_GOALS", 10)
    monkeypatch.setattr(paging, "EMBEDDED_COARSE", 24)
    report.write(large(10, "content", pictures=True).write(tmp_path))
    html = pages(tmp_path)["concepts/church.html"]
    assert 'src="../pictures' not in html
    assert len(embedded(html)) == 24 and all(max(picture.size) <= 10 for picture in embedded(html))
    assert "number 00" not in re.sub(r"<details>.*?</details>", "", html, flags=re.S)


def test_many_concepts_get_pages(tmp_path: Path) -> None:
    run = SyntheticRun(kinds={f"thing {number:02}": "object" for number in range(51)}, goals=1)
    for concept in run.kinds:
        run.cell(concept, "esd", "direct", [None])
    report.write(run.write(tmp_path))
    assert len(pages(tmp_path)) == 52


def test_names_that_look_alike_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "LARGE_GOALS", 0)
    concepts = ["a b", "a-b", "A  B", "church", "church 2", "église", "教会", "…", "x" * 300, "x" * 301, "../../up"]
    run = SyntheticRun(kinds=dict.fromkeys(concepts, "object"), goals=1)
    for concept in concepts:
        run.cell(concept, "esd", "direct", [None])
    report.write(run.write(tmp_path / "run"))
    there = pages(tmp_path / "run")
    assert len(there) == 1 + len(concepts)
    headings = [re.search(r"<h1>(.*?) <span", html) for name, html in there.items() if name != "report.html"]
    assert sorted(heading.group(1) for heading in headings if heading) == sorted(concepts)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    names = anchors(concepts)
    assert len(set(names.values())) == len(concepts)
    assert all(re.fullmatch("[a-z0-9-]{1,80}", name) for name in names.values())
    assert names["church"] == "church" and names["a b"] != "a-b"


def test_stale_pages_go_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"notes.txt": "mine", "notes.html": "<p>mine, too", "church.9.html": "<!doctype html><title>x</title>"}
    with monkeypatch.context() as patch:
        patch.setattr(paging, "LARGE_GOALS", 10)
        patch.setattr(paging, "PAGE_GOALS", 5)
        run = large(16)
        run.kinds["fish"] = "object"
        run.cell("fish", "esd", "direct", [None])
        report.write(run.write(tmp_path))
        gone = {"church.4.html", "fish.html"}
        assert gone < {path.name for path in (tmp_path / "concepts").iterdir()}
        for name, text in kept.items():
            (tmp_path / "concepts" / name).write_text(text, encoding="utf-8")
        # One concept fewer, and fewer goals: its pages and the last of the others are gone.
        report.write(large(15).write(tmp_path))
    names = {path.name for path in (tmp_path / "concepts").iterdir()}
    assert names == {"church.html", "church.2.html", "church.3.html", *kept}
    report.write(audit().write(tmp_path))
    assert {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "concepts").iterdir()} == kept
    for name in kept:
        (tmp_path / "concepts" / name).unlink()
    report.write(audit().write(tmp_path))
    assert not (tmp_path / "concepts").exists()


def test_the_same_run_gives_the_same_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "LARGE_GOALS", 10)
    run = large(4)
    report.write(run.write(tmp_path / "first"))
    report.write(run.write(tmp_path / "second", order=3))
    assert pages(tmp_path / "first") == pages(tmp_path / "second")


def test_the_table_beside_the_report_is_that_of_the_run(tmp_path: Path) -> None:
    run = Run(pictured("object").write(tmp_path))
    said = []
    for show in (run.table, run.write_report):
        console = Console(width=120, record=True, quiet=False, file=(tmp_path / "screen").open("w", encoding="utf-8"))
        show(console)
        said.append(console.export_text())
    assert said[0] == said[1] and "unlearn_diff" in said[0]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["esd(steps=5,variant=u)", "direct"], ["esd", "direct"]),
        (["esd(steps=5,variant=u)", "esd(steps=5,variant=x)"], ["esd(variant=u)", "esd(variant=x)"]),
        (["esd(steps=5)", "esd"], ["esd(steps=5)", "esd"]),
        (["esd(steps=5)", "esd(steps=5) [depth 50]"], ["esd", "esd [depth 50]"]),
        (["a(source=x,y.bin,k=1)", "a(source=x,z.bin,k=1)"], ["a(source=x,y.bin)", "a(source=x,z.bin)"]),
    ],
)
def test_namesakes_are_called_by_what_tells_them_apart(labels: list[str], names: list[str]) -> None:
    assert short_names(labels) == dict(zip(labels, names, strict=True))


@pytest.mark.slow
def test_a_hundred_thousand_looks_end_in_pages_of_bounded_size(tmp_path: Path) -> None:
    run = SyntheticRun(kinds={f"thing {number}": "object" for number in range(4)}, goals=900)
    for concept in run.kinds:
        run.cell(concept, "nothing", "direct", won(900, 900))
        run.cell(concept, "esd", "direct", won(0, 900))
        run.cell(concept, "esd", "random_prefix", won(300, 900, at=9), looks=20)
        run.cell(concept, "esd", "unlearn_diff", won(600, 900, at=15), looks=20)
    assert len(run.trials) > 100_000
    report.write(run.write(tmp_path))
    there = pages(tmp_path)
    assert len(there) == 1 + 4 * 5
    assert max(len(html.encode()) for html in there.values()) < 1_000_000
    assert len(there["report.html"].encode()) < 100_000
