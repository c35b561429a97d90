"""Times the training of erasers beside plain loops, factor by factor: joined branches, attention, batches, bf16.

    python benchmarks/training_speed.py [--quick] [--json FILE]

ESD in both its forms and AdvUnlearn, with the papers' batch of 1 and trajectories of 50 steps, on the miniature. The
plain way is what the authors' code does: one forward per branch, one trajectory after another, torch's own attention.
Every way draws the same random numbers, does the same passes, and comes to the same weights but for rounding, which is
printed (bf16 apart). All ways are run in turn in one process, several times over; the median counts.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from palimpsest.component import build
from palimpsest.concept_file import find_concept
from palimpsest.erasers import ERASERS
from palimpsest.model import Model

NAME, RETAINED, LR = "garbage truck", ("a photo of a house", "a photo of a tree", "a photo of a cat"), 1e-5
STEPS, GUIDANCE = 50, 3.0


class Way(NamedTuple):
    """How a ``Model`` is opened; each has what those before it have."""

    name: str
    attention: str
    batch: int
    precision: str


WAYS = (
    Way("branches in one batch", "sdpa", 1, "fp32"),
    Way("+ attention by plain products", "plain", 1, "fp32"),
    Way("+ trajectories side by side", "plain", 16, "fp32"),
    Way("+ bf16", "plain", 16, "bf16"),
)


class Plain:
    """Plain PyTorch on the miniature's networks."""

    def __init__(self, model: Model) -> None:
        self.model, self.unet, self.encoder = model, copy.deepcopy(model.unet), copy.deepcopy(model.text_encoder)
        self.unet.set_attn_processor(AttnProcessor2_0())
        self.encoder.set_attn_implementation("sdpa")
        self.alphas = model.scheduler.alphas_cumprod
        self.times = [model.timesteps // STEPS * (STEPS - 1 - step) + 1 for step in range(STEPS)]

    def states(self, encoder: Any, *prompts: str) -> Tensor:
        return encoder(torch.stack([self.model.tokens(prompt) for prompt in prompts]))[0]

    def point(self, text: Tensor, random: torch.Generator, unet: Any, *, within: bool) -> tuple[Tensor, Tensor]:
        """x_t by DDIM, one forward per branch and step."""
        reached = int(torch.randint(STEPS, (), generator=random))
        x = torch.randn(len(text), *self.model.latent_shape, generator=random)
        with torch.no_grad():
            null = self.states(self.encoder, "").expand_as(text)
            for time_ in self.times[:reached]:
                given, without = (unet(x, time_, states).sample for states in (text, null))
                noise = without + GUIDANCE * (given - without)
                now, then = self.alphas[time_], self.alphas[max(0, time_ - self.model.timesteps // STEPS)]
                x = then.sqrt() * (x - (1 - now).sqrt() * noise) / now.sqrt() + (1 - then).sqrt() * noise
        if not within:
            return x, torch.full((len(text),), self.times[reached])
        low = self.model.timesteps // STEPS * (STEPS - 1 - reached)
        return x, torch.randint(low, low + self.model.timesteps // STEPS, (len(text),), generator=random)

    def esd(self, random: torch.Generator, iterations: int, form: str) -> Tensor:
        student = copy.deepcopy(self.unet).requires_grad_(False)
        mine = [weight.requires_grad_() for name, weight in student.named_parameters() if ".attn2." in name]
        adam = torch.optim.Adam(mine, lr=LR)
        with torch.no_grad():
            text, null = self.states(self.encoder, NAME), self.states(self.encoder, "")
        for _ in range(iterations):
            torch.randint(1, (), generator=random)
            x, t = self.point(text, random, student if form == "2023" else self.unet, within=form == "2023")
            with torch.no_grad():
                given, without = self.unet(x, t, text).sample, self.unet(x, t, null).sample
            start, eta = (without, 1.0) if form == "2023" else (given, 2.0)
            loss = functional.mse_loss(student(x, t, text).sample, start - eta * (given - without))
            adam.zero_grad()
            loss.backward()
            adam.step()
        return torch.cat([weight.detach().flatten() for weight in mine])

    def advunlearn(self, random: torch.Generator, iterations: int, attack_steps: int) -> Tensor:
        student = copy.deepcopy(self.encoder).requires_grad_()
        adam = torch.optim.Adam(student.parameters(), lr=LR)
        with torch.no_grad():
            text, null = self.states(self.encoder, NAME), self.states(self.encoder, "")
        for _ in range(iterations):
            torch.randint(1, (), generator=random)
            asked = self.prefixed(student, self.attacked(student, text, random, attack_steps))
            kept = [RETAINED[place] for place in torch.randperm(len(RETAINED), generator=random)]
            with torch.no_grad():
                held = [self.states(self.encoder, prompt) for prompt in kept]
            x, t = self.point(torch.cat([text, *held]), random, self.unet, within=True)
            with torch.no_grad():
                given, without = (self.unet(x[:1], t[:1], states).sample for states in (text, null))
                before = self.unet(x[1:], t[1:], torch.cat(held)).sample
            loss = functional.mse_loss(self.unet(x[:1], t[:1], asked).sample, without - (given - without))
            now = torch.cat([self.states(student, prompt) for prompt in kept])
            loss = loss + 0.3 * functional.mse_loss(self.unet(x[1:], t[1:], now).sample, before)
            adam.zero_grad()
            torch.autograd.backward(loss, inputs=list(student.parameters()))
            adam.step()
        return torch.cat([weight.detach().flatten() for weight in student.parameters()])

    def attacked(self, student: Any, text: Tensor, random: torch.Generator, steps: int) -> Tensor:
        table = self.model.vocabulary
        word = table[torch.randint(len(table), (1,), generator=random)].detach().clone().requires_grad_()
        adam = torch.optim.Adam([word], lr=1e-3)
        for _ in range(steps):
            x, t = self.point(text, random, self.unet, within=True)
            with torch.no_grad():
                wanted = self.unet(x, t, text).sample
            loss = functional.mse_loss(self.unet(x, t, self.prefixed(student, word)).sample, wanted)
            (word.grad,) = torch.autograd.grad(loss, word)
            adam.step()
        return word.detach()

    def prefixed(self, encoder: Any, word: Tensor) -> Tensor:
        """States of the word, then the name: what the table says of a filler is exchanged."""
        ids = self.model.tokens(NAME)
        ids = torch.cat([ids[:2], ids[1:-1]])[None]

        def exchanged(module: Any, given: Any, out: Tensor) -> Tensor:
            return torch.cat([out[:, :1], word[None], out[:, 2:]], dim=1)

        hook = encoder.get_input_embeddings().register_forward_hook(exchanged)
        try:
            states: Tensor = encoder(ids)[0]
            return states
        finally:
            hook.remove()


class Trained(NamedTuple):
    """One eraser, trained the plain way and by the package."""

    plain: Callable[[Plain, torch.Generator], Tensor]
    spec: dict[str, Any]
    weights: str
    iterations: int


def erasers(quick: bool) -> dict[str, Trained]:
    """Erasers whose loops are timed, with how many iterations of each."""
    n, attack_steps = (2, 3) if quick else (4, 10)
    esd = {"name": "esd", "iterations": n, "lr": LR}
    adversarial = {"name": "advunlearn", "iterations": 1, "warm_up": 0, "attack_steps": attack_steps, "lr": LR}
    retained = {"retain": RETAINED, "retain_batch": len(RETAINED)}
    cross = r"unet\..*\.attn2\..*"
    return {
        "esd": Trained(lambda plain, random: plain.esd(random, n, "2023"), esd | {"form": "2023"}, cross, n),
        "esd, 2024": Trained(lambda plain, random: plain.esd(random, n, "2024"), esd | {"form": "2024"}, cross, n),
        "advunlearn": Trained(
            lambda plain, random: plain.advunlearn(random, 1, attack_steps),
            adversarial | retained,
            r"text_encoder\..*",
            1,
        ),
    }


def timed(make: Callable[[], Tensor]) -> tuple[float, Tensor]:
    began = time.perf_counter()
    made = make()
    return time.perf_counter() - began, made


def measured(trained: Trained, models: dict[str, Model], rounds: int) -> list[dict[str, Any]]:
    """A row for each way, the plain one first."""
    concept, plain = find_concept(NAME), Plain(next(iter(models.values())))
    eraser = build("eraser", ERASERS, trained.spec)

    def ours(model: Model) -> Tensor:
        found = eraser.erase(model, [concept], random=torch.Generator().manual_seed(0))
        return torch.cat([weight.detach().flatten() for weight in found.weights(trained.weights).values()])

    ways: dict[str, Callable[[], Tensor]] = {"plain": lambda: trained.plain(plain, torch.Generator().manual_seed(0))}
    ways |= {name: lambda model=model: ours(model) for name, model in models.items()}  # type: ignore[misc]
    runs = [{name: timed(make) for name, make in ways.items()} for _ in range(rounds)]
    seconds = {name: statistics.median(run[name][0] for run in runs) / trained.iterations for name in ways}
    before = torch.cat([weight.detach().flatten() for weight in plain.model.weights(trained.weights).values()])
    reference = runs[0]["plain"][1]
    moved = float((reference - before).norm())
    return [
        {
            "way": name,
            "seconds": seconds[name],
            "ratio": seconds["plain"] / seconds[name],
            "deviation": float((runs[0][name][1] - reference).norm()) / moved,
        }
        for name in ways
    ]


def main() -> None:
    """Times, prints, and with ``--json`` writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few iterations, once; no result")
    parser.add_argument("--json", type=Path, default=None, help="write the figures here")
    arguments = parser.parse_args()
    models = {
        way.name: Model.load("miniature", attention=way.attention, batch=way.batch, precision=way.precision)
        for way in WAYS
    }
    table = Table(title=f"Training, torch {torch.__version__}, {torch.get_num_threads()} threads")
    for heading in ("eraser", "way", "iterations/s", "ratio", "deviation"):
        table.add_column(heading, justify="left" if heading in ("eraser", "way") else "right")
    found = {}
    for name, trained in erasers(arguments.quick).items():
        found[name] = measured(trained, models, rounds=1 if arguments.quick else 3)
        for row in found[name]:
            first = row["way"] == "plain"
            figures = (f"{1 / row['seconds']:.3g}", f"{row['ratio']:.2f}", f"{row['deviation']:.1e}")
            table.add_row(name if first else "", row["way"], *figures)
    Console(width=110).print(table)
    if arguments.json is not None:
        ratio = {name: rows[-2]["ratio"] for name, rows in found.items()}
        arguments.json.write_text(json.dumps({"ratio": ratio, "rows": found}, indent=1))


if __name__ == "__main__":
    main()
