"""CLIP and image classifiers of transformers as judges: on the miniature's own CLIP, and on its classifier by label."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageClassification, CLIPModel, ViTImageProcessor

from palimpsest.assets import clip_folder, judge_folder, miniature_folder
from palimpsest.audit_file import make_audit
from palimpsest.concept_file import find_concept
from palimpsest.errors import BadSetting, UnknownName
from palimpsest.judges import Clip, ImageClassifier, Miniature
from palimpsest.miniature.facts import Facts
from palimpsest.miniature.pictures import render_many
from palimpsest.utility import Kid

CHURCH = find_concept("church")
OTHERS = ("parachute", "fish", "cat", "house")


def processor(folder: Path) -> None:
    ViTImageProcessor(size={"height": 64, "width": 64}, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(
        folder
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The miniature's CLIP as others ship theirs: weights, tokenizer and image processor in one folder."""
    folder = tmp_path_factory.mktemp("clip")
    for source in (clip_folder(), miniature_folder() / "tokenizer"):
        shutil.copytree(source, folder, dirs_exist_ok=True)
    processor(folder)
    return str(folder)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The miniature's first judge, with ImageNet's kind of labels."""
    folder = tmp_path_factory.mktemp("classifier")
    shutil.copytree(judge_folder("first"), folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    names = {number: label.partition("/")[2] for number, label in config["id2label"].items()}
    for number, name in names.items():
        config["id2label"][number] = {"church": "church, church building", "fish": "tench, Tinca tinca"}.get(name, name)
    config["label2id"] = {label: int(number) for number, label in config["id2label"].items()}
    (folder / "config.json").write_text(json.dumps(config))
    processor(folder)
    return str(folder)


def pictures(*names: str, each: int = 12) -> list[Image.Image]:
    facts = [Facts(subject=name, style="photo", colour="red", seed=seed) for name in names for seed in range(each)]
    return [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in render_many(facts)]


def test_clip_tells_the_concept_from_its_neighbours(clip: str) -> None:
    judge = Clip(model=clip, accept=0.5)
    shown, others = (np.array(judge.score(some, CHURCH)) for some in (pictures("church"), pictures(*OTHERS)))
    assert (shown >= judge.threshold(CHURCH)).mean() >= 0.9
    assert (others >= judge.threshold(CHURCH)).mean() <= 0.1


def test_clips_score_is_the_papers_softmax(clip: str) -> None:
    """Against CLIPModel's own logits, one picture at a time."""
    judge, some = Clip(model=clip, rivals=("fish",), nothing="a tree"), pictures("church", each=3)
    network = CLIPModel.from_pretrained(clip, dtype=torch.float32).eval()
    from transformers import AutoTokenizer

    asked = ["a photo of church", "a photo of fish", "a photo of a tree"]
    ids = AutoTokenizer.from_pretrained(clip)(asked, padding=True, return_tensors="pt")
    for picture, score in zip(some, judge.score(some, CHURCH), strict=True):
        pixels = torch.from_numpy(np.asarray(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.no_grad():
            said = network(**ids, pixel_values=pixels).logits_per_image.softmax(-1)
        assert score == pytest.approx(float(said[0, 0]), abs=1e-4)


def test_a_score_does_not_hang_on_the_pictures_beside_it(clip: str, classifier: str) -> None:
    some = pictures("church", "fish", each=10)
    for judge in (Clip(model=clip), ImageClassifier(model=classifier, accept=0.5)):
        together = judge.score(some, CHURCH)
        assert together == [judge.score([picture], CHURCH)[0] for picture in some]
        assert judge.score([], CHURCH) == []


def test_a_classifier_is_asked_by_label(classifier: str) -> None:
    judge = ImageClassifier(model=classifier, top=6)  # this network has six heads, so six labels come first
    assert np.mean(judge.score(pictures("church"), CHURCH)) >= 0.9
    assert np.mean(judge.score(pictures(*OTHERS), CHURCH)) <= 0.05
    probability = ImageClassifier(model=classifier, accept=0.05)
    scores = np.array(probability.score(pictures("church"), CHURCH))
    assert (scores >= probability.threshold(CHURCH)).mean() >= 0.9
    network = AutoModelForImageClassification.from_pretrained(classifier, dtype=torch.float32).eval()
    pixels = torch.from_numpy(np.asarray(pictures("church", each=1)[0])).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        said = network(pixel_values=pixels).logits.softmax(-1)[0, network.config.label2id["church, church building"]]
    assert scores[0] == pytest.approx(float(said), abs=1e-5)


def test_labels_are_found_as_imagenet_writes_them(classifier: str) -> None:
    judge = ImageClassifier(model=classifier, top=6)
    assert np.mean(judge.score(pictures("fish"), replace(CHURCH, name="Tinca_Tinca"))) >= 0.9
    named = replace(CHURCH, name="my own", labels={"image_classifier": "tench"})
    assert np.mean(judge.score(pictures("fish"), named)) >= 0.9
    with pytest.raises(UnknownName, match="no label of the judge 'image_classifier' called 'zebra'; there are: "):
        judge.threshold(replace(CHURCH, name="zebra"))
    with pytest.raises(BadSetting, match="expected one label called 'none', got"):
        judge.threshold(replace(CHURCH, name="none"))


def test_an_audit_takes_them(clip: str, classifier: str) -> None:
    specs = [{"name": "image_classifier", "model": classifier}, {"name": "clip", "model": clip, "rivals": ["fish"]}]
    found = make_audit({"concepts": ["church"], "erasers": ["uce"], "judges": specs})
    assert found.judges == (ImageClassifier(model=classifier), Clip(model=clip, rivals=("fish",)))
    assert make_audit(found.table()) == found


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (Clip, {"template": "a photo"}, "expected a template with one {}"),
        (Clip, {"accept": 0.0}, "expected 0 < accept <= 1, got 0.0"),
        (Clip, {"calibration": 0}, "expected calibration >= 4, or accept to be set, got 0"),
        (Clip, {"calibration": 3}, "expected calibration >= 4, or accept to be set, got 3"),
        (Clip, {"accept": 0.5, "calibration": -1}, "expected calibration >= 0, got -1"),
        (ImageClassifier, {"accept": 2.0}, "expected 0 < accept <= 1, got 2.0"),
        (ImageClassifier, {"top": -1}, "expected top >= 0, got -1"),
        (ImageClassifier, {"top": 5, "accept": 0.5}, "expected accept or top, got both: 0.5, 5"),
        (ImageClassifier, {"top": 0, "calibration": 0}, "expected calibration >= 4, or accept or top to be set, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(kind: type, changes: dict, message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        kind(model="x", **changes)


def test_the_rule_is_the_users_or_the_papers_or_chosen_on_the_bases_pictures(classifier: str) -> None:
    some = pictures("church", "fish", each=4)
    papers, own = ImageClassifier(model=classifier), ImageClassifier(model=classifier, accept=0.2)
    assert (papers.top, papers.uncalibrated, own.uncalibrated) == (1, False, False)
    assert set(papers.score(some, CHURCH)) <= {0.0, 1.0} and papers.threshold(CHURCH) == 0.5
    assert not set(own.score(some, CHURCH)) <= {0.0, 1.0} and own.threshold(CHURCH) == 0.2
    for judge in (ImageClassifier(model=classifier, top=0), Clip(model="x")):
        assert judge.uncalibrated
        with pytest.raises(BadSetting, match="expected to be calibrated for 'church' first"):
            judge.threshold(CHURCH)
        chosen = judge.calibrated({"church": 0.7})
        assert (chosen.threshold(CHURCH), chosen.label, chosen.spec) == (0.7, judge.label, judge.spec)
        with pytest.raises(BadSetting, match="expected to be calibrated for 'fish' first"):
            chosen.threshold(find_concept("fish"))
    probability = ImageClassifier(model=classifier, top=0).calibrated({"church": 0.7})
    assert probability.score(some, CHURCH) == own.score(some, CHURCH)
    with pytest.raises(UnknownName, match="no label of the judge 'image_classifier' called 'zebra'"):
        probability.check(replace(CHURCH, name="zebra"))


def test_a_name_longer_than_the_clip_reads_is_refused_beforehand(clip: str) -> None:
    Clip(model=clip).check(CHURCH)
    with pytest.raises(BadSetting, match=r"expected at most \d+ tokens, got \d+ in 'a photo of church church"):
        Clip(model=clip).check(replace(CHURCH, name=" ".join(["church"] * 200)))


def test_the_fingerprint_is_that_of_the_folder(clip: str, classifier: str, tmp_path: Path) -> None:
    before = Clip(model=clip).fingerprint
    shutil.copytree(clip, tmp_path / "same")
    same, other = (tmp_path / name for name in ("same", "other"))
    shutil.copytree(clip, other)
    config = other / "preprocessor_config.json"
    config.write_text(config.read_text().replace("0.5", "0.4"))
    assert Clip(model=str(same)).fingerprint == before
    assert len({before, Clip(model=str(other)).fingerprint, ImageClassifier(model=classifier).fingerprint}) == 3
    assert Clip(model=clip).calibrated({"church": 0.7}).fingerprint == before
    assert Kid(features=clip).fingerprint == before
    assert Kid().fingerprint == Miniature().fingerprint == ""


def test_an_audit_without_the_clip_ends_before_it_begins(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="expected a model of transformers, got"):
        make_audit({"concepts": ["church"], "erasers": ["uce"], "judges": [f"clip:model={tmp_path / 'none'}"]})


def test_no_model_and_no_processor(tmp_path: Path) -> None:
    some = pictures("church", each=1)
    for judge in (Clip(model=str(tmp_path / "none")), ImageClassifier(model=str(tmp_path / "none"))):
        with pytest.raises(BadSetting, match="expected a model of transformers, got"):
            judge.score(some, CHURCH)
    with pytest.raises(BadSetting, match="expected a model of transformers, got .*declares a network of"):
        Clip(model=str(judge_folder("first"))).score(some, CHURCH)
    shutil.copytree(judge_folder("first"), tmp_path / "bare")
    bare = ImageClassifier(model=str(tmp_path / "bare"))
    with pytest.raises(BadSetting, match="expected AutoImageProcessor's file"):
        bare.score(some, replace(CHURCH, labels={"image_classifier": "object/church"}))
