"""A text encoder that somebody else erased, alone (AdvUnlearn and its kin): taken whole in every layout, or refused."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
)

from cases import concept
from palimpsest.erasers import Checkpoint
from palimpsest.errors import BadCheckpoint, BadModel
from palimpsest.model import Model
from tiny import CONTEXT, WIDTH, tiny_model, tiny_pipeline

PROMPTS = ("a photo of a church", "", "van gogh painting of a dog")
WEIGHTS = "model.safetensors"
State = dict[str, Tensor]
IDS = torch.arange(CONTEXT)[None]


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


@pytest.fixture(scope="module")
def theirs() -> Any:
    """The donor, as its makers hold it."""
    return tiny_pipeline(seed=1).text_encoder


def load(path: Path, model: Model, **settings: Any) -> Model:
    return Checkpoint(path=str(path), **settings).erase(model, [concept()], random=torch.Generator())


def written(state: State, path: Path) -> Path:
    state = {key: tensor.detach().clone() for key, tensor in state.items()}
    save_file(state, path, metadata={"format": "pt"}) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


def old(theirs: Any) -> State:
    """By the names of 2022."""
    state = {f"text_model.{key}": tensor for key, tensor in theirs.state_dict().items()}
    return state | {"text_model.embeddings.position_ids": IDS}


def wrapped(theirs: Any) -> State:
    """As AdvUnlearn saves it: the encoder, and once more each of its three parts, one of them by another name."""
    state = {f"text_encoder.{key}": tensor for key, tensor in old(theirs).items()}
    again = {key.replace("embeddings.", "embedding.", 1): tensor for key, tensor in theirs.state_dict().items()}
    return state | again | {"embedding.position_ids": IDS}


def clip(theirs: Any) -> CLIPModel:
    """A whole CLIP with the donor for its text half."""
    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    config = CLIPConfig(text_config=theirs.config.to_dict(), vision_config=vision.to_dict(), projection_dim=WIDTH)
    whole = CLIPModel(config)
    whole.text_model.load_state_dict(theirs.state_dict())
    return whole


def folder(theirs: Any, path: Path) -> Path:
    theirs.save_pretrained(path)
    return path


def subfolder(theirs: Any, path: Path) -> Path:
    tiny_pipeline(path, seed=1)
    return path / "text_encoder"


def folder_of_2022(theirs: Any, path: Path) -> Path:
    folder(theirs, path)
    (path / WEIGHTS).unlink()
    written(old(theirs), path / "pytorch_model.bin")
    return path


def sharded(theirs: Any, path: Path) -> Path:
    theirs.save_pretrained(path, max_shard_size="20KB")
    assert len(list(path.glob("model-*.safetensors"))) > 1
    return path


def in_the_hubs_cache(theirs: Any, path: Path) -> Path:
    """A repository of several encoders: each file a link to another folder's."""
    folder(theirs, path / "blobs")
    where = path / "snapshots" / "0123" / "church_unlearned"
    where.mkdir(parents=True)
    for file in (path / "blobs").iterdir():
        os.symlink(os.path.relpath(file, where), where / file.name)
    return where


def with_projection(theirs: Any, path: Path) -> Path:
    projecting = CLIPTextModelWithProjection(theirs.config)
    projecting.text_model.load_state_dict(theirs.state_dict())
    return folder(projecting, path)


