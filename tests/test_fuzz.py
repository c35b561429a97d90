"""Malformed input of every kind: always one clear line and exit code 2, never a traceback, a hang, or much memory."""

import contextlib
import faulthandler
import io
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from malformed import Draw, as_json, as_toml, harmed, harmed_bytes, harmed_csv, harmed_safetensors, harmed_table
from palimpsest import cli
from palimpsest.attacks import ATTACKS
from palimpsest.erasers import ERASERS
from palimpsest.judges import JUDGES
from palimpsest.model.loading import quiet
from scripted import FISH, Dampen, Hash, Seeds, audit, run
from tiny import tiny_model, tiny_pipeline

SECONDS = 10
"""Of the processor, which no command here may take; most take some milliseconds."""
MEMORY = 2 * 2**30
"""Bytes of address space beyond what the libraries hold."""
CONCEPT = {
    "name": "church",
    "kind": "object",
    "prompts": ["a photo of a church", "a church by the sea"],
    "seeds": [3, 4],
    "guidances": [7.5, 3.0],
    "synonyms": ["chapel"],
    "pairs": [["a church", "a house"]],
    "anchor": "house",
    "neighbours": ["house", "fish"],
    "labels": {"hash": "church"},
}
AUDIT = {
    "name": "small",
    "base": "tiny",
    "concepts": [CONCEPT],
    "erasers": ["nothing", {"name": "esd", "iterations": 1}, "dampen:by=0.5"],
    "attacks": ["direct", {"name": "seeds", "at_once": 2}, "unlearn_diff"],
    "judges": [{"name": "hash", "limit": 0.5}],
    "measures": ["neighbours"],
    "goals": 2,
    "seed": 1,
    "batch": 4,
    "precision": "fp32",
    "keep": "hits",
    "budget": {"looks": 3, "passes": 40},
    "sampling": {"steps": 2, "guidance": 3.0, "scheduler": "ddim"},
}
LIST = "case_number,prompt,evaluation_seed,sd_guidance_scale\n0,a red church,4068807111,7.5\n1,a church at night,12,3\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny model, a run, weights and a list, all of them good; and the folder to be in."""
    home = tmp_path_factory.mktemp("home")
    tiny_pipeline(home / "tiny")
    changed = {name: weight.detach().clone() for name, weight in tiny_model(seed=1).weights(r"unet\..*attn2.*").items()}
    save_file(changed, home / "changed.safetensors", {"format": "pt"})
    low_rank = {
        f"unet.mid_block.attentions.0.proj_in.lora_{side}.weight": changed_ for side, changed_ in _low_rank().items()
    }
    save_file(low_rank, home / "lora.safetensors", {"format": "pt", "lora_adapter_metadata": '{"unet.lora_alpha": 2}'})
    with pytest.MonkeyPatch.context() as patch, quiet():
        patch.setattr("palimpsest.protocol.shipped_concepts", lambda: {"fish": FISH})
        store = run(home / "run", audit(goals=1, erasers=[Dampen()], measures=["neighbours"], keep="all"))
        assert store.readings
        patch.setattr("palimpsest.audit_file.JUDGES", (*JUDGES, Hash))
        patch.setattr("palimpsest.audit_file.ATTACKS", (*ATTACKS, Seeds))
        patch.setattr("palimpsest.audit_file.ERASERS", (*ERASERS, Dampen))
        patch.setattr("palimpsest.forecast.speed", lambda model: 100.0)  # it measures for a second
        patch.chdir(home)
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_VERBOSITY", "TQDM_DISABLE"):
            patch.setenv(name, os.environ.get(name, "1" if name != "TRANSFORMERS_VERBOSITY" else "error"))
        yield home


def _low_rank() -> dict[str, Any]:
    import torch

    weight = tiny_model().weights(r"unet\.mid_block\.attentions\.0\.proj_in\.weight")
    (shape,) = [one.shape for one in weight.values()]
    return {"A": torch.ones(2, *shape[1:]), "B": torch.ones(shape[0], 2, *shape[2:])}


