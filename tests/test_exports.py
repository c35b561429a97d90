"""What leaves by ``palimpsest erase`` comes back by ``checkpoint``, and opens in plain diffusers: the same model."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from safetensors.torch import load_file
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.model import Model, Sampling
from palimpsest.records import Attempt
from releases import RELEASES, differ, drawn_by, opened

GOALS = 6
FLAGS: dict[str, list[str]] = {"whole": [], "partial.safetensors": [], "lora.safetensors": ["--lora"]}
"""The ways out, by what they are written as."""
OLD = "ignore:The configuration file of the unet:FutureWarning"


def call(*arguments: object) -> None:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output


def export(base: object, folder: Path) -> list[Path]:
    """UCE's model, three ways."""
    for name, flags in FLAGS.items():
        call("erase", "--base", base, "--concept", "church", "--eraser", "uce", "--out", folder / name, *flags)
    return [folder / name for name in FLAGS]


@pytest.mark.slow
def test_the_verdicts_are_those_of_the_eraser_itself(tmp_path: Path) -> None:
    whole, partial, lora = export("miniature", tmp_path)
    read = [{"name": "checkpoint", "path": str(path)} for path in (whole, partial, lora)]
    read[1]["partial"] = True
    table = {
        "concepts": ["church"],
        "erasers": ["nothing", "uce", *read],
        "attacks": ["direct"],
        "judges": ["miniature"],
        "measures": [],
        "goals": GOALS,
        "batch": GOALS,
        "keep": "all",
        "sampling": {"steps": 10},
    }
    (tmp_path / "mine.toml").write_text(tomli_w.dumps(table))
    call("audit", tmp_path / "mine.toml", "--out", tmp_path / "run")
    trials = [json.loads(line) for line in (tmp_path / "run" / "trials.jsonl").read_text().splitlines()]
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    prints = {}
    for trial in trials:
        victim = trial["victim"]
        found[victim["eraser"]][json.dumps(trial["goal"])] = (trial["picture"], trial["verdict"])
        prints[victim["eraser"]] = victim["fingerprint"]
    assert len(found) == 5 and {len(goals) for goals in found.values()} == {GOALS}
    none, uce, *exported = (found[label] for label in (*_labels(found, "nothing", "uce", "whole", "partial", "lora"),))
    assert exported[0] == exported[1] == uce
    assert [one["shown"] for _, one in exported[2].values()] == [one["shown"] for _, one in uce.values()]
    # And it is not as if nothing had happened.
    assert not {picture for picture, _ in none.values()} & {picture for picture, _ in uce.values()}
    assert sum(one["shown"] for _, one in none.values()) > sum(one["shown"] for _, one in uce.values())


def _labels(found: dict[str, Any], *words: str) -> list[str]:
    return [next(label for label in found if word in label) for word in words]


@pytest.mark.filterwarnings(OLD)
@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("miniature", "1.4")), "2.1"]
)
def test_plain_diffusers_draws_the_same(tmp_path: Path, name: str) -> None:
    """What is written of the base and of the erased model, and the LoRA on the base."""
    base: Any = name
    if name in RELEASES:
        base = tmp_path / "published"
        RELEASES[name](base)
    attempt = Attempt(prompt="a photo of a church", seed=5)
    untouched = Model.load(base, device="cpu", batch=1, attention="sdpa")
    untouched.save(tmp_path / "base")
    whole, partial, lora = export(base, tmp_path)
    erased = Model.load(whole, device="cpu", batch=1, attention="sdpa")
    ours = [model.draw([attempt], Sampling(steps=3))[0] for model in (untouched, erased)]
    size = untouched.picture_size
    theirs = [drawn_by(opened(folder), attempt, size) for folder in (tmp_path / "base", whole)]
    with_lora = opened(tmp_path / "base")
    with_lora.load_lora_weights(load_file(lora))
    theirs.append(drawn_by(with_lora, attempt, size))
    found = [differ(one, other) for one, other in zip((*ours, ours[1]), theirs, strict=True)]
    # Half a step of 255 is what the order of the additions leaves; the erasure is far beyond it.
    assert max(found) < 0.5 and differ(*ours) > 2 * max(found), (found, differ(*ours))
