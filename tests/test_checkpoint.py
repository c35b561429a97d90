"""What somebody else erased is taken whole or refused by name."""

import contextlib
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import save_file

from cases import concept
from palimpsest.erasers import Checkpoint, Uce
from palimpsest.errors import BadCheckpoint, BadModel, BadSetting
from tiny import CONTEXT, tiny_model, tiny_pipeline

KEY = "conv_in.weight"


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def theirs():
    return tiny_model(seed=1)


def load(path, model, **settings):
    return Checkpoint(path=str(path), **settings).erase(model, [concept()], random=torch.Generator())


def write(path, state):
    state = {key: tensor.detach().clone() for key, tensor in state.items()}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def same(found, expected, part):
    weights = found.weights()
    return all(torch.equal(weights[name], weight) for name, weight in expected.weights(rf"{part}\..*").items())


@pytest.mark.parametrize("ending", ["safetensors", "pt", "pth", "bin"])
@pytest.mark.parametrize("prefix", ["", "unet."])
def test_a_denoiser(tmp_path, model, theirs, ending, prefix):
    state = {prefix + key: tensor for key, tensor in theirs.unet.state_dict().items()}
    found = load(write(tmp_path / f"theirs.{ending}", state), model)
    assert not same(model, theirs, "unet")
    assert same(found, theirs, "unet")
    assert same(found, model, "text_encoder")


@pytest.mark.parametrize("prefix", ["", "text_encoder.", "text_model.", "text_encoder.text_model."])
def test_a_text_encoder_by_its_new_and_its_old_names(tmp_path, model, theirs, prefix):
    state = {prefix + key: tensor for key, tensor in theirs.text_encoder.state_dict().items()}
    # Older files carry this constant.
    state[prefix + "embeddings.position_ids"] = torch.arange(CONTEXT)[None]
    found = load(write(tmp_path / "theirs.pt", state), model)
    assert same(found, theirs, "text_encoder")
    assert same(found, model, "unet")


def test_a_constant_with_another_value_is_no_constant(tmp_path, model, theirs):
    state = theirs.text_encoder.state_dict() | {"embeddings.position_ids": torch.arange(CONTEXT)[None] + 1}
    with pytest.raises(BadCheckpoint, match=r"1 of .* do not fit the base: embeddings.position_ids \(no such weight\)"):
        load(write(tmp_path / "theirs.pt", state), model)


def test_both_at_once(tmp_path, model, theirs):
    state = {f"unet.{key}": tensor for key, tensor in theirs.unet.state_dict().items()}
    state |= {f"text_encoder.{key}": tensor for key, tensor in theirs.text_encoder.state_dict().items()}
    found = load(write(tmp_path / "theirs.safetensors", state), model)
    assert same(found, theirs, "unet")
    assert same(found, theirs, "text_encoder")


def test_a_part_of_a_denoiser_only_if_it_is_said_to_be_one(tmp_path, model):
    ours = Uce().erase(model, [concept()], random=torch.Generator())
    edited = ours.weights(r"unet\..*\.attn2\.to_[kv]\.weight")
    path = write(tmp_path / "uce.safetensors", {name.removeprefix("unet."): weight for name, weight in edited.items()})
    with pytest.raises(
        BadCheckpoint, match=rf"only {len(edited)} of \d+ weights of the base's unet; set partial = true"
    ):
        load(path, model)
    assert load(path, model, partial=True).fingerprint == ours.fingerprint


def test_a_lost_weight_is_named(tmp_path, model, theirs):
    state = dict(theirs.unet.state_dict())
    del state[KEY]
    with pytest.raises(BadCheckpoint, match=f"missing: unet.{KEY}"):
        load(write(tmp_path / "theirs.safetensors", state), model)


def test_every_key_that_does_not_fit_is_named(tmp_path, model, theirs):
    state = dict(theirs.unet.state_dict())
    state |= {"one.too.many": torch.ones(1), "lora.up": torch.ones(1), KEY: torch.ones(2, 2)}
    state["conv_in.bias"] = torch.ones(16, dtype=torch.int8)
    state["conv_out.bias"] = torch.tensor([1.0, float("nan"), float("inf"), 0.0])
    state["unet.conv_norm_out.bias"] = state["conv_norm_out.bias"] + 1
    with pytest.raises(BadCheckpoint) as caught:
        load(write(tmp_path / "theirs.safetensors", state), model)
    message = str(caught.value)
    assert "6 of" in message
    for fault in (
        "one.too.many (no such weight)",
        "lora.up (no such weight)",
        "conv_in.weight (expected shape (16, 4, 3, 3), got (2, 2))",
        "conv_in.bias (expected floating point, got int8)",
        "conv_out.bias (2 of 4 numbers are NaN or infinite)",
        "(another key names the same weight, with other numbers)",
    ):
        assert fault in message
    assert "\n" not in message


