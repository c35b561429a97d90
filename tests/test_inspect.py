"""What a checkpoint's weights betray: told where it is so, and not told where it is not."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.concept_file import shipped_concepts
from palimpsest.erasers import ConceptPrune, Esd, Nothing, Uce
from palimpsest.erasing import SHIPPED, stream
from palimpsest.errors import BadCheckpoint, BadModel, BadRun, BadSetting
from palimpsest.inspection import inspect, open_weights
from palimpsest.inspection.kinds import kind_of
from palimpsest.inspection.words import lines
from palimpsest.inspection.zeros import find_zeros, is_rounded, natural, small_left
from palimpsest.model import Model
from tiny import tiny_model, tiny_pipeline

LINEARS = r"unet\..*\.ff\.net\.2\.weight"
CHURCH = shipped_concepts()["church"]


@pytest.fixture(scope="module")
def miniature():
    return Model.load("miniature", device="cpu")


@pytest.fixture(scope="module")
def base():
    return tiny_model()


@pytest.fixture(scope="module")
def pruned(miniature):
    """The miniature without the church, by ConceptPrune looking at two steps of ten."""
    return ConceptPrune(tau=2, steps=10).erase(miniature, [CHURCH], random=stream(0))


def told(inspection):
    return "\n".join(lines(inspection, model="M", base="B"))


def masked(model, pruned, choose):
    """The model with as many zeros in each matrix as ``pruned`` has, where ``choose(weight, count)`` says."""
    changed = {}
    for name, weight in pruned.weights(LINEARS).items():
        count = int((weight == 0).sum())
        old = model.weights()[name].detach()
        changed[name] = old.flatten().index_fill(0, choose(old, count), 0.0).reshape(old.shape) if count else old
    return model.with_weights(changed)


def at_random(weight, count):
    return torch.randperm(weight.numel(), generator=torch.Generator().manual_seed(count))[:count]


def smallest(weight, count):
    return weight.abs().flatten().topk(count, largest=False).indices


def test_a_clean_model_has_no_finding(miniature):
    found = inspect(miniature)
    assert found.pattern.verdict == "none" and found.difference is None
    assert not any(one.beyond for one in found.zeros)
    # The miniature is kept in half precision, and has the zeros that this brings.
    assert 0 < sum(one.zeros for one in found.zeros) < 2 * sum(one.expected for one in found.zeros)
    assert "no zeros beyond chance" in told(found)


@pytest.mark.parametrize(("dtype", "grid"), [(torch.float16, "fp16"), (torch.bfloat16, "bf16")])
def test_natural_zeros_are_no_finding(dtype, grid):
    random = torch.Generator().manual_seed(0)
    weights = {f"unet.l{n}.weight": 0.03 * torch.randn(64, 64, generator=random) for n in range(9)}
    tiny = 2e-7 * torch.randn(300, 300, generator=random)
    tiny[:40] *= 0.2  # rows of which most is rounded away
    weights["unet.tiny.weight"] = tiny
    weights = {name: weight.to(dtype) for name, weight in weights.items()}
    *_, one = find_zeros(weights)
    assert one.grid == grid and not one.beyond
    if grid == "fp16":
        assert one.zeros > 5000 and 0.5 < one.expected / one.zeros < 2
    # The same zeros in single precision are no rounding.
    fine = torch.where(weights["unet.tiny.weight"] == 0, 0.0, tiny)
    *_, one = find_zeros(weights | {"unet.tiny.weight": fine})
    assert one.beyond or not one.zeros


def test_half_precision_without_its_smallest_numbers_is_no_pruning():
    random = torch.Generator().manual_seed(0)
    matrix = (0.02 * torch.randn(300, 300, generator=random)).half().float()
    flushed = torch.where(matrix.abs() < 2.0**-14, 0.0, matrix)
    zeros = int((flushed == 0).sum())
    assert zeros > 100 and 0.7 < natural(flushed, "fp16") / zeros < 1.4
    (one,) = find_zeros({"unet.a.weight": flushed})
    assert not one.beyond
    (one,) = find_zeros({"unet.a.weight": torch.where(matrix.abs() < 2.0**-12, 0.0, matrix)})
    assert one.beyond


def test_rounding_to_few_levels_is_not_told(base):
    random = torch.Generator().manual_seed(0)
    matrix = 0.03 * torch.randn(32, 640, generator=random)
    scale = matrix.abs().amax(1, keepdim=True) / 127
    blocks = matrix.reshape(-1, 64)
    four = (blocks / blocks.abs().amax(1, keepdim=True) * 7).round() * blocks.abs().amax(1, keepdim=True) / 7
    for rounded in ((matrix / scale).round() * scale, four.reshape(matrix.shape)):
        (one,) = find_zeros({"unet.a.weight": rounded})
        assert one.zeros > 100 and not one.tested and not one.beyond
    for dtype, grid in ((torch.float32, "fp32"), (torch.float16, "fp16"), (torch.bfloat16, "bf16")):
        assert not is_rounded(matrix.to(dtype).float(), grid)


def test_concept_prune_is_named_a_concept_mask(miniature, pruned):
    found = inspect(pruned)
    assert found.pattern.verdict == "concept mask"
    places = {name for name, weight in pruned.weights(LINEARS).items() if (weight == 0).sum() > 5}
    assert {one.name for one in found.zeros if one.beyond} == places
    assert list(found.pattern.kinds) == ["feed-forward, second linear"]
    assert "a concept mask" in told(found) and "--attack revive" in told(found)


@pytest.mark.parametrize(("choose", "verdict"), [(at_random, "random"), (smallest, "magnitude")])
def test_pruning_of_the_same_share_by_another_rule_is_named_as_such(miniature, pruned, choose, verdict):
    found = inspect(masked(miniature, pruned, choose))
    assert found.pattern.verdict == verdict
    assert found.pattern.zeros == pytest.approx(inspect(pruned).pattern.zeros, rel=0.05)
    assert "revive" not in told(found)


def test_the_same_columns_without_regard_to_size_are_no_concept_mask(miniature, pruned):
    random = torch.Generator().manual_seed(0)
    changed = {}
    for name, weight in pruned.weights(LINEARS).items():
        order = torch.rand(weight.shape, generator=random).argsort(0)
        changed[name] = miniature.weights()[name] * ~torch.gather(weight == 0, 0, order)
    pattern = inspect(miniature.with_weights(changed)).pattern
    assert pattern.in_columns and pattern.verdict == "unclear"


def test_whole_rows_are_structured_pruning(miniature):
    name, weight = next(iter(miniature.weights(LINEARS).items()))
    gone = weight.detach().clone()
    gone[:, 5:9] = 0
    gone[7] = 0
    found = inspect(miniature.with_weights({name: gone}))
    (one,) = [one for one in found.zeros if one.beyond]
    assert found.pattern.verdict == "structured"
    assert (one.places.whole_rows, one.places.whole_columns) == (1, 4)


def test_a_few_zeros_are_no_pattern(miniature):
    name, weight = next(iter(miniature.weights(LINEARS).items()))
    gone = weight.detach().clone()
    gone.view(-1)[:: gone.numel() // 10] = 0
    assert inspect(miniature.with_weights({name: gone})).pattern.verdict == "few"


def test_small_survivors_by_hand():
    sizes = torch.arange(1, 1001) / 1000
    assert small_left(sizes, 100) == pytest.approx((100, 100), abs=2)
    assert small_left(sizes[100:], 100) == pytest.approx((0, 100), abs=2)


def test_the_base_against_itself(miniature):
    found = inspect(miniature, miniature)
    assert found.difference.verdict == "nothing" and "nothing changed" in told(found)
    # Nor is a copy in half precision a change.
    half = {name: weight.half() for name, weight in miniature.weights().items()}
    assert inspect(half, miniature).difference.verdict == "nothing"
    assert inspect(miniature, half).difference.verdict == "nothing"


def test_pruning_is_told_against_the_base(miniature, pruned):
    found = inspect(pruned, miniature).difference
    assert found.verdict == "pruning" and found.zeroed == 1
    assert [one.kind for one in found.kinds if one.touched] == ["feed-forward, second linear"]


def test_uce_is_a_closed_form(miniature):
    erased = Uce().erase(miniature, [CHURCH, shipped_concepts()["fish"]], random=stream(0))
    found = inspect(erased, miniature)
    assert found.difference.verdict == "closed form" and found.difference.rank == 2
    assert found.difference.shared_rows > 0.99
    assert {change.kind for change in found.changes if change.changed} == {"cross-attention K/V"}


def test_the_shipped_esd_is_cross_attention(miniature):
    (file,) = SHIPPED.glob("esd-church-*.safetensors")
    found = inspect(miniature.with_weights(load_file(file)), miniature)
    assert found.difference.verdict == "cross-attention" and found.pattern.verdict == "none"
    (shared,) = [one for one in found.difference.kinds if one.kind == "cross-attention K/V"]
    assert shared.touched == shared.weights == 14 and 0.01 < shared.relative < 0.2


@pytest.mark.parametrize(
    ("variant", "verdict"),
    [("x-strict", "keys and values"), ("u", "all but cross-attention"), ("self", "self-attention")],
)
def test_esds_variants_by_their_places(base, variant, verdict):
    concept = replace(CHURCH, pairs=())
    erased = Esd(variant=variant, iterations=3, lr=1e-3).erase(base, [concept], random=stream(0))
    found = inspect(erased, base).difference
    low = verdict == "keys and values" and found.low_rank  # three steps of three prompts' tokens
    assert found.verdict == verdict or (low and found.same_rank >= 0.9)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("pattern", [r"unet\..*attn\d\.to_[qkv]\.weight", r"unet\..*attn2\.to_[kv]\.weight"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_rank_of_a_lora_is_found(base, rank, pattern, dtype):
    random = torch.Generator().manual_seed(0)
    changed = {}
    for name, weight in base.weights(pattern).items():
        out, into = weight.shape
        product = torch.randn(out, rank, generator=random) @ torch.randn(rank, into, generator=random)
        changed[name] = weight + 0.1 * weight.norm() / product.norm() * product
    cast = {name: weight.to(dtype) for name, weight in base.weights().items()}
    found = inspect(cast | {name: weight.to(dtype) for name, weight in changed.items()}, cast).difference
    assert found.verdict == "low rank" and found.rank == rank and found.same_rank == 1


def test_the_text_encoder_alone(base):
    random = torch.Generator().manual_seed(0)
    changed = {
        name: weight + 0.01 * torch.randn(weight.shape, generator=random)
        for name, weight in base.weights(r"text_encoder\..*").items()
    }
    found = inspect(base.with_weights(changed), base)
    assert found.difference.verdict == "text encoder" and "the denoiser is the base's" in told(found)


def test_a_mask_filled_with_noise_is_seen_against_the_base_alone(miniature, pruned):
    random = torch.Generator().manual_seed(0)
    filled = {
        name: torch.where(weight == 0, 0.01 * torch.randn(weight.shape, generator=random), weight)
        for name, weight in pruned.weights(LINEARS).items()
    }
    found = inspect(miniature.with_weights(filled), miniature)
    assert found.pattern.verdict == "none"
    assert found.difference.verdict == "replaced"


def test_kinds_go_by_structure():
    block = "unet.down_blocks.0.attentions.0.transformer_blocks.0"
    for name, dimensions, kind in (
        (f"{block}.attn2.to_k.weight", 2, "cross-attention K/V"),
        (f"{block}.attn2.to_out.0.bias", 1, "cross-attention Q/out"),
        (f"{block}.attn1.to_q.weight", 2, "self-attention"),
        (f"{block}.ff.net.0.proj.weight", 2, "feed-forward, first linear"),
        (f"{block}.ff.net.2.weight", 2, "feed-forward, second linear"),
        (f"{block}.norm2.weight", 1, "norms"),
        ("unet.input_blocks.1.1.transformer_blocks.0.attn2.to_v.weight", 2, "cross-attention K/V"),
        ("unet.conv_in.weight", 4, "convolutions"),
        ("unet.down_blocks.0.resnets.0.conv1.bias", 1, "convolutions"),
        ("unet.time_embedding.linear_1.weight", 2, "time embeddings"),
        ("text_encoder.text_model.embeddings.token_embedding.weight", 2, "text embeddings"),
        ("text_encoder.text_model.encoder.layers.0.mlp.fc2.weight", 2, "text encoder"),
    ):
        assert kind_of(name, dimensions) == kind, name


# Files, and the command -----------------------------------------------------------------------------------------------


def call(*arguments):
    return CliRunner().invoke(app, ["inspect", *(str(argument) for argument in arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("base")
    tiny_pipeline(path)
    return path


def test_a_bare_state_dict_needs_no_base(base, tmp_path):
    unet = {name: weight.clone() for name, weight in base.unet.named_parameters()}
    save_file(unet, tmp_path / "unet.safetensors")
    weights, none = open_weights(str(tmp_path / "unet.safetensors"))
    assert none is None and set(weights) == {f"unet.{name}" for name in unet}
    torch.save(base.text_encoder.state_dict(), tmp_path / "text.pt")
    weights, _ = open_weights(str(tmp_path / "text.pt"))
    assert set(weights) == set(base.weights(r"text_encoder\..*"))


def test_a_folder_of_one_network_needs_no_base(base, folder):
    weights, none = open_weights(str(folder / "unet"))
    assert none is None and set(weights) == set(base.weights(r"unet\..*"))
    weights, original = open_weights(str(folder / "text_encoder"), str(folder))
    assert set(weights) == set(original) == set(base.weights())


def test_a_part_or_a_lora_needs_a_base(base, folder, tmp_path):
    name, weight = next(iter(base.weights(LINEARS).items()))
    save_file({name: weight.detach() * 0.5}, tmp_path / "part.safetensors")
    low = {"lora_A": torch.ones(2, weight.shape[1]), "lora_B": torch.ones(weight.shape[0], 2) / 100}
    save_file(
        {f"{name.removesuffix('.weight')}.{side}.weight": value for side, value in low.items()},
        tmp_path / "lora.safetensors",
    )
    for file, message in (("part", "no whole denoiser or text encoder"), ("lora", "a LoRA holds differences")):
        with pytest.raises(BadSetting, match=message):
            open_weights(str(tmp_path / f"{file}.safetensors"))
        weights, old = open_weights(str(tmp_path / f"{file}.safetensors"), str(folder))
        assert [key for key in old if not torch.equal(weights[key], old[key])] == [name]


def test_numbers_that_are_none_are_refused(base, tmp_path):
    unet = {name: weight.clone() for name, weight in base.unet.named_parameters()}
    unet["conv_in.bias"][0] = torch.nan
    save_file(unet, tmp_path / "unet.safetensors")
    with pytest.raises(BadCheckpoint, match=r"NaN or infinite values in unet\.conv_in\.bias"):
        open_weights(str(tmp_path / "unet.safetensors"))


def test_a_base_of_another_architecture_is_named(folder):
    with pytest.raises(BadModel, match=r"other shapes: unet\.\S+ \(expected \(\d.*\), got \("):
        inspect(Model.load(folder, device="cpu"), tiny_model(sd2=True))
    done = call(folder, "--base", "miniature")
    assert isinstance(done.exception, BadModel) and "other shapes: unet.conv_in.weight (expected" in str(done.exception)


def test_the_command_tells_writes_and_draws(folder, tmp_path):
    model = Model.load(folder, device="cpu")
    name, weight = next(iter(model.weights(LINEARS).items()))
    gone = weight.detach().clone()
    gone[torch.rand(gone.shape, generator=torch.Generator().manual_seed(0)) < 0.2] = 0
    save_file({name: gone}, tmp_path / "part.safetensors")
    picture = tmp_path / "plot.png"
    done = call(tmp_path / "part.safetensors", "--base", folder, "--plot", picture)
    assert done.exit_code == 0, done.output
    assert name in done.output and "pruning: what changed is zero now" in done.output
    assert len(done.output.splitlines()) <= 40
    assert picture.read_bytes().startswith(b"\x89PNG")
    done = call(tmp_path / "part.safetensors", "--base", folder, "--json")
    found = json.loads(done.output)
    assert (found["schema"], found["pattern"]["verdict"], found["difference"]["verdict"]) == (1, "random", "pruning")
    documented = Path(__file__).parent.parent.joinpath("docs", "inspect.md").read_text(encoding="utf-8")
    for record in (found, found["pattern"], found["difference"], found["zeros"][0], found["changes"][0]):
        for field in record:
            assert f"`{field}`" in documented, field


def test_the_plot_is_refused_before_anything_is_computed(folder, tmp_path, monkeypatch):
    (tmp_path / "there.png").write_bytes(b"")
    assert isinstance(call(folder, "--plot", tmp_path / "there.png").exception, BadRun)
    assert isinstance(call(folder, "--plot", tmp_path / "plot.pdf").exception, BadSetting)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    done = call(folder, "--plot", tmp_path / "new.png")
    assert "pip install 'palimpsest[plots]'" in str(done.exception)


def test_nothing_erased_is_nothing_changed(base):
    assert inspect(Nothing().erase(base, [CHURCH], random=stream(0)), base).difference.verdict == "nothing"
