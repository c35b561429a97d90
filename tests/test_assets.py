"""Shipped files that are missing or damaged are named, with what to do."""

import json
from pathlib import Path

import pytest

from palimpsest import assets
from palimpsest.errors import BadAsset


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("model/unet.bin", "model/vae.bin", "twin/unet.bin"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode() * 100)
    assets.write_checksums(tmp_path)
    monkeypatch.setattr(assets, "SHIPPED", tmp_path)
    assets.checked.cache_clear()
    yield tmp_path
    assets.checked.cache_clear()


def test_whole_files_pass(shipped: Path) -> None:
    assert assets.miniature_folder() == shipped / "model"
    assert assets.twin_folder() == shipped / "twin"


@pytest.mark.parametrize("harm", ["cut", "changed"])
def test_a_damaged_file_is_named(shipped: Path, harm: str) -> None:
    path = shipped / "model" / "vae.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] if harm == "cut" else b"x" + whole[1:])
    with pytest.raises(BadAsset, match="vae.bin is damaged: expected SHA-256 .*, got .*; reinstall"):
        assets.miniature_folder()
    # What lies elsewhere is untouched by it.
    assert assets.twin_folder() == shipped / "twin"


def test_a_missing_file_is_named(shipped: Path) -> None:
    (shipped / "twin" / "unet.bin").unlink()
    with pytest.raises(BadAsset, match="unet.bin is missing; reinstall"):
        assets.twin_folder()


def test_a_missing_folder_is_named(shipped: Path) -> None:
    with pytest.raises(BadAsset, match="'clip' is missing"):
        assets.clip_folder()


def test_missing_and_damaged_checksums_are_named(shipped: Path) -> None:
    (shipped / "checksums.json").write_text('{"model/')
    with pytest.raises(BadAsset, match="checksums.json is damaged"):
        assets.miniature_folder()
    (shipped / "checksums.json").unlink()
    with pytest.raises(BadAsset, match="checksums.json is missing.*train-miniature"):
        assets.miniature_folder()


def test_checksums_cover_every_file(shipped: Path) -> None:
    told = json.loads((shipped / "checksums.json").read_text())
    assert sorted(told) == ["model/unet.bin", "model/vae.bin", "twin/unet.bin"]
