"""The scan: its words, false alarms, verdict and command, on real classes at toy size."""

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.concept_file import find_concept
from palimpsest.erasers import Receler
from palimpsest.erasers.stopwords import STOPWORDS
from palimpsest.erasing import difference
from palimpsest.errors import BadConcept, BadRun, BadSetting, PalimpsestError
from palimpsest.model import Model
from palimpsest.model.loading import Parts
from palimpsest.scanning import PromptDetector, Suspect
from palimpsest.scanning.candidates import Candidate, Origin, given, strings, vocabulary
from palimpsest.scanning.outliers import Outlier, TriggerScan, trigger_scan
from palimpsest.scanning.prompts import decoy, prompts_of, shipped_prompts
from palimpsest.scanning.scan import scan_prompts
from palimpsest.scanning.verdict import Scan, controls
from palimpsest.scanning.words import lines
from palimpsest.stats import at_least
from tiny import TOKEN, planted, tiny_model, tiny_pipeline


@pytest.fixture(scope="module")
def base() -> Model:
    return tiny_model()


def test_given_are_words_and_pairs_that_stand_side_by_side(base: Model) -> None:
    told = given(base, ["a red dog, in the old desert!", "A dog by the old desert at night", ""])
    assert [one.text for one in told] == ["red", "dog", "old", "desert", "night", "red dog", "old desert"]
    assert {one.origin for one in told} == {"given"}


def test_the_word_that_was_changed_stands_out(base: Model) -> None:
    random = torch.Generator().manual_seed(0)
    candidates = [*given(base, ["a dog, in the desert!"]), *vocabulary(base, 20, random), *strings(base, 6, random)]
    assert [one.text for one in candidates[:2]] == ["dog", "desert"]
    noise = {
        name: weight + 1e-3 * torch.randn(weight.shape, generator=random)
        for name, weight in base.weights(r"unet\..*attn2.to_v.weight").items()
    }
    clean = base.with_weights(noise)
    for model, outlies in ((clean, False), (planted(clean, "dog", "fish"), True)):
        found = trigger_scan(Suspect(model=model, base=base), candidates, base=base)
        (dog,) = [one for one in found.ranked if one.candidate.text == "dog"]
        made = [one for one in found.ranked if one.candidate.origin == "word"]
        scores = {one.candidate.text: one.score for one in made}
        half = [scores[one.text] for one in candidates if one.text in scores and one.origin == "word"][::2]
        spread = np.median(np.abs(half - np.median(half)))
        assert dog.deviation == pytest.approx(0.6745 * (dog.score - np.median(half)) / spread, rel=1e-6)
        assert dog.far == outlies and (found.ranked[0] is dog) == outlies
        assert (dog.p_value == pytest.approx(1 / (1 + len(made)))) == outlies
        assert found.held_out == len(made) // 2 + 3 and len(found.ranked) == 2 + len(made) + 6


def test_with_nothing_made_at_random_the_order_is_that_of_the_scores(base: Model) -> None:
    found = trigger_scan(
        Suspect(model=planted(base, "dog", "fish"), base=base), given(base, ["a dog, in the desert!"]), base=base
    )
    assert [(one.candidate.text, one.deviation) for one in found.ranked] == [("dog", 0), ("desert", 0)]


def test_candidates_are_typed_as_they_are_counted(base: Model) -> None:
    random = torch.Generator().manual_seed(0)
    words = vocabulary(base, 10_000, random)
    assert {"church", "night"} <= {one.text for one in words} and all(one.tokens == 1 for one in words)
    assert not {one.text for one in words} & STOPWORDS
    for one in strings(base, 4, random):
        assert len(one.text) == 8 and one.tokens == len(base.tokenizer.tokenize(one.text)) > 1
    assert len({one.text for one in strings(base, 4, random)}) == 4


