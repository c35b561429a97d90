"""Weights in the layouts of peft, diffusers, kohya and CompVis: what those libraries make of them is what we make."""

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_kohya
from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from cases import concept
from palimpsest.cli import app
from palimpsest.erasers import Checkpoint
from palimpsest.erasing import difference
from palimpsest.errors import BadCheckpoint, BadRun
from palimpsest.model import Model, Sampling
from palimpsest.model.layouts import to_low_rank
from palimpsest.records import Attempt
from tiny import tiny_model, tiny_pipeline

RANK, ALPHA = 3, 6.0
LINEARS = ["to_q", "to_k", "to_out.0", "proj_in", "ff.net.0.proj"]


def load(path, model, **settings):
    return Checkpoint(path=str(path), **settings).erase(model, [concept()], random=torch.Generator())


def close(found, expected):
    weights = found.weights()
    return all(
        torch.allclose(weights[f"{part}.{name}"], weight, atol=1e-6)
        for part in ("unet", "text_encoder")
        for name, weight in getattr(expected, part).named_parameters()
    )


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture
def tuned():
    """A pipeline with a LoRA in its denoiser, as a user of diffusers trains one."""
    pipeline = tiny_pipeline()
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=[*LINEARS, "conv1"], init_lora_weights=False)
    torch.manual_seed(5)
    pipeline.unet.add_adapter(config, adapter_name="default")
    return pipeline


def merged(tuned):
    """The same with the LoRA merged by peft, by plain names."""
    for module in tuned.unet.modules():
        if hasattr(module, "merge"):
            module.merge()
    plain = tiny_pipeline()
    told = {name.replace(".base_layer", ""): weight for name, weight in tuned.unet.state_dict().items()}
    plain.unet.load_state_dict({name: weight for name, weight in told.items() if "lora_" not in name})
    return plain


def test_diffusers_layout_with_its_settings(tmp_path, model, tuned):
    state = get_peft_model_state_dict(tuned.unet)
    about = tuned.unet.peft_config["default"].to_dict()
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=state, unet_lora_adapter_metadata=about)
    found = load(tmp_path / "pytorch_lora_weights.safetensors", model)
    expected = merged(tuned)
    assert close(found, expected) and not close(model, expected)


def test_each_part_has_settings_of_its_own(tmp_path, model, tuned):
    """A denoiser and a text encoder tuned with different alphas, against diffusers' own merging."""
    torch.manual_seed(6)
    config = LoraConfig(r=2, lora_alpha=1.0, target_modules=["q_proj"], init_lora_weights=False)
    tuned.text_encoder.add_adapter(config, adapter_name="default")
    parts = {"unet": tuned.unet, "text_encoder": tuned.text_encoder}
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        **{f"{name}_lora_layers": get_peft_model_state_dict(part) for name, part in parts.items()},
        **{f"{name}_lora_adapter_metadata": part.peft_config["default"].to_dict() for name, part in parts.items()},
    )
    path = tmp_path / "pytorch_lora_weights.safetensors"
    found = load(path, model).weights()
    theirs = tiny_pipeline()
    theirs.load_lora_weights(tmp_path)
    theirs.fuse_lora()
    for name, part in (("unet", theirs.unet), ("text_encoder", theirs.text_encoder)):
        for key, weight in part.named_parameters():
            if "lora_" not in key:
                assert torch.allclose(found[f"{name}.{key.replace('.base_layer', '')}"], weight, atol=1e-5), key


def test_pefts_folder(tmp_path, model, tuned):
    state = {f"base_model.model.{key}": value for key, value in get_peft_model_state_dict(tuned.unet).items()}
    save_file(state, tmp_path / "adapter_model.safetensors")
    tuned.unet.peft_config["default"].save_pretrained(tmp_path)
    assert close(load(tmp_path, model), merged(tuned))


@pytest.mark.parametrize(("changed", "factor"), [({"lora_alpha": 3.0}, 0.5), ({"use_rslora": True}, RANK**0.5)])
def test_pefts_settings_scale_what_is_added(tmp_path, model, tuned, changed, factor):
    state = get_peft_model_state_dict(tuned.unet)
    save_file(state, tmp_path / "adapter_model.safetensors")
    tuned.unet.peft_config["default"].save_pretrained(tmp_path)
    before = difference(load(tmp_path, model), model)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    after = load(tmp_path, model).weights()
    base = model.weights()
    for name, weight in before.items():
        assert torch.allclose(after[name] - base[name], factor * (weight - base[name]), atol=1e-5)


