"""What several test files are handed."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], Any]:
    """What a training gives that is stopped after its second iteration, and then gone on with."""
    from palimpsest import fitting

    class Stopped(Exception):
        pass

    def stop(phase: str, done: int, of: int) -> None:
        if done == 2:
            raise Stopped

    def gone_on_with(train: Callable[[], Any]) -> Any:
        monkeypatch.setattr(fitting, "KEPT_AFTER", 0.0)
        with pytest.raises(Stopped), fitting.training_in(tmp_path, progress=stop):
            train()
        phases: list[int] = []
        with fitting.training_in(tmp_path, progress=lambda phase, done, of: phases.append(done)):
            trained = train()
        assert phases[0] > 2, "it began anew"
        return trained

    return gone_on_with


@pytest.fixture(scope="session", autouse=True)
def measured_briefly() -> Iterator[None]:
    """Every forecast measures the model's speed, for a second; here for less."""
    from palimpsest.forecast import speed

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(speed.__kwdefaults__, "seconds", 0.02)
        yield


@pytest.fixture(scope="session")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image model of transformers that is no CLIP: the miniature's first judge, with an image processor."""
    from measured import processor
    from palimpsest.assets import judge_folder

    folder = tmp_path_factory.mktemp("resnet")
    shutil.copytree(judge_folder("first"), folder, dirs_exist_ok=True)
    processor(folder)
    return str(folder)