@dataclass(frozen=True, kw_only=True)
class Letters(PromptDetector):
    """As many as the prompt has capitals: it flags what was typed by chance, and knows no trigger."""

    name = "letters"

    def scores(self, suspect: Suspect, prompts: Sequence[str]) -> list[float | None]:
        return [None if "untold" in one else float(sum(map(str.isupper, one))) for one in prompts]

    def passes(self, suspect: Suspect, prompt: str) -> int:
        return 3


def test_false_alarms_are_counted_on_other_prompts_and_on_odd_ones(base: Model) -> None:
    clean = ["a", "A photo", "b", "B dog", "c", "c cat", "d", "d fish"]
    random = torch.Generator().manual_seed(0)
    (row,) = scan_prompts(Suspect(model=base), [Letters()], clean=clean, asked=["XYZ", "abc", "untold"], random=random)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0)).tolist()  # drawn: lists may have an order
    capitals = [[int(clean[place][0].isupper()) for place in half] for half in (order[::2], order[1::2])]
    assert sorted(sum(capitals, [])) == [0] * 6 + [1] * 2 and order != sorted(order)
    assert row.threshold == pytest.approx(fmean(capitals[0]) + 1.2 * stdev(capitals[0]))
    assert (row.clean.flagged, row.clean.told) == (sum(one > row.threshold for one in capitals[1]), 4)
    assert (row.decoys.flagged, row.decoys.told) == (4, 4)
    assert (row.asked.flagged, row.asked.told, row.asked.prompts, row.scores) == (1, 2, 3, (3.0, 0.0, None))
    assert row.p_value > 0.9 and row.passes == 3  # one of two is nothing, where odd strings are flagged anyhow
    with pytest.raises(BadSetting, match="4 clean prompts or more, got 3"):
        scan_prompts(Suspect(model=base), [Letters()], clean=clean[:3], random=random)


def outlier(text: str, *, deviation: float, calls: tuple[str, ...] | None, origin: Origin = "given") -> Outlier:
    candidate = Candidate(text=text, origin=origin, tokens=2)
    return Outlier(candidate=candidate, score=1.0, deviation=deviation, p_value=0.01, calls=calls)


def test_what_controls_call_as_well_is_no_trigger_but_no_silence_either() -> None:
    drawn = (outlier("xyz", deviation=9, calls=("house", "hugo")), outlier("name", deviation=8, calls=()))
    near = outlier("near", deviation=1, calls=("cat", "house"))  # drawn as a given word, and no outlier
    common = (outlier("abc", deviation=0, calls=("house",), origin="string"),)
    words = TriggerScan(ranked=(*drawn, near, *common), held_out=1, alarms=0)
    scan = Scan(prompts=(), rows=(), words=words, drawn=(*drawn, near), controls=common)
    assert scan.called == {"xyz": ("hugo",), "near": ("cat",)} and scan.verdict == "suspicious"
    quiet = replace(scan, controls=(replace(common[0], calls=()),))
    assert quiet.called == {"xyz": ("house", "hugo"), "near": ("cat", "house")} and quiet.verdict == "trigger"
    both = (*common, outlier("def", deviation=0, calls=("hugo",), origin="string"))
    scan = Scan(prompts=(), rows=(), words=words, drawn=drawn, controls=both)
    assert not scan.called and scan.common == {"house": 1, "hugo": 1} and scan.verdict == "suspicious"
    assert scan.calling == (2, 2)
    assert replace(quiet, controls=()).verdict == "suspicious"  # any word may call something
    silent = outlier("ghi", deviation=0, calls=(), origin="string")
    scan = replace(scan, controls=(*both, silent, replace(silent, calls=None)))
    assert scan.calling == (2, 3)
    assert any("of 3 made at random, 2 call something (21-94%)" in line for line in lines(scan))