class Hung(BaseException):
    """A command took too long."""


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Whoever takes too long is interrupted, or, where that does not help, shown and ended; memory is short."""

    def stop(*_: object) -> None:
        raise Hung

    timers = {signal.ITIMER_PROF: (signal.SIGPROF, SECONDS), signal.ITIMER_REAL: (signal.SIGALRM, 6 * SECONDS)}
    before, limits = (
        {sign: signal.signal(sign, stop) for sign, _ in timers.values()},
        resource.getrlimit(resource.RLIMIT_AS),
    )
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, limits[1]))
    faulthandler.dump_traceback_later(12 * SECONDS, exit=True, file=sys.__stderr__)
    for timer, (_, seconds) in timers.items():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for timer in timers:
            signal.setitimer(timer, 0)
        faulthandler.cancel_dump_traceback_later()
        resource.setrlimit(resource.RLIMIT_AS, limits)
        for sign, handler in before.items():
            signal.signal(sign, handler)


def outcome(arguments: list[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command; whatever is no ``PalimpsestError`` comes through."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=how) for how in ("strict", "backslashreplace"))
    before, code = sys.argv, 0
    sys.argv = ["palimpsest", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), bounded():
            cli.main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = before
    told = []
    for stream in (out, err):
        stream.flush()
        told.append(stream.buffer.getvalue().decode())
    return code, told[0], told[1]


def link(source: Path, folder: Path) -> None:
    """The same files, without a copy; one that is to be harmed must be unlinked first."""
    shutil.copytree(source, folder, copy_function=os.link, dirs_exist_ok=True)


def instead(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


DRAW = ["draw", "a church", "--steps", "1", "--out", "drawn"]
DRY = ["--base", "tiny", "--dry-run"]


def audits(draw: Draw, folder: Path) -> list[str]:
    instead(folder / "a.toml", harmed(draw, AUDIT, as_toml))
    return ["audit", str(folder / "a.toml"), "--dry-run"]


def names(draw: Draw, folder: Path) -> list[str]:
    """What an audit is called becomes a part of a path."""
    name = draw(
        st.sampled_from(["**", "../../../x", "/", "a/b", "[", "x" * 300, "", "..", "\x00", "~"]) | st.text(max_size=9)
    )
    instead(folder / "a.toml", tomli_w.dumps(AUDIT | {"name": name}).encode())
    return ["audit", str(folder / "a.toml"), "--base", "nowhere"]


def concepts(draw: Draw, folder: Path) -> list[str]:
    instead(folder / "c.toml", harmed(draw, CONCEPT, as_toml))
    return ["audit", "--concept", str(folder / "c.toml"), "--eraser", "uce", "--judge", "hash", *DRY]


def lists(draw: Draw, folder: Path) -> list[str]:
    instead(folder / "c.toml", tomli_w.dumps({"name": "church", "kind": "object", "prompts": "list.csv"}).encode())
    instead(folder / "list.csv", harmed_csv(draw, LIST))
    return ["audit", "--concept", str(folder / "c.toml"), "--eraser", "uce", "--judge", "hash", *DRY]


SPECS = {
    "--eraser": ("esd:lr=1e-5,iterations=2", "uce:lam=0.1", "checkpoint=changed.safetensors", "concept_prune:q=0.1"),
    "--attack": ("unlearn_diff:iterations=3", "random_prefix:k=3", "revive:keep=0.5", "seeds:at_once=2,suffix=' x'"),
    "--judge": (
        "hash:limit=0.5",
        "clip:model=tiny/text_encoder,rivals=[a]",
        "image_classifier:model=tiny,top=1",
        "miniature",
    ),
    "--concept": ("church", "run/audit.toml", "fish"),
    "--base": ("tiny", "miniature", "somebody/model", "run"),
    "--budget": ("quick",),
    "--keep": ("all",),
    "--goals": ("3",),
    "--seed": ("5",),
    "--batch": ("4",),
}


def specs(draw: Draw, folder: Path) -> list[str]:
    given = {"--eraser": "uce", "--judge": "hash", "--concept": "church", "--base": "tiny"}
    option = draw(st.sampled_from(list(SPECS)))
    content = draw(st.sampled_from(SPECS[option])).encode()
    content = harmed_bytes(draw, content, 3) if draw(st.integers(0, 9)) else draw(st.binary(max_size=30))
    given[option] = os.fsdecode(content.replace(b"\0", b"\x01"))  # the system lets no NUL into an argument
    return ["audit", *(word for pair in given.items() for word in (f"{pair[0]}={pair[1]}",)), "--dry-run"]


def drawings(draw: Draw, folder: Path) -> list[str]:
    number = st.sampled_from(
        ["1", "2", "0", "-1", "1001", "10000000", "1" + "0" * 30, "x", "nan", "inf", "1e308", "7.5"]
    )
    options = [f"{one}={draw(number)}" for one in draw(st.lists(st.sampled_from(OPTIONS), max_size=2, unique=True))]
    scheduler = draw(st.sampled_from(["ddim", "pndm", "lms", "euler", "dpmsolver++", "x", ""]))
    prompt = draw(
        st.sampled_from(["", "a church", "\udcff", "x" * 100_000, "\u202e", "<|endoftext|>"]) | st.text(max_size=9)
    )
    prompt = prompt.replace("\0", "")
    return ["draw", "--base=tiny", "--steps=1", "--out=drawn", f"--scheduler={scheduler}", *options, "--", prompt]


OPTIONS = ("--steps", "--guidance", "--seed", "--count")


def weights(draw: Draw, folder: Path) -> list[str]:
    name = draw(st.sampled_from(["changed.safetensors", "lora.safetensors"]))
    instead(folder / name, harmed_safetensors(draw, (folder.parent / name).read_bytes()))
    return [*DRAW, "--base", "tiny", "--weights", str(folder / name)]


def adapters(draw: Draw, folder: Path) -> list[str]:
    """peft's folder: a LoRA and its settings."""
    link_to = folder / "adapter_model.safetensors"
    instead(link_to, (folder.parent / "lora.safetensors").read_bytes())
    told = {
        "lora_alpha": 4,
        "r": 2,
        "use_rslora": False,
        "use_dora": False,
        "alpha_pattern": {"mid_block.attentions.0.proj_in": 3, "x.*y": 2},
        "peft_type": "LORA",
    }
    instead(folder / "adapter_config.json", harmed(draw, told, as_json))
    return [*DRAW, "--base", "tiny", "--weights", str(folder)]


