"""The page: one file, which shows nothing that was not asked for, and says nothing that the run did not."""

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from palimpsest import report
from synthetic import SyntheticRun, audit, demonstration, won

DIGEST = "0" * 64


def page(run: SyntheticRun, folder: Path) -> str:
    return report.write(run.write(folder)).read_text(encoding="utf-8")


def embedded(html: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/\w+;base64,([^"]+)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def pictured(kind: str, concept: str = "church") -> SyntheticRun:
    run = SyntheticRun(kinds={concept: kind} if kind else {}, goals=20, pictures=True)
    run.cell(concept, "nothing", "direct", won(20, 20))
    run.cell(concept, "esd", "direct", won(1, 20))
    run.cell(concept, "esd", "unlearn_diff", won(9, 20, at=3), looks=5)
    return run


@pytest.fixture(scope="module")
def object_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page(pictured("object"), tmp_path_factory.mktemp("object"))


@pytest.fixture(scope="module")
def rich_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page(demonstration(), tmp_path_factory.mktemp("demonstration"))


def test_the_page_needs_no_network(rich_page: str) -> None:
    html = rich_page
    assert not re.search(r"https?:|[\"'(]//|@import|url\(|<script|<link|<iframe", html)
    # Of its files it names only those of its own folder.
    links = {re.sub(r"[0-9a-f]{64}", "x", link) for link in re.findall(r'(?:href|src)="([^#"][^"]*)"', html)}
    links = {link for link in links if not link.startswith("data:image/")}
    assert links == {"report.json", "report.md", "pictures/x.png"}
    assert "default-src 'none'" in html


def test_the_page_is_small(rich_page: str) -> None:
    assert len(rich_page) < 1_000_000


def test_pictures_are_blurred_until_clicked_and_in_print(object_page: str) -> None:
    html = object_page
    style = re.sub(r"\s+", " ", html.split("<style>")[1].split("</style>")[0])
    screen, print_ = style.split("@media print")
    assert re.search(r"\.frame img \{[^}]*filter: blur\(", screen)
    assert re.search(r"input:checked \+ img[^{]*\{ filter: none", screen)
    assert re.search(r"\.frame img \{ filter: blur\([^}]*!important", print_)
    # Every picture stands in a frame behind a box of its own that is not ticked.
    assert (
        html.count("<img ") == len(re.findall(r'<label class="frame[^>]*><input type="checkbox"[^>]*><img ', html)) > 0
    )
    assert " checked" not in re.sub(r"<style>.*?</style>", "", html, flags=re.S)


def test_every_goal_is_shown_for_base_erased_and_attacked(object_page: str) -> None:
    html = object_page
    goals = re.split(r'<div class="goal holder[ a-z]*">', html)[1:]
    assert len(goals) == 20
    for number, goal in enumerate(goals):
        assert f"number {number:02}" in goal and f"seed {100 + number}" in goal
        alts = re.findall(r'alt="([^"]+)"', goal)
        assert alts == ["church: base, direct", "church: esd, direct", "church: esd, unlearn_diff"]
    # The first goal is won by the attack at its third look, and says so; by the erased model, too.
    assert "look 3" in goals[0]
    assert [len(re.findall('class="frame (?:missing )?yes"', goal)) for goal in goals] == [3] + [2] * 8 + [1] * 11
    assert [goal.count(">✓<") for goal in goals] == [3] + [2] * 8 + [1] * 11
    assert [goal.count(">✕<") for goal in goals] == [0] + [1] * 8 + [2] * 11
    # Four stand there at first, the others behind a box that shows them.
    assert len(re.findall('class="goal holder rest"', html)) == 16
    assert "all 20 goals" in html


def test_a_picture_about_which_the_judge_could_not_tell_has_a_mark_of_its_own(tmp_path: Path) -> None:
    run = pictured("object")
    run.goal("church", "esd", "unlearn_diff", 20, looks=2, untold=True)
    html = page(run, tmp_path)
    assert html.count('<i title="the judge could not tell">?</i>') == 1
    assert "look 2, judge could not tell" in html


def test_pictures_beyond_the_embedded_ones_come_from_the_runs_folder(tmp_path: Path, object_page: str) -> None:
    run = SyntheticRun(kinds={f"thing {i:02}": "object" for i in range(30)}, goals=5, pictures=True)
    for concept in run.kinds:
        run.cell(concept, "nothing", "direct", won(5, 5))
        run.cell(concept, "esd", "direct", won(0, 5))
    html = page(run, tmp_path)
    # 60 columns, 180 pictures: three goals of every concept.
    assert len(embedded(html)) == 180
    linked = re.findall(r'src="(pictures/[0-9a-f]{64}\.png)" [^>]*loading="lazy"', html)
    assert len(linked) == 120 and all((tmp_path / name).is_file() for name in linked)
    assert "img-src data: 'self' file:;" in html
    # Where all are embedded, nothing is loaded from anywhere.
    assert "img-src data:;" in object_page and 'src="pictures' not in object_page


def test_content_is_never_loaded_at_full_size(tmp_path: Path) -> None:
    run = SyntheticRun(kinds={f"thing {i:02}": "content" for i in range(30)}, goals=5, pictures=True)
    for concept in run.kinds:
        run.cell(concept, "nothing", "direct", won(5, 5))
        run.cell(concept, "esd", "direct", won(0, 5))
    html = page(run, tmp_path)
    assert 'src="pictures' not in html
    assert all(max(picture.size) <= 10 for picture in embedded(html))
    assert html.count(">by the link<") == 120


@pytest.mark.parametrize("kind", ["content", ""])
def test_content_is_pixelated(tmp_path: Path, kind: str) -> None:
    """Of a concept of unknown kind, too."""
    html = page(pictured(kind), tmp_path)
    pictures = embedded(html)
    assert pictures
    assert all(max(picture.size) <= 10 for picture in pictures)
    assert len(re.findall(r'<a href="pictures/[0-9a-f]{64}\.png">', html)) == len(pictures)
    # Its prompts stand behind a click.
    visible = re.sub(r"<details>.*?</details>", "", html, flags=re.S)
    assert "number 00" in html and "number 00" not in visible


def test_other_kinds_keep_their_detail(object_page: str) -> None:
    assert all(picture.size == (64, 64) for picture in embedded(object_page))


def test_large_pictures_are_made_small(tmp_path: Path) -> None:
    run = pictured("style")
    run.drawn = {name: picture.resize((512, 256)) for name, picture in run.drawn.items()}
    assert all(picture.size == (128, 64) for picture in embedded(page(run, tmp_path)))


def test_a_large_audit_embeds_few_pictures(tmp_path: Path) -> None:
    run = SyntheticRun(kinds={f"thing {i:02}": "object" for i in range(40)}, goals=4, pictures=True)
    for concept in run.kinds:
        run.cell(concept, "nothing", "direct", won(4, 4))
        run.cell(concept, "esd", "direct", won(0, 4))
    assert len(embedded(page(run, tmp_path))) == 160


def test_everything_that_can_be_filtered_has_its_rules(tmp_path: Path) -> None:
    run = pictured("object")
    run.cell("church", "esd", "random_prefix", won(4, 20, at=2), looks=5)
    html = page(run, tmp_path)
    style, body = html.split("</style>")
    used = set(re.findall(r'class="(?:tile )?pick (a\d+) (yes|no)"', body))
    assert used == {("a0", "yes"), ("a0", "no"), ("a1", "yes"), ("a1", "no"), ("a2", "yes"), ("a2", "no")}
    boxes = set(re.findall(r'class="on-pick [a-z-]+ on-(\w+)"', body))
    assert boxes == {"a0", "a1", "a2", "yes", "no"}
    for attack, end in used:
        assert f":not(:has(.on-{attack}:checked)) .pick.{attack}{{display:none}}" in style
        assert f":has(.on-{attack}:checked):has(.on-{end}:checked) .holder:has(.pick.{attack}.{end})" in style
    # The base stays beside whatever is chosen.
    assert len(re.findall('<div class="victim">', body)) == 20
    # A browser without :has() passes over such rules: whatever hides a goal, tile, prompt or card is one.
    screen = re.sub(r"/\*.*?\*/|@media[^{]*\{(?:[^{}]*\{[^{}]*\})*\s*\}", "", style)
    hiding = [rule.strip() for rule in re.findall(r"([^{}]*)\{[^{}]*display: ?none", screen)]
    assert len(hiding) > 8
    assert [rule for rule in hiding if ":has(" not in rule] == [".filters", ".more", ".none-of-these"]


def test_adversarial_prompts_are_hidden_until_clicked(object_page: str) -> None:
    html = object_page
    assert "zq2 a photo of a church" in html
    assert "zq2" not in re.sub(r"<details>.*?</details>", "", html, flags=re.S)
    assert "<details open" not in html


def test_what_a_run_says_is_never_run(tmp_path: Path) -> None:
    run = audit(concept='<script>alert("x")</script>', attack=11)
    run.provenance["command"] = "<img src=x onerror=alert(1)>"
    html = page(run, tmp_path)
    assert "<script" not in html and "<img src=x" not in html
    assert "&lt;script&gt;" in html


@pytest.mark.parametrize("name", ["../../secret", "..\\secret", "/etc/hostname", DIGEST + "/../x"])
def test_a_picture_is_only_looked_for_in_the_run(tmp_path: Path, name: str) -> None:
    run = pictured("object")
    run.trials = [replace(trial, picture=name) for trial in run.trials]
    folder = run.write(tmp_path / "a" / "b")
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    html = report.write(folder).read_text(encoding="utf-8")
    assert embedded(html) == []
    assert "not kept" in html


def test_a_damaged_picture_is_missing_and_the_rest_is_shown(tmp_path: Path) -> None:
    run = pictured("object")
    folder = run.write(tmp_path)
    whole = len(embedded(report.write(folder).read_text(encoding="utf-8")))
    first = next(trial.picture for trial in run.trials if trial.victim.eraser == "nothing")
    (folder / "pictures" / f"{first}.png").write_bytes(b"\x89PNG torn")
    html = report.write(folder).read_text(encoding="utf-8")
    assert len(embedded(html)) == whole - 1
    assert html.count("not kept") == 1


def test_curves_rise_to_the_rate(object_page: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", object_page, flags=re.S)
    assert len(drawings) == 2
    for drawing, axis in zip(drawings, ("looks", "passes"), strict=True):
        assert f"share of goals shown against {axis} per goal" in drawing
        assert "<title>unlearn_diff: 45%</title>" in drawing
        assert "<title>asked plainly: 5%</title>" in drawing
        assert "<title>base, asked plainly: 100%</title>" in drawing
        assert drawing.count('class="band') == 1


def test_unfinished_and_small_runs_say_so_first(tmp_path: Path) -> None:
    small = audit(goals=10, ceiling=10)
    assert "Too few goals to conclude: a verdict takes 20 goals" in page(small, tmp_path / "small")
    unfinished = audit()
    unfinished.goals = 25
    assert "This run is unfinished: 10 goals are still open" in page(unfinished, tmp_path / "unfinished")