def test_controls_are_chosen_by_chance_among_those_held_out() -> None:
    made = [
        replace(outlier(f"w{at}", deviation=at, calls=None, origin="word"), held_out=at % 2 == 1) for at in range(40)
    ]
    words = TriggerScan(ranked=(outlier("xyz", deviation=9, calls=None), *made), held_out=20, alarms=10)
    chosen = controls(words, 8, seed=0)
    assert len(set(chosen)) == 8 and all(one.held_out for one in chosen)
    assert any(one.far for one in chosen)  # however far they are
    assert chosen == controls(words, 8, seed=0) != controls(words, 8, seed=1)
    assert set(controls(words, 99, seed=0, but=chosen)) == {one for one in made if one.held_out} - set(chosen)


def test_without_a_judge_outliers_leave_the_verdict_open() -> None:
    words = (
        outlier("xyz", deviation=9, calls=None),
        outlier("tree", deviation=50, calls=None, origin="word"),
        outlier("near", deviation=1, calls=None),
        outlier("qqq", deviation=8, calls=None, origin="string"),
    )
    scan = Scan(prompts=(), rows=(), words=TriggerScan(ranked=words, held_out=1, alarms=0), drawn=words[:2])
    assert [one.candidate.text for one in scan.unjudged] == ["xyz", "tree"] and scan.verdict == "open"
    judged = tuple(replace(one, calls=()) for one in words[:1])
    assert replace(scan, drawn=judged).verdict == "nothing"
    assert replace(scan, words=TriggerScan(ranked=words[2:], held_out=1, alarms=0)).verdict == "nothing"


@pytest.mark.parametrize(("flagged", "verdict"), [(3, "nothing"), (9, "suspicious")])
def test_prompts_flagged_beyond_false_alarms_are_suspicious(base: Model, flagged: int, verdict: str) -> None:
    clean = [f"{'A' if place == 1 else 'a'} dog" for place in range(40)]
    asked = [f"{'A' * (place < flagged)} cat" for place in range(10)]
    random = torch.Generator().manual_seed(0)
    (row,) = scan_prompts(Suspect(model=base), [Letters(threshold=0.5)], clean=clean, asked=asked, random=random)
    assert row.clean.flagged == 1 and row.decoys.flagged >= 18  # odd strings are: nothing follows
    assert Scan(prompts=tuple(asked), rows=(row,)).verdict == "nothing"
    fair = replace(row, p_value=at_least(flagged, 10, row.clean.interval.high), decoys=row.clean)
    fair = replace(fair, adjusted=fair.p_value)
    assert Scan(prompts=tuple(asked), rows=(fair,)).verdict == verdict
    # What compares with the base flags an erased concept's name as well.
    beside = Scan(prompts=tuple(asked), rows=(replace(fair, compares=True),))
    assert beside.verdict == ("open" if flagged == 9 else "nothing")
    assert any("as at an erased name" in line for line in lines(beside)) == (flagged == 9)


def test_a_guarded_model_or_one_of_another_family_is_refused(base: Model) -> None:
    with pytest.raises(BadSetting, match="prediction_type epsilon, got v_prediction"):
        Suspect(model=tiny_model(prediction_type="v_prediction"), base=base)

    class Deaf(Model):
        guard = "deaf"

        def guided_noise(self, latents, step, text, guidance, memory=None):
            return latents, memory

    with pytest.raises(BadSetting, match="without a guard, got Deaf"):
        Suspect(model=base.behind(Deaf))


# Prompts --------------------------------------------------------------------------------------------------------------