LAYOUTS: dict[str, Callable[[Any, Path], Path]] = {
    "transformers' folder": folder,
    "diffusers' subfolder": subfolder,
    "a folder of 2022": folder_of_2022,
    "a folder in shards": sharded,
    "the hub's cache": in_the_hubs_cache,
    "a folder with a projection": with_projection,
    "a folder of a whole CLIP": lambda theirs, path: folder(clip(theirs), path),
    "a file of a whole CLIP": lambda theirs, path: written(clip(theirs).state_dict(), path.with_suffix(".safetensors")),
    "AdvUnlearn's file": lambda theirs, path: written(wrapped(theirs), path.with_suffix(".pt")),
    "a file of 2022": lambda theirs, path: written(old(theirs), path.with_suffix(".bin")),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_victims_text_states_are_the_donors(tmp_path: Path, model: Model, theirs: Any, layout: str) -> None:
    victim = load(LAYOUTS[layout](theirs, tmp_path / "theirs"), model)
    tokens = torch.stack([model.tokens(prompt) for prompt in PROMPTS])
    theirs.set_attn_implementation("eager")
    with torch.no_grad():
        expected = theirs(tokens).last_hidden_state
        assert torch.equal(victim.embed(PROMPTS).states, expected)
        assert not torch.allclose(model.embed(PROMPTS).states, expected, atol=0.1)
    weights = victim.weights()
    assert all(weight is weights[name] for name, weight in model.weights(r"(unet|vae)\..*").items())
    assert (victim.dtype, victim.batch) == (model.dtype, model.batch)


def test_a_denoisers_folder_alone(tmp_path: Path, model: Model) -> None:
    tiny_pipeline(tmp_path, seed=1)
    found = load(tmp_path / "unet", model).weights()
    for name, weight in tiny_model(seed=1).weights(r"unet\..*").items():
        assert torch.equal(found[name], weight)
    assert all(weight is found[name] for name, weight in model.weights(r"text_encoder\..*").items())


def test_names_that_load_nothing_are_an_error(tmp_path: Path, model: Model, theirs: Any) -> None:
    """UnlearnDiffAtk loads such a file with strict=False, and then attacks the encoder that nobody erased."""
    state = {f"te.{key}": tensor for key, tensor in theirs.state_dict().items()}
    lenient = tiny_pipeline().text_encoder
    lenient.load_state_dict(state, strict=False)
    assert torch.equal(lenient.final_layer_norm.weight, model.weights()["text_encoder.final_layer_norm.weight"])
    with pytest.raises(BadCheckpoint, match=f"got {len(state)} keys of which none fits: te.embeddings.token_embedding"):
        load(written(state, tmp_path / "theirs.pt"), model)


def test_one_name_that_does_not_fit_is_an_error(tmp_path: Path, model: Model, theirs: Any) -> None:
    state = wrapped(theirs)
    state["encoder.layers.9.mlp.fc1.bias"] = torch.ones(1)
    with pytest.raises(BadCheckpoint, match=r"1 of \d+ keys do not fit the base: encoder.layers.9.mlp.fc1.bias"):
        load(written(state, tmp_path / "theirs.pt"), model)


def test_two_copies_that_differ_are_an_error(tmp_path: Path, model: Model, theirs: Any) -> None:
    state = wrapped(theirs)
    state["embedding.token_embedding.weight"] = state["embedding.token_embedding.weight"] + 1
    with pytest.raises(BadCheckpoint, match=r"embedding.token_embedding.weight \(another key names the same weight"):
        load(written(state, tmp_path / "theirs.pt"), model)


def test_the_other_half_of_a_clip_alone_is_an_error(tmp_path: Path, model: Model, theirs: Any) -> None:
    state = {key: value for key, value in clip(theirs).state_dict().items() if not key.startswith("text_model.")}
    with pytest.raises(BadCheckpoint, match="of which none fits: logit_scale"):
        load(written(state, tmp_path / "theirs.safetensors"), model)


def _lost(path: Path) -> None:
    state = load_file(path / WEIGHTS)
    del state["encoder.layers.1.mlp.fc1.bias"]
    written(state, path / WEIGHTS)


def _too_many(path: Path) -> None:
    written(load_file(path / WEIGHTS) | {"trigger": torch.ones(1)}, path / WEIGHTS)


def _config(**changes: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | changes))

    return change


def _fewer_layers(path: Path) -> None:
    """A whole encoder, all of whose weights have a place in the base, and some of the base's have none in it."""
    CLIPTextModel(CLIPTextConfig.from_pretrained(path, num_hidden_layers=1)).save_pretrained(path)


def _wider(path: Path) -> None:
    CLIPTextModel(CLIPTextConfig.from_pretrained(path, intermediate_size=WIDTH)).save_pretrained(path)


def _code(path: Path) -> None:
    (path / "network.py").write_text("raise SystemExit")


def _shard_outside(path: Path) -> None:
    index = {"metadata": {}, "weight_map": {"final_layer_norm.bias": "../../secret.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def _link_outside(path: Path) -> None:
    shutil.move(path / WEIGHTS, path.parent / "elsewhere.safetensors")
    os.symlink(path.parent / "elsewhere.safetensors", path / WEIGHTS)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_lost, "lacks 1 of its weights, the first is encoder.layers.1.mlp.fc1.bias"),
        (_too_many, "has no place for 1 of its weights, the first is trigger"),
        (_config(hidden_act="gelu"), "expected the base's hidden_act quick_gelu, got gelu"),
        (_config(num_attention_heads=4), "expected the base's num_attention_heads 2, got 4"),
        (_config(architectures=["BertModel"]), "expected a folder of .*CLIPTextModel.* got BertModel"),
        (_config(architectures=None), "expected a folder of .*CLIPTextModel.* got None"),
        (_config(auto_map={"AutoModel": "x.Y"}), "asks for code of its own"),
        (_fewer_layers, "expected the base's num_hidden_layers 2, got 1"),
        (_wider, r"mlp.fc1.bias \(expected shape \(32,\), got \(16,\)\)"),
        (_code, "network.py is code"),
        (_shard_outside, "names weights outside its folder"),
        (_link_outside, "leads out of the model's folder"),
    ],
)
def test_a_folder_that_does_not_fit_says_why(
    tmp_path: Path, model: Model, theirs: Any, harm: Callable[[Path], None], message: str
) -> None:
    path = folder(theirs, tmp_path / "theirs")
    load(path, model)
    harm(path)
    with pytest.raises(BadModel, match=message) as raised:
        load(path, model)
    assert "\n" not in str(raised.value)
    with pytest.raises(BadModel):  # what is said to be partial is no excuse
        load(path, model, partial=True)


def test_a_denoiser_that_is_told_to_work_otherwise_does_not_fit(tmp_path: Path, model: Model) -> None:
    tiny_pipeline(tmp_path, seed=1)
    load(tmp_path / "unet", model)
    _config(attention_head_dim=4)(tmp_path / "unet")
    with pytest.raises(BadCheckpoint, match="expected the base's attention_head_dim 2, got 4"):
        load(tmp_path / "unet", model)