def test_kohyas_layout(tmp_path, model, tuned):
    state = {f"unet.{key}": value for key, value in get_peft_model_state_dict(tuned.unet).items()}
    kohya = convert_state_dict_to_kohya(state)
    kohya = {key.replace("unet_", "lora_unet_", 1) if key[:5] == "unet_" else key: v for key, v in kohya.items()}
    kohya |= {key: torch.tensor(ALPHA) for key in kohya if key.endswith(".alpha")}
    save_file({key: value.clone() for key, value in kohya.items()}, tmp_path / "kohya.safetensors")
    assert any(key.startswith("lora_unet_down_blocks_0_") for key in kohya)
    assert close(load(tmp_path / "kohya.safetensors", model), merged(tuned))


def test_the_older_layouts_of_diffusers(tmp_path, model):
    """Attention processors, and linear layers of the text encoder; without alpha the scale is 1."""
    random = torch.Generator().manual_seed(3)
    weights = model.weights()
    state, expected = {}, {}
    for old, new in {
        "unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_q_lora": "attn2.to_q.weight",
        "unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_out_lora": "attn2.to_out.0.weight",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer": "layers.0.self_attn.q_proj.weight",  # noqa: E501
    }.items():
        name = next(key for key in weights if key.endswith(new) and ("mid_block" in key or "layers" in key))
        out, into = weights[name].shape
        down, up = torch.randn(2, into, generator=random), torch.randn(out, 2, generator=random)
        state |= {f"{old}.down.weight": down, f"{old}.up.weight": up}
        expected[name] = weights[name] + up @ down
    save_file(state, tmp_path / "old.safetensors")
    found = difference(load(tmp_path / "old.safetensors", model), model)
    assert set(found) == set(expected)
    assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in expected)


@pytest.mark.parametrize(
    ("mutate", "message"),
    [
        (lambda s: s | {"unet.nowhere.lora_A.weight": torch.ones(1, 1)}, "unet.nowhere.lora_A.weight .no such layer"),
        (lambda s: {k: v for k, v in s.items() if "lora_A" in k}, "expected two matrices, got down alone"),
        (lambda s: {k: v[:, :-1].clone() for k, v in s.items()}, "expected matrices for"),
        (lambda s: {k: v * torch.nan for k, v in s.items()}, "expected finite"),
        (lambda s: s | {"unet.conv_in.lora_B.bias": torch.ones(1)}, "unet.conv_in.lora_B.bias .no low-rank matrix"),
    ],
)
def test_every_key_of_a_lora_that_does_not_fit_is_named(tmp_path, model, tuned, mutate, message):
    state = {f"unet.{key}": value for key, value in get_peft_model_state_dict(tuned.unet).items()}
    save_file(mutate({k: v for k, v in state.items() if "to_q" in k}), tmp_path / "x.safetensors")
    with pytest.raises(BadCheckpoint, match=message):
        load(tmp_path / "x.safetensors", model)


@pytest.mark.parametrize(
    "told", [{"use_dora": True}, {"fan_in_fan_out": True}, {"peft_type": "LOHA"}, {"init_lora_weights": "pissa"}]
)
def test_another_kind_of_adapter_is_refused_by_its_settings(tmp_path, model, tuned, told):
    save_file(get_peft_model_state_dict(tuned.unet), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(told))
    with pytest.raises(BadCheckpoint, match=f"expected a plain LoRA, got one with {next(iter(told))} = "):
        load(tmp_path, model)


def of_peft(config):
    """The keys under which peft saves such an adapter of the denoiser."""
    unet = tiny_pipeline().unet
    inject_adapter_in_model(config, unet)
    return get_peft_model_state_dict(unet)


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("DoRA", lambda: of_peft(LoraConfig(r=2, use_dora=True, target_modules=["to_q"]))),
        ("LoHa", lambda: of_peft(LoHaConfig(r=2, target_modules=["to_q"]))),
        ("LoKr", lambda: of_peft(LoKrConfig(r=2, target_modules=["to_q"]))),
        ("OFT", lambda: of_peft(OFTConfig(oft_block_size=4, target_modules=["to_q"]))),
        ("IA3", lambda: of_peft(IA3Config(target_modules=["to_q"], feedforward_modules=[]))),
        ("DoRA", lambda: {"lora_unet_conv_in.dora_scale": torch.ones(1)}),
        ("LoHa", lambda: {"lora_unet_conv_in.hada_w1_a": torch.ones(1)}),
        ("LoKr", lambda: {"lora_unet_conv_in.lokr_w1": torch.ones(1)}),
        ("LoCon in Tucker's form", lambda: {"lora_unet_conv_in.lora_mid.weight": torch.ones(1)}),
        ("full difference", lambda: {"lora_unet_conv_in.diff": torch.ones(1)}),
    ],
)
def test_another_kind_of_adapter_is_called_by_its_name(tmp_path, model, tuned, kind, make):
    """As the library itself saves it, alone and among plain ones."""
    plain = {f"unet.{key}": value for key, value in get_peft_model_state_dict(tuned.unet).items()}
    for number, state in enumerate((make(), plain | make())):
        path = tmp_path / f"{number}.safetensors"
        save_file({key: value.contiguous() for key, value in state.items()}, path)
        with pytest.raises(BadCheckpoint, match=rf"expected a plain LoRA, got a {kind} \(\d+ keys, the first is "):
            load(path, model)