def pipelines(draw: Draw, folder: Path) -> list[str]:
    link(folder.parent / "tiny", folder)
    path = folder / draw(st.sampled_from(PARTS))
    if path.suffix == ".safetensors":
        instead(path, harmed_safetensors(draw, path.read_bytes()))
    else:
        instead(path, harmed(draw, json.loads(path.read_bytes()), as_json))
    return [*DRAW, "--base", str(folder)]


PARTS = (
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/tokenizer.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)


def runs(draw: Draw, folder: Path) -> list[str]:
    link(folder.parent / "run", folder)
    path = folder / draw(
        st.sampled_from(["trials.jsonl", "trials.jsonl", "readings.jsonl", "provenance.json", "audit.toml"])
    )
    content = path.read_bytes()
    if path.suffix == ".json":
        instead(path, harmed(draw, json.loads(content), as_json))
    elif path.suffix == ".jsonl" and draw(st.booleans()):
        lines = content.splitlines()
        at = draw(st.integers(0, len(lines) - 1))
        lines[at] = as_json(harmed_table(draw, json.loads(lines[at])))
        instead(path, b"\n".join(lines) + b"\n")
    else:
        instead(path, harmed_bytes(draw, content))
    table = draw(st.sampled_from(["looks", "cells", "utility"]))
    to = draw(st.sampled_from(["csv", "json", "parquet"]))
    return draw(st.sampled_from([["report"], ["export", "--table", table, "--to", to]])) + [str(folder)]


KINDS = (audits, names, concepts, lists, specs, drawings, weights, adapters, pipelines, runs)
OPENED = {"weights": 20, "adapters": 20, "pipelines": 40}


def search(home: Path, kind: Callable[[Draw, Path], list[str]], examples: int) -> None:
    """Harms so many inputs of a kind, and looks at what the command line makes of each."""

    @settings(
        max_examples=examples,
        derandomize="FUZZ_SEED" not in os.environ,
        database=None,
        deadline=None,
        phases=[Phase.generate] if "FUZZ_SEED" in os.environ else [Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def one(data: st.DataObject) -> None:
        folder = home / "harmed"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        arguments = kind(data.draw, folder)
        code, out, err = outcome(arguments)
        assert code in (0, 2), (arguments, out, err)
        if code == 2:
            told = err.splitlines()
            assert len(told) == 1, (arguments, err)
            assert told[0].startswith("palimpsest: ")
            assert "allocate" not in err and "MemoryError" not in err, err
            assert len(err) < 4000

    one()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_few_malformed_inputs_of_each_kind(home: Path, kind: Callable[[Draw, Path], list[str]]) -> None:
    search(home, kind, 8)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_hundred_and_more_of_each_kind(home: Path, kind: Callable[[Draw, Path], list[str]]) -> None:
    search(home, kind, 150)
