"""KID: the estimator term by term, its error, and what it says of an untouched and of a wrecked model."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torchmetrics.image.kid import KernelInceptionDistance
from transformers import AutoModel

from measured import EACH, base, pixels, rendered, taken, wrecked
from palimpsest.errors import BadSetting
from palimpsest.utility import Kid
from palimpsest.utility import kid as module
from palimpsest.utility.features import Network
from palimpsest.utility.kid import kid


def by_hand(x: np.ndarray, y: np.ndarray, same_prompt: bool) -> float:
    """The squared MMD with the cubic kernel, pair by pair."""

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    n = len(x)
    others = [(i, j) for i in range(n) for j in range(n) if i != j]
    across = [(i, j) for i in range(n) for j in range(n)] if same_prompt else others
    inside = sum(k(x[i], x[j]) + k(y[i], y[j]) for i, j in others) / len(others)
    return inside - 2 * sum(k(x[i], y[j]) for i, j in across) / len(across)


@pytest.mark.parametrize("same_prompt", [False, True])
def test_it_is_the_estimator_and_its_error_the_jackknifes(same_prompt: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 4)  # so that the kernel is reckoned in several parts
    random = np.random.default_rng(0)
    x, y = random.normal(size=(9, 5)), random.normal(0.5, 1.2, size=(9, 5))
    found = kid(x, y, same_prompt=same_prompt)
    assert found.value == pytest.approx(by_hand(x, y, same_prompt))
    without = [by_hand(np.delete(x, i, 0), np.delete(y, i, 0), same_prompt) for i in range(9)]
    assert found.error == pytest.approx(np.sqrt(8 / 9 * np.sum((without - np.mean(without)) ** 2)))


def test_with_the_papers_pairs_it_is_torchmetrics() -> None:
    """Its class draws subsets from the global stream; one subset of everything leaves nothing to draw."""

    class Given(torch.nn.Module):
        """Hands on what are features already."""

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return features

    random = np.random.default_rng(2)
    x, y = random.normal(size=(12, 5)), random.normal(0.5, 1.2, size=(12, 5))
    theirs = KernelInceptionDistance(feature=Given(), subsets=1, subset_size=12)
    theirs.set_dtype(torch.float64)
    theirs.update(torch.from_numpy(y), real=True)
    theirs.update(torch.from_numpy(x), real=False)
    assert kid(x, y, same_prompt=True).value == pytest.approx(float(theirs.compute()[0]))


def samples(shift: float, times: int = 200, prompts: int = 20) -> list[tuple[np.ndarray, np.ndarray]]:
    """Features of two models' pictures: what a prompt asks for, and what a seed adds."""
    random = np.random.default_rng(1)
    asked = random.normal(size=(times, prompts, 8))
    return [(one + shift + random.normal(size=one.shape), one + random.normal(size=one.shape)) for one in asked]


def test_pictures_of_the_same_prompts_do_not_make_an_unerased_model_look_too_near() -> None:
    """The paper's estimator takes both samples for independent; prompts that they share push it below 0."""
    for same_prompt, bias in ((False, False), (True, True)):
        values = np.array([kid(x, y, same_prompt=same_prompt).value for x, y in samples(0)])
        assert (values.mean() < -3 * values.std() / np.sqrt(len(values))) == bias


def test_the_error_is_that_of_the_estimate() -> None:
    found = [kid(x, y) for x, y in samples(1.0)]
    values = np.array([one.value for one in found])
    assert values.min() > 0
    assert np.mean([one.error for one in found]) == pytest.approx(values.std(), rel=0.2)


def test_an_untouched_model_is_about_nought_away_and_a_wrecked_one_is_not() -> None:
    measure = Kid(pictures=EACH)
    (before,), (after,) = (taken(measure, model).values() for model in (base(), wrecked()))
    assert before.low < 0 < before.high and before.value != 0
    assert after.low > 0 and after.value > 10 * abs(before.value)
    assert (after.measure, after.concept, after.n, after.unit) == ("kid", "", 3 * EACH, "number")
    assert "the miniature's CLIP" in after.of


def test_any_image_model_gives_features(resnet: str) -> None:
    pictures = rendered("fish", each=3)
    network = AutoModel.from_pretrained(resnet, dtype=torch.float32).eval()
    with torch.no_grad():
        told = network(pixel_values=pixels(pictures, 0.5, 0.5)).pooler_output.flatten(1)
    found = Network(measure="kid", source=resnet).embeddings(pictures)
    assert_allclose(found, told, atol=1e-5)
    Kid(features=resnet).check("sd15/")


def test_what_inception_lacks_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    measure = Kid(features="inception")
    measure.check("sd15/")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert measure.lacking().endswith(
        "needs torch-fidelity, which is not installed: pip install 'palimpsest[inception]'"
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    assert "needs weights-inception-2015-12-05-6726825d.pth" in measure.lacking()
    assert Kid().lacking() == ""


@pytest.mark.parametrize(
    ("settings", "on", "message"),
    [
        ({"features": "/no/such/folder"}, "miniature", "expected a model of transformers, got '/no/such/folder'"),
        ({}, "sd15/", "expected features=FOLDER, a model of transformers, for the base 'sd15/'"),
    ],
)
def test_features_that_are_none_are_refused_before_anything_runs(settings: dict, on: str, message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        Kid(**settings).check(on)


def test_too_few_pictures_are_refused() -> None:
    with pytest.raises(BadSetting, match="expected pictures >= 3, got 2"):
        Kid(pictures=2)
