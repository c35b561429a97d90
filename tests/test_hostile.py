"""Ten kinds of hostile model: nothing of them runs, nothing is written, memory and time are bounded, one line says why.

The pickles in each layout of PyTorch, and folders that are merely wrong, are in test_checkpoint.py and test_loading.py.
"""

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from safetensors.torch import load_file, save_file
from transformers import ViTImageProcessor

from forked import MEMORY, command, refused
from palimpsest.assets import judge_folder
from palimpsest.erasers.checkpoint import read_state
from palimpsest.errors import BadModel
from palimpsest.model.screening import LONGEST_HEADER
from tiny import tiny_pipeline

UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
Harm = Callable[[Path], Any]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny pipeline, a judge and a concept, all of them good."""
    home = tmp_path_factory.mktemp("good")
    tiny_pipeline(home / "model")
    shutil.copytree(judge_folder("first"), home / "judge")
    sides = {"height": 64, "width": 64}
    ViTImageProcessor(size=sides, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(home / "judge")
    concept = {"name": "church", "kind": "object", "prompts": ["a photo of a church"]}
    label = {"labels": {"image_classifier": "object/church"}}
    (home / "mine.toml").write_text(tomli_w.dumps(concept | label))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("palimpsest.protocol.shipped_concepts", dict)
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        yield home


@pytest.fixture
def place(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder to be in: model and judge to be harmed, and something beside them that is nobody's business."""
    for name in ("model", "judge"):
        shutil.copytree(good / name, tmp_path / name)
    shutil.copy(good / "mine.toml", tmp_path)
    (tmp_path / "secret").mkdir()
    for file in (UNET, TEXT):
        shutil.copy(good / "model" / file, tmp_path / "secret")
    monkeypatch.chdir(tmp_path)
    return tmp_path


DRAW = ("draw", "a church", "--steps", 1, "--out", "drawn")


def base(place: Path) -> tuple[object, ...]:
    return (*DRAW, "--base", "model")


def eraser(place: Path) -> tuple[object, ...]:
    """Whatever ``theirs`` is, a file or a folder, as a checkpoint for the good model."""
    (path,) = place.glob("theirs*")
    return (*DRAW, "--base", "model", "--weights", path)


def judge(place: Path) -> tuple[object, ...]:
    asked = ("audit", "--base", "model", "--concept", "mine.toml", "--eraser", "nothing", "--attack", "direct")
    asked += ("--judge", "image_classifier:model=judge,top=6,calibration=0")
    return (*asked, "--goals", 1, "--budget", "quick", "--out", "run")


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def config(file: str, **changes: Any) -> Harm:
    return lambda place: change(place / file, lambda content: content.update(changes))


def there(place: Path) -> dict[str, tuple[int, int]]:
    """Everything in the folder and beside it."""
    return {
        str(path): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in place.rglob("*")
        if path.name != "run" and "run" not in path.relative_to(place).parts
    }