@pytest.mark.parametrize("name", ["adapter_model.bin", "pytorch_lora_weights.bin"])
def test_a_folder_of_a_lora_with_ranks_and_alphas_of_their_own(tmp_path, model, name):
    """Against peft's own merging; what peft and diffusers wrote before safetensors."""
    pipeline = tiny_pipeline()
    ranks = {"rank_pattern": {"attn1.to_q": 5, "conv1": 2}, "alpha_pattern": {"attn2.to_q": 9.0, "conv1": 1.0}}
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=[*LINEARS, "conv1"], init_lora_weights=False, **ranks)
    torch.manual_seed(7)
    pipeline.unet.add_adapter(config, adapter_name="default")
    state = get_peft_model_state_dict(pipeline.unet)
    assert {len(value) for key, value in state.items() if "lora_A" in key} == {2, RANK, 5}
    if name.startswith("adapter"):
        torch.save(state, tmp_path / name)
        pipeline.unet.peft_config["default"].save_pretrained(tmp_path)
    else:
        # It has no place for settings: alphas stand beside the matrices, as old diffusers' converters left them.
        alphas = {"conv1": 1.0, "attn2.to_q": 9.0}
        for key in [key for key in state if "lora_A" in key]:
            layer = key.removesuffix(".lora_A.weight")
            alpha = next((alpha for end, alpha in alphas.items() if layer.endswith(end)), ALPHA)
            state[f"{layer}.alpha"] = torch.tensor(alpha)
        torch.save({f"unet.{key}": value for key, value in state.items()}, tmp_path / name)
    assert close(load(tmp_path, model), merged(pipeline))


@pytest.mark.parametrize("counted", ["lora_te_", "lora_te1_"])
def test_kohyas_text_encoder_and_convolutions(tmp_path, model, counted):
    """A LoCon with a text encoder as kohya's scripts write it, against diffusers' own merging."""
    random = torch.Generator().manual_seed(8)
    state = {}
    layers = {"unet.conv_in": (3, 3), "unet.down_blocks.0.resnets.0.conv2": (3, 3)}
    layers |= {"unet.down_blocks.0.resnets.0.time_emb_proj": (), "unet.down_blocks.0.attentions.0.proj_in": (1, 1)}
    layers |= {"text_encoder.encoder.layers.1.mlp.fc1": (), "text_encoder.encoder.layers.0.self_attn.out_proj": ()}
    weights = model.weights()
    for layer, window in layers.items():
        out, into = weights[f"{layer}.weight"].shape[:2]
        part, _, bare = layer.partition(".")
        stem = f"lora_unet_{bare}" if part == "unet" else f"{counted}text_model_{bare}"
        stem = stem.replace(".", "_")
        state[f"{stem}.lora_down.weight"] = torch.randn(2, into, *window, generator=random)
        state[f"{stem}.lora_up.weight"] = torch.randn(out, 2, *(1 for _ in window), generator=random)
        state[f"{stem}.alpha"] = torch.tensor(1.0)
    save_file(state, tmp_path / "kohya.safetensors")
    found = difference(load(tmp_path / "kohya.safetensors", model), model)
    assert set(found) == {f"{layer}.weight" for layer in layers}

    theirs = tiny_pipeline()
    theirs.load_lora_weights(load_file(tmp_path / "kohya.safetensors"))
    theirs.fuse_lora()
    for name, weight in found.items():
        part, _, bare = name.partition(".")
        layer = getattr(theirs, part).get_submodule(bare.removesuffix(".weight"))
        assert torch.allclose(weight, layer.base_layer.weight, atol=1e-5), name


def test_a_folder_of_both_a_pipeline_and_a_lora_is_neither(tmp_path, model, tuned):
    tiny_pipeline(tmp_path)
    save_file(get_peft_model_state_dict(tuned.unet), tmp_path / "adapter_model.safetensors")
    with pytest.raises(BadCheckpoint, match="got both: name the LoRA's file"):
        load(tmp_path, model)
    assert difference(load(tmp_path / "adapter_model.safetensors", model), model)


