"""How many probes and pictures a second, by batch size, precision and attention.

Every setting is measured in turn, round after round, in one process; a ratio is to the plain way: one at a time, fp32,
fused attention.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from palimpsest.model import Model, Precision, Probe, Sampling, default_device, fastest_precision
from palimpsest.model.network import Attention
from palimpsest.records import Attempt

BATCHES = (1, 8, 32)
PROMPT = "a photo of a church"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to run the model."""

    attention: Attention
    precision: Precision
    batch: int


PLAIN_WAY = Setting(attention="sdpa", precision="fp32", batch=1)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Per second, the median of the rounds."""

    probes: float
    pictures: float


def settings(batches: tuple[int, ...]) -> Iterator[Setting]:
    """Every setting, the plain way first; bf16 where the machine has it."""
    precisions = dict.fromkeys(["fp32", fastest_precision(default_device())])
    for batch in batches:
        for attention in ("sdpa", "plain"):
            for precision in precisions:
                yield Setting(attention=attention, precision=precision, batch=batch)


def seconds(work: Callable[[], object]) -> float:
    """How long ``work`` takes."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def probes(model: Model) -> list[Probe]:
    """A batch of questions as UnlearnDiffAtk asks them: forward, and backward to the words."""
    tokens = model.tokens(PROMPT)
    return [
        Probe(
            tokens=tokens,
            latents=model.noise(seed),
            step=(37 * seed) % model.timesteps,
            loss=lambda answer, latents: (answer - 1).square().mean(),
            wrt="words",
        )
        for seed in range(model.batch)
    ]


def measure(models: dict[Attention, Model], steps: int, rounds: int, batches: tuple[int, ...]) -> dict[Setting, Speed]:
    """The speeds of all settings; the first call of each is not counted."""
    sampling = Sampling(steps=steps)
    times: dict[Setting, tuple[list[float], list[float]]] = {setting: ([], []) for setting in settings(batches)}
    for number in range(rounds + 1):
        for setting, (asking, drawing) in times.items():
            model = models[setting.attention]
            model.batch, model.precision = setting.batch, setting.precision
            lot = probes(model)
            attempts = [Attempt(prompt=PROMPT, seed=seed) for seed in range(setting.batch)]
            if number == 0:
                model.ask(lot)
                model.draw(attempts, Sampling(steps=1))
                continue
            asking.append(seconds(lambda model=model, lot=lot: model.ask(lot)))  # type: ignore[misc]
            drawing.append(seconds(lambda model=model, attempts=attempts: model.draw(attempts, sampling)))  # type: ignore[misc]
    return {
        setting: Speed(
            probes=setting.batch / statistics.median(asking), pictures=setting.batch / statistics.median(drawing)
        )
        for setting, (asking, drawing) in times.items()
    }


def table(speeds: dict[Setting, Speed], title: str) -> Table:
    """The speeds, with the best of each kind marked."""
    plain = speeds[PLAIN_WAY]
    best_probes = max(speed.probes for speed in speeds.values())
    best_pictures = max(speed.pictures for speed in speeds.values())
    shown = Table(title=title)
    for name in ("batch", "attention", "precision", "probes/s", "ratio", "pictures/s", "ratio"):
        shown.add_column(name, justify="left" if name in {"attention", "precision"} else "right")
    for setting, speed in speeds.items():
        shown.add_row(
            str(setting.batch),
            setting.attention,
            setting.precision,
            f"{speed.probes:.2f}" + (" best" if speed.probes == best_probes else ""),
            f"{speed.probes / plain.probes:.2f}",
            f"{speed.pictures:.3f}" + (" best" if speed.pictures == best_pictures else ""),
            f"{speed.pictures / plain.pictures:.2f}",
        )
    return shown


def main() -> None:
    """Measures, prints, and with ``--json`` writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="miniature", help="what Model.load opens")
    parser.add_argument("--device", default=None)
    parser.add_argument("--quick", action="store_true", help="one round, three steps per picture, batches of 1 and 8")
    parser.add_argument("--json", type=Path, default=None, help="write the figures here")
    arguments = parser.parse_args()
    steps, rounds, batches = (3, 1, (1, 8)) if arguments.quick else (25, 3, BATCHES)
    models: dict[Attention, Model] = {
        name: Model.load(arguments.model, device=arguments.device, attention=name) for name in ("plain", "sdpa")
    }
    speeds = measure(models, steps, rounds, batches)
    device = models["plain"].device
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    title = f"{arguments.model} on {chip}; a picture is {steps} steps with guidance"
    Console().print(table(speeds, title))
    if arguments.json is not None:
        rows = [asdict(setting) | asdict(speed) for setting, speed in speeds.items()]
        about = {"model": str(arguments.model), "device": chip, "steps": steps, "rounds": rounds}
        versions = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
        arguments.json.write_text(json.dumps(about | versions | {"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