class Bomb:
    """A pickle of it makes a folder when it is opened."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("canary",)


# 1, 2, 3: pickles and archives ---------------------------------------------------------------------------------------


def pickle_in(name: str) -> Harm:
    return lambda place: torch.save({"conv_in.weight": Bomb()}, place / name)


def pickle_for_a_judge(place: Path) -> None:
    torch.save(load_file(place / "judge/model.safetensors") | {"x": Bomb()}, place / "judge/pytorch_model.bin")
    (place / "judge/model.safetensors").unlink()


def archive_in_an_archive(place: Path) -> None:
    torch.save({"conv_in.weight": Bomb()}, place / "inner")
    with zipfile.ZipFile(place / "theirs.pt", "w") as outer:
        outer.write("inner", "theirs/data.pkl")
        outer.writestr("theirs/version", "3\n")
    (place / "inner").unlink()


def archive_for_a_tensor(place: Path) -> None:
    torch.save({"conv_in.weight": Bomb()}, place / "inner")
    torch.save(
        {"conv_in.weight": torch.frombuffer(bytearray(Path("inner").read_bytes()), dtype=torch.uint8)}, "theirs.pt"
    )
    (place / "inner").unlink()


def packed(name: str) -> Harm:
    """A real state dict in little space: as much as the disk could never hold, were the zeros some more."""

    def harm(place: Path) -> None:
        torch.save({"conv_in.weight": torch.zeros(2**24)}, place / "whole")
        with (
            zipfile.ZipFile("whole") as whole,
            zipfile.ZipFile(name, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as small,
        ):
            for entry in whole.infolist():
                small.writestr(entry.filename, whole.read(entry))
        (place / "whole").unlink()

    return harm


def overlapping(place: Path) -> None:
    """Ten thousand entries that are the same bytes, none of them packed."""
    with zipfile.ZipFile("theirs.pt", "w") as archive:
        archive.writestr("theirs/data/0", bytes(2**20))
        archive.filelist *= 10_000


# 4: names that lead elsewhere ----------------------------------------------------------------------------------------


def shard(part: str, name: str, file: str) -> Harm:
    def harm(place: Path) -> None:
        names = load_file(place / part / f"{name}.safetensors")
        (place / part / f"{name}.safetensors").unlink()
        index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, file.format(place=place))}
        (place / part / f"{name}.safetensors.index.json").write_text(json.dumps(index))

    return harm


def link(path: str, to: str) -> Harm:
    def harm(place: Path) -> None:
        if (place / path).is_dir():
            shutil.rmtree(place / path)
        (place / path).unlink(missing_ok=True)
        (place / path).parent.mkdir(exist_ok=True)
        (place / path).symlink_to(to.format(place=place))

    return harm


def adapter_elsewhere(place: Path) -> None:
    link("theirs/adapter_model.safetensors", "{place}/secret/model.safetensors")(place)


def adapter_for(part: str) -> Harm:
    """transformers would open the model that it names in the place of this one."""
    told = {"peft_type": "LORA", "base_model_name_or_path": "secret"}
    return lambda place: (place / part / "adapter_config.json").write_text(json.dumps(told))


# 5, 7: what is too large ---------------------------------------------------------------------------------------------


def header(path: str, told: Any, length: int | None = None) -> Harm:
    def harm(place: Path) -> None:
        content = told() if callable(told) else json.dumps(told).encode()
        (place / path).write_bytes((length or len(content)).to_bytes(8, "little") + content)

    return harm


def million() -> bytes:
    one = '"{}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    return ("{" + ",".join(one.format(number) for number in range(10**6)) + "}").encode()


def posing(place: Path) -> None:
    """Four bytes that say they are a matrix of 10^12 numbers."""
    one = torch.zeros(1)
    torch.save(
        {f"unet.mid_block.attentions.0.proj_in.lora_{side}.weight": one.expand(10**6, 10**6) for side in "AB"},
        "theirs.pt",
    )


HUGE = {"F32": [10**6, 10**6], "F16": [10**12]}


# 8, 10, 11: what never ends ------------------------------------------------------------------------------------------


def deep(file: str) -> Harm:
    return lambda place: (place / file).write_text('{"a":' * 10_000 + "1" + "}" * 10_000)


def pipe(file: str) -> Harm:
    """A file that nobody will ever write to."""

    def harm(place: Path) -> None:
        (place / file).parent.mkdir(exist_ok=True)
        (place / file).unlink(missing_ok=True)
        os.mkfifo(place / file)

    return harm


def device(file: str) -> Harm:
    """Zeros without end."""

    def harm(place: Path) -> None:
        (place / file).unlink(missing_ok=True)
        try:
            os.mknod(place / file, 0o600 | 0o020000, os.makedev(1, 5))
        except PermissionError:
            pytest.skip("only root makes devices")

    return harm


def repeated_pattern(place: Path) -> None:
    """A regular expression that takes longer than the universe to fail."""
    (place / "theirs").mkdir()
    layer = "unet.mid_block.attentions.0.proj_in"
    width = load_file(place / "model" / UNET)["mid_block.attentions.0.proj_in.weight"].shape
    sides = {"A": torch.ones(2, *width[1:]), "B": torch.ones(width[0], 2, *width[2:])}
    save_file({f"{layer}.lora_{side}.weight": one for side, one in sides.items()}, "theirs/adapter_model.safetensors")
    (place / "theirs/adapter_config.json").write_text(json.dumps({"alpha_pattern": {"(.|.|.)*x": 1}}))


def template(place: Path) -> None:
    words = "{{ ''.__class__.__mro__[1].__subclasses__() }}{% for x in range(10**9) %}{% endfor %}"
    config("model/tokenizer/tokenizer_config.json", chat_template=words)(place)
    (place / "model/tokenizer/chat_template.jinja").write_text(words)


CASES: dict[str, list[tuple[Callable[[Path], tuple[object, ...]], Harm, str]]] = {
    "a pickle that runs code": [
        (eraser, pickle_in("theirs.ckpt"), "nothing was run"),
        (eraser, pickle_in("theirs.bin"), "nothing was run"),
        (judge, pickle_for_a_judge, "cannot read judge"),
    ],
    "archives in archives": [
        (eraser, archive_in_an_archive, "theirs.pt"),
        (eraser, archive_for_a_tensor, "conv_in.weight (expected shape (16, 4, 3, 3)"),
    ],
    "a packed archive": [
        (eraser, packed("theirs.pt"), "a packed archive of 67,"),
        (eraser, packed("theirs.bin"), "it is not unpacked"),
        (base, packed("model/unet/diffusion_pytorch_model.bin"), "it is not unpacked"),
        (judge, packed("judge/pytorch_model.bin"), "it is not unpacked"),
        (eraser, overlapping, "a packed archive of 10,485,760,000 bytes"),
    ],
    "a name that leads elsewhere": [
        (base, config("model/model_index.json", unet=["../secret", "UNet2DConditionModel"]), "it is not run"),
        (
            base,
            shard("model/unet", "diffusion_pytorch_model", "../../secret/diffusion_pytorch_model.safetensors"),
            "outside",
        ),
        (
            base,
            shard("model/text_encoder", "model", "{place}/secret/model.safetensors"),
            "names weights outside its folder",
        ),
        (judge, shard("judge", "model", "../model/text_encoder/model.safetensors"), "names weights outside its folder"),
        (base, link(f"model/{UNET}", "../../secret/diffusion_pytorch_model.safetensors"), "leads out"),
        (base, link("model/text_encoder", "{place}/secret"), "leads out of the model's folder"),
        (judge, link("judge/model.safetensors", "{place}/secret/model.safetensors"), "leads out of the model's folder"),
        (judge, link("judge/loop", "loop"), "loop"),
        (eraser, adapter_elsewhere, "leads out of the model's folder"),
        (base, config("model/tokenizer/tokenizer_config.json", vocab_file="/etc/passwd"), "names a file outside"),
        (base, adapter_for("model/text_encoder"), "asks for a model elsewhere"),
        (judge, adapter_for("judge"), "asks for a model elsewhere"),
    ],
    "a huge shape": [
        (
            eraser,
            header("theirs.safetensors", {"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}),
            "",
        ),
        (
            eraser,
            header("theirs.safetensors", {"a": {"dtype": "F32", "shape": [10**12, 0], "data_offsets": [0, 0]}}),
            "",
        ),
        (eraser, posing, "dense tensors that lie in the file"),
        (base, config("model/unet/config.json", block_out_channels=[10**6] * 3), "declares a network of"),
        (base, config("model/unet/config.json", layers_per_block=10**5), "of more than 5,000 modules"),
        (base, config("model/unet/config.json", cross_attention_dim=10**12), "expected cross_attention_dim of at most"),
        (base, config("model/unet/config.json", sample_size=10**6), "sample_size"),
        (base, config("model/unet/config.json", sample_size=10**400), "sample_size"),
        (base, config("model/vae/config.json", block_out_channels=[8] * 5000), "vae of"),
        (base, config("model/text_encoder/config.json", vocab_size=10**6), "declares a network of"),
        (base, config("model/text_encoder/config.json", hidden_size=10**6), "declares a network of"),
        (base, config("model/text_encoder/config.json", num_hidden_layers=10**6), "modules"),
        (base, config("model/scheduler/scheduler_config.json", num_train_timesteps=10**12), "num_train_timesteps"),
        (judge, config("judge/config.json", num_labels=10**12), "expected num_labels of at most"),
        (judge, config("judge/config.json", hidden_size=10**6, hidden_sizes=[10**6] * 4), "declares a network of"),
        (judge, config("judge/preprocessor_config.json", size={"height": 10**6, "width": 10**6}), "at most 4,096"),
    ],
    "code of its own": [
        (base, lambda place: (place / "model/pipeline.py").write_text("open('canary', 'w')"), "is code"),
        (judge, lambda place: (place / "judge/modeling.py").write_text("open('canary', 'w')"), "is code"),
        (judge, config("judge/config.json", auto_map={"AutoConfig": "modeling.Mine"}), "auto_map"),
        (base, config("model/text_encoder/config.json", auto_map={"AutoModel": "somebody/else--x.Y"}), "auto_map"),
        (
            base,
            config("model/model_index.json", _class_name=["pipeline", "Mine"]),
            "expected a StableDiffusionPipeline",
        ),
        (base, config("model/model_index.json", unet=["os", "system"]), "it is not run"),
        (base, config("model/model_index.json", vae=[["os"], {"a": 1}]), "it is not run"),
        (judge, config("judge/config.json", model_type="mine"), "mine"),
        (judge, config("judge/config.json", attn_implementation="somebody/kernel"), "asks for code of somebody's"),
        (base, config("model/text_encoder/config.json", quantization_config={"quant_method": "gptq"}), "quantised"),
    ],
    "a million tensors": [
        (eraser, header("theirs.safetensors", million), "expected a header of at most 16,777,216 bytes"),
        (base, header(f"model/{UNET}", million), "expected a header of at most"),
        (judge, header("judge/model.safetensors", lambda: b" " * 10**8), "expected a header of at most"),
        (eraser, header("theirs.safetensors", {}, 2**63), "theirs.safetensors"),
    ],
    "tables without bottom": [
        (base, deep("model/model_index.json"), "model_index.json"),
        (base, deep("model/unet/config.json"), "unet/config.json"),
        (base, deep("model/tokenizer/tokenizer.json"), "tokenizer.json"),
        (judge, deep("judge/config.json"), "judge/config.json"),
    ],
    "an index of itself": [
        (
            base,
            shard("model/unet", "diffusion_pytorch_model", "diffusion_pytorch_model.safetensors.index.json"),
            "its files hold 0 bytes",
        ),
        (base, shard("model/text_encoder", "model", "model.safetensors.index.json"), "its files hold 0 bytes"),
        (judge, shard("judge", "model", "model.safetensors.index.json"), "judge"),
    ],
    "what never ends": [
        (base, pipe(f"model/{UNET}"), "neither a file nor a folder"),
        (base, pipe("model/model_index.json"), "has no model_index.json"),
        (base, pipe("model/scheduler/scheduler_config.json"), "neither a file nor a folder"),
        (base, device("model/text_encoder/config.json"), "neither a file nor a folder"),
        (base, link("model/vae/config.json", "/dev/zero"), "leads out"),
        (judge, pipe("judge/preprocessor_config.json"), "neither a file nor a folder"),
        (eraser, pipe("theirs.safetensors"), "no such file"),
        (eraser, pipe("theirs/adapter_model.safetensors"), "neither a file nor a folder"),
        (eraser, repeated_pattern, "a simple pattern in alpha_pattern"),
    ],
}


@cache
def least() -> int:
    """Bytes of memory of a command that opens no model."""
    return command("list", "erasers").peak


@pytest.mark.parametrize(
    ("asked", "harm", "says"),
    [
        # The first few of each kind are enough while one works on something else.
        pytest.param(*case, id=f"{kind}-{case[0].__name__}-{number}", marks=[pytest.mark.slow] if number > 2 else [])
        for kind, cases in CASES.items()
        for number, case in enumerate(cases)
    ],
)
def test_a_hostile_model_is_refused_in_one_line(place: Path, asked: Callable, harm: Harm, says: str) -> None:
    harm(place)
    arguments, before = asked(place), there(place)
    ended = command(*arguments)
    refused(ended, says)
    assert there(place) == before
    assert not (place / "canary").exists()
    assert ended.peak < MEMORY + least()


@pytest.mark.parametrize("asked", [base, judge])
def test_the_same_without_harm_is_taken(place: Path, asked: Callable) -> None:
    assert command(*asked(place)).code == 0


def test_a_template_is_not_run(place: Path) -> None:
    template(place)
    assert command(*base(place)).code == 0
    assert not (place / "canary").exists()


def test_the_bombs_are_real(place: Path) -> None:
    """What is refused above would work, were it trusted."""
    packed("theirs.pt")(place)
    assert (place / "theirs.pt").stat().st_size < 2**20
    assert torch.load("theirs.pt", weights_only=True)["conv_in.weight"].numel() == 2**24
    assert len(million()) > LONGEST_HEADER
    torch.save({"x": Bomb()}, "bomb.pt")
    torch.load("bomb.pt", weights_only=False)
    assert (place / "canary").exists()
    posing(place)
    assert next(iter(torch.load("theirs.pt", weights_only=True).values())).numel() == 10**12


def test_a_tensor_without_numbers_is_refused(place: Path) -> None:
    for number, tensor in enumerate((torch.eye(3).to_sparse(), torch.ones(3, device="meta"))):
        torch.save({"a": tensor}, f"{number}.pt")
        with pytest.raises(BadModel):
            read_state(Path(f"{number}.pt"))