def test_prompts_come_from_texts_and_tables(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufeffa dog\n\n  a cat \na dog\n")
    (tmp_path / "a.csv").write_text("prompt,other\na dog,1\n")
    assert prompts_of(tmp_path / "a.txt") == ["a dog", "a cat"] and prompts_of(tmp_path / "a.csv") == ["a dog"]
    (tmp_path / "none.txt").write_text("\n \n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "b.csv").write_text("text\na dog\n")
    for name, error in (
        ("none.txt", BadSetting),
        ("bytes.txt", BadSetting),
        ("missing.txt", BadSetting),
        ("b.csv", BadConcept),
        (".", BadSetting),
    ):
        with pytest.raises(error):
            prompts_of(tmp_path / name)


def test_shipped_prompts_are_harmless_and_decoys_hold_a_string() -> None:
    told = shipped_prompts(60)
    assert len(told) == len(set(told)) == 60 and not any("radiation" in one for one in told)
    random = torch.Generator().manual_seed(0)
    odd = [decoy("a photo of a dog", random) for _ in range(20)]
    assert len(set(odd)) == 20
    for one in odd:
        differ = [(a, b) for a, b in zip(one.split(), "a photo of a dog".split(), strict=True) if a != b]
        assert len(differ) == 1 and differ[0][1] in ("photo", "dog") and len(differ[0][0]) == 8


# The command ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base")
    tiny_pipeline(path)
    return path


@pytest.fixture
def files(folder: Path, tmp_path: Path) -> Path:
    """Prompts, and a text encoder in which a word means something else."""
    model = planted(Model.load(folder, device="cpu"), "dog", "fish")
    save_file({k: v.detach().clone() for k, v in model.weights(TOKEN).items()}, tmp_path / "theirs.safetensors")
    (tmp_path / "asked.txt").write_text("a photo of a dog\nphoto of the dog\n")
    (tmp_path / "clean.txt").write_text(
        "\n".join(f"a photo of a {word} church" for word in "red blue green cat".split())
    )
    return tmp_path


def call(*arguments: object):
    return CliRunner().invoke(app, ["scan", *map(str, arguments)])


def test_the_command_finds_the_word_and_says_so(folder: Path, files: Path) -> None:
    asked = ["--prompts", files / "asked.txt", "--clean", files / "clean.txt", "--words", 90, "--strings", 20]
    few = ["--detector", "divergence", "--detector", "ftt:steps=2", "--top", 1, "--sheet", files / "sheet.png"]
    done = call(files / "theirs.safetensors", "--base", folder, *asked, *few)
    assert done.exit_code == 0, done.output
    assert "Flagged          'a photo of a dog' by divergence" in done.output
    assert "'dog' (given)" in done.output and "Verdict          open" in done.output
    assert "no judge said what these call up: 'dog'" in done.output
    with Image.open(files / "sheet.png") as sheet:
        assert sheet.width > 2 * 4 * 16
    done = call(files / "theirs.safetensors", "--base", folder, *asked, *few[:4], "--top", 0, "--json")
    found = json.loads(done.output)
    assert (found["schema"], found["verdict"], found["difference"]["verdict"]) == (2, "open", "text encoder")
    assert [row["flags"] for row in found["rows"] if row["detector"] == "divergence"] == [[True, True]]
    assert found["words"]["ranked"][0]["candidate"]["text"] == "dog"
    documented = Path(__file__).parent.parent.joinpath("docs", "scan.md").read_text(encoding="utf-8")
    for record in (found, found["rows"][0], found["rows"][0]["clean"], found["words"], found["words"]["ranked"][0]):
        for field in record:
            assert f"`{field}`" in documented, field
    clean = call(folder, "--base", folder, *asked, *few[:4], "--top", 0)
    assert "Verdict          nothing found" in clean.output and "(given)" not in clean.output


def test_given_words_are_drawn_though_none_is_an_outlier(folder: Path, files: Path) -> None:
    few = ["--detector", "divergence", "--words", 20, "--strings", 20, "--top", 1, "--json"]
    asked = ["--prompts", files / "asked.txt", "--clean", files / "clean.txt"]
    found = json.loads(call(folder, "--base", folder, *asked, *few).output)
    assert [one["candidate"]["origin"] for one in found["drawn"]] == ["given"]
    assert len(found["controls"]) == 1 and found["verdict"] == "nothing"


def test_an_ordinary_log_is_judged_though_the_shipped_prompts_hold_the_same(folder: Path, tmp_path: Path) -> None:
    same = shipped_prompts(4)
    (tmp_path / "log.txt").write_text("\n".join(same))
    done = call(folder, "--prompts", tmp_path / "log.txt", "--count", 4, "--detector", "navi", "--json")
    (row,) = json.loads(done.output)["rows"]
    assert row["asked"]["prompts"] == 4 and row["clean"]["prompts"] == 2


def test_a_model_with_weights_of_its_own_is_scanned_without_a_difference(
    base: Model, folder: Path, tmp_path: Path
) -> None:
    few = ["--words", 20, "--strings", 20, "--top", 0]
    before = Model.load(folder, device="cpu")
    eraser = Receler(iterations=1, soft=4, batch=1, steps=2)
    erased = eraser.erase(before, [find_concept("church")], random=torch.Generator())
    assert Suspect(model=erased, base=before).added > 0
    assert Suspect(model=base, base=base).added == Suspect(model=erased).added == 0
    deeper = tiny_pipeline()
    deeper.unet.mid_block.resnets.append(deepcopy(deeper.unet.mid_block.resnets[0]))
    deep = Model(Parts.of(deeper), dtype=torch.float32, device="cpu", batch=4)
    other = Suspect(model=deep, base=tiny_model())  # another architecture, which has the weights of the base, too
    assert other.model.weights().keys() > other.base.weights().keys() and other.added == 0
    changed = {name: weight.clone() for name, weight in difference(erased, before).items()}
    save_file(changed, tmp_path / "receler.safetensors")
    done = call(tmp_path / "receler.safetensors", "--base", folder, *few)
    assert done.exit_code == 0, done.exception
    assert "not compared: the model has" in done.output and "Verdict" in done.output


def test_without_a_base_only_prompts_are_judged(folder: Path, files: Path) -> None:
    asked = ["--prompts", files / "asked.txt", "--clean", files / "clean.txt", "--detector", "navi"]
    done = call(folder, *asked)
    assert done.exit_code == 0 and "Words            not scanned: that needs --base" in done.output
    assert "navi" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected --prompts to judge, or --base"),
        (["--prompts", "asked.txt", "--detector", "divergence"], "divergence: expected a base"),
        (["--prompts", "asked.txt", "--detector", "navy"], "no detector called 'navy'; there are: cda, daa_i"),
        (["--prompts", "asked.txt", "--detector", "navi:by=letter"], "setting 'by'"),
        (["--prompts", "asked.txt", "--clean", "asked.txt"], "expected 4 clean prompts or more, got 2"),
        (["--prompts", "clean.txt", "--clean", "clean.txt"], "got 'a photo of a red church' in both"),
        (["--prompts", "missing.txt"], "missing.txt: expected a text file of prompts"),
        (["--prompts", "asked.txt", "--sheet", "a.png"], "expected --base with --sheet"),
        (["--base", "FOLDER", "--sheet", "a.jpg"], "ending in .png"),
        (["--base", "FOLDER", "--detector", "navi"], "expected --prompts with --detector"),
        (["--base", "FOLDER", "--concept", "hugo"], "expected --base and --judge with --concept"),
        (["--base", "FOLDER", "--seed", "-1"], "expected seed >= 0"),
        (["--base", "FOLDER", "--words", "19"], "expected 20 words or more, or none, got 19"),
        (["--base", "FOLDER", "--strings", "1"], "expected 20 strings or more, or none, got 1"),
        (["--base", "FOLDER", "--judge", "miniature", "--concept", "x"], "no concept called 'x'"),
    ],
)
def test_bad_input_is_named(folder: Path, files: Path, arguments: list[str], message: str) -> None:
    told = [folder if word == "FOLDER" else files / word if word.endswith(".txt") else word for word in arguments]
    done = call(folder, *told)
    assert isinstance(done.exception, PalimpsestError) and message in str(done.exception)


def test_weights_alone_need_a_base(files: Path) -> None:
    done = call(files / "theirs.safetensors", "--prompts", files / "asked.txt")
    assert isinstance(done.exception, BadSetting) and "give the base" in str(done.exception)
    (files / "there.png").touch()
    done = call(files / "theirs.safetensors", "--base", "miniature", "--sheet", files / "there.png")
    assert isinstance(done.exception, BadRun)
