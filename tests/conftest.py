"""What several test files are handed."""

import shutil

import pytest


@pytest.fixture(scope="session")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image model of transformers that is no CLIP: the miniature's first judge, with an image processor."""
    from measured import processor
    from palimpsest.assets import judge_folder

    folder = tmp_path_factory.mktemp("resnet")
    shutil.copytree(judge_folder("first"), folder, dirs_exist_ok=True)
    processor(folder)
    return str(folder)
