"""Opening what somebody else made: old and new formats, and everything that must be refused."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from palimpsest.errors import BadModel
from palimpsest.model import Model, Sampling, loading
from tiny import tiny_model, tiny_pipeline

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_pipeline(folder)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "model"))


def load(folder: Path) -> Model:
    return Model.load(folder, device="cpu")


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Edits a JSON file in place."""
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_a_folder_opens_as_it_was_written(written: Path) -> None:
    assert load(written).fingerprint == tiny_model().fingerprint


def test_the_text_encoder_is_opened_in_the_wanted_type(folder: Path) -> None:
    """Transformers keeps the stored type where diffusers does not: mixed, the two would not run together."""
    for name in (UNET, VAE, TEXT):
        half = {key: weight.half() for key, weight in load_file(folder / name).items()}
        save_file(half, folder / name, metadata={"format": "pt"})
    change(folder / "text_encoder/config.json", lambda config: config.update(dtype="float16"))
    model = load(folder)
    assert {weight.dtype for weight in model.weights().values()} == {torch.float32}
    assert model.embed(["a church"]).states.dtype == torch.float32
    assert Model.load(folder, device="cpu", dtype=torch.bfloat16).vocabulary.dtype == torch.bfloat16


def test_files_as_old_as_stable_diffusion_1_open_the_same(folder: Path) -> None:
    """Names of 2022: ``text_model.`` before the text encoder's, position ids among them, query/key/value in the VAE."""
    text = {f"text_model.{key}": weight for key, weight in load_file(folder / TEXT).items()}
    text["text_model.embeddings.position_ids"] = torch.arange(16)[None]
    (folder / TEXT).unlink()
    torch.save(text, folder / "text_encoder/pytorch_model.bin")
    renamed = {}
    for key, weight in load_file(folder / VAE).items():
        for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            key = key.replace(f"attentions.0.{new}", f"attentions.0.{old}")
        renamed[key] = weight
    assert any("proj_attn" in key for key in renamed)
    save_file(renamed, folder / VAE, metadata={"format": "pt"})
    torch.save(load_file(folder / UNET), folder / "unet/diffusion_pytorch_model.bin")
    (folder / UNET).unlink()
    assert load(folder).fingerprint == tiny_model().fingerprint


def test_half_precision_files_alone_are_enough(folder: Path) -> None:
    (folder / UNET).rename(folder / "unet/diffusion_pytorch_model.fp16.safetensors")
    assert load(folder).fingerprint == tiny_model().fingerprint


def test_an_old_scheduler_is_mended_as_the_pipeline_mends_it(folder: Path) -> None:
    change(folder / "scheduler/scheduler_config.json", lambda config: config.update(steps_offset=0, clip_sample=True))
    assert load(folder).schedule(Sampling(steps=4)) == tiny_model().schedule(Sampling(steps=4)) == [751, 501, 251, 1]


# What is refused -----------------------------------------------------------------------------------------------------


def _without_unet(folder: Path) -> None:
    shutil.rmtree(folder / "unet")


def _index(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder / "model_index.json", lambda index: index.update(changes))


def _scheduler(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder / "scheduler/scheduler_config.json", lambda config: config.update(changes))


def _nan(folder: Path) -> None:
    weights = load_file(folder / UNET)
    weights["conv_in.weight"][0, 0] = torch.nan
    save_file(weights, folder / UNET, metadata={"format": "pt"})