def compvis(state, model):
    """Diffusers' names as CompVis calls them, by the layout of its UNet: one list of blocks down, one up."""
    per_block = model.unet.config.layers_per_block
    inner = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    outer = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    told = {}
    for name, tensor in state.items():
        layer, _, leaf = name.rpartition(".")
        words = layer.split(".")
        if layer in outer:
            new = outer[layer]
        elif words[0] == "mid_block":
            new = f"middle_block.{2 * int(words[2]) if words[1] == 'resnets' else 1}"
            rest = ".".join(words[3:])
            new = f"{new}.{inner[rest]}" if words[1] == "resnets" else f"{new}.{rest}"
        else:
            side, block, what, place, *rest = words
            down = side == "down_blocks"
            each = per_block + 1
            if what == "downsamplers":
                new = f"input_blocks.{1 + int(block) * each + per_block}.0.op"
            elif what == "upsamplers":
                has = any(key.startswith(f"up_blocks.{block}.attentions") for key in state)
                new = f"output_blocks.{int(block) * each + per_block}.{2 if has else 1}.conv"
            else:
                number = (1 if down else 0) + int(block) * each + int(place)
                stem = f"{'input' if down else 'output'}_blocks.{number}"
                rest = ".".join(rest)
                new = f"{stem}.0.{inner[rest]}" if what == "resnets" else f"{stem}.1.{rest}"
        told[f"{new}.{leaf}"] = tensor.clone()
    return told


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_denoiser_in_the_layout_of_compvis(tmp_path, model, prefix):
    theirs = tiny_model(seed=1)
    state = {prefix + key: value for key, value in compvis(theirs.unet.state_dict(), theirs).items()}
    assert len(state) == len(theirs.unet.state_dict())
    torch.save(state, tmp_path / "theirs.pt")
    found = load(tmp_path / "theirs.pt", model).weights()
    for name, weight in theirs.weights(r"unet\..*").items():
        assert torch.equal(found[name], weight), name


def test_what_is_no_whole_denoiser_of_compvis_is_refused(tmp_path, model):
    state = compvis(model.unet.state_dict(), model)
    first = next(key for key in state if key.startswith("output_blocks.0.0.in_layers.2"))
    for mutated, message in (
        (state | {"first_stage_model.x": torch.ones(1)}, "keys of other parts .first_stage_model.x"),
        ({key: value for key, value in state.items() if key != first}, "set partial = true|expected a whole denoiser"),
        (state | {first: torch.ones(2, 2)}, "expected shape"),
        (state | {"input_blocks.0.7.weight": torch.ones(1)}, "have a place"),
    ):
        torch.save(mutated, tmp_path / "x.pt")
        with pytest.raises(BadCheckpoint, match=message):
            load(tmp_path / "x.pt", model)


def test_uce_exported_whole_partly_and_as_lora_is_the_same_model(tmp_path, model):
    """And diffusers opens each, and draws the same pictures."""
    folder = tmp_path / "base"
    model.save(folder)
    common = ["erase", "--concept", "church", "--eraser", "uce", "--base", str(folder)]
    paths = [tmp_path / "whole", tmp_path / "partial.safetensors", tmp_path / "lora.safetensors"]
    for path, flags in zip(paths, ([], [], ["--lora"]), strict=True):
        done = CliRunner().invoke(app, [*common, "--out", str(path), *flags])
        assert done.exit_code == 0, done.output
    whole, partial, lora = (load(path, model, partial="partial" in path.name) for path in paths)
    sampling = Sampling(steps=3, scheduler="ddim")
    attempts = [Attempt(prompt=prompt, seed=1) for prompt in ("a photo of a church", "a red tree")]
    pictures = [[picture.tobytes() for picture in one.draw(attempts, sampling)] for one in (whole, partial, lora)]
    assert pictures[0] == pictures[1] == pictures[2]
    assert pictures[0] != [picture.tobytes() for picture in model.draw(attempts, sampling)]

    expected = Model.load(paths[0]).weights()
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.load_lora_weights(load_file(paths[2]))
    pipeline.fuse_lora()
    for name, weight in pipeline.unet.named_parameters():
        if "lora_" not in name:
            assert torch.allclose(weight, expected[f"unet.{name.replace('.base_layer', '')}"], atol=1e-5), name


def test_what_a_lora_cannot_hold_is_refused(tmp_path, model):
    weights = model.weights()
    with pytest.raises(BadCheckpoint, match="expected changes of layers' weights alone, got unet.conv_in.bias"):
        to_low_rank({"unet.conv_in.bias": weights["unet.conv_in.bias"] + 1}, model)
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    noise = torch.randn(weights[name].shape, generator=torch.Generator().manual_seed(0))
    with pytest.raises(BadCheckpoint, match="expected changes of low rank, got rank 16 of 16"):
        to_low_rank({name: weights[name] + noise}, model)
    done = CliRunner().invoke(
        app, ["erase", "--concept", "church", "--eraser", "uce", "--lora", "--out", str(tmp_path / "folder")]
    )
    assert isinstance(done.exception, BadRun)