def test_a_number_too_large_for_the_bases_type_is_infinite(tmp_path, theirs):
    state = dict(theirs.unet.state_dict())
    state["conv_out.bias"] = torch.full((4,), 1e6)
    path = write(tmp_path / "theirs.safetensors", state)
    load(path, tiny_model())
    with pytest.raises(BadCheckpoint, match=r"conv_out.bias \(4 of 4 numbers are NaN or infinite\)"):
        load(path, tiny_model(dtype=torch.float16))


def test_a_file_of_something_else_is_told_in_short(tmp_path, model):
    state = {f"model.diffusion_model.layer{n}": torch.ones(1) for n in range(50)}
    with pytest.raises(
        BadCheckpoint, match=r"got 50 keys of which none fits: model.diffusion_model.layer0, .* \.\.\.$"
    ):
        load(write(tmp_path / "theirs.pt", state), model)


def test_a_pipeline_folder(tmp_path, model, theirs):
    tiny_pipeline(tmp_path / "folder", seed=1)
    found = load(tmp_path / "folder", model)
    assert found.fingerprint == theirs.fingerprint
    assert (found.batch, found.dtype) == (model.batch, model.dtype)


def test_a_folder_of_another_family(tmp_path, model):
    tiny_pipeline(tmp_path / "folder", prediction_type="v_prediction")
    with pytest.raises(BadCheckpoint, match="expected the base's prediction_type epsilon, got v_prediction"):
        load(tmp_path / "folder", model)


def test_a_folder_without_a_denoiser(tmp_path, model):
    tiny_pipeline(tmp_path / "folder")
    shutil.rmtree(tmp_path / "folder" / "unet")
    with pytest.raises(BadModel, match="unet"):
        load(tmp_path / "folder", model)


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def as_zip(value, path):
    torch.save(value, path)


def as_legacy(value, path):
    torch.save(value, path, _use_new_zipfile_serialization=False)


def as_bare_pickle(value, path):
    path.write_bytes(pickle.dumps(value, protocol=2))


@pytest.mark.parametrize("save", [as_zip, as_legacy, as_bare_pickle])
def test_a_pickle_that_would_run_code_does_not(tmp_path, model, save):
    witness, path = tmp_path / "ran", tmp_path / "theirs.pt"
    save({KEY: Harmful(witness)}, path)
    with pytest.raises(BadCheckpoint, match="objects whose opening could run code; nothing was run") as caught:
        load(path, model)
    assert "\n" not in str(caught.value)
    assert not witness.exists()
    # It would have, had it been trusted.
    with contextlib.suppress(RuntimeError):
        torch.load(path, weights_only=False)
    assert witness.exists()


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
@pytest.mark.parametrize("keep", [0, 5, 200, -100])
def test_a_file_cut_short(tmp_path, model, theirs, ending, keep):
    path = write(tmp_path / f"theirs.{ending}", theirs.unet.state_dict())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BadCheckpoint, match="not a whole|not a PyTorch file|cannot be read") as caught:
        load(path, model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["hello", "<html>", "{}"])
@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_a_file_of_words(tmp_path, model, ending, content):
    path = tmp_path / f"theirs.{ending}"
    path.write_text(content)
    with pytest.raises(BadCheckpoint, match="not a whole|not a PyTorch file|cannot be read"):
        load(path, model)


@pytest.mark.parametrize(
    ("value", "got"), [([torch.ones(1)], "list"), ({}, "dict"), ({"state_dict": {}}, "dict at 'state_dict'")]
)
def test_a_file_that_holds_no_state_dict(tmp_path, model, value, got):
    torch.save(value, tmp_path / "theirs.pt")
    with pytest.raises(BadCheckpoint, match=f"expected a state dict .* got {got}"):
        load(tmp_path / "theirs.pt", model)


def test_refuses_a_path_before_any_model_is_opened(tmp_path):
    with pytest.raises(BadSetting, match="no such file"):
        Checkpoint(path=str(tmp_path / "missing.pt"))
    (tmp_path / "theirs.zip").touch()
    with pytest.raises(BadSetting, match="expected a folder or a file ending in"):
        Checkpoint(path=str(tmp_path / "theirs.zip"))