def _cut(folder: Path) -> None:
    whole = (folder / UNET).read_bytes()
    (folder / UNET).write_bytes(whole[: len(whole) // 2])


def _one_missing(folder: Path) -> None:
    weights = load_file(folder / UNET)
    del weights["conv_in.weight"]
    save_file(weights, folder / UNET, metadata={"format": "pt"})


def _one_too_many(folder: Path) -> None:
    save_file(load_file(folder / UNET) | {"trigger": torch.ones(1)}, folder / UNET, metadata={"format": "pt"})


def _wrong_shape(folder: Path) -> None:
    weights = load_file(folder / TEXT)
    weights["final_layer_norm.weight"] = torch.ones(3)
    save_file(weights, folder / TEXT, metadata={"format": "pt"})


def _wrong_unet_shape(folder: Path) -> None:
    save_file(load_file(folder / UNET) | {"conv_in.bias": torch.ones(3)}, folder / UNET, metadata={"format": "pt"})


def _no_weights(folder: Path) -> None:
    (folder / VAE).unlink()


def _no_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def _torn_index(folder: Path) -> None:
    (folder / "model_index.json").write_text('{"_class_name": ')


def _code(folder: Path) -> None:
    (folder / "unet/network.py").write_text("raise SystemExit")


def _auto_map(folder: Path) -> None:
    change(folder / "tokenizer/tokenizer_config.json", lambda config: config.update(auto_map={"AutoTokenizer": "x.Y"}))


def _shard_outside(folder: Path) -> None:
    index = {"metadata": {}, "weight_map": {"conv_in.weight": "../../secret.safetensors"}}
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def _link_outside(folder: Path) -> None:
    (folder / UNET).rename(folder.parent / "elsewhere.safetensors")
    os.symlink(folder.parent / "elsewhere.safetensors", folder / UNET)


def _labelled(folder: Path) -> None:
    config = UNet2DConditionModel.load_config(folder / "unet")
    UNet2DConditionModel.from_config(config, class_embed_type="timestep").save_pretrained(folder / "unet")


def _other_channels(folder: Path) -> None:
    config = UNet2DConditionModel.load_config(folder / "unet")
    UNet2DConditionModel.from_config(config, in_channels=9).save_pretrained(folder / "unet")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_without_unet, "has no 'unet' folder: expected unet, text_encoder, vae, tokenizer, scheduler"),
        (_index(unet=[None, None]), "has no unet"),
        (
            _index(unet=["diffusers", "FluxTransformer2DModel"]),
            "expected unet in .* UNet2DConditionModel, got diffusers.Flux",
        ),
        (_index(vae=["mine", "AutoencoderKL"]), "got mine.AutoencoderKL"),
        (
            _index(_class_name="StableDiffusionXLPipeline"),
            "expected a StableDiffusionPipeline .* got 'StableDiffusionXL",
        ),
        (_index(_class_name=["pipeline.py", "Mine"]), "expected a StableDiffusionPipeline"),
        (_no_index, "has no model_index.json"),
        (_torn_index, "cannot read .*model_index.json"),
        (_nan, r"unet.conv_in.weight in .* holds values that are no numbers"),
        (_cut, "cannot read unet of"),
        (_one_missing, "lacks 1 of its weights, the first is conv_in.weight"),
        (_one_too_many, "has no place for 1 of its weights, the first is trigger"),
        (_wrong_shape, "has another shape for 1 of its weights, the first is final_layer_norm.weight"),
        (_wrong_unet_shape, "cannot read unet of .* conv_in.bias"),
        (_no_weights, "holds no weights: expected diffusion_pytorch_model.safetensors"),
        (_code, "network.py is code"),
        (_auto_map, "auto_map"),
        (_shard_outside, "names weights outside its folder: '../../secret.safetensors'"),
        (_link_outside, "leads out of the model's folder"),
        (_labelled, "plain Stable Diffusion denoiser in .* got one with class_embed_type=timestep"),
        (_other_channels, "expected a denoiser of 4 channels, .* got 9"),
        (_scheduler(prediction_type="sample"), "expected prediction type epsilon or v_prediction .* got sample"),
        (_scheduler(rescale_betas_zero_snr=True), "keeps some signal at its last step"),
    ],
)
def test_a_folder_that_cannot_be_used_says_why(folder: Path, harm: Callable[[Path], None], message: str) -> None:
    load(folder)
    harm(folder)
    with pytest.raises(BadModel, match=message) as raised:
        load(folder)
    assert "\n" not in str(raised.value)


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model", "text_encoder/pytorch_model"])
def test_a_pickle_that_would_run_code_does_not(folder: Path, tmp_path: Path, part: str) -> None:
    safe = folder / (TEXT if part.startswith("text") else UNET)
    state = load_file(safe)
    safe.unlink()
    torch.save(state | {"conv_in.weight": Bomb(tmp_path / "ran")}, folder / f"{part}.bin")
    with pytest.raises(BadModel, match=f"cannot read {part.partition('/')[0]} of"):
        load(folder)
    assert not (tmp_path / "ran").exists()
    # The bomb is a real one.
    with pytest.raises((RuntimeError, pickle.UnpicklingError)):
        torch.load(folder / f"{part}.bin", weights_only=True)
    torch.load(folder / f"{part}.bin", weights_only=False)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "found nothing at 'nowhere'"),
        ("./no/such/folder", "found nothing"),
        ("somebody/some-model", "no folder 'somebody/some-model' here .* --download"),
    ],
)
def test_what_is_not_there_is_not_fetched(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*arguments: Any, local_files_only: bool, **named: Any) -> str:
        assert local_files_only
        return fetch(*arguments, local_files_only=local_files_only, **named)

    fetch = loading.snapshot_download
    monkeypatch.setattr(loading, "snapshot_download", asked)
    with pytest.raises(BadModel, match=message):
        Model.load(name)


def test_a_hub_model_is_fetched_only_when_told_to(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(name: str, *, local_files_only: bool, **named: Any) -> str:
        assert name == "somebody/some-model" and not local_files_only
        return str(written)

    monkeypatch.setattr(loading, "snapshot_download", fetched)
    model = Model.load("somebody/some-model", download=True, device="cpu")
    assert model.fingerprint == tiny_model().fingerprint


def test_a_pickle_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"")
    with pytest.raises(BadModel, match=r"expected a folder or a .safetensors file, got 'model.ckpt'"):
        Model.load(tmp_path / "model.ckpt")
